"""Which events of a split become the targets of records."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ..interactions.interactions import ITEM_ID, USER_ID, instants
from ..interactions.random_streams import SUBSAMPLE_STREAM, hash_keys, random_numbers, stream_keys
from ..negatives.strategies import COLD, NUM_EARLIER, POSITION
from .sequences import in_words
from .splits import SPLIT


if TYPE_CHECKING:
    from .config import RecordConfig
    from .rows import RecordBuilder


ALL, LAST = "all", "last"
_ROWS_PER_CHUNK = 1 << 20


def parse_windows(windows: str | int) -> int | None:
    """
    How many of the last targets of a user to keep; `None` for all.

    Args:
        windows (`str` or `int`):
            `"all"`, `"last"`, or a number.

    Returns:
        `int`, *optional*: The number.

    Raises:
        ValueError: it is none of these.

    Example:
        ```python
        >>> parse_windows("last"), parse_windows("5"), parse_windows("all")
        (1, 5, None)

        ```
    """
    if windows in (ALL, LAST):
        return None if windows == ALL else 1
    if not str(windows).isdecimal() or int(windows) < 1:
        raise ValueError(f"windows={windows!r}: pass 'all', 'last', or the number of last targets of a user.")
    return int(windows)


def select_targets(
    events: pl.DataFrame,
    split: str,
    *,
    min_history: int,
    seed: int,
    stride: int = 1,
    windows: str | int = ALL,
    limit: int | None = None,
    conditions: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
) -> tuple[pl.DataFrame, dict[str, int]]:
    """
    The events of a split that have enough history, thinned out as asked.

    Args:
        events (`polars.DataFrame`):
            Sequences with a column `split`, those of a user in order.
        split (`str`):
            Which of them.
        min_history (`int`):
            Fewest events of the user at an earlier time than a target, in whichever split.
        seed (`int`):
            The seed of the subsampling.
        stride (`int`, *optional*, defaults to `1`):
            Keep every so many-th target of a user, counted back from the last one.
        windows (`str` or `int`, *optional*, defaults to `"all"`):
            See [`parse_windows`]. Applied after the stride.
        limit (`int`, *optional*):
            Keep this many, drawn uniformly. A smaller number gives a subset of a larger one.
        conditions (`Mapping[str, Callable]`, *optional*):
            What else a target must be, by the name under which those that are not are counted: functions from rows of the
            events `(n,)` to flags.

    Returns:
        `tuple[polars.DataFrame, dict[str, int]]`: The rows that stay, in order, and how many were dropped and why.

    Raises:
        ValueError: nothing stays, or the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(
            f"max_{split}_records={limit} is below 1. Leave it out for all, or a ratio of 0 for no split."
        )
    rows, report = choose_rows(
        events, split, min_history=min_history, stride=stride, windows=windows, conditions=conditions
    )
    kept = rows if limit is None else smallest_rows(events, rows, limit, seed)
    report["dropped_by_subsampling"] = len(rows) - len(kept)
    check_records_left(len(kept), split, report, min_history)
    targets = events[kept]
    report |= {"records": targets.height, "users": targets[USER_ID].n_unique(), "items": targets[ITEM_ID].n_unique()}
    return targets, report


def check_records_left(records: int, split: str, report: dict, min_history: int) -> None:
    """Raise if a split has none."""
    if not records:
        raise ValueError(
            f"split '{split}' has no record of {in_words(report)}. Lower min_history={min_history}, change the ratios, or use "
            "more data."
        )


def choose_rows(
    events: pl.DataFrame,
    split: str,
    *,
    min_history: int,
    stride: int = 1,
    windows: str | int = ALL,
    conditions: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
) -> tuple[np.ndarray, dict[str, int]]:
    """The steps of [`select_targets`] that look at one user at a time: rows of the events, and counts."""
    most = parse_windows(windows)
    # Rows, not frames: of many millions of events a fraction becomes targets.
    rows = np.flatnonzero((events[SPLIT] == split).to_numpy())
    report = {"targets": len(rows)}

    def keep(reason: str, kept: np.ndarray) -> None:
        nonlocal rows
        report[reason] = len(rows) - len(kept)
        rows = kept

    earlier = events[NUM_EARLIER if NUM_EARLIER in events.columns else POSITION]
    keep("dropped_short_history", rows[earlier.to_numpy()[rows] >= min_history])
    for reason, condition in (conditions or {}).items():
        keep(reason, rows[condition(rows)])
    # From the last one back, so that every user keeps the target with the longest history.
    keep("dropped_by_stride", rows[_from_last(events, rows) % stride == 0] if stride > 1 else rows)
    keep("dropped_by_windows", rows[_from_last(events, rows) < most] if most is not None else rows)
    return rows, report


def time_facts(events: pl.DataFrame, rows: np.ndarray, history_size: int) -> dict[str, int | None]:
    """
    Count what stands in the histories of targets and is not before them, see [`record_facts`].

    Args:
        events (`polars.DataFrame`):
            Sequences, those of a user in order.
        rows (`numpy.ndarray`):
            Which of the events are targets, of shape `(n,)`.
        history_size (`int`):
            Events of a history at most.

    Returns:
        `dict[str, int | None]`: Counts; `None` for those of time where there is none.
    """
    positions, earlier = (events[name].to_numpy() for name in (POSITION, NUM_EARLIER))
    ends, lengths = rows - positions[rows] + earlier[rows], np.minimum(earlier[rows], history_size)
    facts: dict[str, int | None] = {"targets": len(rows), "targets_tied_in_time": None}
    facts["history_events"] = int(lengths.sum())
    facts |= dict.fromkeys(("history_events_later_than_target", "history_events_at_time_of_target"))
    times = instants(events)
    if times.null_count():
        return facts
    times = times.to_numpy()
    beside = np.zeros(len(rows), dtype=bool)
    for neighbours, there in ((rows - 1, positions[rows] > 0), (rows + 1, rows + 1 < len(times))):
        places = np.where(there, neighbours, rows)
        # one place further in the same sequence, not the first of the next user
        same_user = np.abs(positions[places] - positions[rows]) == 1
        beside |= there & same_user & (times[places] == times[rows])
    later = tied = 0
    for back in range(1, history_size + 1):
        some = lengths >= back
        before, at = times[ends[some] - back], times[rows[some]]
        later, tied = later + int((before > at).sum()), tied + int((before == at).sum())
    facts |= {"history_events_later_than_target": later, "history_events_at_time_of_target": tied}
    return facts | {"targets_tied_in_time": int(beside.sum())}


def _from_last(events: pl.DataFrame, rows: np.ndarray) -> np.ndarray:
    """How many of these rows come after each one for the same user."""
    users = events[USER_ID].gather(rows)
    ends = np.flatnonzero(users.ne_missing(users.shift(-1)).to_numpy())
    places = np.arange(len(rows))
    return ends[np.searchsorted(ends, places)] - places


def smallest_rows(events: pl.DataFrame, rows: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """The rows with the smallest numbers, in order."""
    if limit >= len(rows):
        return rows
    return rows[np.sort(_smallest(subsampling_numbers(events, rows, seed), limit))] if limit else rows[:0]


def subsampling_numbers(events: pl.DataFrame, rows: np.ndarray, seed: int) -> np.ndarray:
    """Numbers that belong to (seed, user, position), so independent of the other targets: `uint64` of shape `(n,)`."""
    positions, numbers = events[POSITION].to_numpy(), np.empty(len(rows), dtype=np.uint64)
    for begin in range(0, len(rows), _ROWS_PER_CHUNK):
        part = rows[begin : begin + _ROWS_PER_CHUNK]
        keys = stream_keys(seed, SUBSAMPLE_STREAM, hash_keys(events[USER_ID].gather(part)), positions[part])
        numbers[begin : begin + len(part)] = random_numbers(keys, 1)[:, 0]
    return numbers


def _smallest(numbers: np.ndarray, count: int) -> np.ndarray:
    """Places of the smallest numbers; of equal ones the first."""
    bound = np.partition(numbers, count - 1)[count - 1]
    below = np.flatnonzero(numbers < bound)
    return np.concatenate([below, np.flatnonzero(numbers == bound)[: count - len(below)]])


def target_options(
    events: pl.DataFrame,
    split: str,
    config: "RecordConfig",
    builder: "RecordBuilder",
    learned: np.ndarray | None = None,
) -> dict[str, Any]:
    """What decides on the targets of one user, see [`choose_rows`]; `learned` are events of users to learn from, if not of all."""
    train, arrivals, times = split == "train", builder.sampler.arrivals, instants(events)
    cold = None if train else builder.sampler.cold

    def exists(rows: np.ndarray) -> np.ndarray:
        there = arrivals.count(times.gather(rows).to_numpy(), len(rows))
        return arrivals.places[builder.event_items[rows]] < there

    conditions: dict[str, Callable] = {} if arrivals.always else {"dropped_first_of_item": exists}
    if train and learned is not None:
        conditions["dropped_other_user"] = lambda rows: learned[rows]
    if cold is not None:
        conditions["dropped_not_cold"] = lambda rows: cold[builder.event_items[rows]]
    return {
        "min_history": config.min_history,
        "stride": config.train_stride if train else 1,
        "windows": config.windows if train else config.eval_windows,
        "conditions": conditions,
    }


def with_enough_left(
    targets: pl.DataFrame, split: str, config: "RecordConfig", builder: "RecordBuilder"
) -> pl.DataFrame:
    """The targets that have enough items to draw negatives from."""
    rows, pool_size = builder.rows(targets), config.num_negatives_of(split)
    cold = builder.sampler.cold is not None and split != "train"
    if builder.sampler.arrivals.always and not cold:
        builder.sampler.check_enough(targets, rows, pool_size)
        return targets
    # Early in a source there are too few items to draw from, which is nobody's mistake.
    return targets.filter(builder.sampler.num_left(rows, pool_size, cold) >= pool_size)


def check_enough_left(targets: int, kept: int, split: str, config: "RecordConfig") -> None:
    """Raise if no target of a split has."""
    if not kept:
        which = "items without a training event" if config.eval_candidates == COLD and split != "train" else "items"
        raise ValueError(
            f"split '{split}': none of {targets} targets has {config.num_negatives_of(split)} {which} that existed by then "
            "to draw negatives from. Draw fewer negatives, use more items, or pass existence='off'."
        )
