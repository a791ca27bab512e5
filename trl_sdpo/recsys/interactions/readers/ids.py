"""What is missing, and what is an id: one answer for all kinds of input."""

import unicodedata
from collections.abc import Callable
from typing import Any, NoReturn

import polars as pl


# What Unicode calls white space, as `\\s` does.
_WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
# Behind these not every whole number is a float: what is read as one may have been another.
_EXACT: dict[Any, int] = {pl.Float16: 2**11, pl.Float32: 2**24, pl.Float64: 2**53}
# A leading zero must stay, or "01" and "1" would become one.
_NUMBER = r"^\s*(-?(?:0|[1-9][0-9]*))(?:\.0*)?\s*$"
_WHOLE_FLOAT = r"^-?(?:0|[1-9][0-9]*)\.0+$"
# As Python, pandas and C print a float that is large.
_LARGE_FLOAT = r"^-?[0-9](?:\.[0-9]+)?[eE]\+[0-9]{2,3}$"
# What programs write for a value that is none: C, pandas, Python, SQL.
_NO_NUMBER = ("nan", "NaN", "-nan", "inf", "-inf", "Inf", "-Inf", "Infinity", "-Infinity")
NO_VALUE = (*_NO_NUMBER, "NaT", "<NA>", "None", "null", "NULL", "undefined")
# Somebody may be called so: among whole numbers nobody is.
_NO_WHOLE_NUMBER = ("NA", "N/A", "n/a", "na", "#N/A", "none", "nil", "-", "--", "?")
# Nothing that is seen, or what MySQL and Postgres write for null.
_INVISIBLE = r"\s\u{200b}\u{200c}\u{200d}\u{2060}\u{feff}\u{ad}"
_BLANK = rf"^(?:[{_INVISIBLE}]*|\\N)$"
_MARK = "\ufeff"
_FILL = "Fill it or remove the row."

Fail = Callable[[int, str], NoReturn]


def blank_to_null(values: pl.Series) -> pl.Series:
    """A column in which null, NaN, an empty text, white space, invisible characters and `\\N` are one: null."""
    if values.dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    if values.dtype.is_float():
        return values.fill_nan(None)
    # What is a number throughout has nothing blank in it, and to see that is fast.
    if values.dtype != pl.String or not values.cast(pl.Int64, strict=False).null_count():
        return values
    blank = values.str.contains(_BLANK)
    return values.set(blank.fill_null(False), None) if blank.any() else values


def read_ids(ids: pl.Series, where: str, fail: Fail) -> pl.Series:
    """
    Ids as `Int64` where all are whole numbers that fit, else as `String`. None is ever rounded.

    Args:
        ids (`polars.Series`):
            Ids, missing ones null (see [`blank_to_null`]).
        where (`str`):
            Table and column, for messages.
        fail (`Callable`):
            Called with a row and what is wrong there. It raises.

    Returns:
        `polars.Series`: The ids. Text that is a whole number throughout, also as "42.0", is one; other text stays as
        it is.

    Raises:
        TypeError: they are neither whole numbers nor text.
    """
    _check(ids.is_null(), fail, f"is missing. {_FILL}")
    dtype = ids.dtype
    if dtype.is_float():
        if (ids == ids.floor()).all() and ids.is_finite().all():
            limit = _EXACT.get(dtype, 2**53)
            lost = (
                f"is a float of {limit} or more, whose last digits are lost. Read the column as text or whole numbers."
            )
            _check(ids.abs() >= limit, fail, lost)
            return ids.cast(pl.Int64)
    elif dtype.is_integer():
        # What has more than 63 bits is text, as it is in a text file.
        whole = ids.cast(pl.Int64, strict=False)
        return ids.cast(pl.String) if whole.null_count() else whole
    elif dtype.is_decimal():
        text = ids.cast(pl.String).str.replace(r"\.0*$", "")
        if not text.str.contains(".", literal=True).any():
            return _from_text(text, fail)
    elif dtype == pl.String:
        return _from_text(ids, fail)
    raise TypeError(f"{where} is {dtype}. Ids are whole numbers or text: cast it.")


def _from_text(ids: pl.Series, fail: Fail) -> pl.Series:
    numbers = ids.cast(pl.Int64, strict=False)
    if not numbers.null_count():
        odd = ids.str.starts_with("+") | ids.str.starts_with("-0")
        if not (odd | (ids.str.starts_with("0") & (ids.str.len_bytes() > 1))).any():
            return numbers
    texts = ids.str.extract(_NUMBER, 1)
    problem = "is a value that is missing, written as text. "
    _check(ids.is_in(NO_VALUE), fail, problem + _FILL)
    _check(ids.str.contains(_LARGE_FLOAT), fail, "is a float: its last digits are lost. Write whole ids.")
    marked = "holds a byte order mark, as where files were joined. Remove it."
    _check(ids.str.contains(_MARK, literal=True), fail, marked)
    words = texts.is_null()
    if words.any():
        rare = ids.is_in(_NO_WHOLE_NUMBER)
        if (rare | ~words).all() and not words.all():
            _check(rare, fail, "stands among whole numbers: " + problem + _FILL)
        check_spellings(ids, ids, fail)
        return ids
    pointed = ids.str.contains(".", literal=True)
    if pointed.any():
        large = texts.cast(pl.Float64).abs() >= _EXACT[pl.Float64]
        _check(pointed & large, fail, "is a float: its last digits may be lost. Write whole ids.")
    numbers = texts.cast(pl.Int64, strict=False)
    return texts if numbers.null_count() else numbers


def check_spellings(ids: pl.Series, others: pl.Series, fail: Fail) -> None:
    """Raise where text has an id as "42.0" that the others have as "42": nobody can tell whether they are one."""
    if ids.dtype != pl.String or others.dtype != pl.String:
        return
    floats = ids.str.contains(_WHOLE_FLOAT)
    if floats.any():
        twice = floats & ids.str.replace(r"\.0+$", "").is_in(others.unique().implode())
        _check(twice, fail, "is there without its '.0' too. Write one id in one way.")
    _check_looks(ids, others, fail)


def _check_looks(ids: pl.Series, others: pl.Series, fail: Fail) -> None:
    """Raise where two ids look the same: one has white space around it, or what cannot be seen, or its accents apart."""
    known = pl.concat([ids, others]).unique()
    if not known.str.contains(rf"^[{_INVISIBLE}]|[{_INVISIBLE}]$|[^\x00-\x7f]").any():
        return
    spellings: dict[str, set[str]] = {}
    for one in known.to_list():
        spellings.setdefault(_look(one), set()).add(one)
    for several in spellings.values():
        if len(several) > 1:
            alike = " and ".join(sorted(map(repr, several)))
            _check(ids.is_in(list(several)), fail, f"is one of {alike}, which look the same. Write one id in one way.")


def _look(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip("\u200b\u200c\u200d\u2060\ufeff\xad" + _WHITE)


def same_type(left: pl.Series, right: pl.Series, fail: Fail) -> tuple[pl.Series, pl.Series]:
    """Two columns of the same ids as one type: text where one of them is."""
    if left.dtype != right.dtype:
        left, right = left.cast(pl.String), right.cast(pl.String)
    check_spellings(left, right, fail)
    return left, right


def _check(bad: pl.Series, fail: Fail, problem: str) -> None:
    rows = bad.arg_true()
    if len(rows):
        fail(rows[0], problem)
