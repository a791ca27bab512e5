"""What is wrong in a file of JSON lines, zipped or not."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from .delimited import decode_line


def raise_first_bad_record(
    path: Path, checks: dict[str, Callable[[Any], str | None]], error: Exception | None = None
) -> NoReturn:
    """
    Name the first line of a file that is no JSON object or fails a check. Only on the way to an error.

    Args:
        path (`Path`):
            The file, gzipped if its name ends in `.gz`.
        checks (`dict[str, Callable]`):
            For each key what is wrong with its value, or `None`.
        error (`Exception`, *optional*):
            What the fast reader said, for the case that no line is found.
    """
    number = 0
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(decode_line(line, str(path), number))
        except json.JSONDecodeError as problem:
            raise ValueError(
                f"{path}: line {number}: not a JSON object ({problem}): {line[:200]!r}. Correct the line, or fetch "
                "the file again if it was cut off."
            ) from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}: line {number}: {str(record)[:200]!r} is not a JSON object. Correct the line.")
        for key, check in checks.items():
            problem = "is missing" if key not in record else check(record[key])
            if problem:
                value = record.get(key)
                raise ValueError(
                    f"{path}: line {number}, key '{key}': {value!r} {problem}. Correct or remove the line."
                )
    if error is None:
        raise ValueError(f"{path}: line {number + 1}: no records. Fetch the file again.")
    raise ValueError(f"{path}: {error}. Fetch the file again.") from error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for line in file:
                number += 1
                yield number, line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path}: damaged after line {number} ({error}). Fetch the file again: it was cut off, or changed."
            ) from error
