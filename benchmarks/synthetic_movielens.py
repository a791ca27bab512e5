"""Made-up ratings of the size and shape of MovieLens-25M, in its CSV format. Imported by the benchmarks beside it."""

from pathlib import Path

import numpy as np
import polars as pl


ROWS, USERS, RATED, TITLES = 25_000_095, 162_541, 59_047, 62_423
# Points of the curves: the share of items (or users) below, and ratings per item (or user).
ITEM_CURVE = {0.0: 1, 0.25: 2, 0.5: 6, 0.75: 36, 0.9: 440, 0.95: 2_000, 0.99: 10_700, 1.0: 81_491}
USER_CURVE = {0.0: 20, 0.25: 36, 0.5: 71, 0.75: 162, 0.999: 3_000, 1.0: 32_202}
FIRST_SECOND, LAST_SECOND = 789_652_004, 1_574_327_703


def curve(points: dict[float, int], size: int) -> np.ndarray:
    """
    Counts between the points, falling, linear in the logarithm of the count over the fourth root of the share.

    Args:
        points (`dict[float, int]`):
            Count by share of items below.
        size (`int`):
            Number of items.

    Returns:
        `numpy.ndarray`: Counts of shape `(size,)`, the largest first.
    """
    ranks = (np.arange(size) / max(1, size - 1)) ** 0.25
    shares = np.array([(1 - share) ** 0.25 for share in points])
    order = np.argsort(shares)
    return np.exp(np.interp(ranks, shares[order], np.log(list(points.values()))[order]))


def draw_pairs(rows: int, users: int, items: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Users and items of distinct pairs: users by their curve, items by theirs, sorted by both."""
    sizes = generator.permutation(curve(USER_CURVE, users))
    sizes = np.minimum(np.maximum(20, sizes * (rows / sizes.sum())), items // 2).astype(np.int64)
    cumulative = np.cumsum(curve(ITEM_CURVE, items))
    pairs = np.empty(0, dtype=np.int64)
    while len(pairs) < rows:
        wanted = np.repeat(np.arange(users), sizes if not len(pairs) else -(-sizes // 4))
        drawn = np.searchsorted(cumulative, generator.random(len(wanted)) * cumulative[-1])
        pairs = np.unique(np.concatenate([pairs, wanted * items + drawn]))
    kept = np.sort(generator.permutation(len(pairs))[:rows])
    return pairs[kept] // items, pairs[kept] % items


def write_movielens(folder: Path, rows: int = ROWS, seed: int = 0) -> None:
    """
    Write `ratings.csv` and `movies.csv`.

    Args:
        folder (`Path`):
            An existing folder.
        rows (`int`, *optional*):
            Number of ratings. Users and items are as many per row as in MovieLens-25M, but items at least 5,000.
        seed (`int`, *optional*, defaults to `0`):
            The seed.
    """
    generator = np.random.default_rng(seed)
    share = rows / ROWS
    users, rated, titles = (round(USERS * share), *(max(5_000, round(size * share**0.5)) for size in (RATED, TITLES)))
    user, item = draw_pairs(rows, users, rated, generator)
    ids = np.sort(generator.permutation(209_171)[:titles]) + 1
    ids_of_items = generator.permutation(ids)
    # A user rates in one or a few sittings, some seconds between two ratings.
    start = generator.integers(FIRST_SECOND, LAST_SECOND - 10_000_000, users)
    time = start[user] + generator.integers(0, 4, rows) * 2_000_000 + generator.integers(0, 3_600, rows)
    events = {"userId": user + 1, "movieId": ids_of_items[item], "rating": generator.integers(1, 11, rows) / 2}
    ratings = pl.DataFrame(events | {"timestamp": time}).sort("userId", "movieId")
    ratings.write_csv(folder / "ratings.csv", line_terminator="\r\n", float_precision=1)
    del ratings, events, time
    names = [f"The Picture Number {number}, {'Part ' * (number % 3)}(19{number % 90 + 10})" for number in ids]
    movies = pl.DataFrame({"movieId": ids, "title": names, "genres": "Drama|Comedy"})
    movies.write_csv(folder / "movies.csv", line_terminator="\r\n")
