"""The one form that every source of interactions is read into."""

from dataclasses import dataclass, field

import polars as pl


USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
NANOSECOND = "nanosecond"
RATING = "rating"
TITLE = "title"
YEAR = "year"
# So that nanoseconds fit 64 bits.
_MOST_SECONDS = 9_200_000_000
# Seconds since 1970, in the year 5138: what lies behind is in milliseconds.
LATEST = 10**11 - 1


@dataclass(frozen=True, eq=False)
class Interactions:
    """
    Who interacted with what and when, and what the items are called. Checked when it is made.

    Args:
        events (`polars.DataFrame`):
            One row per interaction: `user_id` and `item_id` (both `Int64` or `String`, kept as the source has them),
            `timestamp` (`Int64`, seconds; all null where the source has no time) and, where the source has them,
            `rating` (`Float64`) and `nanosecond` (`Int64`, from 0 to 999,999,999: what comes behind the seconds, see
            [`time_columns`]). Rows of a source without time stand in the order of the source.
        items (`polars.DataFrame`):
            One row per item: `item_id` and `title` (`String`), neither of them twice.
        name (`str`):
            What the source is called, such as `"ml-100k"`.
        has_time (`bool`, *optional*, defaults to `True`):
            Whether `timestamp` holds times.
        report (`dict[str, int]`, *optional*):
            What the loader read, changed and dropped.

    Raises:
        TypeError: a column has the wrong type.
        ValueError: a column is missing, or a row holds a null, a blank id, an unknown item, an item or title that was
            there before, an empty title, a time after the year 5138 (so in milliseconds) or a rating that is not a
            finite number. The message names table, row and column.

    Example:
        ```python
        >>> import polars as pl
        >>> events = pl.DataFrame({"user_id": [1, 1], "item_id": [7, 8], "timestamp": [100, 200]})
        >>> items = pl.DataFrame({"item_id": [7, 8], "title": ["Heat (1995)", "The Usual Suspects (1995)"]})
        >>> Interactions(events, items, name="tiny").events.height
        2

        ```
    """

    events: pl.DataFrame
    items: pl.DataFrame
    name: str
    has_time: bool = True
    report: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = (pl.Int64, pl.String)
        _check_columns(self.events, f"{self.name} events", {USER_ID: ids, ITEM_ID: ids, TIMESTAMP: (pl.Int64,)})
        _check_columns(self.items, f"{self.name} items", {ITEM_ID: ids, TITLE: (pl.String,)})
        self._check_items()
        self._check_events()

    def _check_items(self) -> None:
        where = f"{self.name} items"
        if self.items.is_empty():
            raise ValueError(f"{where}: no rows. Give the item table of the source.")
        for column in (ITEM_ID, TITLE):
            _raise_at(self.items, pl.col(column).is_null(), where, column, "is null", "Fill or remove the row.")
        self._check_blank_ids(self.items, where, ITEM_ID)
        blank = pl.col(TITLE).str.strip_chars() == ""
        _raise_at(self.items, blank, where, TITLE, "is empty", "Give every item a title.")
        remedies = {
            ITEM_ID: "Keep one row per item.",
            TITLE: "Merge equal titles with `resolve_duplicate_titles(events, items)`.",
        }
        for column, remedy in remedies.items():
            again = ~pl.col(column).is_first_distinct()
            _raise_at(self.items, again, where, column, "occurs in an earlier row already", remedy)

    @staticmethod
    def _check_blank_ids(frame: pl.DataFrame, where: str, *columns: str) -> None:
        for column in columns:
            if frame[column].dtype == pl.String:
                blank = pl.col(column).str.strip_chars() == ""
                _raise_at(frame, blank, where, column, "is blank", "Fill or remove the row.")

    def _check_events(self) -> None:
        where = f"{self.name} events"
        if self.events.is_empty():
            raise ValueError(f"{where}: no rows. Check that the file of interactions is whole.")
        if self.events[ITEM_ID].dtype != self.items[ITEM_ID].dtype:
            raise TypeError(
                f"{where}: column '{ITEM_ID}' is {self.events[ITEM_ID].dtype}, in the items it is "
                f"{self.items[ITEM_ID].dtype}. Cast one of them."
            )
        required = [USER_ID, ITEM_ID, *([TIMESTAMP] if self.has_time else [])]
        for column in required:
            _raise_at(self.events, pl.col(column).is_null(), where, column, "is null", "Fill or remove the row.")
        self._check_blank_ids(self.events, where, USER_ID, ITEM_ID)
        if not self.has_time:
            timed, remedy = pl.col(TIMESTAMP).is_not_null(), "Pass has_time=True, or null for all."
            _raise_at(self.events, timed, where, TIMESTAMP, "is a time, but has_time=False", remedy)
        else:
            late, remedy = pl.col(TIMESTAMP) > LATEST, "Times are in seconds: divide milliseconds by 1000."
            _raise_at(self.events, late, where, TIMESTAMP, "is after the year 5138", remedy)
        if NANOSECOND in self.events.columns:
            _check_columns(self.events, where, {NANOSECOND: (pl.Int64,)})
            bad = ~pl.col(NANOSECOND).is_between(0, 999_999_999).fill_null(not self.has_time)
            _raise_at(
                self.events, bad, where, NANOSECOND, "is not from 0 to 999999999", "Correct it, or drop the column."
            )
        unknown = ~pl.col(ITEM_ID).is_in(self.items[ITEM_ID].implode())
        remedy = "Add the item with its title, or remove its events."
        _raise_at(self.events, unknown, where, ITEM_ID, "is not among the items", remedy)
        if RATING in self.events.columns:
            _check_columns(self.events, where, {RATING: (pl.Float64,)})
            bad = pl.col(RATING).is_null() | ~pl.col(RATING).is_finite()
            _raise_at(self.events, bad, where, RATING, "is not a finite number", "Correct or remove the row.")


def _check_columns(frame: pl.DataFrame, where: str, columns: dict) -> None:
    for column, dtypes in columns.items():
        if column not in frame.columns:
            raise ValueError(f"{where}: no column '{column}', only {frame.columns}. Rename or add it.")
        if frame[column].dtype not in dtypes:
            wanted = " or ".join(str(dtype) for dtype in dtypes)
            raise TypeError(f"{where}: column '{column}' is {frame[column].dtype}, not {wanted}. Cast it.")


def _raise_at(frame: pl.DataFrame, bad: pl.Expr, where: str, column: str, problem: str, remedy: str) -> None:
    rows = frame.select(bad.arg_true()).to_series()
    if len(rows):
        row = rows[0]
        raise ValueError(
            f"{where}: row {row} (counted from 0), column '{column}': {frame[column][row]!r} {problem} "
            f"({len(rows)} such rows). {remedy}"
        )


def time_columns(events: pl.DataFrame) -> list[str]:
    """
    The columns that order events in time: `timestamp`, and `nanosecond` where the source is finer than a second.

    Example:
        ```python
        >>> time_columns(pl.DataFrame({"user_id": [1], "timestamp": [10], "nanosecond": [500_000_000]}))
        ['timestamp', 'nanosecond']

        ```
    """
    return [name for name in (TIMESTAMP, NANOSECOND) if name in events.columns]


def instants(events: pl.DataFrame) -> pl.Series:
    """
    The time of every event as one whole number: seconds, or nanoseconds where the source is finer than a second.

    Raises:
        ValueError: a time of nanoseconds does not fit 64 bits, which those of the years 1678 to 2261 do.
    """
    if NANOSECOND not in events.columns:
        return events[TIMESTAMP]
    seconds = events[TIMESTAMP]
    far = (seconds.abs() > _MOST_SECONDS).arg_true()
    if len(far):
        raise ValueError(
            f"events: row {far[0]} (counted from 0), column '{TIMESTAMP}': {seconds[far[0]]!r} is too far for "
            f"nanoseconds. Correct it, or drop the column '{NANOSECOND}'."
        )
    return seconds * 1_000_000_000 + events[NANOSECOND]


def with_nanoseconds(events: pl.DataFrame, nanoseconds: pl.Series) -> pl.DataFrame:
    """The events with a column `nanosecond`, if that tells events of one second apart: most sources need none."""
    if not (nanoseconds > 0).any():
        return events
    finer = events.with_columns(nanoseconds.alias(NANOSECOND))
    distinct = finer.select(pl.struct(TIMESTAMP, NANOSECOND).n_unique()).item()
    return finer if distinct > events[TIMESTAMP].n_unique() else events
