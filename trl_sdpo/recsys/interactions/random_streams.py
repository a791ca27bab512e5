"""Random numbers that are functions of (seed, stream, user, position), so the same in whatever order they are asked for."""

import hashlib

import numpy as np
import polars as pl


# Streams of random numbers that have nothing to do with each other.
NEGATIVE_STREAM, ORDER_STREAM, TEMPLATE_STREAM, SUBSAMPLE_STREAM = range(4)
POPULARITY_STREAM, HARD_STREAM, USER_SPLIT_STREAM, TIE_STREAM = range(4, 8)
LOW_RATED_STREAM, COLD_STREAM, ITEM_SPLIT_STREAM, TRAIN_USER_STREAM = range(8, 12)

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def hash_keys(ids: pl.Series) -> np.ndarray:
    """A `uint64` per id: the number itself, or eight bytes of BLAKE2b of a string. The same on every platform."""
    if ids.dtype != pl.String:
        return ids.to_numpy().astype(np.int64, copy=False).view(np.uint64)
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
    return _mix(_mix(_mix(start) ^ user_keys) ^ positions.astype(np.int64, copy=False).view(np.uint64))


def random_numbers(keys: np.ndarray, count: int, start: int = 0) -> np.ndarray:
    """
    `uint64` numbers of shape `(len(keys), count)`: numbers `start`, `start + 1`, ... of every key's stream (SplitMix64,
    Steele, Lea and Flood, OOPSLA 2014).
    """
    counters = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    return _mix(keys[:, None] + counters[None, :] * np.uint64(_GOLDEN_GAMMA))


def uniform_integers(numbers: np.ndarray, bound: int | np.ndarray) -> np.ndarray:
    """Whole numbers from 0, below a bound of less than 2**32, from the high halves of `uint64` numbers."""
    bound = np.asarray(bound, dtype=np.uint64)
    return (((numbers >> np.uint64(32)) * bound) >> np.uint64(32)).astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
