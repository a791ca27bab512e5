"""What the UCSD Book Graph tells of a book beside its title."""

from pathlib import Path
from typing import Any

import polars as pl

from ..interactions import ITEM_ID
from ..readers.json_lines import raise_first_bad_record


ATTRIBUTES = ("authors", "shelves", "language", "description", "year")
_AUTHORS = "goodreads_book_authors.json"
_COLUMNS: dict[str, dict[str, Any]] = {
    "authors": {"authors": pl.List(pl.Struct({"author_id": pl.String, "role": pl.String}))},
    "shelves": {"popular_shelves": pl.List(pl.Struct({"count": pl.String, "name": pl.String}))},
    "language": {"language_code": pl.String},
    "description": {"description": pl.String},
    "year": {"publication_year": pl.String},
}


def read_attributes(path: Path, wanted: tuple[str, ...]) -> pl.DataFrame:
    """
    Attributes of books.

    Args:
        path (`Path`):
            The file of books. The names of authors are in `goodreads_book_authors.json.gz` beside it.
        wanted (`tuple[str, ...]`):
            Of `ATTRIBUTES`.

    Returns:
        `polars.DataFrame`: `item_id` and the wanted columns. An author without a name is left out.

    Raises:
        FileNotFoundError: the names of authors are wanted, and their file is not there.
        ValueError: a file is damaged or not in its format. The message names file, line and key.
    """
    authors = _read_authors(path.parent) if "authors" in wanted else None
    schema = {"book_id": pl.String}
    for name in wanted:
        schema |= _COLUMNS[name]
    books = _scan(path, schema).select(pl.col("book_id").cast(pl.Int64).alias(ITEM_ID), pl.exclude("book_id"))
    columns = {
        "shelves": pl.col("popular_shelves").list.eval(pl.element().struct.field("name")).alias("shelves")
        if "shelves" in wanted
        else None,
        "language": pl.col("language_code").alias("language"),
        "description": pl.col("description"),
        "year": pl.col("publication_year").cast(pl.Int64, strict=False).alias("year"),
        "authors": pl.col("authors"),
    }
    if authors is not None:
        books = books.with_columns(_names(books.select(ITEM_ID, "authors"), authors))
    return books.select(ITEM_ID, *(columns[name] for name in wanted))


def _scan(path: Path, schema: dict) -> pl.DataFrame:
    try:
        return pl.scan_ndjson(path, schema=schema).collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise_first_bad_record(path, {}, error)


def _read_authors(folder: Path) -> pl.DataFrame:
    for name in (f"{_AUTHORS}.gz", _AUTHORS):
        if (folder / name).is_file():
            return _scan(folder / name, {"author_id": pl.String, "name": pl.String}).unique("author_id", keep="first")
    raise FileNotFoundError(
        f"{folder / _AUTHORS}.gz: no such file, so authors have no names. Fetch it, or leave 'authors' out."
    )


def _names(books: pl.DataFrame, authors: pl.DataFrame) -> pl.Series:
    """The names of the authors of each book, in the order of the file."""
    rows = books.with_row_index("row").select(
        "row", pl.col("authors").list.eval(pl.element().struct.field("author_id"))
    )
    pairs = (
        rows.explode("authors").rename({"authors": "author_id"}).join(authors, on="author_id", maintain_order="left")
    )
    named = pairs.drop_nulls("name").group_by("row", maintain_order=True).agg(pl.col("name").alias("authors"))
    return rows.select("row").join(named, on="row", how="left", maintain_order="left")["authors"]
