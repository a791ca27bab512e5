"""RecBole's atomic files: https://recbole.io/docs/user_guide/data/atomic_files.html."""

import logging
from pathlib import Path

import polars as pl

from ..interactions import (
    ITEM_ID,
    LATEST,
    RATING,
    TIMESTAMP,
    TITLE,
    USER_ID,
    Interactions,
    canonical_title,
    drop_untitled,
    number_duplicate_titles,
    resolve_duplicate_titles,
)
from ..readers.delimited import check_not_empty, decode, read_table, split_lines, whole_numbers


logger = logging.getLogger(__name__)

_TITLE_COLUMNS = ("movie_title", "title", "name")
_YEAR_COLUMNS = ("release_year", "year")
_TYPES = ("token", "token_seq", "float", "float_seq")
# Item 267 of ml-100k, which has no title in the original either.
_MISSPELT_TITLES = {"unkonwn": "unknown"}


def load_recbole(path: str | Path, title: str | None = None, merge_titles: bool = True) -> Interactions:
    """
    Read RecBole's `NAME.inter` and the `NAME.item` beside it: tab-separated, with a header of `name:type`.

    `user_id` and `item_id` must be there; `rating` and `timestamp` may be missing. Tokens that are whole numbers
    throughout a column are read as `Int64`, so that a copy of MovieLens sorts as the original does. Times are cut to
    whole seconds. The title is the column `movie_title`, `title` or `name`, the year `release_year` or `year`; a year
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
    inter = _find_inter(Path(path))
    header = _read_header(inter)
    for column in (USER_ID, ITEM_ID):
        if column not in header:
            raise ValueError(f"{inter}: line 1: no column '{column}' in {list(header)}. Name it so in the header.")
    wanted = {USER_ID: pl.String, ITEM_ID: pl.String, RATING: pl.Float64, TIMESTAMP: pl.Float64}
    has_time = TIMESTAMP in header
    columns = {name: wanted.get(name, pl.Null) for name in header}
    limits = {TIMESTAMP: (-LATEST, LATEST)} if has_time else {}
    events = read_table(inter, str(inter), "\t", columns, header_lines=1, limits=limits)
    time = pl.col(TIMESTAMP).floor() if has_time else pl.lit(None)
    events = events.with_columns(time.cast(pl.Int64).alias(TIMESTAMP))

    items, ignored = _read_items(inter.with_suffix(".item"), events, (title,) if title else _TITLE_COLUMNS)
    events, items = whole_numbers(events, items)
    report = {"events_read": events.height, "items_read": items.height, **ignored}
    events, items, dropped = drop_untitled(events, items)
    if merge_titles:
        events, items, merges = resolve_duplicate_titles(events, items)
    else:
        items, merges = number_duplicate_titles(items)
    columns = [name for name in (USER_ID, ITEM_ID, RATING, TIMESTAMP) if name in events.columns]
    logger.info("%s: %d events and %d items read", inter.stem, report["events_read"], report["items_read"])
    return Interactions(events.select(columns), items, inter.stem, has_time=has_time, report=report | dropped | merges)


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


def _read_header(path: Path) -> dict[str, str]:
    check_not_empty(path, str(path))
    with path.open("rb") as file:
        line = decode(file.readline(), str(path)).rstrip("\r\n")
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
        items = events.select(pl.col(ITEM_ID).unique(maintain_order=True)).with_columns(pl.col(ITEM_ID).alias(TITLE))
        logger.warning("%s: no such file, so %d items go by their ids instead of titles.", path, items.height)
        return items, {"items_titled_by_id": items.height}
    columns = list(_read_header(path))
    title_column = next((name for name in names if name in columns), None)
    if ITEM_ID not in columns or title_column is None:
        raise ValueError(
            f"{path}: line 1: needs '{ITEM_ID}' and one of {', '.join(names)}, has {columns}. Rename a column."
        )
    year_column = next((name for name in _YEAR_COLUMNS if name in columns), None)
    titles, unreadable, corrected = {}, 0, 0
    for number, line in enumerate(split_lines(decode(path.read_bytes(), str(path))), start=1):
        if number == 1 or not line:
            continue
        row = _item_row(line, columns, f"{path}: line {number}")
        _check_item(row[ITEM_ID], titles, f"{path}: line {number}")
        if not row[title_column].strip():
            titles[row[ITEM_ID]] = None
            continue
        year = row.get(year_column, "")
        readable = len(year) == 4 and year.isascii() and year.isdigit()
        unreadable += bool(year) and not readable
        corrected += row[title_column] in _MISSPELT_TITLES
        title = _MISSPELT_TITLES.get(row[title_column], row[title_column])
        titles[row[ITEM_ID]] = canonical_title(title, int(year) if readable else None)
    schema = {ITEM_ID: pl.String, TITLE: pl.String}
    items = pl.DataFrame({ITEM_ID: list(titles), TITLE: list(titles.values())}, schema=schema)
    return items, {"years_unreadable": unreadable, "titles_corrected": corrected}


def _item_row(line: str, columns: list[str], where: str) -> dict[str, str]:
    fields = line.split("\t")
    if len(fields) != len(columns):
        raise ValueError(
            f"{where}: {len(fields)} fields instead of {len(columns)} ({', '.join(columns)}): {line[:200]!r}. Correct "
            "the line, or fetch the file again if it was cut off."
        )
    return dict(zip(columns, fields, strict=True))


def _check_item(item: str, seen: dict[str, str | None], where: str) -> None:
    if not item.strip():
        raise ValueError(f"{where}, column '{ITEM_ID}': {item!r} is empty. Fill it or remove the line.")
    if item in seen:
        raise ValueError(
            f"{where}, column '{ITEM_ID}': {item!r} is in an earlier line already. Remove one of the lines."
        )
