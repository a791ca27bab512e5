"""Any table of interactions, by the names of its columns."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import polars as pl

from ..interactions import (
    ITEM_ID,
    LATEST,
    RATING,
    TIMESTAMP,
    TITLE,
    USER_ID,
    YEAR,
    Interactions,
    canonical_title,
    drop_untitled,
    plain_titles,
    resolve_duplicate_titles,
)
from ..readers.any_table import AnyTable
from ..readers.delimited import whole_numbers


if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

    Table: TypeAlias = str | Path | pl.DataFrame | pd.DataFrame | Dataset

logger = logging.getLogger(__name__)

TIME_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def load_table(
    data: "Table",
    items: "Table | None" = None,
    *,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str | None = None,
    time_unit: str = "s",
    time_format: str | None = None,
    rating: str | None = None,
    title: str | None = None,
    year: str | None = None,
    movie_titles: bool = False,
    separator: str | None = None,
    split: str = "train",
    name: str | None = None,
) -> Interactions:
    """
    Read any table with one row per interaction by naming its columns.

    Ids that are whole numbers throughout a column are read as `Int64`, others as `String`. Without `timestamp` the
    rows keep their order, and there is no time. Titles are in `items`, or else in `data` (of several for one item the
    first is taken); without `title` the ids stand in for them, with a warning. Rows without a time are dropped and
    counted, as are items without a title and events of items that are not in `items`; equal titles are merged
    ([`resolve_duplicate_titles`]). Whatever else is missing or not of its type is an error.

    Args:
        data (`str`, `Path`, `polars.DataFrame`, `pandas.DataFrame` or `datasets.Dataset`):
            The interactions. A path ends in `.csv`, `.tsv`, `.jsonl` (each may have `.gz` behind it) or `.parquet`, or
            is a folder written by `Dataset.save_to_disk`. What is no path is the name of a data set on the Hub.
        items (as `data`, *optional*):
            One row per item, with columns `item`, `title` and, if named, `year`.
        user (`str`, *optional*, defaults to `"user_id"`):
            The column of users.
        item (`str`, *optional*, defaults to `"item_id"`):
            The column of items, in `data` and in `items`.
        timestamp (`str`, *optional*):
            The column of times: numbers since 1970 in `time_unit`, dates, or text in `time_format`.
        time_unit (`str`, *optional*, defaults to `"s"`):
            `"s"`, `"ms"`, `"us"` or `"ns"`.
        time_format (`str`, *optional*):
            How a time is written, such as `"%Y-%m-%d %H:%M:%S"`. UTC, unless it has `%z`.
        rating (`str`, *optional*):
            The column of ratings.
        title (`str`, *optional*):
            The column of titles.
        year (`str`, *optional*):
            A column of years beside the titles. They tell equal titles apart.
        movie_titles (`bool`, *optional*, defaults to `False`):
            Bring titles to the form that the loaders of MovieLens give them ([`canonical_title`]).
        separator (`str`, *optional*):
            One character between the fields of a text file. By default a comma, or a tab in `.tsv`.
        split (`str`, *optional*, defaults to `"train"`):
            The split of a data set on the Hub.
        name (`str`, *optional*):
            What messages call the data. By default the name of the file.

    Returns:
        [`Interactions`]: Its report counts what was read, dropped and merged.

    Raises:
        FileNotFoundError: there is no such file, and no data set of that name on the Hub.
        TypeError: `data` or `items` is something else.
        ValueError: a column or an option is not there, a file is empty, damaged or of another kind, or a value is
            missing or not of its type. The message names file, line or row, column and value.

    Example:
        ```python
        >>> import polars as pl
        >>> log = pl.DataFrame({"who": ["a", "a", "b"], "what": [7, 8, 7], "when": [1000, 2000, 3000]})
        >>> catalogue = pl.DataFrame({"what": [7, 8], "label": ["Moby Dick", "Emma"]})
        >>> interactions = load_table(
        ...     log, catalogue, user="who", item="what", timestamp="when", time_unit="ms", title="label"
        ... )
        >>> interactions.events.rows()
        [('a', 7, 1), ('a', 8, 2), ('b', 7, 3)]

        ```
    """
    if time_unit not in TIME_UNITS:
        raise ValueError(f"time_unit={time_unit!r} is not one of {', '.join(TIME_UNITS)}. Pass one of them.")
    if time_unit not in TIME_UNITS:
        raise ValueError(f"time_unit={time_unit!r} is not one of {', '.join(TIME_UNITS)}. Pass one of them.")
    if items is not None and title is None:
        raise ValueError("items are given, but title is not. Name the column of titles.")
    path = Path(data) if isinstance(data, (str, Path)) else None
    name = name or (path.name.split(".")[0] if path else "table")
    log = AnyTable(data, str(path or name), separator, split)
    columns = {USER_ID: user, ITEM_ID: item, TIMESTAMP: timestamp, RATING: rating}
    beside = {ITEM_ID: item, TITLE: title, YEAR: year}
    table = log.read(
        {key: column for key, column in (columns | ({} if items is not None else beside)).items() if column}
    )
    report = {"events_read": table.height}
    events = _events(table, log, columns, time_unit, time_format)
    report["events_without_time"] = report["events_read"] - events.height
    if items is None:
        catalogue = _items_of_events(events)
    else:
        path = items if isinstance(items, (str, Path)) else f"{name} items"
        book = AnyTable(items, str(path), separator, split)
        catalogue = book.read({key: column for key, column in beside.items() if column})
        catalogue = catalogue.with_columns(_ids(catalogue, book, ITEM_ID, item))
    report["items_read"] = catalogue.height
    catalogue = _clean_titles(catalogue, movie_titles)
    if events[ITEM_ID].dtype != catalogue[ITEM_ID].dtype:
        events, catalogue = (frame.with_columns(pl.col(ITEM_ID).cast(pl.String)) for frame in (events, catalogue))
    events, catalogue = whole_numbers(events, catalogue)
    events, catalogue, dropped = drop_untitled(events, catalogue)
    events, catalogue, merges = resolve_duplicate_titles(events, catalogue)
    columns = [column for column in (USER_ID, ITEM_ID, RATING, TIMESTAMP) if column in events.columns]
    logger.info("%s: %d events and %d items read", log.label, report["events_read"], report["items_read"])
    report |= dropped | merges
    return Interactions(events.select(columns), catalogue, name, has_time=timestamp is not None, report=report)


def _events(
    table: pl.DataFrame, log: AnyTable, columns: dict, time_unit: str, time_format: str | None
) -> pl.DataFrame:
    events = table.with_columns(_ids(table, log, key, columns[key]) for key in (USER_ID, ITEM_ID))
    if columns[RATING]:
        rating = table[RATING].cast(pl.Float64, strict=False)
        _check(
            ~(rating.is_finite().fill_null(False)),
            table[RATING],
            log,
            columns[RATING],
            "is not a finite number. Correct the row.",
        )
        events = events.with_columns(rating)
    if not columns[TIMESTAMP]:
        return events.with_columns(pl.lit(None, dtype=pl.Int64).alias(TIMESTAMP))
    time = _seconds(table[TIMESTAMP], TIME_UNITS[time_unit], time_format)
    form = f"a time in the form {time_format!r}" if time_format else "a number (pass time_format for other times)"
    unreadable = time.is_null() & table[TIMESTAMP].is_not_null()
    _check(unreadable, table[TIMESTAMP], log, columns[TIMESTAMP], f"is not {form}. Correct the row.")
    remedy = f"is after the year 5138 in {time_unit}. Pass time_unit as 'ms', 'us' or 'ns'."
    _check((time > LATEST).fill_null(False), table[TIMESTAMP], log, columns[TIMESTAMP], remedy)
    return events.with_columns(time).drop_nulls(TIMESTAMP)


def _ids(table: pl.DataFrame, source: AnyTable, key: str, column: str) -> pl.Series:
    ids = table[key]
    _check(ids.is_null(), ids, source, column, "is missing. Fill it or remove the row.")
    if ids.dtype.is_integer():
        return ids.cast(pl.Int64)
    if ids.dtype.is_float() and (ids == ids.floor()).all():
        return ids.cast(pl.Int64)
    if ids.dtype in (pl.String, pl.Categorical, pl.Enum):
        return ids.cast(pl.String)
    raise TypeError(f"{source.label}: column '{column}' is {ids.dtype}. Ids are whole numbers or text: cast it.")


def _seconds(time: pl.Series, unit: int, time_format: str | None) -> pl.Series:
    if time.dtype.is_temporal():
        return time.dt.epoch("s")
    if time_format is not None:
        return time.cast(pl.String).str.to_datetime(time_format, strict=False).dt.epoch("s")
    # Nanoseconds have more digits than a float.
    whole = time.cast(pl.Int64, strict=False) // unit
    if time.dtype.is_integer():
        return whole
    floored = (time.cast(pl.Float64, strict=False) / unit).floor().cast(pl.Int64, strict=False)
    return floored if time.dtype.is_float() else whole.fill_null(floored)


def _check(bad: pl.Series, values: pl.Series, source: AnyTable, column: str, problem: str) -> None:
    rows = bad.arg_true()
    if len(rows):
        source.raise_at(rows[0], column, values[rows[0]], problem)


def _items_of_events(events: pl.DataFrame) -> pl.DataFrame:
    if TITLE not in events.columns:
        items = events.select(pl.col(ITEM_ID).unique(maintain_order=True))
        logger.warning("No column of titles is named, so %d items go by their ids.", items.height)
        return items.with_columns(pl.col(ITEM_ID).cast(pl.String).alias(TITLE))
    beside = [pl.col(name).drop_nulls().first() for name in (TITLE, YEAR) if name in events.columns]
    return events.group_by(ITEM_ID, maintain_order=True).agg(beside)


def _clean_titles(items: pl.DataFrame, movie_titles: bool) -> pl.DataFrame:
    items = items.with_columns(pl.col(TITLE).cast(pl.String)).with_columns(plain_titles(TITLE).alias(TITLE))
    if movie_titles:
        titles = [canonical_title(title) if title else None for title in items[TITLE]]
        items = items.with_columns(pl.Series(TITLE, titles, dtype=pl.String))
    if YEAR in items.columns:
        items = items.with_columns(pl.col(YEAR).cast(pl.Float64, strict=False).cast(pl.Int64, strict=False))
    return items
