"""Amazon Reviews 2023: https://amazon-reviews-2023.github.io."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ..attributes import wanted_attributes
from ..interactions import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID, Interactions, with_nanoseconds
from ..readers.delimited import check_header, read_table
from ..readers.json_lines import read_json_lines
from ..readers.text_files import TextFile
from ..readers.times import read_times
from ..titles import drop_untitled, plain_titles, resolve_duplicate_titles


logger = logging.getLogger(__name__)

_ITEM = "parent_asin"
_COLUMNS = [USER_ID, _ITEM, RATING, TIMESTAMP]
_NAME = re.compile(r"(?P<category>\w+)\.(?P<kind>jsonl|csv)(\.gz)?")
_META = "meta_"
# What a shop says of an item in one word or a few.
_ATTRIBUTES = ("store", "main_category")


def load_amazon(path: str | Path, *, attributes: str | Sequence[str] = ()) -> Interactions:
    """
    Read a category of Amazon Reviews 2023.

    Two forms of the reviews, each with the items beside it (`meta_CATEGORY.jsonl.gz`):

    - `CATEGORY.jsonl.gz`, the reviews as they are;
    - `CATEGORY.csv.gz`, the ratings alone (`user_id,parent_asin,rating,timestamp`), as of the benchmark's `rating_only`,
      such as its 5-core.

    An item is a `parent_asin`, which the colours and sizes of one product share. Times are in milliseconds, none of
    which is lost. Rows keep the order of the file. Items of one title are merged ([`resolve_duplicate_titles`]); events
    of items without a title, or that are not in the file of items, are dropped and counted.

    Args:
        path (`str` or `Path`):
            The file of reviews, or a folder with one of them. Files may also be unzipped. A zipped one is unzipped into
            the directory of `tempfile` for the time of reading.
        attributes (`str` or `Sequence[str]`, *optional*):
            What the items keep beside their title: `"store"`, `"main_category"`.

    Returns:
        [`Interactions`]: With `rating` from 1 to 5. The report counts
        what was read, dropped and merged.

    Raises:
        FileNotFoundError: there is no such path, or the file of items is missing beside it.
        ValueError: a file is empty, damaged or not in its format. The message names file, line, column and value.

    Example:
        ```python
        from trl_sdpo.recsys import load_amazon

        interactions = load_amazon("Video_Games.jsonl.gz")
        ```
    """
    wanted = wanted_attributes(attributes, _ATTRIBUTES, "amazon")
    path = _find_reviews(Path(path))
    category = _NAME.fullmatch(path.name)["category"]
    rows = _read_csv(path) if ".csv" in path.name else read_json_lines(TextFile(path), _COLUMNS)
    events = _check_events(rows, str(path))
    items = _read_items(_find_items(path.parent, category), wanted)
    report = {"events_read": events.height, "items_read": items.height}
    events, items, dropped = drop_untitled(events, items)
    events, items, merges = resolve_duplicate_titles(events, items)
    logger.info("%s: %d reviews and %d items read", path, report["events_read"], report["items_read"])
    return Interactions(events, items, f"amazon-{category}", report=report | dropped | merges)


def _find_reviews(path: Path) -> Path:
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if _NAME.fullmatch(file.name)]
        found = [file for file in found if file.is_file() and not file.name.startswith(_META)]
        if len(found) != 1:
            names = [file.name for file in found] or "none"
            raise FileNotFoundError(
                f"{path}: one CATEGORY.jsonl.gz or CATEGORY.csv.gz is wanted, and there is {names}. Pass a file."
            )
        return found[0]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder. Correct the path.")
    if not _NAME.fullmatch(path.name) or path.name.startswith(_META):
        raise ValueError(f"{path}: neither CATEGORY.jsonl.gz nor CATEGORY.csv.gz. Keep the publisher's names.")
    return path


def _find_items(folder: Path, category: str) -> Path:
    for name in (f"{_META}{category}.jsonl.gz", f"{_META}{category}.jsonl"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{folder / _META}{category}.jsonl.gz: missing beside the reviews, so there are no titles. Fetch it."
    )


def _read_csv(path: Path) -> pl.DataFrame:
    file = TextFile(path)
    check_header(file.path, file.label, ",", _COLUMNS)
    types = {USER_ID: pl.String, _ITEM: pl.String, RATING: pl.String, TIMESTAMP: pl.String}
    return read_table(file.path, file.label, ",", types, header_lines=1)


def _check_events(rows: pl.DataFrame, label: str) -> pl.DataFrame:
    def fail(row: int, column: str, problem: str) -> None:
        raise ValueError(f"{label}: record {row + 1}, column '{column}': {rows[column][row]!r} {problem}")

    for column in (USER_ID, _ITEM):
        blank = (rows[column].is_null() | (rows[column].str.strip_chars() == "")).arg_true()
        if len(blank):
            fail(blank[0], column, "is blank. Correct or remove the record.")
    ratings = rows[RATING].cast(pl.Float64, strict=False)
    bad = (~ratings.is_between(1, 5).fill_null(False)).arg_true()
    if len(bad):
        fail(bad[0], RATING, "is not from 1 to 5. Correct or remove the record.")
    missing = rows[TIMESTAMP].is_null().arg_true()
    if len(missing):
        fail(missing[0], TIMESTAMP, "is missing. Correct or remove the record.")
    seconds, rest = read_times(rows[TIMESTAMP], "ms", None, lambda row, problem: fail(row, TIMESTAMP, problem))
    events = rows.select(USER_ID, pl.col(_ITEM).alias(ITEM_ID), ratings.alias(RATING), seconds.alias(TIMESTAMP))
    return with_nanoseconds(events, rest)


def _read_items(path: Path, attributes: Sequence[str]) -> pl.DataFrame:
    rows = read_json_lines(TextFile(path), [_ITEM, TITLE, *attributes])
    blank = (rows[_ITEM].is_null() | (rows[_ITEM].str.strip_chars() == "")).arg_true()
    if len(blank):
        raise ValueError(f"{path}: record {blank[0] + 1}, column '{_ITEM}': is blank. Correct or remove the record.")
    again = (~rows[_ITEM].is_first_distinct()).arg_true()
    if len(again):
        raise ValueError(
            f"{path}: record {again[0] + 1}, column '{_ITEM}': {rows[_ITEM][again[0]]!r} is in an earlier record. "
            "Keep one of them."
        )
    return rows.select(
        pl.col(_ITEM).alias(ITEM_ID), plain_titles(TITLE).alias(TITLE), *(plain_titles(name) for name in attributes)
    )
