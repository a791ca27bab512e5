"""
A genre of Goodreads (UCSD Book Graph) from end to end: which book does a user read next?

    python examples/goodreads.py                                       # poetry, downloaded once from UCSD
    python examples/goodreads.py --genre comics_graphic
    python examples/goodreads.py --data folder/of/the/two/json.gz      # goodreads_interactions_*, goodreads_books_*
    python examples/goodreads.py --help

The steps are those of recommendation.py, which all examples share.
"""

from dataclasses import dataclass, field
from functools import partial

from recommendation import RecommendationArguments, Source, main, parse

from trl_sdpo.recsys import Interactions, load_source


def load_genre(data: str | None, genre: str) -> Interactions:
    """Who read which book of the genre when: by the day of reading, else by that of the last change to the shelf."""
    return load_source(f"goodreads-{genre}", data)


def goodreads(genre: str) -> Source:
    """The source of a genre. As in the S-DPO paper, users and books have at least 20 events."""
    title = f"Goodreads, {genre.replace('_', ' ')}"
    return Source(f"goodreads-{genre}", title, partial(load_genre, genre=genre), domain="books", min_interactions=20)


@dataclass
class GoodreadsArguments(RecommendationArguments):
    """Flags of the example, see [`RecommendationArguments`]."""

    genre: str = field(default="poetry", metadata={"help": "Genre, as in the names of the files."})
    data: str | None = field(
        default=None, metadata={"help": "Folder of the two files of the genre. Default: downloaded once and cached."}
    )
    output_dir: str = field(default="outputs/goodreads", metadata={"help": "Where results and models go."})


if __name__ == "__main__":
    flags = parse(GoodreadsArguments)
    main(flags, goodreads(flags.genre))
