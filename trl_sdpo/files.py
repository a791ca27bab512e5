"""Files that are whole or as they were before, whatever ends the process."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


# What lies beside data and models: who pushes it reads nothing of recommenders for its names
CATALOGUE_FILE, CATALOGUE_TABLE = CATALOGUE_FILES = ("catalogue.json", "catalogue.parquet")
# The tokens of the titles of a large catalogue, as a tree, for a model beside it
TRIE_FILE = "title_trie.safetensors"


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[Path]:
    """
    Write a file under another name, which takes the place of `path` at the end of the block unless there is an error.

    Args:
        path (`str` or `os.PathLike`):
            The file.

    Yields:
        `Path`: What to write.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a text in UTF-8, see [`writing`], and give its path."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


@contextmanager
def writing_directory(path: str | os.PathLike, *, replace: bool = False) -> Iterator[Path]:
    """
    A new directory to write to, which becomes `path` at the end of the block unless there is an error.

    Args:
        path (`str` or `os.PathLike`):
            Where the directory goes.
        replace (`bool`, *optional*, defaults to `False`):
            What happens to a directory that is there by then, which another process may have made: it is replaced, or
            stays in the place of the new one.

    Yields:
        `Path`: An empty directory beside `path`. It is removed on an error.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:12]
    # not tempfile.mkdtemp, whose directories are closed to everybody else, and would stay so
    stage, former = (path.parent / f".{path.name}.{kind}.{mark}" for kind in ("new", "old"))
    stage.mkdir()
    try:
        yield stage
        if replace and path.exists():
            path.rename(former)
        try:
            os.replace(stage, path)
        except OSError:
            if replace or not path.is_dir():
                raise
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
