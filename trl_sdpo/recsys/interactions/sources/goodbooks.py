"""goodbooks-10k: https://github.com/zygmuntz/goodbooks-10k."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ..attributes import wanted_attributes, with_attributes
from ..interactions import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID, YEAR, Interactions
from ..readers.delimited import check_header, csv_rows, read_table
from ..readers.frames import check_columns
from ..readers.release_files import open_release
from ..titles import drop_untitled, plain_titles, resolve_duplicate_titles
from .goodreads import without_series


logger = logging.getLogger(__name__)

# The first version numbers its books in the column `id`; its `book_id` is Goodreads's, but that of its ratings is not.
_RATINGS = (["user_id", "book_id", "rating"], ["book_id", "user_id", "rating"])
_KEYS = ("id", "book_id")
_TITLE, _YEAR = "title", "original_publication_year"
_ATTRIBUTES = {"authors": "authors", "year": _YEAR, "language": "language_code"}


def load_goodbooks(path: str | Path, *, series: bool = True, attributes: str | Sequence[str] = ()) -> Interactions:
    """
    Read goodbooks-10k, either version: ratings of the 10,000 most popular books of Goodreads.

    There is no time. The rows keep the order of the file: in the second version (`user_id,book_id,rating`) its authors
    sorted them by time, in the first (`book_id,user_id,rating`) they are sorted by book.

    Books that share a title are told apart by their year of publication, and merged where that is the same too
    ([`resolve_duplicate_titles`]). Books without a title, and ratings of books that are not in `books.csv`, are
    dropped and counted.

    Args:
        path (`str` or `Path`):
            The folder with `ratings.csv` and `books.csv`, the folder above it, or a zip archive of them.
        series (`bool`, *optional*, defaults to `True`):
            Keep the series behind a title, `"Crooked Kingdom (Six of Crows, #2)"`.
        attributes (`str` or `Sequence[str]`, *optional*):
            Columns that the items get besides, of `authors` (a list), `year` and `language`.

    Returns:
        [`Interactions`]: Without times. Its report counts what was read, dropped and merged.

    Raises:
        FileNotFoundError: there is no such path, or a file is missing in it.
        ValueError: a file is empty, damaged or not in its format. The message names file, line, column and value.

    Example:
        ```python
        from trl_sdpo.recsys import load_goodbooks

        interactions = load_goodbooks("goodbooks-10k.zip")
        ```
    """
    name, files = open_release(path, (("ratings.csv", "books.csv"),))
    events = _read_ratings(*files["ratings.csv"])
    wanted = wanted_attributes(attributes, tuple(_ATTRIBUTES), "goodbooks-10k")
    items = _read_books(*files["books.csv"], wanted)
    known, items = items.select(ITEM_ID, *wanted), items.select(ITEM_ID, TITLE, YEAR)
    report = {"events_read": events.height, "items_read": items.height}
    items = items.with_columns(without_series(plain_titles(TITLE)) if not series else plain_titles(TITLE))
    events, items, dropped = drop_untitled(events, items)
    events, items, merges = resolve_duplicate_titles(events, items)
    items = with_attributes(items, known) if wanted else items
    logger.info("%s: %d ratings and %d books read", name, report["events_read"], report["items_read"])
    return Interactions(events, items, name, has_time=False, report=report | dropped | merges)


def _read_ratings(label: str, source: Path | bytes) -> pl.DataFrame:
    columns = check_header(source, label, ",", *_RATINGS)
    types = {USER_ID: pl.Int64, "book_id": pl.Int64, RATING: pl.Float64}
    table = read_table(source, label, ",", {name: types[name] for name in columns}, 1, limits={RATING: (1, 5)})
    time = pl.lit(None, dtype=pl.Int64).alias(TIMESTAMP)
    return table.select(USER_ID, pl.col("book_id").alias(ITEM_ID), RATING, time)


def _read_books(label: str, source: Path | bytes, wanted: tuple[str, ...]) -> pl.DataFrame:
    rows = csv_rows(source, label)
    _, header = next(rows)
    key = next((name for name in _KEYS if name in header), None)
    needed = dict.fromkeys((_TITLE, _YEAR, *(_ATTRIBUTES[name] for name in wanted)))
    missing = [name for name in needed if name not in header]
    check_columns(header, [name for name in (key, *needed) if name in header], label)
    if key is None or missing:
        raise ValueError(f"{label}: line 1: no column {missing or 'book_id'} in {header}. Pass the file as published.")
    books = {}
    for number, fields in rows:
        book = dict(zip(header, fields, strict=True))
        if not (book[key].isascii() and book[key].isdigit()):
            raise ValueError(
                f"{label}: line {number}, column '{key}': {book[key]!r} is not a whole number. Correct it."
            )
        if int(book[key]) in books:
            raise ValueError(f"{label}: line {number}, column '{key}': {book[key]} is in an earlier line. Remove one.")
        year = _year(book[_YEAR], f"{label}: line {number}, column '{_YEAR}'")
        authors = book.get("authors", "").split(",")
        books[int(book[key])] = (book[_TITLE], year, authors, book.get("language_code"))
    titles, years, authors, languages = zip(*books.values(), strict=True) if books else ((), (), (), ())
    schema: dict[str, Any] = {
        ITEM_ID: pl.Int64,
        TITLE: pl.String,
        YEAR: pl.Int64,
        "authors": pl.List(pl.String),
        "language": pl.String,
    }
    return pl.DataFrame([list(books), *map(list, (titles, years, authors, languages))], schema=schema)


def _year(value: str, where: str) -> int | None:
    try:
        return int(float(value)) if value else None
    except (OverflowError, ValueError):
        raise ValueError(f"{where}: {value!r} is not a year. Correct it or leave it empty.") from None
