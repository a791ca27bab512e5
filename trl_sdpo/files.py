"""Files that are whole or as they were before, whatever ends the process."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
