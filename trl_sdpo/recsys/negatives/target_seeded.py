"""How the published S-DPO records were made, to repeat and measure them."""

import random

import numpy as np
import polars as pl

from ..interactions.codes import encode
from .candidates import CandidateSampler
from .strategies import TargetRows


class TargetSeededSampler(CandidateSampler):
    """
    Draws the candidates of a record by its target, as the published S-DPO records of LastFM do.

    Items are numbered as they first appear. Python's generator is seeded with the target's number for the draw of
    negatives, from all items but the target and those of the history that is shown, and again for the order of the
    list. So records with one target share most of their list, and the target's place in it: a lookup that never sees
    the history finds it, see [`leak_probe`]. An item that the user took earlier or later may be a negative.
    """

    def number_items(self, event_items: pl.Series) -> None:
        """Number the items in the order of events."""
        codes = encode(event_items.unique(maintain_order=True), self.ids)
        self._codes_by_number = codes
        self._numbers = np.empty(len(self.ids), dtype=np.int64)
        self._numbers[codes] = np.arange(len(codes))

    def draw(self, rows: TargetRows, num_negatives: int, pool_size: int, shares: dict[str, float]) -> np.ndarray:
        """Rows of the negatives in the catalogue, of shape `(n, pool_size)`."""
        pool = np.empty((len(rows), pool_size), dtype=np.int64)
        everything = range(len(self._codes_by_number))
        for row, (target, history) in enumerate(zip(rows.items, rows.histories, strict=True)):
            number = int(self._numbers[target])
            excluded = {number, *self._numbers[history[history >= 0]].tolist()}
            # What `sample` draws depends on nothing of the list but its length.
            places = random.Random(number).sample(range(len(everything) - len(excluded)), pool_size)
            pool[row] = self._codes_by_number[_skip(np.array(places), sorted(excluded))]
        return pool

    def order(self, rows: TargetRows, num_candidates: int) -> np.ndarray:
        """The order of the list, of shape `(n, num_candidates)`; 0 is the target, which is behind the others at first."""
        order = np.empty((len(rows), num_candidates), dtype=np.int64)
        for row, target in enumerate(rows.items):
            places = [*range(1, num_candidates), 0]
            random.Random(int(self._numbers[target])).shuffle(places)
            order[row] = places
        return order


def _skip(places: np.ndarray, excluded: list[int]) -> np.ndarray:
    """Places in the list without the excluded numbers, as numbers."""
    for number in excluded:
        places = places + (places >= number)
    return places
