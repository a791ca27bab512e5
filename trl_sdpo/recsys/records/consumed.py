"""What users had before a target, so that an evaluation on the whole catalogue can leave it out."""

from typing import Protocol

import numpy as np
import polars as pl

from ..interactions.codes import encode
from ..interactions.interactions import ITEM_ID, USER_ID, instants
from ..negatives.strategies import NUM_EARLIER, POSITION


class Consumed(Protocol):
    """Gives how many items the users of targets had before, and these as rows of the catalogue, one behind the other."""

    def __call__(self, targets: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]: ...


class ConsumedInTime:
    """
    What users had before the time of a target, filtered out of the sequences or not, each item once, in time.

    Args:
        source (`polars.DataFrame`):
            All events of the source, with `user_id`, `item_id` and times.
        users (`polars.Series`):
            The users who are asked for.
        item_ids (`polars.Series`):
            The catalogue, sorted.
    """

    def __init__(self, source: pl.DataFrame, users: pl.Series, item_ids: pl.Series) -> None:
        self.users = users.unique().sort()
        source = source.filter(pl.col(USER_ID).is_in(self.users.implode()))
        items, owners = encode(source[ITEM_ID], item_ids), encode(source[USER_ID], self.users)
        times = instants(source).to_numpy()
        # By user, time and item, of which the first of an item stays: the same from whichever order of rows.
        order = np.lexsort((items, times, owners))
        order = order[items[order] >= 0]
        keys = owners[order] * len(item_ids) + items[order]
        first = np.zeros(len(keys), dtype=bool)
        first[np.unique(keys, return_index=True)[1]] = True
        self.items, self.times = items[order[first]], times[order[first]]
        self.begins = np.searchsorted(owners[order[first]], np.arange(len(self.users) + 1))

    def __call__(self, targets: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """See [`Consumed`]."""
        rows, parts = encode(targets[USER_ID], self.users), []
        for row, time in zip(rows.tolist(), instants(targets).to_list(), strict=True):
            begin, end = self.begins[row], self.begins[row + 1]
            parts.append(self.items[begin : begin + np.searchsorted(self.times[begin:end], time)])
        return _joined(parts)


class ConsumedInOrder:
    """
    What stands before a target in the sequence of its user, each item once: for an order that is not that of times.

    Args:
        event_items (`numpy.ndarray`):
            The items of all sequences as rows of the catalogue, those of a user one after the other.
    """

    def __init__(self, event_items: np.ndarray) -> None:
        self.event_items = event_items

    def __call__(self, targets: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """See [`Consumed`]. Targets have `row`, their place among the events."""
        begins = targets["row"].to_numpy().astype(np.int64) - targets[POSITION].to_numpy()
        ends = begins + targets[NUM_EARLIER].to_numpy()
        parts = []
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            items = self.event_items[begin:end]
            parts.append(items[np.sort(np.unique(items, return_index=True)[1])])
        return _joined(parts)


def _joined(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    return lengths, np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
