"""Unpacking zip archives, safely and in one piece."""

import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ...files import writing_directory


def _checked_members(archive: zipfile.ZipFile, patterns: Sequence[str]) -> list[zipfile.ZipInfo]:
    """The files of an archive that match a pattern, once none of its members could do harm."""
    name, members, seen = archive.filename, [], set()
    for info in archive.infolist():
        parts = PurePosixPath(info.filename).parts
        # A backslash or a colon makes a path of another kind on Windows: no archive that we read has one.
        if not parts or parts[0] == "/" or ".." in parts or "\\" in info.filename or ":" in info.filename:
            raise ValueError(f"{name}: member {info.filename!r} points outside the archive, nothing was unpacked")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{name}: member {info.filename!r} is a link or a device, nothing was unpacked")
        if info.is_dir():
            continue
        if parts in seen:
            raise ValueError(f"{name}: member {info.filename!r} is there twice, nothing was unpacked")
        seen.add(parts)
        if any(fnmatchcase(info.filename, pattern) for pattern in patterns):
            members.append(info)
    if not members:
        raise ValueError(f"{name}: no member matches {', '.join(patterns)}")
    # Text packs to a tenth, seldom to a fiftieth. zipfile reads no more of a member than it declares.
    size, limit = sum(info.file_size for info in members), max(2**26, 100 * os.path.getsize(name))
    if size > limit:
        raise ValueError(f"{name}: would unpack to {size} bytes, more than the {limit} that its size warrants")
    return members


def unpack_zip(archive: str | Path, destination: str | Path, *, members: Sequence[str] = ("*",)) -> Path:
    """
    Unpack a zip archive safely and in one piece.

    Args:
        archive (`str` or `Path`):
            The archive.
        destination (`str` or `Path`):
            The directory to make. One that exists is whole, and is left as it is.
        members (`Sequence[str]`, *optional*, defaults to `("*",)`):
            Patterns (`*` matches `/` too) of the members that are wanted. They keep their paths.

    Returns:
        `Path`:
            `destination`.

    Raises:
        `ValueError`:
            If the archive is damaged or encrypted, has a member that is absolute, climbs by `..`, is a link or is
            there twice, would unpack to far more than its size warrants, or has no member that is wanted.
    """
    destination = Path(destination)
    if destination.is_dir():
        return destination
    try:
        with zipfile.ZipFile(archive) as opened, writing_directory(destination) as stage:
            for info in _checked_members(opened, members):
                target = stage / info.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 2**20)
    # RuntimeError: encrypted. NotImplementedError: packed in a way that zipfile does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{archive} is not a whole zip archive ({error}): remove it and download it again") from error
    return destination
