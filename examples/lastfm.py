"""
The Last.fm data of HetRec 2011 from end to end: which artist does a user tag next?

    python examples/lastfm.py                                      # downloaded once from GroupLens
    python examples/lastfm.py --data hetrec2011-lastfm-2k.zip      # or from a file or folder
    python examples/lastfm.py --help

The steps are those of recommendation.py, which all examples share: order and split by time, so that the results are not
those of the published records, whose lists tell their targets (docs/recipes.md). Times here are months: most events of a
user share one, and stand in the order of artist ids within it.
"""

from dataclasses import dataclass, field

from recommendation import RecommendationArguments, Source, main, parse

from trl_sdpo.recsys import Interactions, load_source


def load_tags(data: str | None) -> Interactions:
    """Who tagged which artist when."""
    return load_source("lastfm", data)


# Artists with few users have no history to learn from: as in the published records, at least 4, here until all have them.
LASTFM = Source("lastfm", "Last.fm (HetRec 2011)", load_tags, domain="music", min_interactions=4)


@dataclass
class LastFMArguments(RecommendationArguments):
    """Flags of the example, see [`RecommendationArguments`]."""

    data: str | None = field(
        default=None, metadata={"help": "Folder or zip of hetrec2011-lastfm-2k. Default: downloaded once and cached."}
    )
    output_dir: str = field(default="outputs/lastfm", metadata={"help": "Where results and models go."})


if __name__ == "__main__":
    main(parse(LastFMArguments), LASTFM)
