"""Who may be a negative: what the user did not take by the end of the record's phase, of what existed by its time."""

import numpy as np
import polars as pl

from ..interactions.codes import encode
from ..interactions.interactions import ITEM_ID, USER_ID


# Train, validation, test: the order of the splits.
LAST_PHASE = 2
_PHASES = 4


class Seen:
    """
    Who interacted with which item of the catalogue, and in which phase first.

    Args:
        events (`polars.DataFrame`):
            Interactions with `user_id` and `item_id`.
        item_ids (`polars.Series`):
            The catalogue, sorted.
        phases (`numpy.ndarray`, *optional*):
            The phase of every event (0 train, 1 validation, 2 test), of shape `(events,)`. If `None`, all are of the
            first, so that they count for the records of any phase.
    """

    def __init__(self, events: pl.DataFrame, item_ids: pl.Series, phases: np.ndarray | None = None) -> None:
        self.users = events[USER_ID].unique().sort()
        self.num_items = len(item_ids)
        items = encode(events[ITEM_ID], item_ids)
        keys = encode(events[USER_ID], self.users)
        keys *= self.num_items
        keys += items
        keys *= _PHASES
        if phases is not None:
            keys += phases
        if (items < 0).any():  # filtered out of the catalogue, so never drawn
            keys = keys[items >= 0]
        del items
        keys.sort()
        self.phases = np.empty(len(keys), dtype=np.uint8)
        np.remainder(keys, _PHASES, out=self.phases, casting="unsafe")
        keys //= _PHASES
        again = keys[1:] == keys[:-1]
        if again.any():  # the first of equal pairs has the earliest phase
            first = np.concatenate([[True], ~again])
            keys, self.phases = keys[first], self.phases[first]
        self.keys = keys

    def encode_users(self, user_ids: pl.Series) -> np.ndarray:
        """Rows of the users; one behind the last for a user without interactions."""
        codes = encode(user_ids, self.users)
        return np.where(codes < 0, len(self.users), codes)

    def contains(self, users: np.ndarray, items: np.ndarray, phases: np.ndarray) -> np.ndarray:
        """Whether users `(n,)` interacted with items `(n, m)` up to the end of phases `(n,)`."""
        wanted = users[:, None] * self.num_items + items
        if not len(self.keys):
            return np.zeros(wanted.shape, dtype=bool)
        found = np.searchsorted(self.keys, wanted)
        np.minimum(found, len(self.keys) - 1, out=found)
        return (self.keys[found] == wanted) & (self.phases[found] <= phases[:, None])

    def count(self, users: np.ndarray) -> np.ndarray:
        """How many items of the catalogue the users `(n,)` interacted with, in whichever phase."""
        low = np.searchsorted(self.keys, users * self.num_items)
        return np.searchsorted(self.keys, (users + 1) * self.num_items) - low

    def items_of(self, user: int, phase: int) -> np.ndarray:
        """Rows in the catalogue of the items that a user took up to the end of a phase."""
        low, high = np.searchsorted(self.keys, [user * self.num_items, (user + 1) * self.num_items])
        return self.keys[low:high][self.phases[low:high] <= phase] % self.num_items


class Arrivals:
    """
    The items in the order in which they came into being, so that what existed by a time is a beginning of it.

    Args:
        available_from (`numpy.ndarray`, *optional*):
            Since when every item of the catalogue has been there, of shape `(items,)`. If `None`, always.
        num_items (`int`):
            Number of items.
    """

    def __init__(self, available_from: np.ndarray | None, num_items: int) -> None:
        self.num_items, self.always = num_items, available_from is None
        self.order = np.arange(num_items) if self.always else np.argsort(available_from, kind="stable")
        self.times = None if self.always else available_from[self.order]
        self.places = np.empty(num_items, dtype=np.int64)
        self.places[self.order] = np.arange(num_items)

    def count(self, times: np.ndarray | None, size: int) -> np.ndarray:
        """How many items are there at times `(n,)`."""
        if self.always:
            return np.full(size, self.num_items)
        return np.searchsorted(self.times, times, side="right")
