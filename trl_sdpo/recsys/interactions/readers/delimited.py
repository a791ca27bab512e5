"""Reading the delimited files that publishers use: fast when they are right, precise when they are not."""

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias, cast

import polars as pl
import pyarrow as pa
from pyarrow import csv as arrow_csv

from ..interactions import LATEST
from .quoting import Quoting
from .text_files import TextFile, check_not_empty, decode, decode_line


_BLOCK = 1 << 24
Columns: TypeAlias = Mapping[str, pl.DataType | type[pl.DataType]]

_NEVER_IN_TEXT = "\x01"
_REMEDY = "Correct the line, or fetch the file again if it was cut off."


def read_records(file: TextFile, quoting: Quoting, columns: list[str]) -> pl.DataFrame:
    """
    Columns of a delimited file with a header, as text.

    The width of every record is checked against the header, whichever columns are wanted.

    Args:
        file ([`TextFile`]):
            The file.
        quoting ([`Quoting`]):
            How it is written, checked by [`find_quoting`].
        columns (`list[str]`):
            Their names in the header.

    Returns:
        `polars.DataFrame`: The columns. Blank lines are left out; empty fields are `""`.

    Raises:
        ValueError: a record has too few or too many fields, or is not UTF-8. The message names the line.
    """
    parse = arrow_csv.ParseOptions(
        delimiter=quoting.separator,
        quote_char=quoting.quote or False,
        double_quote=quoting.escape is None,
        escape_char=quoting.escape or False,
        newlines_in_values=quoting.multiline,
    )
    convert = arrow_csv.ConvertOptions(
        include_columns=columns,
        column_types=dict.fromkeys(columns, pa.string()),
        null_values=[],
        strings_can_be_null=False,
    )
    try:
        read = arrow_csv.ReadOptions(block_size=_BLOCK)
        table = arrow_csv.read_csv(file.path, read_options=read, parse_options=parse, convert_options=convert)
    except pa.ArrowInvalid as error:
        width = first = line = None
        for line, fields in quoting.records(file):
            width, first = width or len(fields), first or line
            check_width(fields, width, file.label, line)
        if line == first:
            raise ValueError(f"{file.label}: no rows behind the header. Check that the table is whole.") from error
        raise ValueError(f"{file.label}: {error}. {_REMEDY}") from error
    return cast(pl.DataFrame, pl.from_arrow(table))


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
    columns: Columns,
    header_lines: int = 0,
    limits: Mapping[str, tuple[float, float]] | None = None,
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
        columns (`Mapping[str, polars.DataType]`):
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


def _read_fast(source: Path | bytes, separator: str, columns: Columns, header_lines: int) -> pl.DataFrame:
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


def _scan(source: Path | bytes, separator: str, schema: Columns, header_lines: int) -> pl.DataFrame:
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
    columns: Columns,
    header_lines: int = 0,
    limits: Mapping[str, tuple[float, float]] | None = None,
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


def _problem(value: str, dtype: pl.DataType | type[pl.DataType], limits: tuple[float, float] | None) -> str | None:
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
