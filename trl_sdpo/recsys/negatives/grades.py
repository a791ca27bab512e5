"""How users rated what they took: scores of records, and negatives that they rated low."""

import dataclasses

import numpy as np
import polars as pl

from ..interactions.codes import encode
from ..interactions.interactions import ITEM_ID, RATING, USER_ID
from ..interactions.random_streams import LOW_RATED_STREAM, random_numbers, stream_keys, uniform_integers
from .eligibility import LAST_PHASE, Seen
from .strategies import Draw, TargetRows


_TRAIN = 0


class Grades:
    """
    The rating that each user gave each item, the highest where there are several.

    Args:
        events (`polars.DataFrame`):
            Interactions with `user_id`, `item_id` and `rating`.
        item_ids (`polars.Series`):
            The catalogue, sorted.
        seen ([`Seen`]):
            Who interacted with what, and in which phase first.
    """

    def __init__(self, events: pl.DataFrame, item_ids: pl.Series, seen: Seen) -> None:
        self.seen = seen
        ratings = events.select(USER_ID, ITEM_ID, pl.col(RATING).cast(pl.Float64))
        items = encode(ratings[ITEM_ID], item_ids)
        keys = encode(ratings[USER_ID], seen.users) * seen.num_items + items
        known = items >= 0  # filtered out of the catalogue, so never drawn
        keys, values = keys[known], ratings[RATING].to_numpy()[known]
        order = np.lexsort((values, keys))
        keys, values = keys[order], values[order]
        last = np.append(keys[1:] != keys[:-1], True)[: len(keys)]
        self.keys, self.values = keys[last], values[last]

    def of(self, rows: TargetRows, items: np.ndarray) -> np.ndarray:
        """Ratings of items `(n, m)` by the users of rows, NaN for what they had not taken by the end of the row's phase."""
        wanted = rows.users[:, None] * self.seen.num_items + items
        if not len(self.keys):
            return np.full(wanted.shape, np.nan)
        found = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        known = (self.keys[found] == wanted) & self.seen.contains(rows.users, items, rows.phases)
        return np.where(known, self.values[found], np.nan)

    def of_targets(self, rows: TargetRows) -> np.ndarray:
        """Ratings of the targets of rows, of shape `(n,)`, NaN for none."""
        return self.of(dataclasses.replace(rows, phases=np.full(len(rows), LAST_PHASE)), rows.items[:, None])[:, 0]

    def low(self, most: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of users and items, and ratings, of the pairs of the training phase that were never rated above `most`."""
        low = self.values <= most
        users, items = self.keys[low] // self.seen.num_items, self.keys[low] % self.seen.num_items
        in_training = self.seen.contains(users, items[:, None], np.full(len(users), _TRAIN))[:, 0]
        return users[in_training], items[in_training], self.values[low][in_training]


def low_rated_draw(seed: int, grades: Grades, most: float, first_user: int = 0) -> tuple[Draw, int]:
    """
    Items that the user rated low and lower than the target, but those that the history shows.

    A user's items stand in an order drawn by the seed, and a row takes them one after the other from a place drawn by
    (seed, user, position), so that none is drawn twice.

    Args:
        seed (`int`):
            The seed.
        grades ([`Grades`]):
            The ratings.
        most (`float`):
            The highest rating that is low.
        first_user (`int`, *optional*, defaults to `0`):
            The row among all users of the first of those of the ratings.

    Returns:
        `tuple[Draw, int]`: The draw, and after how many items no user has more.
    """
    users, items, values = grades.low(most)
    keys = stream_keys(seed, LOW_RATED_STREAM, (users + first_user).astype(np.uint64), items)
    order = np.lexsort((random_numbers(keys, 1)[:, 0], users))
    # one more, so that there is a place for none
    items, values = np.append(items[order], -1), np.append(values[order], np.nan)
    # one user more, without any: the place of users without interactions
    begins = np.searchsorted(users[order], np.arange(len(grades.seen.users) + 2))
    counts = np.diff(begins)

    def draw(rows: TargetRows, count: int) -> np.ndarray:
        have = counts[rows.users]
        start = uniform_integers(rows.numbers(seed, LOW_RATED_STREAM, 1), np.maximum(have, 1)[:, None])
        steps = np.arange(count)
        there = steps < have[:, None]
        places = begins[rows.users][:, None] + (start + steps) % np.maximum(have, 1)[:, None]
        places = np.where(there, places, len(items) - 1)
        shown = (items[places][:, :, None] == rows.histories[:, None, :]).any(axis=2)
        lower = values[places] < grades.of_targets(rows)[:, None]
        return np.where(lower & ~shown, items[places], -1)

    return draw, int(counts.max(initial=0))
