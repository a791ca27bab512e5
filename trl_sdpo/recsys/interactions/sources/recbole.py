"""RecBole's atomic files: https://recbole.io/docs/user_guide/data/atomic_files.html."""

import logging
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NoReturn

import polars as pl

from ..attributes import wanted_attributes, with_attributes
from ..interactions import (
    ITEM_ID,
    LATEST,
    NANOSECOND,
    RATING,
    TIMESTAMP,
    TITLE,
    USER_ID,
    Interactions,
    with_nanoseconds,
)
from ..readers.delimited import read_table
from ..readers.ids import Fail, blank_to_null, read_ids, same_type
from ..readers.text_files import TextFile
from ..readers.times import read_times
from ..titles import canonical_title, drop_untitled, number_duplicate_titles, resolve_duplicate_titles


logger = logging.getLogger(__name__)

_TITLE_COLUMNS = ("movie_title", "title", "name")
_YEAR_COLUMNS = ("release_year", "year")
_TYPES = ("token", "token_seq", "float", "float_seq")
# Item 267 of ml-100k, which has no title in the original either.
_MISSPELT_TITLES = {"unkonwn": "unknown"}


def load_recbole(
    path: str | Path,
    title: str | None = None,
    merge_titles: bool = True,
    attributes: str | Sequence[str] = (),
) -> Interactions:
    """
    Read RecBole's `NAME.inter` and the `NAME.item` beside it: tab-separated, with a header of `name:type`.

    `user_id` and `item_id` must be there; `rating` and `timestamp` may be missing. Tokens that are whole numbers
    throughout a column are read as `Int64`, so that a copy of MovieLens sorts as the original does. Parts of seconds
    order events. The title is the column `movie_title`, `title` or `name`, the year `release_year` or `year`; a year
    that is no number is ignored and counted. Without a `.item` file the ids stand in for titles, with a warning. Items
    without a title, and events of items that are not in the `.item` file, are dropped and counted.

    RecBole's copy of ml-100k agrees with the original ([`load_movielens`]) in all 1,682 titles. Two need more than
    the year behind the title: item 267, misspelt `unkonwn` (`unknown` in the original, and without a year in both),
    and item 1412, which has its year in the title and `V` (from `(V)`, direct to video) in the column of years.

    Args:
        path (`str` or `Path`):
            The `.inter` file, or a folder with one of them.
        title (`str`, *optional*):
            The column of titles, if it is another one.
        merge_titles (`bool`, *optional*, defaults to `True`):
            Merge items of one title. If not, all but the first of them take their id behind the title, as
            "Chasing Amy (1997) #268".
        attributes (`str` or `Sequence[str]`, *optional*):
            Columns of the `.item` file that the items get besides, such as `class`: a `token_seq` as a list, a `float` as
            a number, others as text.

    Returns:
        [`Interactions`]: Its report counts what was read, merged and ignored.

    Raises:
        FileNotFoundError: there is no such file, or no `.inter` file in the folder.
        ValueError: a file is empty, damaged or not in its format. The message names file, line, column and value.

    Example:
        ```python
        from trl_sdpo.recsys import load_recbole

        interactions = load_recbole("recbole/dataset_example/ml-100k")
        ```
    """
    wanted = wanted_attributes(attributes, None, "recbole")
    inter = _find_inter(Path(path))
    file = TextFile(inter)
    header = _read_header(file)
    for column in (USER_ID, ITEM_ID):
        if column not in header:
            raise ValueError(f"{inter}: line 1: no column '{column}' in {list(header)}. Name it so in the header.")
    has_time = TIMESTAMP in header
    events = _read_events(file, header)
    item_file = inter.with_suffix(".item")
    items, ignored = _read_items(item_file, events, (title,) if title else _TITLE_COLUMNS)
    ids, known = same_type(events[ITEM_ID], items[ITEM_ID], _fail_at(file, ITEM_ID, events[ITEM_ID]))
    events, items = events.with_columns(ids), items.with_columns(known)
    report = {"events_read": events.height, "items_read": items.height, **ignored}
    events, items, dropped = drop_untitled(events, items)
    if merge_titles:
        events, items, merges = resolve_duplicate_titles(events, items)
    else:
        items, merges = number_duplicate_titles(items)
    if wanted:
        items = with_attributes(items, _read_attributes(item_file, wanted, items[ITEM_ID].dtype))
    columns = [name for name in (USER_ID, ITEM_ID, RATING, TIMESTAMP, NANOSECOND) if name in events.columns]
    logger.info("%s: %d events and %d items read", inter.stem, report["events_read"], report["items_read"])
    return Interactions(events.select(columns), items, inter.stem, has_time=has_time, report=report | dropped | merges)


def _read_events(file: TextFile, header: dict[str, str]) -> pl.DataFrame:
    wanted = {USER_ID: pl.String, ITEM_ID: pl.String, RATING: pl.Float64, TIMESTAMP: pl.Float64}
    columns = {name: wanted.get(name, pl.Null) for name in header}
    limits = {TIMESTAMP: (-LATEST, LATEST)} if TIMESTAMP in header else {}
    events = read_table(file.path, file.label, "\t", columns, header_lines=1, limits=limits)
    if file.contains(b"\n\xef\xbb\xbf"):
        # polars would leave it out at the beginning of the first row
        number, line = next((number, line) for number, line in file.lines() if line.startswith("\ufeff"))
        raise ValueError(
            f"{file.label}: line {number}, column '{next(iter(header))}': {line[:80]!r} holds a byte order mark, as "
            "where files were joined. Remove it."
        )
    cell = f"{USER_ID}:{header[USER_ID]}"
    again = (events[USER_ID] == cell).arg_true()
    if len(again):
        _fail_at(file, USER_ID, events[USER_ID])(again[0], "is the header again. Remove the line.")
    events = events.with_columns(blank_to_null(events[name]) for name in (USER_ID, ITEM_ID))
    for name in (USER_ID, ITEM_ID):
        where = f"{file.label}: column '{name}'"
        events = events.with_columns(read_ids(events[name], where, _fail_at(file, name, events[name])).alias(name))
    if TIMESTAMP not in header:
        return events.with_columns(pl.lit(None, dtype=pl.Int64).alias(TIMESTAMP))
    times = events[TIMESTAMP]
    if file.contains(b"."):
        # perhaps of a time: a float has not the digits of what is finer than some tenths of a microsecond
        texts = {name: pl.String if name == TIMESTAMP else pl.Null for name in header}
        times = read_table(file.path, file.label, "\t", texts, header_lines=1)[TIMESTAMP]
    seconds, rest = read_times(times, "s", None, _fail_at(file, TIMESTAMP, times))
    return with_nanoseconds(events.with_columns(seconds.alias(TIMESTAMP)), rest)


def _fail_at(file: TextFile, column: str, values: pl.Series) -> Fail:
    def fail(row: int, problem: str) -> NoReturn:
        lines = (number for number, line in file.lines() if line)
        raise ValueError(
            f"{file.label}: line {next(islice(lines, row + 1, None))}, column '{column}': {values[row]!r} {problem}"
        )

    return fail


def _find_inter(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.inter"))
        if not found:
            raise FileNotFoundError(f"{path}: no .inter file in it. Pass the folder of one RecBole data set.")
        if len(found) > 1:
            raise ValueError(f"{path}: several .inter files: {[file.name for file in found]}. Pass one of them.")
        return found[0]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder. Correct the path.")
    if path.suffix != ".inter":
        raise ValueError(f"{path}: not an .inter file. Pass the .inter file or its folder.")
    return path


def _read_header(file: TextFile) -> dict[str, str]:
    path, line = file.label, next(line for _, line in file.lines())
    header = {}
    for cell in line.split("\t"):
        name, _, kind = cell.partition(":")
        if kind not in _TYPES:
            raise ValueError(
                f"{path}: line 1: {cell!r} is not 'name:type' with a type of {', '.join(_TYPES)}. Correct the header."
            )
        if name in header:
            raise ValueError(f"{path}: line 1: column '{name}' occurs twice. Rename one of them.")
        header[name] = kind
    return header


def _read_items(path: Path, events: pl.DataFrame, names: tuple[str, ...]) -> tuple[pl.DataFrame, dict[str, int]]:
    if not path.is_file():
        items = events.select(pl.col(ITEM_ID).unique(maintain_order=True))
        items = items.with_columns(pl.col(ITEM_ID).cast(pl.String).alias(TITLE))
        logger.warning("%s: no such file, so %d items go by their ids instead of titles.", path, items.height)
        return items, {"items_titled_by_id": items.height}
    file = TextFile(path)
    columns = list(_read_header(file))
    title_column = next((name for name in names if name in columns), None)
    if ITEM_ID not in columns or title_column is None:
        raise ValueError(
            f"{path}: line 1: needs '{ITEM_ID}' and one of {', '.join(names)}, has {columns}. Rename a column."
        )
    year_column = next((name for name in _YEAR_COLUMNS if name in columns), None)
    ids: list[str] = []
    titles: list[str | None] = []
    unreadable, corrected = 0, 0
    for number, line in file.lines():
        if number == 1 or not line:
            continue
        row = _item_row(line, columns, f"{path}: line {number}")
        ids.append(row[ITEM_ID])
        if not row[title_column].strip():
            titles.append(None)
            continue
        year = _year(row.get(year_column, ""))
        unreadable += year is None and bool(row.get(year_column))
        corrected += row[title_column] in _MISSPELT_TITLES
        title = _MISSPELT_TITLES.get(row[title_column], row[title_column])
        titles.append(canonical_title(title, year))
    items = pl.DataFrame({ITEM_ID: ids, TITLE: titles}, schema={ITEM_ID: pl.String, TITLE: pl.String})
    fail = _fail_at(file, ITEM_ID, items[ITEM_ID])
    items = items.with_columns(
        read_ids(blank_to_null(items[ITEM_ID]), f"{path}: column '{ITEM_ID}'", fail).alias(ITEM_ID)
    )
    again = (~items[ITEM_ID].is_first_distinct()).arg_true()
    if len(again):
        fail(again[0], "is in an earlier line already. Remove one of the lines.")
    return items, {"years_unreadable": unreadable, "titles_corrected": corrected}


def _read_attributes(path: Path, wanted: tuple[str, ...], dtype: pl.DataType) -> pl.DataFrame:
    """More columns of a file that [`_read_items`] has checked."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, so items have no attributes. Leave {wanted[0]!r} out.")
    file = TextFile(path)
    kinds = _read_header(file)
    missing = next((name for name in wanted if name not in kinds), None)
    if missing:
        raise ValueError(f"{path}: line 1: attributes={missing!r} is none of {list(kinds)}. Name one of them.")
    rows = [line.split("\t") for number, line in file.lines() if number > 1 and line]
    columns = dict(zip(kinds, map(list, zip(*rows, strict=True)), strict=True))
    frame = pl.DataFrame({name: columns[name] for name in (ITEM_ID, *wanted)}, schema_overrides={ITEM_ID: pl.String})
    if dtype == pl.Int64:
        frame = frame.with_columns(pl.col(ITEM_ID).str.strip_chars().str.replace(r"\.0*$", "").cast(pl.Int64))
    for name in wanted:
        if kinds[name].endswith("_seq"):
            frame = frame.with_columns(pl.col(name).str.split(" "))
        elif kinds[name] == "float":
            frame = frame.with_columns(pl.col(name).cast(pl.Float64, strict=False))
    return frame


def _year(text: str) -> int | None:
    """A year, also as the float that pandas makes of it beside a missing one."""
    match = re.fullmatch(r"\s*([0-9]{4})(?:\.0*)?\s*", text)
    return int(match[1]) if match else None


def _item_row(line: str, columns: list[str], where: str) -> dict[str, str]:
    fields = line.split("\t")
    if len(fields) != len(columns):
        raise ValueError(
            f"{where}: {len(fields)} fields instead of {len(columns)} ({', '.join(columns)}): {line[:200]!r}. Correct "
            "the line, or fetch the file again if it was cut off."
        )
    return dict(zip(columns, fields, strict=True))
