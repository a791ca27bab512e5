"""What is known by when: the phase in which every event falls, and since when every item has been there."""

import numpy as np
import polars as pl

from ..interactions.codes import encode
from ..interactions.interactions import ITEM_ID, NANOSECOND, TITLE, USER_ID, instants
from .splits import BY_USER, BY_USER_IN_TIME, SPLIT, SPLITS, TEMPORAL


PHASE, EVER = EXCLUSIONS = ("phase", "ever")
FIRST_EVENT, RELEASE_YEAR, OFF = EXISTENCE = ("first-event", "release-year", "off")


def touched_by_phase(
    source: pl.DataFrame, events: pl.DataFrame, split: str, in_time: bool = True
) -> tuple[pl.DataFrame, np.ndarray]:
    """
    All that users touched, and in which phase: 0 train, 1 validation, 2 test.

    The events of the source that filters left out count as well, by their time. In a split by user all that a user did
    is of one phase; what filters left out of a source without times, or of rows that contradict them, is of the first.

    Args:
        source (`polars.DataFrame`):
            All events of the source, with `user_id`, `item_id` and `timestamp`.
        events (`polars.DataFrame`):
            Those that are left, with a column `split`.
        split (`str`):
            The kind of split.
        in_time (`bool`, *optional*, defaults to `True`):
            Whether the source has times, and sequences are in their order.

    Returns:
        `tuple[polars.DataFrame, numpy.ndarray]`: Events with `user_id` and `item_id`, and their phases, `uint8` of shape
        `(n,)`. A pair may occur in several; its first phase counts.
    """
    if split in (BY_USER, BY_USER_IN_TIME):
        return source, np.zeros(source.height, dtype=np.uint8)
    if split == TEMPORAL:
        return source, _phases_in_time(instants(source), events)
    if not in_time:
        source = source.join(events, on=[USER_ID, ITEM_ID], how="anti")
    others = _phases_of_users(source, events) if in_time else np.zeros(source.height)
    parts = [events.select(USER_ID, ITEM_ID), source.select(USER_ID, ITEM_ID)]
    phases = [events[SPLIT].to_physical().to_numpy(), others]
    return pl.concat(parts), np.concatenate(phases).astype(np.uint8)


def _phases_in_time(times: pl.Series, events: pl.DataFrame) -> np.ndarray:
    begins = [instants(events.filter(pl.col(SPLIT) == name)).min() for name in SPLITS[1:]]
    phases = np.zeros(len(times), dtype=np.uint8)
    for number, begin in enumerate(begins, start=1):
        if begin is not None:
            phases[(times >= begin).to_numpy()] = number
    return phases


def _phases_of_users(source: pl.DataFrame, events: pl.DataFrame) -> np.ndarray:
    begins = events.select(USER_ID, SPLIT, instants(events).alias("time"))
    begins = begins.group_by(USER_ID).agg(
        pl.col("time").filter(pl.col(SPLIT) == name).min().alias(name) for name in SPLITS[1:]
    )
    joined = source.select(USER_ID, instants(source).alias("time"))
    joined = joined.join(begins, on=USER_ID, how="left", maintain_order="left")
    later = [(pl.col("time") >= pl.col(name)).fill_null(False) for name in SPLITS[1:]]
    return joined.select(pl.when(later[1]).then(2).when(later[0]).then(1).otherwise(0).alias(SPLIT))[SPLIT].to_numpy()


def available_from(source: pl.DataFrame, catalogue: pl.DataFrame, existence: str) -> np.ndarray | None:
    """
    Since when every item has been there.

    Args:
        source (`polars.DataFrame`):
            All events of the source, with `item_id` and `timestamp`.
        catalogue (`polars.DataFrame`):
            The items, sorted by `item_id`, with `title`.
        existence (`str`):
            `"first-event"`: from the second behind the first event of the item, whoever made it. `"release-year"`: from
            the beginning of the year at the end of the title, or its first event if that is earlier or there is no year.
            `"off"`: always.

    Returns:
        `numpy.ndarray`, *optional*: Times, as [`instants`] has them, of shape `(items,)`, `None` for always.
    """
    if existence == OFF:
        return None
    firsts = source.select(ITEM_ID, instants(source).alias("time")).group_by(ITEM_ID).agg(pl.col("time").min())
    codes = encode(firsts[ITEM_ID], catalogue[ITEM_ID])
    there = codes >= 0
    times = np.empty(catalogue.height, dtype=np.int64)
    # An item cannot be proposed before anybody has met it: its first event is the first that a list cannot hold.
    times[codes[there]] = firsts["time"].to_numpy()[there] + 1
    if existence == RELEASE_YEAR:
        year = catalogue[TITLE].str.extract(r"\((\d{4})\)$").cast(pl.Int32)
        begin = pl.datetime(pl.col(TITLE).clip(1700, 2200), 1, 1).dt.epoch(
            "ns" if NANOSECOND in source.columns else "s"
        )
        released = year.to_frame().select(pl.when(pl.col(TITLE) > 0).then(begin)).to_series()
        times = np.minimum(times, released.fill_null(np.iinfo(np.int64).max).to_numpy())
    return times
