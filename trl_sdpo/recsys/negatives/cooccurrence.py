"""How often two items go together in sequences, kept as the pairs that do: for baselines and for hard negatives."""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import numpy as np
import polars as pl

from ..interactions.codes import encode
from ..interactions.interactions import ITEM_ID, USER_ID


Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
# Users and items of events, as often as they are asked for: those of a user together, in order and in one part
Parts = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
# 8 bytes each
_PAIRS_AT_ONCE = 1 << 26


class PairTable:
    """
    Values of pairs of items, most of them 0.

    Args:
        items (`polars.Series`):
            The items as strings, sorted.
        first (`numpy.ndarray`), second (`numpy.ndarray`):
            Rows of the items of each pair, each pair once.
        values (`numpy.ndarray`):
            Their values.
    """

    def __init__(self, items: pl.Series, first: np.ndarray, second: np.ndarray, values: np.ndarray) -> None:
        self.items = items
        keys = first * len(items) + second
        order = np.argsort(keys)
        self.keys, self.values = keys[order], values[order]

    def score(self, histories: list[list[str]], candidates: list[list[str]], addend: np.ndarray) -> list[np.ndarray]:
        """
        For each candidate the sum of the values of (history item, candidate), plus an addend of the candidate.

        An item that is not in the table has no pairs and an addend of 0.
        """
        sizes, codes = _flat(candidates, self.items)
        lengths, read = _flat(histories, self.items)
        scores = np.where(codes < 0, 0, addend[codes])
        longest = lengths.max(initial=0)
        padded = np.full((len(lengths), longest), -1)
        padded[np.arange(longest) < lengths[:, None]] = read
        rows = np.repeat(np.arange(len(sizes)), sizes)
        for column in padded.T:
            scores = scores + self._values(column[rows], codes)
        return np.split(scores, np.cumsum(sizes)[:-1])

    def _values(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        if not len(self.keys):
            return np.zeros(len(first))
        wanted = first * len(self.items) + second
        found = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        known = (first >= 0) & (second >= 0) & (self.keys[found] == wanted)
        return np.where(known, self.values[found], 0)


def _flat(rows: list[list[str]], items: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of rows of ids, and the ids one behind the other as whole numbers, -1 where they are not known."""
    ids = pl.Series([item for row in rows for item in row], dtype=pl.String)
    return np.array([len(row) for row in rows]), encode(ids, items)


def pairs_within(
    users: np.ndarray, items: np.ndarray, num_items: int, window: int, *, both_orders: bool = False
) -> Iterator[Pairs]:
    """
    Pairs of an item and another one that the same user took at most `window` events later.

    Args:
        users (`numpy.ndarray`), items (`numpy.ndarray`):
            Users and items of the events as whole numbers, those of a user together and in order, of shape `(n,)`.
        num_items (`int`):
            Number of items.
        window (`int`):
            How many events later.
        both_orders (`bool`, *optional*, defaults to `False`):
            Whether at most `window` events earlier counts as well.

    Returns:
        `Iterator`: Some items at a time, whose pairs fit into memory: the item, the other one, and how often, of shape
        `(m,)` each, sorted by the first and then by the second.
    """
    counts = np.bincount(items, minlength=num_items)
    return _pairs_of_parts(lambda: [(users, items)], counts, window, both_orders)


def _pairs_of_parts(parts: Parts, counts: np.ndarray, window: int, both_orders: bool) -> Iterator[Pairs]:
    size = len(counts)
    # An event is the first of so many pairs at most.
    turn = np.cumsum((1 + both_orders) * window * counts) // _PAIRS_AT_ONCE
    for low, high in pairwise([0, *(np.flatnonzero(np.diff(turn)) + 1).tolist(), size]):
        found = [keys for part in parts() for keys in _keys_of_range(*part, window, low, high, size, both_orders)]
        keys = np.concatenate([np.empty(0, dtype=np.int64), *found])
        del found
        keys.sort()
        begins = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))[: len(keys)]
        distinct = keys[begins]
        yield distinct // size, distinct % size, np.diff(np.append(begins, len(keys)))


def _keys_of_range(
    users: np.ndarray, items: np.ndarray, window: int, low: int, high: int, size: int, both_orders: bool
) -> Iterator[np.ndarray]:
    """Pairs of items of a range and others behind or beside them, as item times size plus other."""
    for distance in range(1, min(window, len(items) - 1) + 1):
        same = users[distance:] == users[:-distance]
        if not same.any():
            break
        earlier, later = items[:-distance], items[distance:]
        same &= earlier != later
        for item, other in ((earlier, later), (later, earlier))[: 1 + both_orders]:
            some = same & (item >= low) & (item < high)
            yield item[some] * np.int64(size) + other[some]


def pairs_of_users(users: np.ndarray, items: np.ndarray, num_items: int) -> Iterator[Pairs]:
    """
    Pairs of items that one user took, in both orders, and the number of users who took both.

    Args:
        users (`numpy.ndarray`), items (`numpy.ndarray`):
            Users and items of the events as whole numbers from 0, of shape `(n,)`.
        num_items (`int`):
            Number of items.

    Returns:
        `Iterator`: For each item in turn `(item, other, users)`, of shape `(m,)` each.
    """
    keys = np.unique(users * num_items + items)
    users, items = keys // num_items, keys % num_items
    ends = np.cumsum(np.bincount(users))
    begins = np.append(0, ends[:-1])
    by_item = users[np.argsort(items, kind="stable")]
    for item, takers in enumerate(np.split(by_item, np.cumsum(np.bincount(items, minlength=num_items))[:-1])):
        lists = [items[begins[user] : ends[user]] for user in takers.tolist()]
        counts = np.bincount(np.concatenate([[item], *lists]), minlength=num_items)
        counts[item] = 0
        others = np.flatnonzero(counts)
        yield np.full(len(others), item), others, counts[others]


def joined(parts: Iterable[Pairs]) -> Pairs:
    """Pairs of all items, of those of some at a time."""
    first, second, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return first, second, values


def nearest_by_co_occurrence(
    train_events: pl.DataFrame, item_ids: pl.Series, *, window: int = 5, num_neighbours: int = 100
) -> np.ndarray:
    """
    For every item, those that stand most often beside it in the sequences of users, the nearest first.

    The number of times that two items are at most `window` places apart in a user's sequence, divided by the root of
    the product of their numbers of events, so that popular items are not near to everything. Ties go to the lower id.

    Args:
        train_events (`polars.DataFrame`):
            The events of the training split alone, in the order of [`build_sequences`], with `user_id`, `item_id`.
        item_ids (`polars.Series`):
            The catalogue, sorted.
        window (`int`, *optional*, defaults to `5`):
            How far apart.
        num_neighbours (`int`, *optional*, defaults to `100`):
            How many to keep.

    Returns:
        `numpy.ndarray`: Rows of the catalogue, of shape `(items, num_neighbours)`; -1 where there are fewer.
    """
    items = encode(train_events[ITEM_ID], item_ids).astype(np.int32)
    users = encode(train_events[USER_ID], train_events[USER_ID].unique().sort()).astype(np.int32)
    counts = np.bincount(items, minlength=len(item_ids))
    return nearest_of_parts(lambda: [(users, items)], counts, window=window, num_neighbours=num_neighbours)


def nearest_of_parts(parts: Parts, counts: np.ndarray, *, window: int = 5, num_neighbours: int = 100) -> np.ndarray:
    """
    As [`nearest_by_co_occurrence`], of events that come in parts.

    Args:
        parts (`Callable`):
            Gives the parts, as often as it is called: rows of users and of items in the catalogue, of shape `(n,)` each,
            those of a user together, in order and in one part.
        counts (`numpy.ndarray`):
            Events of every item, of shape `(items,)`.
        window (`int`), num_neighbours (`int`):
            See [`nearest_by_co_occurrence`].

    Returns:
        `numpy.ndarray`: As [`nearest_by_co_occurrence`].
    """
    neighbours = np.full((len(counts), num_neighbours), -1, dtype=np.int32)
    for first, second, times in _pairs_of_parts(parts, counts, window, both_orders=True):
        low, high = int(first.min(initial=len(counts))), int(first.max(initial=-1)) + 1
        ends = np.searchsorted(first, np.arange(low, high + 1))
        for item, begin, end in zip(range(low, high), ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            others = second[begin:end]
            best = _largest(times[begin:end] / np.sqrt(counts[item] * counts[others]), num_neighbours)
            neighbours[item, : len(best)] = others[best]
    return neighbours


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Places of the largest scores, the largest first, of equal ones the first."""
    places = np.arange(len(scores))
    if len(scores) > count:
        bound = np.partition(scores, len(scores) - count)[len(scores) - count]
        above = np.flatnonzero(scores > bound)
        places = np.sort(np.concatenate([above, np.flatnonzero(scores == bound)[: count - len(above)]]))
    return places[np.argsort(-scores[places], kind="stable")]
