"""The items before a target, as arrays of whole numbers."""

import numpy as np
import polars as pl

from .strategies import NUM_EARLIER, POSITION


def history_ends(targets: pl.DataFrame, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Where the histories of targets end, which is before the first event at the time of the target.

    Args:
        targets (`polars.DataFrame`):
            Targets with `position` and, where ties are sets, `num_earlier`.
        places (`numpy.ndarray`):
            Where among all events the targets stand, of shape `(n,)`.

    Returns:
        `tuple[numpy.ndarray, numpy.ndarray]`: The place behind the last event of the history, and how many events of
        the user are before it, of shape `(n,)` each.
    """
    positions = targets[POSITION].to_numpy()
    earlier = targets[NUM_EARLIER].to_numpy() if NUM_EARLIER in targets.columns else positions
    return places - positions + earlier, earlier


def history_codes(items: np.ndarray, places: np.ndarray, positions: np.ndarray, history_size: int) -> np.ndarray:
    """
    The items before targets.

    Args:
        items (`numpy.ndarray`):
            The items of all sequences, those of a user one after the other.
        places (`numpy.ndarray`):
            The place in `items` behind the last of each history, of shape `(n,)`.
        positions (`numpy.ndarray`):
            How many items of the same user are before that, of shape `(n,)`.
        history_size (`int`):
            How many to take at most.

    Returns:
        `numpy.ndarray`: Of shape `(n, history_size)`, the last one at the right; -1 where there is none.
    """
    back = np.arange(history_size, 0, -1)
    there = back <= positions[:, None]
    return np.where(there, items[np.where(there, places[:, None] - back, 0)], -1)


def first_in_row(codes: np.ndarray) -> np.ndarray:
    first = np.ones(codes.shape, dtype=bool)
    ordered = np.sort(codes, axis=1)
    # Few rows hold anything twice, and only those need to know where.
    rows = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    if len(rows):
        order = np.argsort(codes[rows], axis=1, kind="stable")
        again = np.zeros(order.shape, dtype=bool)
        again[:, 1:] = ordered[rows, 1:] == ordered[rows, :-1]
        twice = np.empty_like(again)
        np.put_along_axis(twice, order, again, axis=1)
        first[rows] = ~twice
    return first
