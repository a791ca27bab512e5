"""Times of events: whole seconds since 1970 and, where a source is finer, the nanoseconds behind them."""

import logging
from typing import cast

import polars as pl

from ..interactions import LATEST
from .ids import Fail


logger = logging.getLogger(__name__)

# How many there are in a second.
TIME_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_BILLION = 10**9
_DECIMAL = r"^\s*([+-]?)([0-9]{1,18})(?:\.([0-9]*))?\s*$"
_YEAR = 366 * 86400
# The seconds of the year 1000: polars takes "98" for %Y, and means the year 98.
_FOUR_DIGITS = -30_610_224_000


def read_times(times: pl.Series, unit: str, time_format: str | None, fail: Fail) -> tuple[pl.Series, pl.Series]:
    """
    Times of any kind.

    Args:
        times (`polars.Series`):
            Numbers since 1970 in `unit`, as numbers or as text; dates and times; or text in `time_format`. Null where
            there is none.
        unit (`str`):
            `"s"`, `"ms"`, `"us"` or `"ns"`.
        time_format (`str`, *optional*):
            As [`load_table`] takes it.
        fail (`Callable`):
            Called with a row and what is wrong there. It raises.

    Returns:
        `tuple[polars.Series, polars.Series]`: Seconds, rounded down, and nanoseconds from 0 to 999,999,999; both null
        where there is no time.

    Raises:
        ValueError: the format has a directive that cannot be honoured.
    """
    dtype = times.dtype
    if dtype.is_temporal() and time_format is not None and dtype not in (pl.Duration, pl.Time):
        time_format = None  # it is read already
    if dtype in (pl.Date, pl.Datetime):
        seconds, rest = _from_datetimes(times)
    elif time_format is not None:
        seconds, rest = _from_format(times.cast(pl.String), time_format)
    elif dtype.is_float():
        seconds, rest = _from_floats(times, TIME_UNITS[unit])
    elif dtype.is_integer() or dtype == pl.String:
        seconds, rest = _from_decimals(times, TIME_UNITS[unit])
    else:
        seconds = rest = pl.Series([None] * len(times), dtype=pl.Int64)
    form = f"a time in the form {time_format!r}" if time_format else "a number (pass time_format for other times)"
    _check(seconds.is_null() & times.is_not_null(), fail, f"is not {form}. Correct the row.")
    if time_format is not None:
        early = "is before the year 1000. Write years with four digits, or pass %y in time_format where all have two."
        _check(seconds < _FOUR_DIGITS, fail, early)
    late = f"is after the year 5138 in {unit}. Pass time_unit as 'ms', 'us' or 'ns'."
    _check(seconds > LATEST, fail, late)
    if unit != "s" and time_format is None and not dtype.is_temporal():
        _check_one_unit(seconds, unit, fail)
    return seconds, rest


def _from_datetimes(times: pl.Series) -> tuple[pl.Series, pl.Series]:
    if times.dtype == pl.Date:
        seconds = times.to_physical().cast(pl.Int64) * 86400
        return seconds, seconds * 0
    count = TIME_UNITS[cast(pl.Datetime, times.dtype).time_unit]
    whole = times.to_physical().cast(pl.Int64)
    return whole // count, whole % count * (_BILLION // count)


def _from_format(texts: pl.Series, form: str) -> tuple[pl.Series, pl.Series]:
    if "%Z" in form:
        raise ValueError(
            f"time_format={form!r}: names of time zones (%Z) are not read, since EST or IST mean several. Write offsets "
            "as +0200 and pass %z, or convert the column."
        )
    # Python's %f is what polars has as %.f: with %f alone it would read .5 as five nanoseconds.
    form = form.replace(".%f", "%.f").replace("%fZ", "%f Z")
    if "%f" in form.replace("%.f", ""):
        raise ValueError(f"time_format={form!r}: %f stands behind no point. Write '.%f', or convert the column.")
    if "%z" in form:
        texts = texts.str.replace(r"(^|[0-9\s])[Zz](\s|$)", "${1}+0000${2}")
    times = texts.str.to_datetime(form, strict=False, time_unit="us", time_zone=None)
    seconds, rest = _from_datetimes(times)
    if "%.f" in form:
        # Nanoseconds reach from 1678 to 2262: outside of them microseconds stay.
        finer = texts.str.to_datetime(form, strict=False, time_unit="ns")
        fits = seconds.is_between(-9_200_000_000, 9_200_000_000) & finer.is_not_null()
        rest = (finer.to_physical() % _BILLION).zip_with(fits.fill_null(False), rest)
    return seconds, rest


def _from_decimals(times: pl.Series, count: int) -> tuple[pl.Series, pl.Series]:
    """Whole numbers, and numbers in text, exactly: nanoseconds have more digits than a float."""
    whole = times.cast(pl.Int64, strict=False)
    scale = _BILLION // count
    seconds, rest = (whole, whole * 0) if count == 1 else (whole // count, whole % count * scale)
    if times.dtype != pl.String or whole.null_count() == times.null_count():
        return seconds, rest
    frame = pl.select(
        sign=pl.lit(times).str.extract(_DECIMAL, 1),
        whole=pl.lit(times).str.extract(_DECIMAL, 2).cast(pl.Int64),
        digits=pl.lit(times).str.extract(_DECIMAL, 3).fill_null("").str.pad_end(9, "0").str.head(len(str(scale)) - 1),
    )
    sign = pl.when(pl.col("sign") == "-").then(-1).otherwise(1)
    fraction = pl.col("digits").cast(pl.Int64, strict=False).fill_null(0)
    number = sign * pl.col("whole")
    parts = number % count * scale + sign * fraction
    exact = frame.select(seconds=number // count + parts // _BILLION, rest=parts % _BILLION)
    # What is left is written as 1.7e9.
    floats = _from_floats(times.str.strip_chars().cast(pl.Float64, strict=False), count)
    return exact["seconds"].fill_null(floats[0]), exact["rest"].fill_null(floats[1])


def _from_floats(times: pl.Series, count: int) -> tuple[pl.Series, pl.Series]:
    if (times.abs() >= 2**53).any():
        logger.warning("Times are floats of 2**53 or more, whose last digits are lost: those nearby may be one.")
    times = times.cast(pl.Float64).set(~times.cast(pl.Float64).is_finite().fill_null(False), None)
    whole = times.floor()
    fraction = ((times - whole) * (_BILLION // count)).floor().cast(pl.Int64, strict=False)
    number = whole.cast(pl.Int64, strict=False)
    return number // count, number % count * (_BILLION // count) + fraction


def _check_one_unit(seconds: pl.Series, unit: str, fail: Fail) -> None:
    """Raise where a time lies in the first year of all, and others lie decades later: seconds among milliseconds."""
    if cast(int, seconds.max() or 0) > _BILLION:
        early = (seconds > 0) & (seconds < _YEAR)
        _check(early, fail, f"is in 1970 in {unit}, while others are after 2001. Write all times in one unit.")


def _check(bad: pl.Series, fail: Fail, problem: str) -> None:
    rows = bad.fill_null(False).arg_true()
    if len(rows):
        fail(rows[0], problem)
