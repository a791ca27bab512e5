"""Encodings, marks and line ends of text files, decided once for all readers and for the files that commands take."""

import gzip
import io
import logging
import mmap
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast


logger = logging.getLogger(__name__)

# The longest first: the mark of UTF-32 begins as that of UTF-16 does.
_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
# What a file begins with that is no text, and what is to be done with it.
_OTHER_KINDS = {
    b"\x1f\x8b": "is gzipped: name it so, with .gz at the end",
    b"PK\x03\x04": "is a zip archive: unpack it",
    b"BZh": "is packed by bzip2: unpack it",
    b"\xfd7zXZ": "is packed by xz: unpack it",
    b"\x28\xb5\x2f\xfd": "is packed by zstd: unpack it",
    b"PAR1": "is Parquet: name it so, with .parquet at the end",
}
_CHUNK = 1 << 22
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)


class TextFile:
    """
    A text file as UTF-8 without a mark, whose lines end in line feeds.

    What is so already is read where it lies. What is zipped (`.gz`), has a byte order mark, is in another encoding or
    has the line ends of old Macs (CR alone) is read from a temporary copy, which goes with this object. U+2028, U+2029
    and U+0085 end no line.

    Args:
        path (`Path`):
            The file.
        label (`str`, *optional*):
            What messages call it. By default the path.
        encoding (`str`, *optional*):
            By default what a byte order mark says, else UTF-8.

    Attributes:
        path (`Path`): Where to read it.

    Raises:
        ValueError: the file is empty, is not in its encoding, holds a NUL or is damaged. The message names the line.
    """

    def __init__(self, path: Path, label: str | None = None, encoding: str | None = None) -> None:
        self.label, self.path = label or str(path), path
        check_not_empty(path, self.label)
        head = self._head()
        kind = next((what for begin, what in _OTHER_KINDS.items() if head.startswith(begin)), None)
        if kind:
            raise ValueError(f"{self.label}: {kind}.")
        marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
        if encoding is None or marked == "utf-8-sig":
            encoding = marked or "utf-8"
        if path.suffix == ".gz" or encoding.lower().replace("_", "-") not in ("utf-8", "utf8"):
            self._copy(encoding)
        if self.contains(b"\0"):
            line = self._line_of(b"\0")
            raise ValueError(
                f"{self.label}: line {line}: holds a NUL byte, so it is no UTF-8 text. Save the file as UTF-8, or pass "
                "its encoding, such as 'utf-16-le'."
            )
        if not self.contains(b"\n") and self.contains(b"\r"):
            self._copy("utf-8", old_mac=True)

    def contains(self, part: bytes) -> bool:
        """Whether the bytes occur in the file."""
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(part) >= 0

    def lines(self) -> Iterator[tuple[int, str]]:
        """Lines with their numbers and without their ends."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, decode_line(line, self.label, number).removesuffix("\n").removesuffix("\r")

    def csv_lines(self) -> Iterator[str]:
        """Lines with their ends, also those that end in CR alone, as `csv.reader` wants them."""
        try:
            with self.path.open(encoding="utf-8", newline="") as file:
                yield from file
        except UnicodeDecodeError:
            for _ in self.lines():  # which names the line
                pass
            raise

    def _head(self) -> bytes:
        try:
            with _open(self.path) as file:
                return file.read(6)
        except _DAMAGE as error:
            raise ValueError(
                f"{self.label}: damaged after line 0 ({error}). Fetch the file again, or take the .gz from its name "
                "if it is text."
            ) from error

    def _copy(self, encoding: str, old_mac: bool = False) -> None:
        folder = tempfile.TemporaryDirectory(prefix="trl_sdpo.")
        target, number = Path(folder.name) / "text", 0
        try:
            with _open(self.path) as raw, target.open("wb") as copy:
                if encoding == "utf-8" and not old_mac:
                    shutil.copyfileobj(raw, copy, _CHUNK)
                else:
                    text = io.TextIOWrapper(raw, encoding=encoding, newline="")
                    while part := text.read(_CHUNK):
                        part = part.replace("\r", "\n") if old_mac else part
                        number += part.count("\n")
                        copy.write(part.encode())
        except _DAMAGE as error:
            lines = target.read_bytes().count(b"\n")
            raise ValueError(
                f"{self.label}: damaged after line {lines} ({error}). Fetch the file again: it was cut off, or changed."
            ) from error
        except LookupError as error:
            raise ValueError(f"{self.label}: {error}. Pass an encoding that Python knows, such as latin-1.") from error
        except UnicodeError as error:
            raise ValueError(
                f"{self.label}: after line {number}: not {encoding} ({error}). Save the file as UTF-8, or pass its "
                "encoding."
            ) from error
        if not target.stat().st_size:
            raise ValueError(f"{self.label}: line 1: the file is empty. Fetch it again.")
        self._folder, self.path = folder, target  # the folder goes when nobody holds it

    def _line_of(self, part: bytes) -> int:
        with self.path.open("rb") as file:
            return next(number for number, line in enumerate(file, start=1) if part in line)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def decode(data: bytes, label: str, encodings: tuple[str, ...] = ("utf-8-sig",)) -> str:
    """Decode a file by the first of the encodings that fits, less a mark. GroupLens's older files are latin-1."""
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            last = error
    line = data.count(b"\n", 0, last.start) + 1
    value, name = data[last.start : last.start + 4], last.encoding.removesuffix("-sig")
    raise ValueError(f"{label}: line {line}: byte {value!r} is not {name}. Save the file as {name}.") from last


def decode_line(data: bytes, label: str, number: int) -> str:
    """Decode one line of a file."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        value = data[error.start : error.start + 4]
        raise ValueError(
            f"{label}: line {number}: byte {value!r} is not utf-8. Save the file as utf-8, or pass its encoding where "
            "the reader takes one."
        ) from error


def split_lines(text: str) -> list[str]:
    """Lines at line feeds only: a latin-1 file may hold U+0085, at which `splitlines` would cut."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def check_not_empty(source: Path | bytes, label: str) -> None:
    """Raise if there is nothing in the file; warn if it ends inside a line."""
    if isinstance(source, bytes):
        size, end = len(source), source[-1:]
    else:
        size = source.stat().st_size
        with source.open("rb") as file:
            file.seek(max(0, size - 1))
            end = file.read()
    if size == 0:
        raise ValueError(f"{label}: line 1: the file is empty. Fetch it again.")
    # The end of a zipped file says nothing of its lines, and zip has a check of its own.
    zipped = isinstance(source, Path) and source.suffix == ".gz"
    if end not in (b"\n", b"\r", b"\0") and not zipped:
        logger.warning("%s: no line break at the end. If the file was cut off, its last value is wrong.", label)
