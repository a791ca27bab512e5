"""Data sets by name: who publishes them, under which terms, and which loader reads them."""

from pathlib import Path

from .goodreads import load_goodreads
from .interactions import Interactions
from .lastfm import load_lastfm
from .movielens import load_movielens
from .recbole import load_recbole


GOODREADS_GENRES = (
    *("children", "comics_graphic", "fantasy_paranormal", "history_biography"),
    *("mystery_thriller_crime", "poetry", "romance", "young_adult"),
)
# Loaders of files that the user has; data sets that are downloaded by name come from the same loaders.
_LOADERS = {
    **dict.fromkeys(
        (
            "movielens",
            *(
                f"movielens-{release}"
                for release in ("100k", "1m", "10m", "20m", "25m", "32m", "latest", "latest-small")
            ),
        ),
        load_movielens,
    ),
    **dict.fromkeys(
        ("goodreads", "goodreads-csv", *(f"goodreads-{genre}" for genre in GOODREADS_GENRES)), load_goodreads
    ),
    "lastfm": load_lastfm,
    "recbole": load_recbole,
}


def load_source(source: str, path: str | Path | None = None, **options) -> Interactions:
    """
    Read a data set by its name, from a local path or from its publisher.

    Args:
        source (`str`):
            One of

            - `movielens-100k`, `-1m`, `-10m`, `-20m`, `-25m`, `-32m`, `-latest`, `-latest-small`; `movielens` for any
              release at `path`: [`load_movielens`];
            - `goodreads-GENRE` (a genre of the UCSD Book Graph: `children`, `comics_graphic`, `fantasy_paranormal`,
              `history_biography`, `mystery_thriller_crime`, `poetry`, `romance`, `young_adult`), `goodreads` for the
              whole, `goodreads-csv` for the whole without times: [`load_goodreads`];
            - `lastfm` (HetRec 2011): [`load_lastfm`];
            - `recbole`, with a `path`: [`load_recbole`].
        path (`str` or `Path`, *optional*):
            The files, as the loader takes them. By default they are downloaded once and cached.
        **options:
            Passed to the loader.

    Returns:
        [`Interactions`]: What the loader returns.

    Raises:
        ValueError: there is no such source, or it cannot be downloaded and there is no `path`.
    """
    if source not in _LOADERS:
        raise ValueError(f"source {source!r} is not known. Pass one of {', '.join(_LOADERS)}.")
    if path is None:
        raise ValueError(f"source {source!r} has no file of its own to download. Pass the path of yours.")
    return _LOADERS[source](path, **options)
