"""Reading the delimited files that publishers use: fast when they are right, precise when they are not."""

import csv
import io
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from ..interactions import ITEM_ID, LATEST, USER_ID


logger = logging.getLogger(__name__)

_NEVER_IN_TEXT = "\x01"
_REMEDY = "Correct the line, or fetch the file again if it was cut off."


def decode(data: bytes, label: str, encodings: tuple[str, ...] = ("utf-8",)) -> str:
    """Decode a file by the first of the encodings that fits. GroupLens's older files are latin-1."""
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            last = error
    line = data.count(b"\n", 0, last.start) + 1
    value = data[last.start : last.start + 4]
    raise ValueError(
        f"{label}: line {line}: byte {value!r} is not {last.encoding}. Save the file as {last.encoding}."
    ) from last


def decode_line(data: bytes, label: str, number: int) -> str:
    """Decode one line of a file."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        value = data[error.start : error.start + 4]
        raise ValueError(f"{label}: line {number}: byte {value!r} is not utf-8. Save the file as utf-8.") from error


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
    if end != b"\n":
        logger.warning("%s: no line break at the end. If the file was cut off, its last value is wrong.", label)


def check_header(source: Path | bytes, label: str, separator: str, *headers: list[str]) -> list[str]:
    """The first line, if it is one of the headers."""
    check_not_empty(source, label)
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        header = decode_line(file.readline(), label, 1).removeprefix("\ufeff").rstrip("\r\n").split(separator)
    if header not in headers:
        wanted = " or ".join(str(columns) for columns in headers)
        raise ValueError(f"{label}: line 1: the header is {header} instead of {wanted}. Pass the file as published.")
    return header


def csv_rows(source: Path | bytes, label: str) -> Iterator[tuple[int, list[str]]]:
    """Lines of a small table with quoting: number and fields, the header first. Blank lines are left out."""
    check_not_empty(source, label)
    text = decode(source if isinstance(source, bytes) else source.read_bytes(), label)
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    width = None
    try:
        for fields in reader:
            width = width or len(fields)
            if fields:
                yield reader.line_num, check_width(fields, width, label, reader.line_num)
    except csv.Error as error:
        raise ValueError(f"{label}: line {reader.line_num}: {error}. Correct the quotes of the line.") from error


def check_width(fields: list[str], width: int, label: str, number: int) -> list[str]:
    """Raise if a line has too few or too many fields."""
    if len(fields) != width:
        raise ValueError(f"{label}: line {number}: {len(fields)} fields instead of {width}: {fields[:4]}. {_REMEDY}")
    return fields


def read_table(
    source: Path | bytes,
    label: str,
    separator: str,
    columns: dict[str, pl.DataType],
    header_lines: int = 0,
    limits: dict[str, tuple[float, float]] | None = None,
    optional: tuple[str, ...] = (),
) -> pl.DataFrame:
    """
    Read a delimited file without quoting, the values of which must be there and of their types.

    Args:
        source (`Path` or `bytes`):
            The file, or what is in it.
        label (`str`):
            What messages call the file.
        separator (`str`):
            One or more characters.
        columns (`dict[str, polars.DataType]`):
            All columns in the order of the file: `Int64`, `Float64`, `String`, or `Null` for one that is not wanted.
        header_lines (`int`, *optional*, defaults to `0`):
            Lines to skip.
        limits (`dict[str, tuple[float, float]]`, *optional*):
            The lowest and the highest value of a column.
        optional (`tuple[str, ...]`, *optional*):
            Columns of type `String` that may be empty, which is null then.

    Returns:
        `polars.DataFrame`: The wanted columns. Blank lines are left out.

    Raises:
        ValueError: the file is empty, or a line has too few or too many fields, or a value that is missing, not of
            its type or beyond its limits.
    """
    check_not_empty(source, label)
    limits = limits or {}
    try:
        frame = _read_fast(source, separator, columns, header_lines)
    except pl.exceptions.PolarsError as error:
        raise_first_bad_line(source, label, separator, columns, header_lines, limits, optional)
        raise ValueError(f"{label}: {error}. {_REMEDY}") from error
    wanted = [name for name, dtype in columns.items() if dtype != pl.Null]
    required = [name for name in wanted if name not in optional]
    checks = [pl.col(required).is_not_null().all()]
    checks += [pl.col(name).is_finite().all() for name in wanted if columns[name] == pl.Float64]
    checks += [pl.col(name).is_between(*bounds).all() for name, bounds in limits.items()]
    whole = frame.select(pl.all_horizontal(checks)).item()
    # A line that ends too early looks like one with empty fields at its end, which an unwanted column may have.
    if not whole or (frame[:, -1].null_count() and _has_odd_line(source, separator, len(columns), header_lines)):
        raise_first_bad_line(source, label, separator, columns, header_lines, limits, optional)
        frame = frame.filter(pl.any_horizontal(pl.all().is_not_null()))
    if frame.is_empty():
        raise ValueError(f"{label}: line {header_lines + 1}: no data lines. Fetch the file again.")
    return frame.select(wanted)


def _read_fast(
    source: Path | bytes, separator: str, columns: dict[str, pl.DataType], header_lines: int
) -> pl.DataFrame:
    schema = {name: pl.String if dtype == pl.Null else dtype for name, dtype in columns.items()}
    if len(separator) == 1:
        return _scan(source, separator, schema, header_lines)
    # polars splits at one byte only: read whole lines, then split those. One field too many goes to "rest".
    lines = _scan(source, _NEVER_IN_TEXT, {"line": pl.String}, header_lines)
    fields = lines["line"].str.split_exact(separator, len(schema)).struct.rename_fields([*schema, "rest"])
    frame = fields.struct.unnest()
    if frame["rest"].null_count() < frame.height:
        raise pl.exceptions.ComputeError("a line has too many fields")
    return frame.select(pl.col(name).cast(dtype, strict=False) for name, dtype in schema.items())


def _scan(source: Path | bytes, separator: str, schema: dict[str, pl.DataType], header_lines: int) -> pl.DataFrame:
    return pl.read_csv(
        io.BytesIO(source) if isinstance(source, bytes) else source,
        has_header=False,
        separator=separator,
        quote_char=None,
        skip_lines=header_lines,
        schema=schema,
        # polars takes the number of columns from the first line, which may be blank.
        missing_columns="insert",
    )


def _has_odd_line(source: Path | bytes, separator: str, width: int, header_lines: int) -> bool:
    lines = _scan(source, _NEVER_IN_TEXT, {"line": pl.String}, header_lines)["line"].drop_nulls()
    return bool((lines.str.count_matches(separator, literal=True) != width - 1).any())


def raise_first_bad_line(
    source: Path | bytes,
    label: str,
    separator: str,
    columns: dict[str, pl.DataType],
    header_lines: int = 0,
    limits: dict[str, tuple[float, float]] | None = None,
    optional: tuple[str, ...] = (),
) -> None:
    """Name the first line of a table that [`read_table`] does not accept, if there is one."""
    # Only on the way to an error, so a loop is good enough. Line by line: the file may be larger than memory.
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        for number, data in enumerate(file, start=1):
            line = decode_line(data, label, number).removesuffix("\n").removesuffix("\r")
            if number <= header_lines or not line:
                continue
            fields = line.split(separator)
            if len(fields) != len(columns):
                raise ValueError(
                    f"{label}: line {number}: {len(fields)} fields instead of {len(columns)} ({', '.join(columns)}): "
                    f"{line[:200]!r}. {_REMEDY}"
                )
            for (column, dtype), value in zip(columns.items(), fields, strict=True):
                problem = None if column in optional else _problem(value, dtype, (limits or {}).get(column))
                if problem:
                    raise ValueError(f"{label}: line {number}, column '{column}': {value!r} {problem}. {_REMEDY}")


def _problem(value: str, dtype: pl.DataType, limits: tuple[float, float] | None) -> str | None:
    if dtype == pl.Null:
        return None
    if not value:
        return "is empty"
    if dtype == pl.Int64 and not re.fullmatch(r"[+-]?\d{1,18}", value):
        return "is not a whole number"
    if dtype == pl.Float64:
        try:
            finite = math.isfinite(float(value)) and value == value.strip() and "_" not in value
        except ValueError:
            finite = False
        if not finite:
            return "is not a finite number"
    if limits and not limits[0] <= float(value) <= limits[1]:
        unit = " seconds since 1970 (milliseconds are 1000 times as many)" if limits[1] == LATEST else ""
        return f"is not from {limits[0]} to {limits[1]}{unit}"
    return None


def whole_numbers(events: pl.DataFrame, items: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Ids that are text, but whole numbers throughout, as `Int64`: of users, and of items where both tables agree."""
    # A leading zero must stay, or "01" and "1" would become one.
    number = r"^(0|[1-9]\d{0,17})$"
    if events[USER_ID].dtype == pl.String and events[USER_ID].str.contains(number).all():
        events = events.with_columns(pl.col(USER_ID).cast(pl.Int64))
    if events[ITEM_ID].dtype == pl.String and all(t[ITEM_ID].str.contains(number).all() for t in (events, items)):
        events = events.with_columns(pl.col(ITEM_ID).cast(pl.Int64))
        items = items.with_columns(pl.col(ITEM_ID).cast(pl.Int64))
    return events, items
