"""From interactions to one sequence per user."""

import logging
import math

import numpy as np
import polars as pl

from ..interactions.interactions import ITEM_ID, RATING, USER_ID, Interactions, time_columns


logger = logging.getLogger(__name__)

POSITION = "position"
K_CORES = ("fixed-point", "once")
ORDERS = ("time", "file")


def build_sequences(
    interactions: Interactions,
    *,
    min_rating: float | None = None,
    min_interactions: int = 1,
    k_core: str = "fixed-point",
    min_length: int = 1,
    merge_repeats: bool = True,
    order: str = "time",
) -> pl.DataFrame:
    """
    Order every user's events in time.

    Events of a user at one time (half of ml-100k, within one second) are ordered by item id, so that the order is the same from
    whichever file the events come. A source without time keeps the order of its rows.

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
            `"file"` keeps the order of the rows of a source that has times, as the published S-DPO records of LastFM
            do: there it says nothing of what came first.

    Returns:
        `polars.DataFrame`: The events that stay, sorted by user, time and item id, with `position` (`Int64`, from 0
        in the user's sequence).

    Raises:
        ValueError: nothing stays, an option is out of range, or `min_rating` is asked of a source without ratings.

    Example:
        ```python
        >>> import polars as pl
        >>> events = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [9, 8, 7], "timestamp": [20, 10, 20]})
        >>> items = pl.DataFrame({"item_id": [7, 8, 9], "title": ["A", "B", "C"]})
        >>> build_sequences(Interactions(events, items, "tiny"))["item_id"].to_list()
        [8, 7, 9]

        ```
    """
    options = {"min_rating": min_rating, "min_interactions": min_interactions, "k_core": k_core}
    options |= {"min_length": min_length, "merge_repeats": merge_repeats, "order": order}
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
    with_rating: bool = True,
) -> tuple[pl.DataFrame, dict[str, int]]:
    """As [`build_sequences`], with counts of the events that were dropped, by reason, and ratings only if asked."""
    if min_interactions < 1:
        raise ValueError(f"min_interactions={min_interactions} is below 1. Pass 1 to keep all users and items.")
    if min_length < 1:
        raise ValueError(f"min_length={min_length} is below 1. Pass 1 to keep all users.")
    if k_core not in K_CORES:
        raise ValueError(f"k_core={k_core!r} is none of {K_CORES}. Pass one of them.")
    if order not in ORDERS:
        raise ValueError(f"order={order!r} is none of {ORDERS}. Pass one of them.")
    events = interactions.events
    report = {"events": events.height}
    if min_rating is not None:
        if RATING not in events.columns:
            raise ValueError(f"{interactions.name}: min_rating={min_rating}, but no column '{RATING}'. Pass None.")
        events = events.filter(pl.col(RATING) >= min_rating)
    report["events_below_min_rating"] = interactions.events.height - events.height
    if not with_rating:
        events = events.drop(RATING, strict=False)
    # Stable, so that a source without time (all null) keeps the order of its rows.
    in_time = interactions.has_time and order == "time"
    ordered = _sort(events, [USER_ID, *time_columns(events), ITEM_ID] if in_time else [USER_ID])
    if merge_repeats:
        ordered = _merge_repeats(ordered)
    report["events_repeated"] = events.height - ordered.height
    core = _k_core(ordered, min_interactions, once=k_core == "once")
    report["events_below_min_interactions"] = ordered.height - core.height
    kept = core.filter(pl.len().over(USER_ID) >= min_length) if min_length > 1 else core
    report["events_below_min_length"] = core.height - kept.height
    if kept.is_empty():
        raise ValueError(
            f"{interactions.name}: no event is left of {report}. Lower min_rating={min_rating}, "
            f"min_interactions={min_interactions} or min_length={min_length}."
        )
    report |= {"users": kept[USER_ID].n_unique(), "items": kept[ITEM_ID].n_unique()}
    logger.info("%s: sequences: %s", interactions.name, report)
    return with_positions(kept), report


def with_positions(events: pl.DataFrame) -> pl.DataFrame:
    """Number the events of every user from 0. Those of a user stand one after the other."""
    # Cheaper than a window per user: the row minus the first row of the user.
    row = pl.int_range(pl.len(), dtype=pl.Int64)
    begins = pl.when(pl.col(USER_ID).ne_missing(pl.col(USER_ID).shift(1))).then(row).forward_fill()
    return events.with_columns((row - begins).alias(POSITION))


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
    lowest = [events[column].min() for column in columns]
    sizes = [events[column].max() - low + 1 for column, low in zip(columns, lowest, strict=True)]
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
