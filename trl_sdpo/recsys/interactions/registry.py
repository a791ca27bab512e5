"""One entry to all loaders: data sets by name."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .interactions import Interactions
from .movielens_100k import load_movielens_100k
from .published import SOURCES, fetch_source, find_source, show_terms
from .sources.goodreads import load_goodreads, stream_goodreads
from .streams import EventStream


def load_source(source: str, path: str | Path | None = None, **options) -> Interactions:
    """
    Read a data set by its name, from a local path or from its publisher.

    A download goes to the cache ([`download.cache_dir`]), goes on where it broke off, is checked and, from a zip
    archive, unpacked. What the publisher asks of those who use the data is logged, once in a process.

    Args:
        source (`str`):
            One of

            - `movielens-100k`, `-1m`, `-10m`, `-20m`, `-25m`, `-32m`, `-latest`, `-latest-small`; `movielens` for any
              release at `path`: [`load_movielens`]. Where GroupLens cannot be reached, `movielens-100k` comes from a
              PyPI wheel;
            - `goodreads-GENRE` (a genre of the UCSD Book Graph: `children`, `comics_graphic`, `fantasy_paranormal`,
              `history_biography`, `mystery_thriller_crime`, `poetry`, `romance`, `young_adult`), `goodreads` for the
              whole (11 GB), `goodreads-csv` for the whole without times (4 GB): [`load_goodreads`];
            - `goodbooks-10k`: [`load_goodbooks`];
            - `lastfm` or `lastfm-hetrec2011`: [`load_lastfm`];
            - `lastfm-1k`, with a `path`: [`load_lastfm_1k`];
            - `amazon-CATEGORY` (Amazon Reviews 2023, the categories as their files are called, such as `Video_Games`),
              `amazon` for files at `path`: [`load_amazon`];
            - `steam`: [`load_steam`];
            - `recbole`, with a `path`: [`load_recbole`];
            - `table`, with a `path` (or the name of a data set on the Hub) and the names of its columns as options:
              [`load_table`].
        path (`str` or `Path`, *optional*):
            The files, as the loader takes them. By default they are downloaded once and cached.
        **options:
            Passed to the loader. Those that are true or false may also be text, as from a command line.

    Returns:
        [`Interactions`]: What the loader returns.

    Raises:
        ConnectionError: the publisher cannot be reached, or the download broke off.
        TypeError: the loader has no such option.
        ValueError: there is no such source, it has no files to download and no `path` is given, what came is not what
            it should be, or as the loader says.

    Example:
        ```python
        from trl_sdpo.recsys import load_source

        interactions = load_source("movielens-1m")
        interactions = load_source("goodreads-poetry", "goodreads_interactions_poetry.json.gz", read_only=True)
        ```
    """
    options = _check_options(source, find_source(source).load, options)
    if source == "movielens-100k":
        return load_movielens_100k(path, **options)
    return find_source(source).load(source_files(source, path), **options)


def source_files(source: str, path: str | Path | None = None) -> str | Path:
    """
    The files of a source: those at `path`, or what is downloaded once and cached. Logs what the publisher asks for.

    Raises:
        ConnectionError, ValueError: see [`load_source`].
    """
    entry = find_source(source)
    if path is None and not entry.files:
        raise ValueError(f"source {source!r} has nothing to download. Pass the path of your files.")
    if entry.terms:
        show_terms(entry.terms)
    return fetch_source(source) if path is None else path


@contextmanager
def stream_source(source: str, path: str | Path | None = None, **options) -> Iterator[EventStream]:
    """
    As [`load_source`], with events that are read as they are needed, where the loader can do that: that of `goodreads`.
    Others read the source into memory.

    Args:
        source (`str`), path (`str` or `Path`, *optional*), **options:
            See [`load_source`].

    Yields:
        [`EventStream`]: The events, to be read within the block.
    """
    if find_source(source).load is load_goodreads:
        with stream_goodreads(source_files(source, path), **_check_options(source, load_goodreads, options)) as stream:
            yield stream
    else:
        yield EventStream.of(load_source(source, path, **options))


def loader_options(source: str) -> list[str]:
    """The names of the options that the loader of a source takes."""
    return list(inspect.signature(find_source(source).load).parameters)[1:]


def sources_by_loader() -> list[tuple[list[str], list[str]]]:
    """The names of sources and of the options that their loader takes, for each loader."""
    names: dict[Callable, list[str]] = {}
    for name, entry in SOURCES.items():
        names.setdefault(entry.load, []).append(name)
    return [(sources, loader_options(sources[0])) for sources in names.values()]


def _check_options(source: str, load: Callable, options: dict[str, Any]) -> dict[str, Any]:
    known = dict(list(inspect.signature(load).parameters.items())[1:])
    checked = {}
    for name, value in options.items():
        if name not in known:
            raise TypeError(f"source {source!r} has no option {name!r}, but {list(known) or 'none'}. Leave it out.")
        if known[name].annotation is bool and isinstance(value, str):
            if value.lower() not in ("true", "false"):
                raise ValueError(f"source {source!r}, option {name!r}: {value!r} is neither true nor false.")
            value = value.lower() == "true"
        checked[name] = value
    return checked
