"""Negatives and candidate lists, drawn so that they tell nothing about the target."""

import hashlib
import logging

import numpy as np
import polars as pl

from .interactions import ITEM_ID, TITLE, USER_ID
from .sequences import POSITION


logger = logging.getLogger(__name__)

NEGATIVES = "negatives"
CANDIDATES = "candidates"

# Streams of random numbers that have nothing to do with each other.
NEGATIVE_STREAM, ORDER_STREAM, TEMPLATE_STREAM, SUBSAMPLE_STREAM = range(4)

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_DRAWS_PER_CHUNK = 1 << 20


def sample_negatives(
    targets: pl.DataFrame,
    sequences: pl.DataFrame,
    items: pl.DataFrame,
    *,
    num_negatives: int = 19,
    seed: int,
    pool_size: int | None = None,
) -> pl.DataFrame:
    """
    Draw, for every target, items with which its user never interacted, and the order in which a list shows them.

    The draw is a function of (seed, user, position) alone: a counter-based generator (SplitMix64, Steele, Lea and
    Flood, OOPSLA 2014) keyed by the three gives a stream of items, uniform over `items`, from which those of the user,
    the target and repetitions are left out. So neither the target nor other targets nor the order of rows changes a
    record's draw. (Seeding by the target, as published data does, gives a target away by its list: a lookup that never
    sees the history then finds it in half of the cases.) The order of the list comes from a stream of its own.

    Args:
        targets (`polars.DataFrame`):
            One row per record, with `user_id`, `position` and `item_id`.
        sequences (`polars.DataFrame`):
            All interactions, with `user_id` and `item_id`: what a user's negatives must not be among. For records
            filtered by rating pass the unfiltered events.
        items (`polars.DataFrame`):
            The catalogue to draw from, with unique `item_id` and unique `title`, so that no negative has the target's
            title.
        num_negatives (`int`, *optional*, defaults to `19`):
            How many of them the list shows beside the target.
        seed (`int`):
            The seed.
        pool_size (`int`, *optional*):
            How many to draw; by default `num_negatives`. The first `num_negatives` are those of the list, whatever
            the size.

    Returns:
        `polars.DataFrame`: The targets with `negatives` (`pool_size` item ids) and `candidates` (`num_negatives` + 1
        item ids, the target among them, in the order of the list).

    Raises:
        ValueError: a number is out of range, items or titles occur twice, a target is not among the items, or a user
            has too few items left.

    Example:
        ```python
        >>> import polars as pl
        >>> targets = pl.DataFrame({"user_id": [1], "position": [3], "item_id": [2]})
        >>> seen = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2]})
        >>> items = pl.DataFrame({"item_id": [1, 2, 3, 4], "title": ["A", "B", "C", "D"]})
        >>> drawn = sample_negatives(targets, seen, items, num_negatives=2, seed=0)
        >>> sorted(drawn["negatives"][0]), sorted(drawn["candidates"][0])
        ([3, 4], [2, 3, 4])

        ```
    """
    pool_size = num_negatives if pool_size is None else pool_size
    if num_negatives < 1 or pool_size < num_negatives:
        raise ValueError(
            f"num_negatives={num_negatives} and pool_size={pool_size}: pass at least 1 negative and a pool of at least "
            "that size."
        )
    if targets.is_empty():
        raise ValueError("targets: no rows. Pass at least one target.")
    # Sorted by id, so that the order of the rows of the catalogue does not matter.
    items = _check_items(items).sort(ITEM_ID).with_row_index("code")
    target_codes = _encode_targets(targets, items)
    user_keys = hash_keys(targets[USER_ID])
    positions = targets[POSITION].to_numpy()
    seen = _Seen(targets, sequences, items)
    seen.check_enough(target_codes, pool_size)

    pool = np.empty((targets.height, pool_size), dtype=np.int64)
    keys = stream_keys(seed, NEGATIVE_STREAM, user_keys, positions)
    _fill_pool(pool, keys, seen, target_codes, items.height)

    order_keys = stream_keys(seed, ORDER_STREAM, user_keys, positions)
    order = np.argsort(random_numbers(order_keys, num_negatives + 1), axis=1, kind="stable")
    shown = np.take_along_axis(np.column_stack([target_codes, pool[:, :num_negatives]]), order, axis=1)
    ids = items[ITEM_ID]
    return targets.with_columns(_gather_lists(ids, pool, NEGATIVES), _gather_lists(ids, shown, CANDIDATES))


def hash_keys(ids: pl.Series) -> np.ndarray:
    """A `uint64` per id: the number itself, or eight bytes of BLAKE2b of a string. The same on every platform."""
    if ids.dtype != pl.String:
        return ids.to_numpy().astype(np.int64).view(np.uint64)
    unique = ids.unique()
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in unique]
    numbers = pl.Series([int.from_bytes(digest, "little") for digest in digests], dtype=pl.UInt64)
    return ids.replace_strict(unique, numbers, return_dtype=pl.UInt64).to_numpy()


def stream_keys(seed: int, stream: int, user_keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """A key per record and stream, from which [`random_numbers`] counts on."""
    if seed < 0:
        raise ValueError(f"seed={seed} is negative. Pass a whole number from 0.")
    # As Python's integers, because numpy warns when a single uint64 wraps around.
    gamma = np.array([(stream + 1) * _GOLDEN_GAMMA % 2**64], dtype=np.uint64)
    start = _mix(np.array([seed % 2**64], dtype=np.uint64)) + gamma
    return _mix(_mix(_mix(start) ^ user_keys) ^ positions.astype(np.int64).view(np.uint64))


def random_numbers(keys: np.ndarray, count: int, start: int = 0) -> np.ndarray:
    """`uint64` numbers of shape `(len(keys), count)`: numbers `start`, `start + 1`, ... of every key's stream."""
    counters = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    return _mix(keys[:, None] + counters[None, :] * np.uint64(_GOLDEN_GAMMA))


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class _Seen:
    """Who interacted with which item of the catalogue, as a sorted array of user * items + item."""

    def __init__(self, targets: pl.DataFrame, sequences: pl.DataFrame, items: pl.DataFrame):
        self.users = targets.select(pl.col(USER_ID).unique().sort()).with_row_index("user")
        pairs = sequences.join(self.users, on=USER_ID).join(items, on=ITEM_ID)
        self.num_items = items.height
        keys = pairs["user"].to_numpy().astype(np.int64) * self.num_items + pairs["code"].to_numpy()
        self.keys = np.unique(keys)
        self.rows = targets.join(self.users, on=USER_ID, how="left", maintain_order="left")["user"].to_numpy()
        self.rows = self.rows.astype(np.int64)

    def __call__(self, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
        wanted = self.rows[rows][:, None] * self.num_items + codes
        if not len(self.keys):
            return np.zeros(wanted.shape, dtype=bool)
        found = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return self.keys[found] == wanted

    def check_enough(self, target_codes: np.ndarray, pool_size: int) -> None:
        counts = np.bincount(self.keys // self.num_items, minlength=self.users.height)[self.rows]
        own = self(np.arange(len(self.rows)), target_codes[:, None])[:, 0]
        left = self.num_items - counts - ~own
        short = np.flatnonzero(left < pool_size)
        if len(short):
            row = short[0]
            user = self.users[USER_ID][int(self.rows[row])]
            raise ValueError(
                f"targets: row {row}, column '{USER_ID}': user {user!r} leaves {left[row]} of {self.num_items} items "
                f"to draw {pool_size} negatives from ({len(short)} such rows). Draw fewer negatives, use more items, "
                "or drop the user."
            )


def _fill_pool(pool: np.ndarray, keys: np.ndarray, seen: _Seen, target_codes: np.ndarray, num_items: int) -> None:
    # The first numbers of a stream are the same however many are drawn, so a row that comes out short is drawn again,
    # longer, with the same beginning.
    pool_size = pool.shape[1]
    waiting, draws = np.arange(len(pool)), pool_size + pool_size // 2 + 8
    while len(waiting):
        short = []
        step = max(1, _DRAWS_PER_CHUNK // draws)
        for begin in range(0, len(waiting), step):
            rows = waiting[begin : begin + step]
            codes = ((random_numbers(keys[rows], draws) >> np.uint64(32)) * np.uint64(num_items)) >> np.uint64(32)
            codes = codes.astype(np.int64)
            good = ~seen(rows, codes) & (codes != target_codes[rows][:, None]) & _first_in_row(codes)
            rank = np.cumsum(good, axis=1)
            done = rank[:, -1] >= pool_size
            take = good & (rank <= pool_size) & done[:, None]
            pool[rows[done]] = codes[take].reshape(-1, pool_size)
            short.append(rows[~done])
        waiting, draws = np.concatenate(short), draws * 2


def _first_in_row(codes: np.ndarray) -> np.ndarray:
    order = np.argsort(codes, axis=1, kind="stable")
    ordered = np.take_along_axis(codes, order, axis=1)
    first = np.ones(codes.shape, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    result = np.empty_like(first)
    np.put_along_axis(result, order, first, axis=1)
    return result


def _check_items(items: pl.DataFrame) -> pl.DataFrame:
    for column in (ITEM_ID, TITLE):
        again = items.select((~pl.col(column).is_first_distinct()).arg_true()).to_series()
        if len(again):
            raise ValueError(
                f"items: row {again[0]}, column '{column}': {items[column][again[0]]!r} occurs in an earlier row "
                "already. Merge equal titles with `resolve_duplicate_titles(events, items)`."
            )
    if items.height >= 2**32:
        raise ValueError(f"items: {items.height} rows are more than 2**32 - 1. Filter the catalogue.")
    return items.select(ITEM_ID, TITLE)


def _encode_targets(targets: pl.DataFrame, items: pl.DataFrame) -> np.ndarray:
    codes = targets.join(items, on=ITEM_ID, how="left", maintain_order="left")["code"]
    missing = codes.is_null().arg_true()
    if len(missing):
        row = missing[0]
        raise ValueError(
            f"targets: row {row}, column '{ITEM_ID}': {targets[ITEM_ID][row]!r} is not among the items. Add it to them."
        )
    return codes.to_numpy().astype(np.int64)


def _gather_lists(ids: pl.Series, codes: np.ndarray, name: str) -> pl.Series:
    return ids.gather(codes.ravel()).reshape(codes.shape).arr.to_list().alias(name)
