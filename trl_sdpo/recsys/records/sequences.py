"""From interactions to one sequence per user."""

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl

from ..interactions.interactions import ITEM_ID, RATING, TIMESTAMP, USER_ID, Interactions, instants, time_columns
from ..interactions.random_streams import TIE_STREAM, hash_keys, stream_keys
from ..negatives.strategies import NUM_EARLIER, POSITION


if TYPE_CHECKING:
    from .config import RecordConfig


logger = logging.getLogger(__name__)

K_CORES = ("fixed-point", "once")
WHOLE, TRAINING = CORE_PERIODS = ("all", "train")
IN_TIME, IN_FILE, IN_FILE_UNCHECKED, IN_TIME_THEN_ITEM = ORDERS = ("time", "file", "file-unchecked", "time-then-item")


def build_sequences(
    interactions: Interactions,
    *,
    min_rating: float | None = None,
    min_interactions: int = 1,
    k_core: str = "fixed-point",
    min_length: int = 1,
    merge_repeats: bool = True,
    order: str = "time",
    seed: int = 0,
) -> pl.DataFrame:
    """
    Order every user's events in time.

    Events of a user at one time are a set: which came first is not known (half of the events of MovieLens-100k, 87% of
    those of Last.fm). Their order is drawn by (seed, user, item), so that it says nothing and is the same from whichever
    file the events come, and none of them counts as earlier than another. In a source without time all events of a user
    are of one unknown time: their order is drawn, and each has those before it for a history.

    Args:
        interactions ([`Interactions`]):
            The source.
        min_rating (`float`, *optional*):
            Keep events with at least this rating. The published S-DPO records of MovieLens take 3.
        min_interactions (`int`, *optional*, defaults to `1`):
            Keep users and items with at least this many events (k-core); 1 is off.
        k_core (`str`, *optional*, defaults to `"fixed-point"`):
            `"fixed-point"` repeats that until all have them. `"once"` drops items and then users, after which some
            items may have fewer, as in the published S-DPO records of LastFM.
        min_length (`int`, *optional*, defaults to `1`):
            Keep users with at least this many events after all that.
        merge_repeats (`bool`, *optional*, defaults to `True`):
            Keep only the first of a user's events with the same item. If not, a target may stand in its own history.
        order (`str`, *optional*, defaults to `"time"`):
            `"time"`, or `"file"` for a source whose rows stand in the order of the events: refused where its times say
            otherwise; tied events then count as earlier as their rows do. Two more are for comparison with published
            records only, because they leak: `"file-unchecked"` keeps the order of the rows whatever the times say
            (LastFM of S-DPO, where it is that of the artists' ids), `"time-then-item"` orders ties by item id (a rule
            that takes the smallest candidate above the last id then finds .49 of the targets of Last.fm, .25 of
            MovieLens-100k).
        seed (`int`, *optional*, defaults to `0`):
            The seed of the order of ties.

    Returns:
        `polars.DataFrame`: The events that stay, sorted by user and time, with `position` (`Int64`, from 0 in the
        user's sequence) and `num_earlier` (`Int64`, how many events at the beginning of that sequence came before).

    Raises:
        ValueError: nothing stays, an option is out of range, `min_rating` is asked of a source without ratings, or
            `order="file"` contradicts the times.

    Example:
        ```python
        >>> import polars as pl
        >>> events = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [9, 8, 7], "timestamp": [20, 10, 20]})
        >>> items = pl.DataFrame({"item_id": [7, 8, 9], "title": ["A", "B", "C"]})
        >>> build_sequences(Interactions(events, items, "tiny"))["item_id"].to_list()
        [8, 9, 7]

        ```
    """
    options: dict[str, Any] = {"min_rating": min_rating, "min_interactions": min_interactions, "k_core": k_core}
    options |= {"min_length": min_length, "merge_repeats": merge_repeats, "order": order, "seed": seed}
    return build_sequences_with_report(interactions, **options)[0]


def build_sequences_with_report(
    interactions: Interactions,
    *,
    min_rating: float | None = None,
    min_interactions: int = 1,
    k_core: str = "fixed-point",
    min_length: int = 1,
    merge_repeats: bool = True,
    order: str = "time",
    seed: int = 0,
    with_rating: bool = True,
) -> tuple[pl.DataFrame, dict[str, int]]:
    """As [`build_sequences`], with counts of the events that were dropped, by reason, and ratings only if asked."""
    _check_options(min_interactions, min_length, k_core, order)
    ordered, report = order_events(
        interactions,
        min_rating=min_rating,
        merge_repeats=merge_repeats,
        order=order,
        seed=seed,
        with_rating=with_rating,
    )
    core = _k_core(ordered, min_interactions, once=k_core == "once")
    tied = interactions.has_time and order == IN_TIME
    kept, counts = number_events(ordered, core, min_length, ties_are_sets=tied)
    report |= counts
    check_events_left(interactions.name, report, min_rating, min_interactions, min_length)
    return kept, report


def order_events(
    interactions: Interactions,
    *,
    min_rating: float | None,
    merge_repeats: bool,
    order: str,
    seed: int,
    with_rating: bool = False,
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The first steps of [`build_sequences`], which look at the events of one user at a time, with counts."""
    report = {"events": interactions.events.height}
    events = _rated(interactions, min_rating)
    report["events_below_min_rating"] = interactions.events.height - events.height
    if not with_rating:
        events = events.drop(RATING, strict=False)
    ordered = _order(events, interactions, order, seed)
    if merge_repeats:
        ordered = _merge_repeats(ordered)
    report["events_repeated"] = events.height - ordered.height
    return ordered, report


def number_events(
    ordered: pl.DataFrame, core: pl.DataFrame, min_length: int, *, ties_are_sets: bool
) -> tuple[pl.DataFrame, dict[str, int | None]]:
    """The last steps of [`build_sequences`], from the k-core of the ordered events, with counts."""
    report: dict[str, int | None] = {"events_below_min_interactions": ordered.height - core.height}
    kept = core.filter(pl.len().over(USER_ID) >= min_length) if min_length > 1 else core
    report["events_below_min_length"] = core.height - kept.height
    report |= {"users": kept[USER_ID].n_unique(), "items": kept[ITEM_ID].n_unique()}
    kept = _with_positions(kept, ties_are_sets)
    timed = not kept[TIMESTAMP].null_count()
    return kept, report | {"events_tied_in_time": _count_tied(kept) if timed else None}


def check_events_left(
    name: str, report: dict, min_rating: float | None, min_interactions: int, min_length: int
) -> None:
    """Raise if the filters left nothing."""
    said = {key: value for key, value in report.items() if key not in ("users", "items", "events_tied_in_time")}
    if not report["users"]:
        raise ValueError(
            f"{name}: no event is left of {in_words(said)}. Lower min_rating={min_rating}, "
            f"min_interactions={min_interactions} or min_length={min_length}."
        )
    total, *dropped = said.values()
    stay = (f"{count:,}" for count in (total - sum(dropped), report["users"], report["items"]))
    logger.info("%s: %s events of %s users with %s items stay of %s.", name, *stay, in_words(said))


def in_words(report: Mapping[str, int]) -> str:
    """
    Counts for people: the first, and those of the others that are not 0.

    Example:
        ```python
        >>> in_words({"events": 1200, "events_below_min_rating": 0, "events_repeated": 20})
        '1,200 events (20 repeated)'

        ```
    """
    (first, total), *others = report.items()
    said = [f"{count:,} {name.removeprefix(f'{first}_').replace('_', ' ')}" for name, count in others if count]
    return f"{total:,} {first}" + (f" ({', '.join(said)})" if said else "")


def _check_options(min_interactions: int, min_length: int, k_core: str, order: str) -> None:
    if min_interactions < 1:
        raise ValueError(f"min_interactions={min_interactions} is below 1. Pass 1 to keep all users and items.")
    if min_length < 1:
        raise ValueError(f"min_length={min_length} is below 1. Pass 1 to keep all users.")
    if k_core not in K_CORES:
        raise ValueError(f"k_core={k_core!r} is none of {K_CORES}. Pass one of them.")
    if order not in ORDERS:
        raise ValueError(f"order={order!r} is none of {ORDERS}. Pass one of them.")


def _rated(interactions: Interactions, min_rating: float | None) -> pl.DataFrame:
    if min_rating is None:
        return interactions.events
    if RATING not in interactions.events.columns:
        raise ValueError(f"{interactions.name}: min_rating={min_rating}, but no column '{RATING}'. Leave it out.")
    return interactions.events.filter(pl.col(RATING) >= min_rating)


def keep_core_of_training(
    events: pl.DataFrame, *, min_interactions: int, k_core: str, min_length: int, ties_are_sets: bool
) -> tuple[pl.DataFrame, dict[str, int]]:
    """
    The k-core of the training events, and of the others those that it knows the item of.

    A core of all events has seen the future: an item stays because of what happens to it later. This one keeps the users
    and items that have enough training events among each other; later events stay if their item does, and their user has
    no training event, being new, or stays as well.

    Args:
        events (`polars.DataFrame`):
            Sequences with a column `split`.
        min_interactions (`int`), k_core (`str`), min_length (`int`):
            See [`build_sequences`].
        ties_are_sets (`bool`):
            Whether events of a user at one time count as earlier than none of them.

    Returns:
        `tuple[polars.DataFrame, dict[str, int]]`: The events that stay, numbered anew, and the counts of the report.

    Raises:
        ValueError: nothing stays.
    """
    train = events.filter(pl.col("split") == "train").select(USER_ID, ITEM_ID)
    core = _k_core(train, min_interactions, once=k_core == "once")
    kept, report = keep_known(
        events,
        core[USER_ID].unique(),
        core[ITEM_ID].unique(),
        min_length,
        ties_are_sets=ties_are_sets,
    )
    check_core_left(events.height, report, min_interactions, min_length)
    return kept, report


def keep_known(
    events: pl.DataFrame, users: pl.Series, items: pl.Series, min_length: int, *, ties_are_sets: bool
) -> tuple[pl.DataFrame, dict[str, int | None]]:
    """The last steps of [`keep_core_of_training`], from the users and items of the core, with counts."""
    train_users = events[USER_ID].filter(events["split"] == "train").unique()
    new = pl.col(USER_ID).is_in(train_users.implode()).not_()
    known_user, known_item = pl.col(USER_ID).is_in(users.implode()), pl.col(ITEM_ID).is_in(items.implode())
    stays = events.select((known_item & (known_user | new)).alias("stays"))["stays"]
    kept = events.filter(stays)
    return number_events(events, kept.drop(POSITION, NUM_EARLIER), min_length, ties_are_sets=ties_are_sets)


def check_core_left(events: int, report: dict, min_interactions: int, min_length: int) -> None:
    """Raise if the core of the training events left nothing."""
    if not report["users"]:
        said = {name: report[name] for name in ("events_below_min_interactions", "events_below_min_length")}
        raise ValueError(
            f"no event is left of {in_words({'events': events} | said)}. Lower min_interactions={min_interactions} or "
            f"min_length={min_length}, which core_period='train' asks of the training events."
        )


def _with_positions(events: pl.DataFrame, ties_are_sets: bool) -> pl.DataFrame:
    """Number the events of every user from 0, and count those before. Those of a user stand one after the other."""
    # Cheaper than a window per user: the row minus the first row of the user.
    row = pl.int_range(pl.len(), dtype=pl.Int64)
    new_user = pl.col(USER_ID).ne_missing(pl.col(USER_ID).shift(1))
    begins = pl.when(new_user).then(row).forward_fill()
    events = events.with_columns((row - begins).alias(POSITION))
    if not ties_are_sets:
        return events.with_columns(pl.col(POSITION).alias(NUM_EARLIER))
    new_time = new_user | pl.any_horizontal(pl.col(name) != pl.col(name).shift(1) for name in time_columns(events))
    return events.with_columns(pl.when(new_time).then(pl.col(POSITION)).forward_fill().alias(NUM_EARLIER))


def _count_tied(events: pl.DataFrame) -> int:
    """Events that another one of the same user stands beside at the same time."""
    columns = [USER_ID, *time_columns(events)]
    as_before = pl.all_horizontal(pl.col(name) == pl.col(name).shift(1) for name in columns).fill_null(False)
    return events.select((as_before | as_before.shift(-1, fill_value=False)).sum()).item()


def _order(events: pl.DataFrame, interactions: Interactions, order: str, seed: int) -> pl.DataFrame:
    if order == IN_TIME_THEN_ITEM and interactions.has_time:
        return _sort(events, [USER_ID, *time_columns(events), ITEM_ID])
    if order == IN_TIME:
        ordered = _sort(events, [USER_ID, *time_columns(events)] if interactions.has_time else [USER_ID])
        return _draw_order_of_ties(ordered, seed)
    # stable, so that the rows of a user keep their order
    ordered = _sort(events, [USER_ID])
    if order == IN_FILE and interactions.has_time:
        _check_rows_are_in_time(ordered, interactions.name)
    return ordered


def _draw_order_of_ties(ordered: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Put the events of a user at one time in an order by (seed, user, item)."""
    again = ordered[USER_ID].eq_missing(ordered[USER_ID].shift(1)).to_numpy(writable=True)
    for name in time_columns(ordered):
        again &= ordered[name].eq_missing(ordered[name].shift(1)).to_numpy()
    if len(again):
        again[0] = False  # has nothing before it, which null user ids would say it has
    rows = np.flatnonzero(again | np.append(again[1:], False))
    if not len(rows):
        return ordered
    ties = ordered.select(USER_ID, ITEM_ID)[rows]
    keys = stream_keys(seed, TIE_STREAM, hash_keys(ties[USER_ID]), hash_keys(ties[ITEM_ID]))
    places = np.arange(ordered.height)
    places[rows] = rows[np.lexsort((keys, np.cumsum(~again[rows])))]
    return ordered[places]


def _check_rows_are_in_time(ordered: pl.DataFrame, name: str) -> None:
    times = instants(ordered)
    rows = ((ordered[USER_ID] == ordered[USER_ID].shift(1)) & (times < times.shift(1))).arg_true()
    if len(rows):
        row = rows[0]
        user, before, time = ordered[USER_ID][row], ordered[TIMESTAMP][row - 1], ordered[TIMESTAMP][row]
        raise ValueError(
            f"{name}: order='file', but the times contradict the order of the rows: user {user!r}, item "
            f"{ordered[ITEM_ID][row]!r}, column '{TIMESTAMP}': {time} stands behind {before} ({len(rows)} such rows). "
            "Pass order='time'."
        )


def _sort(events: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    key = _pack(events, columns)
    if key is None:
        return events.sort(columns, maintain_order=True)
    return events[np.argsort(key, kind="stable")]


def _merge_repeats(ordered: pl.DataFrame) -> pl.DataFrame:
    # Most sources have no repeats, and to see that takes less time and memory than to remove them.
    key = _pack(ordered, [USER_ID, ITEM_ID])
    if key is not None:
        key.sort()
        if not (key[1:] == key[:-1]).any():
            return ordered
    return ordered.unique([USER_ID, ITEM_ID], keep="first", maintain_order=True)


def _pack(events: pl.DataFrame, columns: list[str]) -> np.ndarray | None:
    """Columns of whole numbers as one column in the same order, where 64 bits hold their ranges."""
    if any(events[column].dtype != pl.Int64 for column in columns) or events.is_empty():
        return None
    lowest = [cast(int, events[column].min()) for column in columns]
    sizes = [cast(int, events[column].max()) - low + 1 for column, low in zip(columns, lowest, strict=True)]
    if math.prod(sizes) >= 2**64:
        return None
    key = np.zeros(events.height, dtype=np.uint64)
    for column, low, size in zip(columns, lowest, sizes, strict=True):
        key *= np.uint64(size)
        key += (events[column].to_numpy() - low).view(np.uint64)
    return key


def _k_core(events: pl.DataFrame, k: int, *, once: bool) -> pl.DataFrame:
    if once:
        return events.filter(pl.len().over(ITEM_ID) >= k).filter(pl.len().over(USER_ID) >= k)
    height = None
    # Dropping an item can take a user below k and the other way round, so until nothing changes.
    while k > 1 and height != events.height:
        height = events.height
        events = events.filter((pl.len().over(USER_ID) >= k) & (pl.len().over(ITEM_ID) >= k))
    return events


def counts_training(config: "RecordConfig") -> bool:
    """Whether the k-core is that of the training events."""
    return config.core_period == TRAINING and config.min_interactions > 1


def order_options(config: "RecordConfig", has_time: bool) -> dict[str, Any]:
    """What decides on the sequence of one user, see [`build_sequences`]."""
    # leaving one out of a source without time takes the order of its rows by the option's very name
    order = IN_FILE if config.file_order and not has_time else config.order
    options = {name: getattr(config, name) for name in ("min_rating", "merge_repeats", "seed")}
    return {**options, "order": order}


def ties_are_sets(config: "RecordConfig", has_time: bool) -> bool:
    """Whether none of the events of a user at one time counts as earlier than another."""
    return has_time and config.order == IN_TIME
