"""From interactions to one sequence per user."""

import logging

import polars as pl

from .interactions import ITEM_ID, RATING, TIMESTAMP, USER_ID, Interactions


logger = logging.getLogger(__name__)

POSITION = "position"


def build_sequences(
    interactions: Interactions,
    *,
    min_rating: float | None = None,
    min_interactions: int = 1,
    merge_repeats: bool = True,
) -> pl.DataFrame:
    """
    Order every user's events in time.

    Events of a user within one second (half of ml-100k) are ordered by item id, so that the order is the same from
    whichever file the events come. A source without time keeps the order of its rows.

    Args:
        interactions ([`Interactions`]):
            The source.
        min_rating (`float`, *optional*):
            Keep events with at least this rating. The published S-DPO records of MovieLens take 3.
        min_interactions (`int`, *optional*, defaults to `1`):
            Keep users and items with at least this many events, repeated until all have them (k-core); 1 is off.
        merge_repeats (`bool`, *optional*, defaults to `True`):
            Keep only the first of a user's events with the same item.

    Returns:
        `polars.DataFrame`: The events that stay, sorted by user, time and item id, with `position` (`Int64`, from 0
        in the user's sequence).

    Raises:
        ValueError: nothing stays, or `min_rating` is asked of a source without ratings.

    Example:
        ```python
        >>> import polars as pl
        >>> events = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [9, 8, 7], "timestamp": [20, 10, 20]})
        >>> items = pl.DataFrame({"item_id": [7, 8, 9], "title": ["A", "B", "C"]})
        >>> build_sequences(Interactions(events, items, "tiny"))["item_id"].to_list()
        [8, 7, 9]

        ```
    """
    options = {"min_rating": min_rating, "min_interactions": min_interactions, "merge_repeats": merge_repeats}
    return build_sequences_with_report(interactions, **options)[0]


def build_sequences_with_report(
    interactions: Interactions,
    *,
    min_rating: float | None = None,
    min_interactions: int = 1,
    merge_repeats: bool = True,
) -> tuple[pl.DataFrame, dict[str, int]]:
    """As [`build_sequences`], with counts of the events that were dropped, by reason."""
    if min_interactions < 1:
        raise ValueError(f"min_interactions={min_interactions} is below 1. Pass 1 to keep all users and items.")
    events = interactions.events
    report = {"events": events.height}
    if min_rating is not None:
        if RATING not in events.columns:
            raise ValueError(f"{interactions.name}: min_rating={min_rating}, but no column '{RATING}'. Pass None.")
        events = events.filter(pl.col(RATING) >= min_rating)
    report["events_below_min_rating"] = interactions.events.height - events.height
    # Stable, so that a source without time (all null) keeps the order of its rows.
    order = [USER_ID, TIMESTAMP, ITEM_ID] if interactions.has_time else [USER_ID]
    ordered = events.sort(order, maintain_order=True)
    if merge_repeats:
        ordered = ordered.unique([USER_ID, ITEM_ID], keep="first", maintain_order=True)
    report["events_repeated"] = events.height - ordered.height
    core = _k_core(ordered, min_interactions)
    report["events_below_min_interactions"] = ordered.height - core.height
    if core.is_empty():
        raise ValueError(
            f"{interactions.name}: no event is left of {report}. Lower min_rating={min_rating} or "
            f"min_interactions={min_interactions}."
        )
    report |= {"users": core[USER_ID].n_unique(), "items": core[ITEM_ID].n_unique()}
    logger.info("%s: sequences: %s", interactions.name, report)
    return core.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).over(USER_ID).alias(POSITION)), report


def _k_core(events: pl.DataFrame, k: int) -> pl.DataFrame:
    height = None
    # Dropping an item can take a user below k and the other way round, so until nothing changes.
    while k > 1 and height != events.height:
        height = events.height
        events = events.filter((pl.len().over(USER_ID) >= k) & (pl.len().over(ITEM_ID) >= k))
    return events
