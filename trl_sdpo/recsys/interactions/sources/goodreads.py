"""The UCSD Book Graph: https://mcauleylab.ucsd.edu/public_datasets/gdrive/goodreads/."""

import logging
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from ...._progress import progress
from ..attributes import wanted_attributes, with_attributes
from ..interactions import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID, Interactions
from ..readers.delimited import check_header, raise_first_bad_line, read_table
from ..readers.json_lines import check_records, doubtful, raise_first_bad_record, value_problem
from ..readers.text_files import check_not_empty
from ..streams import EventStream, stream_of
from ..titles import plain_titles
from .goodreads_books import ATTRIBUTES, read_attributes


logger = logging.getLogger(__name__)

TIMES = ("read_at", "date_updated", "date_added")
_DATE_FORMAT = "%a %b %d %H:%M:%S %z %Y"
# Readers type the date of reading by hand, and some are of the years 12 or 20016.
_PLAUSIBLE = (-2_208_988_800, 4_102_444_799)  # 1900 to 2099
_SERIES = r"\s*\([^()]*#[^()]*\)$"

_CSV = "goodreads_interactions.csv"
_CSV_COLUMNS = dict.fromkeys((USER_ID, "book_id", "is_read", RATING, "is_reviewed"), pl.Int64)
_CSV_LIMITS = {"is_read": (0, 1), "rating": (0, 5), "is_reviewed": (0, 1)}
_JSON_COLUMNS = {"user_id": pl.String, "book_id": pl.String, "is_read": pl.Boolean, "rating": pl.Int64}
_JSON_COLUMNS |= dict.fromkeys(TIMES, pl.String)
_BOOK_COLUMNS = dict.fromkeys(("book_id", "title", "title_without_series"), pl.String)


def _not_a_number(value: object) -> str | None:
    return None if re.fullmatch(r"\d{1,18}", str(value)) else "is not a whole number"


def _not_a_rating(value: object) -> str | None:
    return None if type(value) is int and 0 <= value <= 5 else "is not a whole number from 0 to 5"


_RECORD_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "user_id": lambda value: value_problem(value) or (None if str(value or "").strip() else "is empty"),
    "book_id": _not_a_number,
    "is_read": lambda value: None if isinstance(value, bool) else "is neither true nor false",
    "rating": _not_a_rating,
}


def load_goodreads(
    path: str | Path,
    *,
    time: str = "read_at",
    read_only: bool = False,
    series: bool = True,
    attributes: str | Sequence[str] = (),
) -> Interactions:
    """
    Read users' shelves from the UCSD Book Graph, whole or of one genre.

    Two kinds of files, each with the books of the same name beside it (`goodreads_books_GENRE.json.gz`,
    `goodreads_books.json.gz` for the whole):

    - `goodreads_interactions_GENRE.json.gz` or `goodreads_interactions_dedup.json.gz`, with times;
    - `goodreads_interactions.csv`, without: `book_id_map.csv` is needed too, and with `user_id_map.csv` beside it
      users have the same ids as in the other files, else the numbers of the csv.

    The json goes through memory in batches into a temporary Parquet file (in the directory of `tempfile`), from which
    the wanted columns are read: about 60 bytes an event. The order of the file is kept.

    Dropped and counted: books without a title, and events of books that are not in the file of books; events without
    any time. A date that cannot be read or lies outside 1900 to 2099 counts as missing. Books of one title, such as
    the editions of one work, are merged ([`resolve_duplicate_titles`]).

    Args:
        path (`str` or `Path`):
            The file of interactions, or a folder with one of them. Files may also be unzipped (`.json`).
        time (`str`, *optional*, defaults to `"read_at"`):
            What the time of an event is: `"read_at"`, where missing `date_updated`, where missing `date_added`;
            `"date_updated"`, where missing `date_added`; or `"date_added"`.
        read_only (`bool`, *optional*, defaults to `False`):
            Leave out books that are on a shelf but not read.
        series (`bool`, *optional*, defaults to `True`):
            Keep the series behind a title, `"Crooked Kingdom (Six of Crows, #2)"`. Without it the title is
            `title_without_series`, less what it still has in parentheses with a number sign at its end.
        attributes (`str` or `Sequence[str]`, *optional*):
            Columns that the items get besides, of `authors` (a list; their names are in `goodreads_book_authors.json.gz`,
            which is needed beside the books then), `shelves` (a list, the most frequent first), `language`, `description`
            and `year`. Shelves are those of 2017, also of users of the validation and the test.

    Returns:
        [`Interactions`]: `rating` is 1 to 5, or 0 where the user gave none. The report counts what was read, dropped
        and merged, and which column the times are from.

    Raises:
        FileNotFoundError: there is no such file, or one that is needed is not beside it.
        ValueError: `time` is another word, or a file is empty, damaged or not in its format. The message names file,
            line, column and value.

    Example:
        ```python
        from trl_sdpo.recsys import load_goodreads

        interactions = load_goodreads("goodreads_interactions_poetry.json.gz", read_only=True)
        ```
    """
    with stream_goodreads(path, time=time, read_only=read_only, series=series, attributes=attributes) as stream:
        return stream.collect()


@contextmanager
def stream_goodreads(
    path: str | Path,
    *,
    time: str = "read_at",
    read_only: bool = False,
    series: bool = True,
    attributes: str | Sequence[str] = (),
) -> Iterator[EventStream]:
    """As [`load_goodreads`], with events that are read from a temporary Parquet file as they are needed."""
    if time not in TIMES:
        raise ValueError(f"time={time!r} is not one of {', '.join(TIMES)}. Pass one of them.")
    wanted = wanted_attributes(attributes, ATTRIBUTES, "goodreads")
    path = _find_interactions(Path(path))
    has_time = path.name != _CSV
    items = _read_books(_find_books(path), series)
    known = read_attributes(_find_books(path), wanted) if wanted else None
    report = {"items_read": items.height}
    check_not_empty(path, str(path))
    logger.info("%s: reading %.1f MB", path, path.stat().st_size / 1e6)
    with tempfile.TemporaryDirectory(prefix="trl_sdpo.") as folder:
        spool = Path(folder) / "events.parquet"
        if has_time:
            _spool_json(path, spool, time)
        else:
            _spool_csv(path, spool)
        of_use = pl.col("is_read") | (not read_only)
        report |= _count(spool, path, of_use)
        rows = pl.scan_parquet(spool).filter(of_use).select(USER_ID, ITEM_ID, RATING, TIMESTAMP)
        rows = rows.drop_nulls(TIMESTAMP) if has_time else _map_ids(rows, path.parent)
        name = path.name.split(".")[0].replace("_interactions", "")
        stream = stream_of(rows, items, name, has_time=has_time, report=report)
        yield stream if known is None else replace(stream, items=with_attributes(stream.items, known))


def _find_interactions(path: Path) -> Path:
    if path.is_dir():
        found = [
            file for kind in ("*.json.gz", "*.json") for file in sorted(path.glob(f"goodreads_interactions_{kind}"))
        ]
        if not found and (path / _CSV).is_file():
            found = [path / _CSV]
        if not found:
            raise FileNotFoundError(
                f"{path}: no goodreads_interactions_*.json.gz and no {_CSV} in it. Pass their folder."
            )
        if len(found) > 1:
            raise ValueError(
                f"{path}: several files of interactions: {[file.name for file in found]}. Pass one of them."
            )
        return found[0]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder. Correct the path.")
    if path.name != _CSV and not re.fullmatch(r"goodreads_interactions_\w+\.json(\.gz)?", path.name):
        raise ValueError(f"{path}: neither goodreads_interactions_*.json.gz nor {_CSV}. Keep the publisher's names.")
    return path


def _find_books(path: Path) -> Path:
    kind = path.name.split(".")[0].removeprefix("goodreads_interactions")
    stem = f"goodreads_books{kind if kind != '_dedup' else ''}.json"
    for name in (f"{stem}.gz", stem):
        if (path.parent / name).is_file():
            return path.parent / name
    raise FileNotFoundError(f"{path.parent / stem}.gz: missing beside {path.name}, so there are no titles. Fetch it.")


def _read_books(path: Path, series: bool) -> pl.DataFrame:
    check_not_empty(path, str(path))
    title = plain_titles("title")
    if not series:
        title = without_series(pl.coalesce(plain_titles("title_without_series"), title))
    books = pl.scan_ndjson(path, schema=_BOOK_COLUMNS)
    books = books.select(pl.col("book_id").cast(pl.Int64, strict=False).alias(ITEM_ID), title.alias(TITLE))
    try:
        books = books.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise_first_bad_record(path, {"book_id": _not_a_number}, error)
    if books.is_empty() or books[ITEM_ID].null_count():
        raise_first_bad_record(path, {"book_id": _not_a_number})
    if books.select(doubtful(pl.col(TITLE)).any()).item():
        check_records(path, {"title": value_problem})
    _check_unique(books, ITEM_ID, path)
    return books


def without_series(title: pl.Expr) -> pl.Expr:
    """Titles without what stands in parentheses with a number sign at their end, if that leaves anything."""
    short = title.str.replace(_SERIES, "")
    return pl.when(short != "").then(short).otherwise(title)


def _check_unique(table: pl.DataFrame, column: str, path: Path) -> None:
    twice = table.filter(pl.col(column).is_duplicated())[column]
    if len(twice):
        raise ValueError(f"{path}: {column} {twice[0]} is in several lines. Remove all but one of them.")


def _spool_json(path: Path, spool: Path, time: str) -> None:
    columns = TIMES[TIMES.index(time) :]
    seconds = {name: _seconds(name) for name in columns}
    source = pl.coalesce(pl.when(expr.is_not_null()).then(pl.lit(name)) for name, expr in seconds.items())
    unreadable = [(pl.col(name) != "") & expr.is_null() for name, expr in seconds.items()]
    rows = pl.scan_ndjson(path, schema=_JSON_COLUMNS).select(
        pl.when(pl.col("user_id").str.strip_chars() != "").then("user_id").alias(USER_ID),
        pl.col("book_id").cast(pl.Int64, strict=False).alias(ITEM_ID),
        pl.col("rating").cast(pl.Float64).alias(RATING),
        "is_read",
        pl.coalesce(seconds.values()).alias(TIMESTAMP),
        source.alias("source"),
        pl.sum_horizontal(unreadable).alias("unreadable"),
    )
    try:
        with _progress(spool, path.name):
            rows.sink_parquet(spool)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise_first_bad_record(path, _RECORD_CHECKS, error)


@contextmanager
def _progress(spool: Path, name: str) -> Iterator[None]:
    """A bar of what is written: how far polars has read is not to be known."""
    done = threading.Event()

    def watch() -> None:
        with progress(desc=f"{name}, spooled", unit="B", delay=2) as bar:
            while not done.wait(0.5):
                bar.update((spool.stat().st_size if spool.exists() else 0) - bar.n)

    # The watching is in the thread and the reading is not, so that an interrupt reaches the reading.
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _seconds(column: str) -> pl.Expr:
    seconds = pl.col(column).str.to_datetime(_DATE_FORMAT, strict=False).dt.epoch("s")
    return pl.when(seconds.is_between(*_PLAUSIBLE)).then(seconds)


def _spool_csv(path: Path, spool: Path) -> None:
    check_header(path, str(path), ",", list(_CSV_COLUMNS))
    rows = pl.scan_csv(path, has_header=False, skip_lines=1, schema=_CSV_COLUMNS, quote_char=None).select(
        USER_ID,
        pl.col("book_id").alias(ITEM_ID),
        pl.col(RATING).cast(pl.Float64),
        pl.col("is_read").cast(pl.Boolean),
        pl.lit(None, dtype=pl.Int64).alias(TIMESTAMP),
        pl.lit(None, dtype=pl.String).alias("source"),
        pl.lit(0).alias("unreadable"),
    )
    try:
        with _progress(spool, path.name):
            rows.sink_parquet(spool)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise_first_bad_line(path, str(path), ",", _CSV_COLUMNS, 1, _CSV_LIMITS)
        raise ValueError(f"{path}: {error}. Fetch the file again.") from error


def _count(spool: Path, path: Path, wanted: pl.Expr) -> dict[str, int]:
    """Check what was spooled, and say how much it is."""
    required = [pl.col(name).is_not_null().all() for name in (USER_ID, ITEM_ID, "is_read", RATING)]
    counts = pl.scan_parquet(spool).select(
        (pl.all_horizontal(required) & pl.col(RATING).is_between(0, 5).all()).alias("whole"),
        pl.lit(False).alias("doubtful") if path.name == _CSV else doubtful(pl.col(USER_ID)).any().alias("doubtful"),
        pl.len().alias("events_read"),
        (~wanted).sum().alias("events_not_read"),
        (wanted & pl.col(TIMESTAMP).is_null()).sum().alias("events_without_time"),
        pl.col("unreadable").sum().alias("times_unreadable"),
        *((wanted & (pl.col("source") == name)).sum().alias(f"times_from_{name}") for name in TIMES),
    )
    counts = counts.collect(engine="streaming").row(0, named=True)
    if counts.pop("doubtful"):
        check_records(path, _RECORD_CHECKS)
    if not counts.pop("whole") or not counts["events_read"]:
        if path.name == _CSV:
            raise_first_bad_line(path, str(path), ",", _CSV_COLUMNS, 1, _CSV_LIMITS)
            raise ValueError(f"{path}: line 2: no data lines. Fetch the file again.")
        raise_first_bad_record(path, _RECORD_CHECKS)
    if path.name == _CSV:
        return {name: counts[name] for name in ("events_read", "events_not_read")}
    return counts


def _map_ids(rows: pl.LazyFrame, folder: Path) -> pl.LazyFrame:
    """From the numbers of the csv to the ids of the other files."""
    books = _read_map(folder / "book_id_map.csv", "book_id_csv", "book_id", pl.Int64)
    rows = rows.join(books.lazy(), left_on=ITEM_ID, right_on="book_id_csv", how="left", maintain_order="left")
    # A number that is not in the map gets an id that no book has, and is dropped with its count.
    rows = rows.with_columns(pl.coalesce("book_id", -1 - pl.col(ITEM_ID)).alias(ITEM_ID)).drop("book_id")
    path = folder / "user_id_map.csv"
    if path.is_file():
        users = _read_map(path, "user_id_csv", "user_id", pl.String).rename({"user_id": "hex"})
        rows = rows.join(users.lazy(), left_on=USER_ID, right_on="user_id_csv", how="left", maintain_order="left")
        rows = rows.with_columns(pl.col("hex").alias(USER_ID)).drop("hex")
    return rows.select(USER_ID, ITEM_ID, RATING, TIMESTAMP)


def _read_map(path: Path, number: str, identifier: str, dtype: pl.DataType | type[pl.DataType]) -> pl.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing beside {_CSV}, so its books have no titles. Fetch it.")
    header = check_header(path, str(path), ",", [number, identifier], [identifier, number])
    types: dict[str, Any] = {number: pl.Int64, identifier: dtype}
    table = read_table(path, str(path), ",", {name: types[name] for name in header}, header_lines=1)
    _check_unique(table, number, path)
    return table
