"""What is known by when: the phase of every event, since when every item has been there, and what users had before a target."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import polars as pl

from ..interactions.codes import encode
from ..interactions.interactions import ITEM_ID, NANOSECOND, TITLE, USER_ID, instants
from ..negatives.strategies import NUM_EARLIER, POSITION
from .sequences import IN_FILE_UNCHECKED, ties_are_sets
from .splits import BY_ITEM, BY_USER, BY_USER_IN_TIME, SPLIT, SPLITS, TEMPORAL


if TYPE_CHECKING:
    from .config import RecordConfig
    from .rows import RecordBuilder


PHASE, EVER = EXCLUSIONS = ("phase", "ever")
FIRST_EVENT, RELEASE_YEAR, OFF = EXISTENCE = ("first-event", "release-year", "off")


def touched_by_phase(
    source: pl.DataFrame,
    events: pl.DataFrame,
    split: str,
    in_time: bool = True,
    begins: Sequence[int | None] | None = None,
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
        begins (`Sequence[int | None]`, *optional*):
            When validation and test begin, where `events` are not all that there are.

    Returns:
        `tuple[polars.DataFrame, numpy.ndarray]`: Events with `user_id` and `item_id`, and their phases, `uint8` of shape
        `(n,)`. A pair may occur in several; its first phase counts.
    """
    if split in (BY_USER, BY_USER_IN_TIME):
        return source, np.zeros(source.height, dtype=np.uint8)
    if split in (TEMPORAL, BY_ITEM):
        return source, _phases_in_time(instants(source), phase_begins(events) if begins is None else begins)
    if not in_time:
        source = source.join(events, on=[USER_ID, ITEM_ID], how="anti")
    others = _phases_of_users(source, events) if in_time else np.zeros(source.height)
    parts = [events.select(USER_ID, ITEM_ID), source.select(USER_ID, ITEM_ID)]
    phases = [events[SPLIT].to_physical().to_numpy(), others]
    return pl.concat(parts), np.concatenate(phases).astype(np.uint8)


def phase_begins(events: pl.DataFrame) -> list[int | None]:
    """The times of the first events of validation and test."""
    return [cast(int | None, instants(events.filter(pl.col(SPLIT) == name)).min()) for name in SPLITS[1:]]


def _phases_in_time(times: pl.Series, begins: Sequence[int | None]) -> np.ndarray:
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
    return arrivals_after(first_events(source), catalogue, existence, in_nanoseconds=NANOSECOND in source.columns)


def first_events(source: pl.DataFrame) -> pl.DataFrame:
    """The items of events with the `time` of their first, as [`instants`] has it."""
    return source.select(ITEM_ID, instants(source).alias("time")).group_by(ITEM_ID).agg(pl.col("time").min())


def arrivals_after(
    firsts: pl.DataFrame, catalogue: pl.DataFrame, existence: str, *, in_nanoseconds: bool
) -> np.ndarray:
    """As [`available_from`], from the first events of items."""
    codes = encode(firsts[ITEM_ID], catalogue[ITEM_ID])
    there = codes >= 0
    times = np.empty(catalogue.height, dtype=np.int64)
    # An item cannot be proposed before anybody has met it: its first event is the first that a list cannot hold.
    times[codes[there]] = firsts["time"].to_numpy()[there] + 1
    if existence == RELEASE_YEAR:
        year = catalogue[TITLE].str.extract(r"\((\d{4})\)$").cast(pl.Int32)
        begin = pl.datetime(pl.col(TITLE).clip(1700, 2200), 1, 1).dt.epoch("ns" if in_nanoseconds else "s")
        released = year.to_frame().select(pl.when(pl.col(TITLE) > 0).then(begin)).to_series()
        times = np.minimum(times, released.fill_null(np.iinfo(np.int64).max).to_numpy())
    return times


def held_back(
    available: np.ndarray | None, events: pl.DataFrame, catalogue: pl.DataFrame, held: pl.Series
) -> np.ndarray:
    """
    Let items that are held out of training come into being when it has ended.

    Args:
        available (`numpy.ndarray`, *optional*):
            What [`available_from`] returns.
        events (`polars.DataFrame`):
            Sequences with a column `split`.
        catalogue (`polars.DataFrame`):
            The items, sorted by `item_id`.
        held (`polars.Series`):
            The items that are held out.

    Returns:
        `numpy.ndarray`: Times of shape `(items,)`.
    """
    times = np.full(catalogue.height, np.iinfo(np.int64).min) if available is None else available
    begin = cast(int, instants(events.filter(pl.col(SPLIT) != SPLITS[0])).min())
    there = catalogue[ITEM_ID].is_in(held.implode()).to_numpy()
    return np.where(there, np.maximum(times, begin), times)


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


def touched_before(
    source: pl.DataFrame,
    events: pl.DataFrame,
    config: "RecordConfig",
    has_time: bool,
    begins: Sequence[int | None] | None = None,
) -> tuple[pl.DataFrame, np.ndarray | None]:
    """What the negatives of users must not be among, see [`touched_by_phase`]."""
    if config.exclude_seen == EVER:
        return source, None
    return touched_by_phase(source, events, config.split, has_time and config.order != IN_FILE_UNCHECKED, begins)


def consumed_before(
    source: pl.DataFrame,
    targets: dict[str, pl.DataFrame],
    builder: "RecordBuilder",
    config: "RecordConfig",
    has_time: bool,
) -> Consumed:
    """What the users of validation and test targets had before."""
    if not ties_are_sets(config, has_time):
        return ConsumedInOrder(builder.event_items)
    users = [rows[USER_ID] for split, rows in targets.items() if split != "train"]
    users = pl.concat(users) if users else source[USER_ID].clear()
    return ConsumedInTime(source, users, builder.sampler.ids)
