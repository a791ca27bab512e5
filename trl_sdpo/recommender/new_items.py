"""New items of a file, beside those that a model was trained with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ..recsys.interactions.interactions import ITEM_ID, TITLE
from ..recsys.interactions.readers.any_table import AnyTable
from ..recsys.interactions.readers.ids import read_ids
from ..recsys.records.recommender_files import Catalogue


def read_new_items(path: str | Path, catalogue: Catalogue) -> Catalogue:
    """
    A catalogue with the new items of a file, see [`Catalogue.add`].

    Args:
        path (`str` or `Path`):
            A `.csv`, `.tsv`, `.jsonl` or `.parquet` file with the columns `item_id`, `title` and any of the attributes of
            the catalogue. In a csv the entries of a list stand with `|` between.
        catalogue ([`Catalogue`]):
            The items that are there.

    Returns:
        [`Catalogue`]: With the new items behind.

    Raises:
        ValueError: a column or a value is missing, an item is there already, or a file is malformed. The message names
            file, line and column.
    """
    table = AnyTable(path, str(path))
    there = table.names()
    wanted = [name for name in catalogue.attributes if name in there]
    rows = table.read({name: name for name in (ITEM_ID, TITLE, *wanted)}, nested=tuple(wanted))
    where = f"{table.label}: column '{ITEM_ID}'"
    ids = read_ids(rows[ITEM_ID], where, table.fail_at(ITEM_ID, rows[ITEM_ID])).cast(pl.String)
    titles = rows[TITLE].cast(pl.String)
    for column, values in ((ITEM_ID, ids), (TITLE, titles)):
        known = {*(catalogue.item_ids if column == ITEM_ID else catalogue.titles)}
        blank = values.is_null().arg_true()
        if len(blank):
            table.raise_at(blank[0], column, None, "is missing. Fill it or remove the row.")
        again = ((~values.is_first_distinct()) | values.is_in(list(known))).arg_true()
        if len(again):
            table.raise_at(
                again[0], column, values[again[0]], "is there already. Remove the row, or call it otherwise."
            )
    attributes = {name: _values(rows[name], catalogue.attributes[name]) for name in wanted}
    return catalogue.add(ids.to_list(), titles.to_list(), attributes)


def _values(column: pl.Series, known: Sequence[Any]) -> list[Any]:
    """Of the kind that the catalogue has: lists where it has lists, numbers where it has numbers."""
    kinds = {type(value) for value in known if value is not None}
    values = column.to_list()
    if kinds & {list, tuple}:
        return [value.split("|") if isinstance(value, str) else value for value in values]
    if kinds and kinds <= {int, float} and column.dtype == pl.String:
        numbers = column.str.strip_chars().cast(pl.Float64, strict=False).to_list()
        return [value if number is None else number for value, number in zip(values, numbers, strict=True)]
    return values
