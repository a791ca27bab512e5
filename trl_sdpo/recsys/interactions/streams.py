"""Interactions whose events are read as they are needed."""

import logging
from dataclasses import dataclass, field

import polars as pl

from .interactions import ITEM_ID, TITLE, Interactions
from .titles import merge_items, titles_to_merge


logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class EventStream:
    """
    As [`Interactions`], of events that need not fit into memory.

    Args:
        events (`polars.LazyFrame`):
            The events in the order of the source, of items that have a title. Titles are not merged yet.
        items (`polars.DataFrame`):
            The items that stay when they are.
        groups (`polars.DataFrame`):
            `item_id` and `lowest` of items with one title, see [`titles_to_merge`].
        height (`int`):
            How many events there are.
        name (`str`), has_time (`bool`), report (`dict[str, int]`):
            See [`Interactions`]. What merging does to events is not counted yet: it is 0 there.
        whole ([`Interactions`], *optional*):
            What this is the stream of, where that is in memory.
    """

    events: pl.LazyFrame
    items: pl.DataFrame
    groups: pl.DataFrame
    height: int
    name: str
    has_time: bool = True
    report: dict[str, int] = field(default_factory=dict)
    whole: Interactions | None = None

    def collect(self) -> Interactions:
        """The interactions in memory, with equal titles merged."""
        if self.whole is not None:
            return self.whole
        events = self.events.collect(engine="streaming")
        merged, remapped = merge_items(events, self.groups)
        counts = {"events_remapped": remapped, "events_dropped_by_merge": events.height - merged.height}
        report = self.report | {name: count for name, count in counts.items() if name in self.report}
        return Interactions(merged, self.items, self.name, has_time=self.has_time, report=report)

    @classmethod
    def of(cls, interactions: Interactions) -> "EventStream":
        """The stream of interactions in memory."""
        nothing = interactions.items.select(ITEM_ID, pl.col(ITEM_ID).alias("lowest")).clear()
        items, name = interactions.items, interactions.name
        events = interactions.events
        has_time, report = interactions.has_time, interactions.report
        return cls(events.lazy(), items, nothing, events.height, name, has_time, report, interactions)


def drop_untitled_rows(
    events: pl.LazyFrame, items: pl.DataFrame
) -> tuple[pl.LazyFrame, pl.DataFrame, int, dict[str, int]]:
    """As [`drop_untitled`], of events that are read as they are needed, with the number of those that stay."""
    known = items.select(ITEM_ID, pl.col(TITLE).is_not_null().alias("titled")).lazy()
    joined = events.join(known, on=ITEM_ID, how="left", maintain_order="left")
    counts = joined.select(
        pl.col(ITEM_ID).filter(pl.col("titled").is_null()).n_unique().alias("items_unknown"),
        (~pl.col("titled").fill_null(False)).sum().alias("events_without_title"),
        pl.len().alias("events"),
    )
    report = counts.collect(engine="streaming").row(0, named=True)
    total, dropped = report.pop("events"), report["events_without_title"]
    if dropped:
        logger.warning("%s of %s events are of items without a title and left out.", f"{dropped:,}", f"{total:,}")
    titled = items.filter(pl.col(TITLE).is_not_null())
    report = {"items_without_title": items.height - titled.height} | report
    return joined.filter("titled").drop("titled"), titled, total - dropped, report


def stream_of(
    events: pl.LazyFrame, items: pl.DataFrame, name: str, *, has_time: bool, report: dict[str, int]
) -> EventStream:
    """The stream of events and of items whose titles may be missing or equal, see [`resolve_duplicate_titles`]."""
    events, items, height, dropped = drop_untitled_rows(events, items)
    items, groups, merges = titles_to_merge(items)
    report = report | dropped | merges | {"events_remapped": 0, "events_dropped_by_merge": 0}
    return EventStream(events, items, groups, height, name, has_time, report)
