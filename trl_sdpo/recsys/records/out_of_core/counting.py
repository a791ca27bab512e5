"""What needs all users: the time at a place of the order, the k-core, the smallest numbers. In memory that does not grow with events."""

from collections.abc import Callable, Iterable

import numpy as np


# Parts of a range that are counted at once.
_BINS = 1 << 16


def value_at(parts: Callable[[], Iterable[np.ndarray]], place: int, lowest: int, highest: int) -> int:
    """
    The value at a place in the order of all, found by counting how many are in which part of the range.

    Args:
        parts (`Callable`):
            Gives the values, `int64` arrays, as often as it is called.
        place (`int`):
            The place, from 0.
        lowest (`int`), highest (`int`):
            Bounds of the values.

    Example:
        ```python
        >>> value_at(lambda: [np.array([5, 900_000]), np.array([7, 5])], 2, 5, 900_000)
        7

        ```
    """
    while lowest < highest:
        width = -(-(highest - lowest + 1) // _BINS)
        counts = np.zeros(_BINS, dtype=np.int64)
        for values in parts():
            values = values[(values >= lowest) & (values <= highest)]
            # of a range that wraps around 63 bits as well
            offsets = (values - lowest).view(np.uint64) // np.uint64(width)
            counts += np.bincount(offsets.astype(np.int64), minlength=_BINS)
        ends = np.cumsum(counts)
        found = int(np.searchsorted(ends, place, side="right"))
        place -= int(ends[found] - counts[found])
        lowest, highest = lowest + found * width, min(highest, lowest + (found + 1) * width - 1)
    return lowest


def core_of_parts(
    parts: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]], num_users: int, num_items: int, k: int, *, once: bool
) -> tuple[np.ndarray, np.ndarray]:
    """
    The users and items of the k-core, see [`build_sequences`].

    Args:
        parts (`Callable`):
            Gives users and items of the events as whole numbers, as often as it is called.
        num_users (`int`), num_items (`int`):
            How many there are.
        k (`int`):
            Fewest events.
        once (`bool`):
            Leave out items and then users, instead of both until nothing changes.

    Returns:
        `tuple[numpy.ndarray, numpy.ndarray]`: Whether each user and each item stays.
    """
    users, items = np.ones(num_users, dtype=bool), np.ones(num_items, dtype=bool)

    def count() -> tuple[np.ndarray, np.ndarray]:
        of_users, of_items = np.zeros(num_users, dtype=np.int64), np.zeros(num_items, dtype=np.int64)
        for user, item in parts():
            there = users[user] & items[item]
            np.add.at(of_users, user[there], 1)
            of_items += np.bincount(item[there], minlength=num_items)
        return of_users, of_items

    if once:
        items = count()[1] >= k
        return count()[0] >= k, items
    left = None
    while left != (before := (int(users.sum()), int(items.sum()))):
        left = before
        of_users, of_items = count()
        users, items = of_users >= k, of_items >= k
    return users, items


def shares_of_smallest(parts: Iterable[np.ndarray], limit: int) -> list[int]:
    """
    How many of the smallest `limit` numbers of all are in each part, of equal ones the first.

    Args:
        parts (`Iterable[numpy.ndarray]`):
            `uint64` numbers, of each part its smallest `limit` at least.
        limit (`int`):
            How many.

    Example:
        ```python
        >>> shares_of_smallest([np.array([9, 1], dtype=np.uint64), np.array([2], dtype=np.uint64)], 2)
        [1, 1]

        ```
    """
    numbers, owners, count = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int32), 0
    for part in parts:
        numbers = np.concatenate([numbers, part])
        owners = np.concatenate([owners, np.full(len(part), count, dtype=np.int32)])
        count += 1
        if len(numbers) > limit:
            bound = np.partition(numbers, limit - 1)[limit - 1]
            below = np.flatnonzero(numbers < bound)
            kept = np.sort(np.concatenate([below, np.flatnonzero(numbers == bound)[: limit - len(below)]]))
            numbers, owners = numbers[kept], owners[kept]
    return np.bincount(owners, minlength=count).tolist()
