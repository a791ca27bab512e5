"""Ids as whole numbers from 0."""

import numpy as np
import polars as pl

from .interactions import ITEM_ID, TITLE


# A table with a place for every number up to the largest id is faster than a search, while it is small.
_LARGEST_TABLE = 1 << 26


def encode(ids: pl.Series, known: pl.Series) -> np.ndarray:
    """
    The place of every id among the known ones.

    Args:
        ids (`polars.Series`):
            Ids, `Int64` or `String`.
        known (`polars.Series`):
            Ids of the same type, sorted, each once.

    Returns:
        `numpy.ndarray`: `int64` of shape `(len(ids),)`; -1 for an id that is not known.
    """
    if not len(known):
        return np.full(len(ids), -1)
    if ids.dtype == pl.String:
        places = pl.Series(np.arange(len(known)))
        return ids.replace_strict(known, places, default=-1, return_dtype=pl.Int64).to_numpy(writable=True)
    values, wanted = known.to_numpy(), ids.to_numpy()
    low, high = int(values[0]), int(values[-1])
    if high - low >= _LARGEST_TABLE:
        found = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
        return np.where(values[found] == wanted, found, -1)
    table = np.full(high - low + 1, -1, dtype=np.int64)
    table[values - low] = np.arange(len(values))
    if len(wanted) and low <= wanted.min() and wanted.max() <= high:
        return table[wanted - low]
    return np.where((wanted >= low) & (wanted <= high), table[np.clip(wanted, low, high) - low], -1)


def sorted_catalogue(items: pl.DataFrame) -> pl.DataFrame:
    """
    The catalogue sorted by `item_id`, so that the order of its rows does not matter; other columns of the items go along.

    Raises:
        ValueError: an item or a title occurs twice, or there are too many items to count in 32 bits.
    """
    for column in (ITEM_ID, TITLE):
        again = items.select((~pl.col(column).is_first_distinct()).arg_true()).to_series()
        if len(again):
            raise ValueError(
                f"items: row {again[0]}, column '{column}': {items[column][again[0]]!r} occurs in an earlier row "
                "already. Merge equal titles with `resolve_duplicate_titles(events, items)`."
            )
    if items.height >= 2**32:
        raise ValueError(f"items: {items.height} rows are more than 2**32 - 1. Filter the catalogue.")
    return items.select(ITEM_ID, TITLE, pl.exclude(ITEM_ID, TITLE)).sort(ITEM_ID)
