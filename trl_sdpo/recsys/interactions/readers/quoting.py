"""Which quotes of a delimited file mean something, and its records with them."""

import csv
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from .text_files import TextFile


logger = logging.getLogger(__name__)

AUTO = "auto"


@dataclass(frozen=True)
class Quoting:
    """
    How a delimited file is written.

    Args:
        separator (`str`):
            One character.
        quote (`str`, *optional*):
            What stands around fields with separators in them; doubled inside where there is no `escape`. `None` where
            a quote is a character as others.
        escape (`str`, *optional*):
            What stands before a character that is meant as it is.
        multiline (`bool`, *optional*, defaults to `False`):
            Whether quoted fields hold line breaks.
    """

    separator: str
    quote: str | None = None
    escape: str | None = None
    multiline: bool = False

    def records(self, file: TextFile) -> Iterator[tuple[int, list[str]]]:
        """Records of a file, the header first: the line in which each ends, and its fields. Blank lines are left out."""
        quoted: dict[str, Any] = {"quotechar": self.quote} if self.quote else {"quoting": csv.QUOTE_NONE}
        options: dict[str, Any] = {
            "delimiter": self.separator,
            "escapechar": self.escape,
            "doublequote": self.escape is None,
        }
        with _long_fields():
            reader = csv.reader(file.csv_lines(), strict=True, **options, **quoted)
            try:
                for fields in reader:
                    if fields:
                        yield reader.line_num, fields
            except csv.Error as error:
                raise ValueError(
                    f"{file.label}: line {reader.line_num}: {error}. Correct the quotes of the line, or pass quote and "
                    "escape."
                ) from error

    def header(self, file: TextFile) -> list[str]:
        """The names of the columns."""
        return next(self.records(file), (0, []))[1]

    def line_pattern(self) -> str:
        """A regular expression of a line that is a whole record."""
        separator, quote = re.escape(self.separator), re.escape(self.quote)
        if self.escape is None:
            quoted, plain = f"(?:[^{quote}]|{quote}{quote})*", f"[^{quote}{separator}][^{separator}]*"
        else:
            escape = re.escape(self.escape)
            quoted = f"(?:[^{quote}{escape}]|{escape}.)*"
            plain = f"(?:[^{quote}{separator}{escape}]|{escape}.)(?:[^{separator}{escape}]|{escape}.)*"
        field = f"(?:{quote}{quoted}{quote}|{plain})?"
        return f"^{field}(?:{separator}{field})*$"


@contextmanager
def _long_fields() -> Iterator[None]:
    """A description may have more than the 131,072 characters that `csv` takes by default."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def find_quoting(file: TextFile, separator: str, quote: str = AUTO, escape: str | None = None) -> Quoting:
    """
    The quoting of a file: what is asked for, or what fits every line of it.

    Args:
        file ([`TextFile`]):
            The file.
        separator (`str`):
            One character.
        quote (`str`, *optional*, defaults to `"auto"`):
            One character; `""` for none; or `"auto"`, which tries in this order what a file may be: quotes doubled
            inside of quoted fields (RFC 4180), backslashes before them, quotes that mean nothing. The first that
            fits every line is taken, and said in a warning if it is not the first of all, or if quotes that nothing
            needs stand around a few fields (tab-separated files keep these); only if none does, fields with line
            breaks are looked for.
        escape (`str`, *optional*):
            One character. With `quote="auto"` the quote is then `"`.

    Returns:
        [`Quoting`]: How the file is written.

    Raises:
        ValueError: an option is no single character, nothing fits, or a quoted field seems to have swallowed records.
            The message names the line.
    """
    for name, value, empty in (("separator", separator, False), ("quote", quote, True), ("escape", escape, True)):
        if value and value != AUTO and (len(value) > 1 or not value.isascii() or value in "\r\n"):
            raise ValueError(f"{name}={value!r} is not one character. Pass one, or write the file with one.")
        if value == "" and not empty:
            raise ValueError(f"{name} is empty. Pass one character.")
    guess = quote == AUTO and not escape
    wanted = Quoting(separator, ('"' if quote == AUTO else quote) or None, escape or None)
    if wanted.quote is None or not file.contains(wanted.quote.encode()):
        return replace(wanted, quote=None)
    if _fits(file, wanted):
        return _as_guessed(file, wanted) if guess else wanted
    if guess and (other := _unpaired(file, wanted)) is not None:
        return other
    wanted = replace(wanted, multiline=True)
    _check_records(file, wanted, guess)
    return wanted


def _as_guessed(file: TextFile, wanted: Quoting) -> Quoting:
    """RFC 4180, which fits: said where it may not be what was meant."""
    if file.contains(b'\\"'):
        logger.warning(
            "%s: there are backslashes before quotes. They are read as they stand; pass escape='\\\\' if they "
            "belong to the quotes.",
            file.label,
        )
    elif _needs_no_quotes(file, wanted):
        # Who quotes only what has to be quoted has not written this, nor has who quotes everything.
        kept = wanted.separator == "\t"
        logger.warning(
            "%s: some fields have quotes around them, and none needs them. They are %s; pass quote=%s if that is wrong.",
            file.label,
            "read as they stand" if kept else "taken off",
            "'\"'" if kept else "''",
        )
        return replace(wanted, quote=None) if kept else wanted
    return wanted


def _unpaired(file: TextFile, wanted: Quoting) -> Quoting | None:
    """What fits a file whose quotes are not in pairs: backslashes before them, or quotes that mean nothing."""
    escaped = replace(wanted, escape="\\")
    if file.contains(b'\\"') and _fits(file, escaped):
        logger.warning(
            "%s: quotes inside of quoted fields have backslashes before them: read so. Pass quote and escape if that is "
            "wrong.",
            file.label,
        )
        return escaped
    # who quotes the names of columns quotes
    if not next(file.lines())[1].startswith(wanted.quote) and _fits_without_quotes(file, wanted):
        logger.warning(
            "%s: quotes do not come in pairs, and every line has its fields without them: they are read as they stand. "
            "Pass quote if that is wrong.",
            file.label,
        )
        return replace(wanted, quote=None)
    return None


def _lines(file: TextFile) -> pl.LazyFrame:
    return pl.scan_lines(file.path, name="line").filter(pl.col("line") != "")


def _fits(file: TextFile, quoting: Quoting) -> bool:
    """Whether every line is a whole record."""
    with_quotes = _lines(file).filter(pl.col("line").str.contains(quoting.quote, literal=True))
    fits = pl.col("line").str.contains(quoting.line_pattern()).all()
    return with_quotes.select(fits).collect(engine="streaming").item()


def _fits_without_quotes(file: TextFile, quoting: Quoting) -> bool:
    """Whether every line has as many fields as the first, whatever its quotes."""
    separators = pl.col("line").str.count_matches(quoting.separator, literal=True)
    few, most = _lines(file).select(low=separators.min(), high=separators.max()).collect(engine="streaming").row(0)
    return few == most and few > 0


def _needs_no_quotes(file: TextFile, quoting: Quoting) -> bool:
    """Whether no quoted field holds a separator or a quote, while some lines have no quotes at all."""
    if file.contains(quoting.quote.encode() * 2) or not _fits_without_quotes(file, quoting):
        return False
    rows = pl.scan_lines(file.path, name="line").slice(1).filter(pl.col("line") != "")
    without = ~pl.col("line").str.contains(quoting.quote, literal=True)
    return rows.select(without.any()).collect(engine="streaming").item()


def _check_records(file: TextFile, quoting: Quoting, guess: bool) -> None:
    """Raise at the first record that is not well-formed. Where the quoting is a guess, also at one of several lines of
    which the first and the last are whole records, if quotes mean nothing: an open quote swallows lines like that."""
    width, before = None, 0
    several = []
    for number, fields in quoting.records(file):
        width = width or len(fields)
        if number > before + 1 and any("\n" in field for field in fields):
            several.append((number - sum(field.count("\n") for field in fields), number))
        before = number
    if not guess:
        return
    ends: dict[int, int | None] = {line: None for pair in several for line in pair}
    for number, line in file.lines():
        if number in ends:
            ends[number] = line.count(quoting.separator) + 1
    for first, last in several:
        if ends[first] == ends[last] == width:
            raise ValueError(
                f"{file.label}: line {first}: a quote opens here and closes in line {last}, with whole lines between. "
                "Close it, or pass quote='' if quotes mean nothing in this file, quote='\"' if the field is so long."
            )
