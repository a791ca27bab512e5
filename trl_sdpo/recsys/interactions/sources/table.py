"""Any table of interactions, by the names of its columns."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import polars as pl

from ..attributes import wanted_attributes, with_attributes
from ..interactions import ITEM_ID, NANOSECOND, RATING, TIMESTAMP, TITLE, USER_ID, YEAR, Interactions, with_nanoseconds
from ..readers.any_table import AnyTable
from ..readers.ids import read_ids, same_type
from ..readers.quoting import AUTO
from ..readers.times import TIME_UNITS, read_times
from ..titles import canonical_title, drop_untitled, plain_titles, resolve_duplicate_titles


if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

    Table: TypeAlias = str | Path | pl.DataFrame | pd.DataFrame | Dataset

logger = logging.getLogger(__name__)


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
    attributes: str | Sequence[str] = (),
    movie_titles: bool = False,
    separator: str | None = None,
    quote: str = AUTO,
    escape: str | None = None,
    encoding: str | None = None,
    split: str = "train",
    name: str | None = None,
) -> Interactions:
    """
    Read any table with one row per interaction by naming its columns.

    Ids that are whole numbers throughout a column are read as `Int64`, others as `String`, and none is ever rounded.
    Without `timestamp` the rows keep their order, and there is no time. Titles are in `items`, or else in `data` (of
    several for one item the first is taken); without `title` the ids stand in for them, with a warning. Null, NaN, an
    empty text and white space are all missing. Rows without a time are dropped and counted, as are items without a
    title and events of items that are not in `items`; equal titles are merged ([`resolve_duplicate_titles`]). Whatever
    else is missing or not of its type is an error. docs/data.md says what is guaranteed of files, ids and times.

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
            How a time is written, such as `"%Y-%m-%d %H:%M:%S.%f"`. UTC, unless it has `%z` (an offset, or Z). Names of
            time zones (`%Z`) are refused.
        rating (`str`, *optional*):
            The column of ratings.
        title (`str`, *optional*):
            The column of titles.
        year (`str`, *optional*):
            A column of years beside the titles. They tell equal titles apart.
        attributes (`str` or `Sequence[str]`, *optional*):
            Columns beside the titles that the items keep, such as `"genres,brand"`: text, numbers or lists of text. Of
            several values for one item the first is taken.
        movie_titles (`bool`, *optional*, defaults to `False`):
            Bring titles to the form that the loaders of MovieLens give them ([`canonical_title`]).
        separator (`str`, *optional*):
            One character between the fields of a text file. By default a comma, or a tab in `.tsv`.
        quote (`str`, *optional*, defaults to `"auto"`), escape (`str`, *optional*):
            The characters of a text file around fields with separators in them, and before those that are meant as
            they are; `quote=""` for none. By default what fits every line of the file, see [`find_quoting`].
        encoding (`str`, *optional*):
            Of a text file. By default what its byte order mark says, else UTF-8.
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
    if items is not None and title is None:
        raise ValueError("items are given, but title is not. Name the column of titles.")
    wanted = wanted_attributes(attributes, None, "table")
    path = Path(data) if isinstance(data, (str, Path)) else None
    name = name or (path.name.split(".")[0] if path else "table")
    options = {"separator": separator, "split": split, "quote": quote, "escape": escape, "encoding": encoding}
    log = AnyTable(data, str(path or name), **options)
    columns = {USER_ID: user, ITEM_ID: item, TIMESTAMP: timestamp, RATING: rating}
    beside = {ITEM_ID: item, TITLE: title, YEAR: year}
    table = log.read(
        {key: column for key, column in (columns | ({} if items is not None else beside)).items() if column}
    )
    report = {"events_read": table.height}
    events, book = _events(table, log, columns, time_unit, time_format), log
    if items is None:
        if title:
            events = events.with_columns(_titles(events[TITLE], log, title))
        catalogue = _items_of_events(events)
    else:
        book = AnyTable(items, str(items) if isinstance(items, (str, Path)) else f"{name} items", **options)
        catalogue = _items_of_table(book, beside)
    ids, known = same_type(events[ITEM_ID], catalogue[ITEM_ID], log.fail_at(item, events[ITEM_ID]))
    events, catalogue = events.with_columns(ids), catalogue.with_columns(known)
    # Only now: a title may stand in a row without a time.
    if timestamp:
        events = events.drop_nulls(TIMESTAMP)
        if items is None:
            catalogue = catalogue.filter(pl.col(ITEM_ID).is_in(events[ITEM_ID].implode()))
    report["events_without_time"] = report["events_read"] - events.height
    report["items_read"] = catalogue.height
    catalogue = _clean_titles(catalogue, movie_titles)
    events, catalogue, dropped = drop_untitled(events, catalogue)
    events, catalogue, merges = resolve_duplicate_titles(events, catalogue)
    if wanted:
        catalogue = with_attributes(catalogue, _attributes(book, item, wanted, catalogue[ITEM_ID].dtype))
    columns = [name for name in (USER_ID, ITEM_ID, RATING, TIMESTAMP, NANOSECOND) if name in events.columns]
    logger.info("%s: %d events and %d items read", log.label, report["events_read"], report["items_read"])
    report |= dropped | merges
    return Interactions(events.select(columns), catalogue, name, has_time=timestamp is not None, report=report)


def _events(
    table: pl.DataFrame, log: AnyTable, columns: dict, time_unit: str, time_format: str | None
) -> pl.DataFrame:
    """Users, items, ratings and times checked and of their types. Rows without a time are there yet."""
    events = table.with_columns(_ids(table, log, key, columns[key]) for key in (USER_ID, ITEM_ID))
    if columns[RATING]:
        events = events.with_columns(_ratings(table[RATING], log, columns[RATING]))
    if not columns[TIMESTAMP]:
        return events.with_columns(pl.lit(None, dtype=pl.Int64).alias(TIMESTAMP))
    times = table[TIMESTAMP]
    seconds, rest = read_times(times, time_unit, time_format, log.fail_at(columns[TIMESTAMP], times))
    return with_nanoseconds(events.with_columns(seconds.alias(TIMESTAMP)), rest)


def _attributes(source: AnyTable, item: str, wanted: tuple[str, ...], dtype: pl.DataType) -> pl.DataFrame:
    """More columns of a table whose ids are checked: for each item the first value that is there."""
    table = source.read({ITEM_ID: item, **{name: name for name in wanted}}, nested=wanted)
    table = table.with_columns(_ids(table, source, ITEM_ID, item).cast(dtype))
    for name in wanted:
        if table[name].dtype in (pl.Binary, pl.Object, pl.Struct, pl.Array):
            raise TypeError(
                f"{source.label}: column '{name}' is {table[name].dtype}. Make text or a list of texts of it."
            )
        if table[name].dtype == pl.List:
            table = table.with_columns(pl.col(name).cast(pl.List(pl.String)))
    return table.group_by(ITEM_ID, maintain_order=True).agg(pl.col(name).drop_nulls().first() for name in wanted)


def _ids(table: pl.DataFrame, source: AnyTable, key: str, column: str) -> pl.Series:
    ids = table[key]
    return read_ids(ids, f"{source.label}: column '{column}'", source.fail_at(column, ids)).alias(key)


def _ratings(ratings: pl.Series, source: AnyTable, column: str) -> pl.Series:
    numbers = ratings.cast(pl.Float64, strict=False)
    if ratings.dtype == pl.String and numbers.null_count():
        numbers = ratings.str.strip_chars().cast(pl.Float64, strict=False)
    elif ratings.dtype == pl.Boolean:
        numbers = numbers * float("nan")
    rows = (~numbers.is_finite().fill_null(False)).arg_true()
    if len(rows):
        source.raise_at(rows[0], column, ratings[rows[0]], "is not a finite number. Correct the row.")
    return numbers.alias(RATING)


def _titles(titles: pl.Series, source: AnyTable, column: str) -> pl.Series:
    """Titles as text. Whole numbers that became floats beside a missing one are written as whole numbers again."""
    dtype = titles.dtype
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object, pl.Boolean):
        raise TypeError(f"{source.label}: column '{column}' is {dtype}. Titles are text: make one of it.")
    if dtype.is_float() and (titles.drop_nulls() == titles.drop_nulls().floor()).all():
        titles = titles.cast(pl.Int64, strict=False).cast(pl.String).fill_null(titles.cast(pl.String))
    return titles.cast(pl.String).alias(TITLE)


def _items_of_table(book: AnyTable, columns: dict) -> pl.DataFrame:
    items = book.read({key: column for key, column in columns.items() if column})
    return items.with_columns(
        _ids(items, book, ITEM_ID, columns[ITEM_ID]), _titles(items[TITLE], book, columns[TITLE])
    )


def _items_of_events(events: pl.DataFrame) -> pl.DataFrame:
    if TITLE not in events.columns:
        items = events.select(pl.col(ITEM_ID).unique(maintain_order=True))
        logger.warning("No column of titles is named, so %d items go by their ids.", items.height)
        return items.with_columns(pl.col(ITEM_ID).cast(pl.String).alias(TITLE))
    beside = [pl.col(name).drop_nulls().first() for name in (TITLE, YEAR) if name in events.columns]
    return events.group_by(ITEM_ID, maintain_order=True).agg(beside)


def _clean_titles(items: pl.DataFrame, movie_titles: bool) -> pl.DataFrame:
    items = items.with_columns(plain_titles(TITLE).alias(TITLE))
    if movie_titles:
        titles = [canonical_title(title) if title and title.strip() else None for title in items[TITLE]]
        items = items.with_columns(pl.Series(TITLE, titles, dtype=pl.String))
    if YEAR in items.columns:
        items = items.with_columns(pl.col(YEAR).cast(pl.Float64, strict=False).cast(pl.Int64, strict=False))
    return items
