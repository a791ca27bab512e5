"""Columns of records as a table, from wherever the records are: plain lists, or a data set of any format."""

from collections.abc import Sequence
from typing import Any, cast

import polars as pl


def completion_text(completion: str | Sequence[dict[str, str]]) -> str:
    """What a completion says: a text itself, or the content of the last of its messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def has_columns(records: Any, names: Sequence[str]) -> bool:
    """Whether records have all of these columns."""
    return set(names) <= set(records.column_names if hasattr(records, "column_names") else records)


def read_columns(records: Any, names: Sequence[str]) -> pl.DataFrame:
    """
    Columns of records.

    Args:
        records (`Dataset` or `dict[str, Sequence]`):
            The records. What a transform renders when it is read is read as it is rendered.
        names (`Sequence[str]`):
            The columns.

    Returns:
        `polars.DataFrame`: The columns in this order.

    Example:
        ```python
        >>> read_columns({"user_id": [1, 2], "item_id": [3, 4]}, ["item_id"])["item_id"].to_list()
        [3, 4]

        ```
    """
    if not hasattr(records, "column_names"):
        return pl.DataFrame({name: list(records[name]) for name in names})
    transform = records.format["format_kwargs"].get("transform")
    if transform is not None and not hasattr(transform, "table"):
        return pl.DataFrame({name: list(records[name][:]) for name in names})
    table = records.select_columns(list(names)).with_format("arrow")[:]
    return cast(pl.DataFrame, pl.from_arrow(table if transform is None else transform.table(table)))
