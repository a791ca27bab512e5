"""MovieLens as GroupLens publishes it: https://grouplens.org/datasets/movielens/."""

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ..attributes import most_frequent, wanted_attributes, with_attributes
from ..interactions import ITEM_ID, LATEST, RATING, TIMESTAMP, TITLE, USER_ID, YEAR, Interactions
from ..readers.delimited import check_header, check_width, csv_rows, read_table
from ..readers.release_files import open_release
from ..readers.text_files import check_not_empty, decode, split_lines
from ..titles import canonical_title, number_duplicate_titles, resolve_duplicate_titles


logger = logging.getLogger(__name__)

# Ratings file, items file. In this order: a folder with several is read as the first.
_LAYOUTS = (("u.data", "u.item"), ("ratings.dat", "movies.dat"), ("ratings.csv", "movies.csv"))
_RATING_COLUMNS = {USER_ID: pl.Int64, ITEM_ID: pl.Int64, RATING: pl.Float64, TIMESTAMP: pl.Int64}
# Whole stars from 1 in ml-100k and ml-1m, half stars from 0.5 since.
_LIMITS = {RATING: (0.5, 5), TIMESTAMP: (0, LATEST)}
_CSV_RATINGS_HEADER = ["userId", "movieId", "rating", "timestamp"]
_CSV_MOVIES_HEADER = ["movieId", "title", "genres"]
_U_ITEM_FIELDS = 24
_TAGS = {"tags.csv": ["userId", "movieId", "tag", "timestamp"], "tags.dat": None}
ATTRIBUTES = ("genres", "year", "tags")
# The flags of u.item in their order.
GENRES = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_NO_GENRE = ("unknown", "(no genres listed)")


def load_movielens(path: str | Path, merge_titles: bool = True, attributes: str | Sequence[str] = ()) -> Interactions:
    """
    Read any release of MovieLens: ml-100k (`u.data`), ml-1m and ml-10m (`ratings.dat`), or the CSV releases
    (`ratings.csv`: ml-20m, ml-25m, ml-32m, ml-latest, ml-latest-small).

    Titles take their canonical form ([`canonical_title`]), and equal titles are merged
    ([`resolve_duplicate_titles`]; 18 titles of ml-100k occur twice). Against RecBole's copy of ml-100k
    ([`load_recbole`]) all 1,682 titles agree.

    Args:
        path (`str` or `Path`):
            The folder with the files, the folder above it, or the .zip as published. Nothing is unpacked.
        merge_titles (`bool`, *optional*, defaults to `True`):
            Merge items of one title. If not, all but the first of them take their id behind the title, as
            "Chasing Amy (1997) #268".
        attributes (`str` or `Sequence[str]`, *optional*):
            Columns that the items get besides, of `genres` (a list), `year`, and `tags` (a list, the most frequent first,
            where the release has tags). Tags were given over the years, also those of the validation and the test.

    Returns:
        [`Interactions`]: Its report counts what was read and merged.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing in it.
        ValueError: a file is empty, damaged or not in its format. The message names file, line, column and value.

    Example:
        ```python
        from trl_sdpo.recsys import load_movielens

        interactions = load_movielens("ml-100k.zip")
        interactions.items["title"][0]  # 'Toy Story (1995)'
        ```
    """
    wanted = wanted_attributes(attributes, ATTRIBUTES, "movielens")
    name, files = open_release(path, _LAYOUTS, tuple(_TAGS) if "tags" in wanted else ())
    (ratings, (ratings_label, ratings_file)), (movies, (movies_label, movies_file)), *tags = files.items()
    if "tags" in wanted and not tags:
        raise FileNotFoundError(f"{path}: none of {', '.join(_TAGS)} beside {ratings}. Leave 'tags' out.")
    events = _read_ratings(ratings_file, ratings, ratings_label)
    items = _read_movies(movies_file, movies, movies_label, wanted)
    known = items.select(ITEM_ID, *(one for one in ("genres", YEAR) if one in wanted))
    items = items.select(ITEM_ID, TITLE)
    report = {"events_read": events.height, "items_read": items.height}
    logger.info("%s: %d events and %d items read", name, events.height, items.height)
    if merge_titles:
        events, items, merges = resolve_duplicate_titles(events, items)
    else:
        items, merges = number_duplicate_titles(items)
    if wanted:
        for file, (label, source) in tags:
            known = known.join(_read_tags(source, file, label), on=ITEM_ID, how="left")
        items = with_attributes(items, known.select(ITEM_ID, *wanted))
    return Interactions(events, items, name=name, report=report | merges)


def _read_ratings(source: Path | bytes, name: str, label: str) -> pl.DataFrame:
    if name == "ratings.csv":
        check_header(source, label, ",", _CSV_RATINGS_HEADER)
        return read_table(source, label, ",", _RATING_COLUMNS, header_lines=1, limits=_LIMITS)
    separator = "::" if name == "ratings.dat" else "\t"
    return read_table(source, label, separator, _RATING_COLUMNS, limits=_LIMITS)


def _movie_rows(source: Path | bytes, name: str, label: str) -> Iterator[tuple[int, list[str]]]:
    """Each line's number and fields."""
    check_not_empty(source, label)
    if name == "movies.csv":
        rows = csv_rows(source, label)
        header = next(rows)[1]
        if header != _CSV_MOVIES_HEADER:
            raise ValueError(
                f"{label}: line 1: the header is {header} instead of {_CSV_MOVIES_HEADER}. Pass a CSV release."
            )
        yield from rows
    else:
        data = source if isinstance(source, bytes) else source.read_bytes()
        separator, width = ("|", _U_ITEM_FIELDS) if name == "u.item" else ("::", 3)
        for number, line in enumerate(split_lines(decode(data, label, ("utf-8", "latin-1"))), start=1):
            if line:
                yield number, check_width(line.split(separator), width, label, number)


def _read_movies(source: Path | bytes, name: str, label: str, wanted: tuple[str, ...]) -> pl.DataFrame:
    # Tens of thousands of items at most, so a loop, which can name the line.
    ids: dict[int, Any] = {}
    titles, genres, years = [], [], []
    for number, fields in _movie_rows(source, name, label):
        identifier, title = fields[0], fields[1]
        if not (identifier.isascii() and identifier.isdigit()):
            raise ValueError(
                f"{label}: line {number}, column '{ITEM_ID}': {identifier!r} is not a whole number. Correct the line."
            )
        if int(identifier) in ids:
            raise ValueError(
                f"{label}: line {number}, column '{ITEM_ID}': {identifier} is in line {ids[int(identifier)]} already. "
                "Remove one of the lines."
            )
        if not title.strip():
            raise ValueError(f"{label}: line {number}, column '{TITLE}': {title!r} is empty. Give the item a title.")
        ids[int(identifier)] = number
        titles.append(canonical_title(title))
        genres.append(_genres(fields) if "genres" in wanted else None)
        years.append(_year(titles[-1], fields[2]) if YEAR in wanted else None)
    if not ids:
        raise ValueError(f"{label}: line 1: no items. Fetch the file again.")
    schema: dict[str, Any] = {ITEM_ID: pl.Int64, TITLE: pl.String, "genres": pl.List(pl.String), YEAR: pl.Int64}
    return pl.DataFrame([list(ids), titles, genres, years], schema=schema)


def _genres(fields: list[str]) -> list[str]:
    if len(fields) == _U_ITEM_FIELDS:
        found = [genre for genre, flag in zip(GENRES, fields[5:], strict=True) if flag == "1"]
    else:
        found = fields[2].split("|")
    return [genre for genre in found if genre not in _NO_GENRE]


def _year(title: str, date: str) -> int | None:
    """The year behind a title, else that of the date, which only u.item has."""
    match = re.search(r"\((\d{4})\)$", title) or re.fullmatch(r"\d{2}-[A-Z][a-z]{2}-(\d{4})", date)
    return int(match[1]) if match else None


def _read_tags(source: Path | bytes, name: str, label: str) -> pl.DataFrame:
    movies, tags = [], []
    for number, (_, movie, tag, _) in _tag_rows(source, name, label):
        if not (movie.isascii() and movie.isdigit()):
            raise ValueError(
                f"{label}: line {number}, column '{ITEM_ID}': {movie!r} is not a whole number. Correct the line."
            )
        movies.append(int(movie))
        tags.append(tag)
    pairs = pl.DataFrame({ITEM_ID: movies, "tags": tags}, schema={ITEM_ID: pl.Int64, "tags": pl.String})
    return most_frequent(pairs, "tags")


def _tag_rows(source: Path | bytes, name: str, label: str) -> Iterator[tuple[int, list[str]]]:
    if _TAGS[name] is not None:
        rows = csv_rows(source, label)
        header = next(rows)[1]
        if header != _TAGS[name]:
            raise ValueError(f"{label}: line 1: the header is {header} instead of {_TAGS[name]}. Pass a CSV release.")
        return rows
    data = source if isinstance(source, bytes) else source.read_bytes()
    lines = enumerate(split_lines(decode(data, label, ("utf-8", "latin-1"))), start=1)
    return ((number, check_width(line.split("::"), 4, label, number)) for number, line in lines if line)
