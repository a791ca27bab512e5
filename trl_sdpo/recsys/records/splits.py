"""Which events are for training, which for validation, which for the test."""

import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
import polars as pl

from ..interactions.interactions import ITEM_ID, NANOSECOND, TIMESTAMP, USER_ID, instants
from ..interactions.random_streams import USER_SPLIT_STREAM, hash_keys, random_numbers, stream_keys


logger = logging.getLogger(__name__)

SPLIT = "split"
SPLITS = ("train", "validation", "test")
# A byte per event instead of a string.
SPLIT_TYPE = pl.Enum(SPLITS)
TEMPORAL, LEAVE_ONE_OUT, BY_USER, BY_USER_IN_TIME = SPLIT_KINDS = ("temporal", "leave-one-out", "user", "user-by-time")


def temporal_split(sequences: pl.DataFrame, ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)) -> pl.DataFrame:
    """
    Split by time over all interactions of all users, as S-DPO does (https://huggingface.co/papers/2406.09215).

    All events of one time (a second, or what the source has) go to the same side, the later one, so training ends strictly before validation begins,
    and validation before the test.

    What it leaks: filters before it (`min_interactions`, unless `core_period="train"`; the merging of repeats and titles)
    have seen the whole data.
    Records made with the defaults of [`RecordConfig`] draw their negatives from what somebody had met by then, without
    what the user took up to the end of the same split, so that neither the future of the catalogue nor that of the user
    is seen. What it costs: users who come late have no training target, others no test target; a history may hold events
    of the split before; an item's first event is no target.

    Args:
        sequences (`polars.DataFrame`):
            What [`build_sequences`] returns.
        ratios (`tuple[float, float, float]`, *optional*, defaults to `(0.8, 0.1, 0.1)`):
            Shares of train, validation and test. A share of 0 leaves that split out.

    Returns:
        `polars.DataFrame`: The same rows with a column `split`, one of `train`, `validation`, `test`.

    Raises:
        ValueError: the source has no time, the ratios are not three shares that make 1, or a split with a share above
            0 gets no event.

    Example:
        ```python
        >>> import polars as pl
        >>> sequences = pl.DataFrame({"user_id": [1] * 5, "timestamp": [10, 20, 30, 30, 40]})
        >>> temporal_split(sequences, ratios=(0.6, 0.2, 0.2))["split"].to_list()
        ['train', 'train', 'validation', 'validation', 'test']

        ```
    """
    _check_ratios(ratios)
    timeless = sequences[TIMESTAMP].null_count()
    if timeless:
        raise ValueError(
            f"column '{TIMESTAMP}' is null in {timeless} of {sequences.height} rows: the source has no time, so it "
            "cannot be split by time. Use a source with times, or split by 'user', or 'leave-one-out' with "
            "file_order=True."
        )
    key = instants(sequences)
    times = key.sort()
    cuts = []
    for share in (ratios[0], ratios[0] + ratios[1]):
        index = round(share * len(times))
        # Behind the last event: everything stays on this side.
        cuts.append(times[index] if index < len(times) else times[-1] + 1)
    name = pl.when(key < cuts[0]).then(_split("train"))
    name = name.when(key < cuts[1]).then(_split("validation")).otherwise(_split("test"))
    split = sequences.with_columns(name.alias(SPLIT))
    counts = _count(split)
    for key, ratio in zip(SPLITS, ratios, strict=True):
        if ratio > 0 and not counts[key]:
            raise ValueError(
                f"split '{key}' gets none of {sequences.height} events, ratio {ratio}: too few events, or too many in "
                f"one second. There are {_in_words(counts)} events. Pass other ratios or more data."
            )
    units = 10**9 if NANOSECOND in sequences.columns else 1
    begins = [f"{key} from {_date(cut, units)}" for key, cut in zip(SPLITS[1:], cuts, strict=True) if counts[key]]
    logger.info("Split by time: %s events; %s UTC.", _in_words(counts), ", ".join(begins))
    return split


def leave_one_out_split(sequences: pl.DataFrame, *, file_order: bool = False) -> pl.DataFrame:
    """
    The last event of every user is for the test, the one before it for validation, all others for training.

    Users with fewer than three events are for training alone.

    What it leaks: training events of some users lie after the test events of others, so a model learns from the future
    what becomes popular and what is watched together; [`split_leaks`] counts them. The protocol is common (SASRec,
    BERT4Rec), but its figures are not those of a system in use (Ji et al., https://huggingface.co/papers/2010.11060).
    Negatives are from the whole catalogue by default, the items of the future among it: "somebody had met it by then"
    alone finds .23 of the targets of MovieLens-latest-small where chance is .05. Which of several events at the last
    time is the last one is drawn. What is said of filters in [`temporal_split`] holds as well.

    Args:
        sequences (`polars.DataFrame`):
            What [`build_sequences`] returns.
        file_order (`bool`, *optional*, defaults to `False`):
            Take the order of rows of a source without time for the order of events. It often is not: ids or ratings
            may be sorted.

    Returns:
        `polars.DataFrame`: The same rows with a column `split`.

    Raises:
        ValueError: the source has no time and `file_order` is not set, or no user has three events.

    Example:
        ```python
        >>> import polars as pl
        >>> sequences = pl.DataFrame({"user_id": [1, 1, 1, 1, 2], "timestamp": [10, 20, 30, 40, 10]})
        >>> leave_one_out_split(sequences)["split"].to_list()
        ['train', 'train', 'validation', 'test', 'train']

        ```
    """
    timeless = sequences[TIMESTAMP].null_count()
    if timeless and not file_order:
        raise ValueError(
            f"column '{TIMESTAMP}' is null in {timeless} of {sequences.height} rows: the source has no time, so the "
            "last event of a user is not known. Pass file_order=True to take the last row for it."
        )
    row = pl.int_range(pl.len(), dtype=pl.Int64)
    from_last = row.reverse().over(USER_ID)
    long_enough = pl.len().over(USER_ID) >= 3
    name = pl.when(long_enough & (from_last == 0)).then(_split("test"))
    name = name.when(long_enough & (from_last == 1)).then(_split("validation")).otherwise(_split("train"))
    split = sequences.with_columns(name.alias(SPLIT))
    counts = _count(split)
    if not counts["test"]:
        raise ValueError(
            f"none of {sequences[USER_ID].n_unique()} users has three events to leave one out. Use more data."
        )
    logger.info("Split that leaves one out: %s events.", _in_words(counts))
    return split


def user_split(
    sequences: pl.DataFrame, ratios: tuple[float, float, float] = (0.8, 0.1, 0.1), *, seed: int | None = None
) -> pl.DataFrame:
    """
    Every user with all events goes to one split.

    What it leaks: as [`leave_one_out_split`], training events of some users lie after the test events of others. What
    it tests is new users, with their own history in the prompt. The published S-DPO records of LastFM and MovieLens
    split in this way, by the time of a user's first event.

    Args:
        sequences (`polars.DataFrame`):
            What [`build_sequences`] returns.
        ratios (`tuple[float, float, float]`, *optional*, defaults to `(0.8, 0.1, 0.1)`):
            Shares of users. A share of 0 leaves that split out.
        seed (`int`, *optional*):
            Draw users by (seed, user). If `None`, those whose first event is earliest are for training and the last
            for the test.

    Returns:
        `polars.DataFrame`: The same rows with a column `split`.

    Raises:
        ValueError: the ratios are not three shares that make 1, a split with a share above 0 gets no user, or users of
            a source without time are to be split by time.

    Example:
        ```python
        >>> import polars as pl
        >>> sequences = pl.DataFrame({"user_id": [1, 1, 2, 3], "timestamp": [30, 40, 10, 20]})
        >>> user_split(sequences, ratios=(0.34, 0.33, 0.33))["split"].to_list()
        ['test', 'test', 'train', 'validation']

        ```
    """
    _check_ratios(ratios)
    if seed is None and sequences[TIMESTAMP].null_count():
        raise ValueError(f"column '{TIMESTAMP}' holds nulls: the source has no time. Pass a seed to draw the users.")
    timed = sequences.select(USER_ID, instants(sequences))
    users = timed.group_by(USER_ID).agg(pl.col(TIMESTAMP).min()).sort(USER_ID)
    if seed is None:
        users = users.sort(TIMESTAMP, maintain_order=True)
    else:
        keys = hash_keys(users[USER_ID])
        numbers = random_numbers(stream_keys(seed, USER_SPLIT_STREAM, keys, np.zeros(len(keys))), 1)[:, 0]
        users = users[np.argsort(numbers, kind="stable")]
    num_train = round(ratios[0] * users.height)
    num_validation = min(round(ratios[1] * users.height), users.height - num_train)
    if ratios[2] == 0:
        num_validation = users.height - num_train
    sizes = np.array([num_train, num_validation, users.height - num_train - num_validation])
    for key, ratio, size in zip(SPLITS, ratios, sizes, strict=True):
        if ratio > 0 and not size:
            raise ValueError(f"split '{key}' gets none of {users.height} users, ratio {ratio}. Pass other ratios.")
    names = pl.Series(SPLIT, np.repeat(SPLITS, sizes)).cast(SPLIT_TYPE)
    split = sequences.join(users.select(USER_ID, names), on=USER_ID, how="left", maintain_order="left")
    logger.info("Split by user: %s users.", _in_words(dict(zip(SPLITS, sizes.tolist(), strict=True))))
    return split


def split_leaks(events: pl.DataFrame) -> dict[str, int | None]:
    """
    Count what the training events of a split tell about the other splits.

    Args:
        events (`polars.DataFrame`):
            What one of the splits here returns.

    Returns:
        `dict`: `train_events_after_evaluation_begins`: training events not before the earliest event of validation and
        test (`None` without time; 0 for [`temporal_split`]); `users_in_train_and_evaluation`;
        `evaluation_items_without_train_event`.

    Example:
        ```python
        >>> import polars as pl
        >>> rows = {"user_id": [1, 1, 1, 2, 2, 2], "item_id": [7, 8, 9, 7, 8, 7], "timestamp": [1, 2, 3, 4, 5, 6]}
        >>> split_leaks(leave_one_out_split(pl.DataFrame(rows)))["train_events_after_evaluation_begins"]
        1

        ```
    """
    # Columns one by one: of many millions of events a filtered table is what takes most memory of all.
    is_train = events[SPLIT] == "train"
    after = None
    if not events[TIMESTAMP].null_count():
        times = instants(events)
        first = times.filter(~is_train).min()
        after = 0 if first is None else int(((times >= first) & is_train).sum())
    users, items = (
        (events[name].filter(is_train).unique(), events[name].filter(~is_train).unique())
        for name in (USER_ID, ITEM_ID)
    )
    shared = int(users[1].is_in(users[0].implode()).sum())
    unseen = int((~items[1].is_in(items[0].implode())).sum())
    return {
        "train_events_after_evaluation_begins": after,
        "users_in_train_and_evaluation": shared,
        "evaluation_items_without_train_event": unseen,
    }


def _split(name: str) -> pl.Expr:
    return pl.lit(name, dtype=SPLIT_TYPE)


def _count(split: pl.DataFrame) -> dict[str, int]:
    return split.select(**{key: (pl.col(SPLIT) == key).sum() for key in SPLITS}).row(0, named=True)


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in counts.items())


def _date(instant: int, per_second: int) -> str:
    try:
        return f"{datetime.fromtimestamp(instant // per_second, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):  # beyond the year 9999
        return f"the time {instant:,}"


def _check_ratios(ratios: tuple[float, float, float]) -> None:
    if len(ratios) != 3 or any(ratio < 0 for ratio in ratios) or not math.isclose(sum(ratios), 1.0, abs_tol=1e-9):
        raise ValueError(f"ratios={ratios} are not three shares that make 1. Pass such as (0.8, 0.1, 0.1).")
