"""JSON lines: fast when they are right, precise when they are not."""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import polars as pl

from .text_files import TextFile, decode_line


_EXACT = 2**53


def read_json_lines(file: TextFile, columns: list[str], nested: tuple[str, ...] = ()) -> pl.DataFrame:
    """
    Keys of JSON lines as text: numbers as they are written, so that none is rounded; `null` and a missing key as null.

    Args:
        file ([`TextFile`]):
            The file.
        columns (`list[str]`):
            The keys.
        nested (`tuple[str, ...]`, *optional*):
            Those which may be lists of texts or numbers. If any is, all are, as lists of text.

    Returns:
        `polars.DataFrame`: A row for each line that is not blank.

    Raises:
        ValueError: a line is no JSON object, holds a key twice, half of a surrogate pair, a float where digits are
            lost, or something else than a number or a text under one of the keys; or no line has one of the keys.
    """
    try:
        frame = pl.scan_ndjson(file.path, schema=dict.fromkeys(columns, pl.String)).collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise_first_bad_record(file.path, {}, error, file.label)
    for column in columns:
        if frame[column].null_count() == frame.height:
            _check_key(file, column)
    _check_doubtful(file, frame, columns, nested)
    return frame.with_columns(_lists(frame[name]) for name in nested)


def _lists(texts: pl.Series) -> pl.Series:
    """Lists of what [`_check_doubtful`] has found to be lists, if there are any."""
    begun = texts.str.starts_with("[")
    lists = {text: json.loads(text) for text in texts.filter(begun.fill_null(False)).unique() if _is_list(text)}
    if not lists:
        return texts
    values = [None if text is None else [str(one) for one in lists.get(text, [text])] for text in texts]
    return pl.Series(texts.name, values, dtype=pl.List(pl.String))


def _is_list(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return False


def doubtful(texts: pl.Expr) -> pl.Expr:
    """
    Where what polars read as text may not have been text, or not this one, so that the line is to be read again,
    exactly: lists and objects are JSON then, a long number may have been a float, half of a surrogate pair is NUL.
    """
    return texts.str.contains(r"^(?:true|false|\[.*\]|\{.*\}|-?[0-9]{16,25})$|\x00|\x{fffd}")


def strict_json(text: str, where: str) -> Any:
    """What a text of JSON holds; raises for what Python takes and JSON has not, and for keys that are there twice."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{where}: {name} is no JSON. Write null for a value that is missing.")

    def once(pairs: list[tuple[str, Any]]) -> dict:
        record = dict(pairs)
        if len(record) < len(pairs):
            twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
            raise ValueError(f"{where}: the key '{twice}' is there twice. Keep one.")
        return record

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=once)
    except RecursionError as error:
        raise ValueError(f"{where}: nested too deeply: {text[:200]!r}. Correct it.") from error


def strict_record(line: str, where: str) -> Any:
    """What a line of JSON holds, as [`strict_json`] reads it."""
    try:
        return strict_json(line, where)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: not a JSON object ({error}): {line[:200]!r}. Correct the line, or fetch the file again if it "
            "was cut off."
        ) from error


def _check_key(file: TextFile, column: str) -> None:
    """Raise if no line has a key. The texts around it are too short a test for a key with an escape in it."""
    written = json.dumps(column, ensure_ascii=False)
    if not file.contains(written.encode()) and not file.contains(json.dumps(column).encode()):
        first = next((line for _, line in file.lines() if line.strip()), "{}")
        raise ValueError(
            f"{file.label}: no column '{column}', only {list(json.loads(first))}. Name another, or rename it."
        )


def _check_doubtful(file: TextFile, frame: pl.DataFrame, columns: list[str], nested: tuple[str, ...]) -> None:
    """Read again, exactly, the lines of which the fast reader may have made something else."""
    line, text = pl.col("line"), pl.all()
    # lists, objects and booleans are text here; a long number may have been a float
    odd = pl.any_horizontal(text.str.contains(r"^[\[{]") | text.is_in(["true", "false"]))
    rows = frame.select(odd.fill_null(False).arg_true()).to_series()
    doubts = [pl.col("row").is_in(rows.implode())] if len(rows) else []
    doubts += [line.str.count_matches(json.dumps(column), literal=True) > 1 for column in columns]
    if file.contains(b"\\u"):
        doubts.append(line.str.contains(r"\\u[dD][89abAB]|\\u[dD][c-fC-F]"))
    if frame.select(pl.any_horizontal(text.str.contains(r"^-?[0-9]{16}")).any()).item():
        number = r"\s*:\s*-?[0-9]+(?:[eE]|\.[0-9])"
        doubts += [line.str.contains(re.escape(json.dumps(column)) + number) for column in columns]
    lines = pl.scan_lines(file.path, name="line").with_row_index("number", 1).filter(line.str.strip_chars() != "")
    found = lines.with_row_index("row").filter(pl.any_horizontal(doubts)).select("number", "line")
    for number, text in found.collect(engine="streaming").iter_rows():
        where = f"{file.label}: line {number}"
        record = strict_record(text, where)
        for column in columns:
            value = record.get(column)
            problem = value_problem(value)
            if column in nested and isinstance(value, list):
                problem = next((found for found in map(value_problem, value) if found), None)
            if problem:
                raise ValueError(f"{where}, column '{column}': {record[column]!r} {problem}")


def value_problem(value: Any) -> str | None:
    """What is wrong with a value that has to be a text, a number or null."""
    if value is None or type(value) is int:
        return None
    if isinstance(value, float):
        return "is a float, whose last digits are lost. Write it whole, or as text." if abs(value) >= _EXACT else None
    if not isinstance(value, str):
        return "is neither a number nor a text. Write one."
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair. Correct the text."
    return None


def check_records(path: Path, checks: dict[str, Callable[[Any], str | None]], label: str | None = None) -> int:
    """
    Raise at the first line of a file that is no JSON object or fails a check. This reads slowly: for what is in doubt.

    Args:
        path (`Path`):
            The file, gzipped if its name ends in `.gz`.
        checks (`dict[str, Callable]`):
            For each key what is wrong with its value, or `None`.
        label (`str`, *optional*):
            What messages call the file. By default the path.

    Returns:
        `int`: How many lines there are.
    """
    label, number = label or str(path), 0
    for number, line in _lines(path, label):
        if not line.strip():
            continue
        where = f"{label}: line {number}"
        record = strict_record(decode_line(line, label, number), where)
        if not isinstance(record, dict):
            raise ValueError(f"{where}: {str(record)[:200]!r} is not a JSON object. Correct the line.")
        for key, check in checks.items():
            problem = "is missing" if key not in record else check(record[key])
            if problem:
                problem = problem.rstrip(".")
                raise ValueError(f"{where}, key '{key}': {record.get(key)!r} {problem}. Correct or remove the line.")
        _check_numbers(record.values(), where)
    return number


def raise_first_bad_record(
    path: Path,
    checks: dict[str, Callable[[Any], str | None]],
    error: Exception | None = None,
    label: str | None = None,
) -> NoReturn:
    """
    Name the first line of a file that is no JSON object or fails a check. Only on the way to an error.

    Args:
        path (`Path`), checks (`dict[str, Callable]`), label (`str`, *optional*):
            As in [`check_records`].
        error (`Exception`, *optional*):
            What the fast reader said, for the case that no line is found.
    """
    label = label or str(path)
    number = check_records(path, checks, label)
    if error is None:
        raise ValueError(f"{label}: line {number + 1}: no records. Fetch the file again.")
    raise ValueError(f"{label}: {error}. Fetch the file again.") from error


def _check_numbers(values: Iterable[Any], where: str) -> None:
    for value in values:
        if isinstance(value, float) and value in (float("inf"), float("-inf")):
            raise ValueError(f"{where}: a number is too large for a float. Correct it.")


def _lines(path: Path, label: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for line in file:
                number += 1
                yield number, line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{label}: damaged after line {number} ({error}). Fetch the file again: it was cut off, or changed."
            ) from error
