"""Which events are for training, which for validation, which for the test, and which users and items training knows."""

import logging
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import numpy as np
import polars as pl

from ..interactions.interactions import ITEM_ID, NANOSECOND, TIMESTAMP, USER_ID, instants
from ..interactions.random_streams import (
    ITEM_SPLIT_STREAM,
    TRAIN_USER_STREAM,
    USER_SPLIT_STREAM,
    hash_keys,
    random_numbers,
    stream_keys,
)
from ..negatives.strategies import NUM_EARLIER, POSITION


logger = logging.getLogger(__name__)

SPLIT = "split"
SPLITS = ("train", "validation", "test")
# A byte per event instead of a string.
SPLIT_TYPE = pl.Enum(SPLITS)
TEMPORAL, LEAVE_ONE_OUT, BY_USER, BY_USER_IN_TIME = ("temporal", "leave-one-out", "user", "user-by-time")
BY_ITEM = "items"
SPLIT_KINDS = (TEMPORAL, LEAVE_ONE_OUT, BY_USER, BY_USER_IN_TIME, BY_ITEM)


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
    check_times(sequences[TIMESTAMP].null_count(), sequences.height)
    times = instants(sequences).sort()
    cuts = temporal_cuts(len(times), ratios, lambda index: times[index])
    split = split_at(sequences, cuts)
    check_counts(split_counts(split), ratios, cuts, in_nanoseconds=NANOSECOND in sequences.columns)
    return split


def check_times(timeless: int, events: int) -> None:
    """Raise if there are events without a time to split by."""
    if timeless:
        raise ValueError(
            f"column '{TIMESTAMP}' is null in {timeless} of {events} rows: the source has no time, so it "
            "cannot be split by time. Use a source with times, or split by 'user', or 'leave-one-out' with "
            "file_order=True."
        )


def temporal_cuts(events: int, ratios: tuple[float, float, float], time_at: Callable[[int], int]) -> tuple[int, int]:
    """Where [`temporal_split`] begins validation and test, given the time of an event by its place in the order of time."""
    _check_ratios(ratios)
    places = [round(share * events) for share in (ratios[0], ratios[0] + ratios[1])]
    # Behind the last event: everything stays on this side.
    cuts = [time_at(place) if place < events else time_at(events - 1) + 1 for place in places]
    return cuts[0], cuts[1]


def split_at(sequences: pl.DataFrame, cuts: tuple[int, int]) -> pl.DataFrame:
    """The events with the `split` that their time gives them."""
    key = instants(sequences)
    name = pl.when(key < cuts[0]).then(_split("train"))
    name = name.when(key < cuts[1]).then(_split("validation")).otherwise(_split("test"))
    return sequences.with_columns(name.alias(SPLIT))


def check_counts(
    counts: dict[str, int], ratios: tuple[float, float, float], cuts: tuple[int, int], *, in_nanoseconds: bool
) -> None:
    """Raise if a split that is asked for gets no event."""
    for key, ratio in zip(SPLITS, ratios, strict=True):
        if ratio > 0 and not counts[key]:
            raise ValueError(
                f"split '{key}' gets none of {sum(counts.values())} events, ratio {ratio}: too few events, or too many in "
                f"one second. There are {_in_words(counts)} events. Pass other ratios or more data."
            )
    units = 10**9 if in_nanoseconds else 1
    begins = [f"{key} from {_date(cut, units)}" for key, cut in zip(SPLITS[1:], cuts, strict=True) if counts[key]]
    logger.info("Split by time: %s events; %s UTC.", _in_words(counts), ", ".join(begins))


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
    check_last_known(sequences[TIMESTAMP].null_count(), sequences.height, file_order)
    split = without_last_ones(sequences)
    check_left_out(split_counts(split), sequences[USER_ID].n_unique())
    return split


def check_last_known(timeless: int, events: int, file_order: bool) -> None:
    """Raise if nothing says which event of a user is the last."""
    if timeless and not file_order:
        raise ValueError(
            f"column '{TIMESTAMP}' is null in {timeless} of {events} rows: the source has no time, so the "
            "last event of a user is not known. Pass file_order=True to take the last row for it."
        )


def without_last_ones(sequences: pl.DataFrame) -> pl.DataFrame:
    """The events with a `split` that leaves the last ones of each user out of the training."""
    row = pl.int_range(pl.len(), dtype=pl.Int64)
    from_last = row.reverse().over(USER_ID)
    long_enough = pl.len().over(USER_ID) >= 3
    name = pl.when(long_enough & (from_last == 0)).then(_split("test"))
    name = name.when(long_enough & (from_last == 1)).then(_split("validation")).otherwise(_split("train"))
    return sequences.with_columns(name.alias(SPLIT))


def check_left_out(counts: dict[str, int], users: int) -> None:
    """Raise if no user has enough events."""
    if not counts["test"]:
        raise ValueError(f"none of {users} users has three events to leave one out. Use more data.")
    logger.info("Split that leaves one out: %s events.", _in_words(counts))


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
    users = splits_of_users(first_times(sequences), ratios, seed)
    return sequences.join(users, on=USER_ID, how="left", maintain_order="left")


def first_times(sequences: pl.DataFrame) -> pl.DataFrame:
    """The users, sorted, with the time of their first event, null where there is none."""
    timed = sequences.select(USER_ID, instants(sequences))
    return timed.group_by(USER_ID).agg(pl.col(TIMESTAMP).min()).sort(USER_ID)


def splits_of_users(users: pl.DataFrame, ratios: tuple[float, float, float], seed: int | None) -> pl.DataFrame:
    """The users of [`first_times`] with the `split` that [`user_split`] gives each."""
    _check_ratios(ratios)
    if seed is None and users[TIMESTAMP].null_count():
        raise ValueError(f"column '{TIMESTAMP}' holds nulls: the source has no time. Pass a seed to draw the users.")
    if seed is None:
        users = users.sort(TIMESTAMP, maintain_order=True)
    else:
        users = users[np.argsort(_numbers(users[USER_ID], seed, USER_SPLIT_STREAM), kind="stable")]
    num_train = round(ratios[0] * users.height)
    num_validation = min(round(ratios[1] * users.height), users.height - num_train)
    if ratios[2] == 0:
        num_validation = users.height - num_train
    sizes = np.array([num_train, num_validation, users.height - num_train - num_validation])
    for key, ratio, size in zip(SPLITS, ratios, sizes, strict=True):
        if ratio > 0 and not size:
            raise ValueError(f"split '{key}' gets none of {users.height} users, ratio {ratio}. Pass other ratios.")
    logger.info("Split by user: %s users.", _in_words(dict(zip(SPLITS, sizes.tolist(), strict=True))))
    return users.select(USER_ID, pl.Series(SPLIT, np.repeat(SPLITS, sizes)).cast(SPLIT_TYPE))


def item_split(
    sequences: pl.DataFrame,
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1),
    held_out: float = 0.1,
    *,
    seed: int,
) -> pl.DataFrame:
    """
    Split by time, as [`temporal_split`], and hold items out of training: a share of them, drawn by (seed, item), has no
    training event.

    For what is asked of new items where a source has few of them at the end of its time. The training events of the items
    that are held out are left out, from histories too; their later events stay. Records made with [`RecordConfig`] show
    them in no training record, neither as negatives nor in a list: the catalogue has them from the beginning of validation.

    What it leaks: an item that was known for long is held to be new, and what users took instead of it is in their
    histories. For the rest see [`temporal_split`].

    Args:
        sequences (`polars.DataFrame`):
            What [`build_sequences`] returns.
        ratios (`tuple[float, float, float]`, *optional*, defaults to `(0.8, 0.1, 0.1)`):
            Shares of train, validation and test, before items are held out.
        held_out (`float`, *optional*, defaults to `0.1`):
            The share of items. A smaller one gives a subset of a larger one.
        seed (`int`):
            The seed.

    Returns:
        `polars.DataFrame`: The rows that stay with a column `split`; `position` and `num_earlier`, where there are any,
        count them anew.

    Raises:
        ValueError: see [`temporal_split`]; or the share is not between 0 and 1, or holds out no item or all training events.

    Example:
        ```python
        >>> import polars as pl
        >>> rows = {"user_id": [1] * 6, "item_id": [7, 8, 7, 8, 7, 8], "timestamp": [1, 2, 3, 4, 5, 6]}
        >>> split = item_split(pl.DataFrame(rows), (0.7, 0, 0.3), held_out=0.5, seed=0)
        >>> split.filter(pl.col("split") == "train")["item_id"].n_unique(), split["item_id"].n_unique()
        (1, 2)

        ```
    """
    split = temporal_split(sequences, ratios)
    held = split[ITEM_ID].is_in(held_out_items(split[ITEM_ID], held_out, seed).implode())
    left_out = ((split[SPLIT] == "train") & held).to_numpy()
    kept = split.filter(~left_out)
    if not (kept[SPLIT] == "train").any():
        raise ValueError(f"held_out_items={held_out} leaves no training event. Hold fewer items out.")
    logger.info("%s events of items that are held out of training are left out", int(left_out.sum()))
    if POSITION not in split.columns:
        return kept
    # what is left out before each row, and from that before its own place and before the end of its history
    before = np.concatenate([[0], np.cumsum(left_out)])
    begins = np.arange(len(left_out)) - split[POSITION].to_numpy()
    places = {name: split[name].to_numpy() for name in (POSITION, NUM_EARLIER) if name in split.columns}
    anew = {name: place - (before[begins + place] - before[begins]) for name, place in places.items()}
    return kept.with_columns(pl.Series(name, place[~left_out]) for name, place in anew.items())


def held_out_items(items: pl.Series, share: float, seed: int) -> pl.Series:
    """The items that [`item_split`] holds out of these, sorted; each may occur many times."""
    if not 0 < share < 1:
        raise ValueError(f"held_out_items={share} is not between 0 and 1. Pass a share, such as 0.1.")
    items = items.unique().sort()
    count = round(share * len(items))
    if not count:
        raise ValueError(f"held_out_items={share} of {len(items)} items is none. Pass a larger share, or more data.")
    return items[np.argsort(_numbers(items, seed, ITEM_SPLIT_STREAM), kind="stable")[:count]].sort()


def users_to_learn_from(events: pl.DataFrame, count: int, seed: int) -> np.ndarray:
    """
    Draw users by (seed, user): a smaller number gives a subset of a larger one.

    Args:
        events (`polars.DataFrame`):
            With `user_id` and `split`.
        count (`int`):
            How many of the users with a training event.
        seed (`int`):
            The seed.

    Returns:
        `numpy.ndarray`: Whether each event is a training event of one of them: flags of shape `(n,)`.
    """
    train = events[SPLIT] == "train"
    users = events[USER_ID].filter(train).unique().sort()
    drawn = users[np.argsort(_numbers(users, seed, TRAIN_USER_STREAM), kind="stable")[:count]]
    return (train & events[USER_ID].is_in(drawn.implode())).to_numpy()


def _numbers(ids: pl.Series, seed: int, stream: int) -> np.ndarray:
    """A random number for each id."""
    return random_numbers(stream_keys(seed, stream, hash_keys(ids), np.zeros(len(ids))), 1)[:, 0]


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


def split_counts(split: pl.DataFrame) -> dict[str, int]:
    """Events of each split."""
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
        raise ValueError(f"ratios={ratios} are not three shares that make 1. Pass such as 0.8, 0.1 and 0.1.")
