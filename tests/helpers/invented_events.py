"""Interactions that are made up."""

import numpy as np
import polars as pl

from trl_sdpo.recsys import Interactions


def make(seed, *, text=False, has_time=True, finer=False):
    """Events that repeat, tie and are not sorted, some items much more popular than others."""
    generator = np.random.default_rng(seed)
    users, items, size = 32, 60, 700
    user = generator.integers(0, users, size)
    item = (items * generator.random(size) ** 1.6).astype(int)
    events = pl.DataFrame(
        {
            "user_id": [f"u{number}" for number in user] if text else user * 1000,
            "item_id": [f"i{number}" for number in item] if text else item * 3,
            "timestamp": generator.integers(-50, 250, size) if has_time else [None] * size,
            "rating": generator.integers(1, 6, size).astype(float),
            **({"nanosecond": generator.integers(0, 3, size)} if finer else {}),
        },
        schema_overrides={"timestamp": pl.Int64},
    )
    ids = [f"i{number}" for number in range(items)] if text else [3 * number for number in range(items)]
    titles = [f"Film “{number}” ({1950 + number})" for number in range(items)]
    return Interactions(events, pl.DataFrame({"item_id": ids, "title": titles}), "invented", has_time=has_time)
