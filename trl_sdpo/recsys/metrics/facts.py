"""What records say of time and of what training has seen: counts, not rules."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from .columns import has_columns, read_columns


_WORDS = {
    "targets": "targets",
    "targets_tied_in_time": "targets at the time of another event of their user",
    "targets_without_train_event": "targets without a training event",
    "history_events": "events in histories",
    "history_events_of_known_time": "events in histories whose time the records tell",
    "history_events_later_than_target": "events in histories that are later than their target",
    "history_events_at_time_of_target": "events in histories at the time of their target",
}
# The records that are there may be a sample: an event at the time of a target need not be in one of them
_AT_LEAST = "targets_tied_in_time"
_USER, _ITEM, _TIME = "user_id", "item_id", "timestamp"
_HISTORY, _PLACES = "history_item_ids", ("position", "num_earlier")
_NEEDED = (_USER, _ITEM, _TIME, _HISTORY)


def record_facts(records: Any, others: Sequence[Any] = (), counts: Mapping[Any, int] | None = None) -> dict:
    """
    Count targets that are tied in time or that training has not seen, and events in histories that are not before their
    target.

    The time of an event in a history is known where the event is the target of another record: of a user and an item
    with several times the earliest counts. What `prepare` writes into its report is counted on the events themselves.

    Args:
        records (`Dataset` or `dict[str, Sequence]`):
            With `user_id`, `item_id`, `history_item_ids` and `timestamp`, as [`build_preference_dataset`] makes them.
        others (`Sequence`, *optional*):
            More records of the same users, such as the other splits.
        counts (`Mapping`, *optional*):
            Training events by item id, or by the id as text.

    Returns:
        `dict`: Numbers by name, see [`fact_rows`]; `None` where the records or the counts cannot tell.

    Example:
        ```python
        >>> rows = {"user_id": [1, 1], "item_id": [7, 8], "history_item_ids": [[8], [6]], "timestamp": [10, 20]}
        >>> record_facts(rows)["history_events_later_than_target"]
        1

        ```
    """
    facts: dict[str, int | None] = dict.fromkeys(_WORDS)
    ours = _frame(records, _HISTORY, *(name for name in _PLACES if has_columns(records, [name])))
    if ours is None:
        return facts
    facts["targets"] = ours.height
    if counts is not None:
        items = ours[_ITEM].to_list()
        facts["targets_without_train_event"] = sum(not counts.get(item, counts.get(str(item), 0)) for item in items)
    histories = ours.select(_USER, pl.col(_HISTORY).alias(_ITEM), pl.col(_TIME).alias("at"))
    # a column of empty lists has no type of its own
    histories = histories.cast({_ITEM: pl.List(ours[_ITEM].dtype)}).explode(_ITEM).drop_nulls(_ITEM)
    facts["history_events"] = histories.height
    if ours[_TIME].null_count():
        return facts
    known = pl.concat(
        [ours.select(_NEEDED[:3]), *(one for one in map(_frame, others) if one is not None)], how="vertical_relaxed"
    )
    facts["targets_tied_in_time"] = _tied(ours, known)
    times = known.group_by(_USER, _ITEM).agg(pl.col(_TIME).min())
    timed = histories.join(times, on=[_USER, _ITEM])
    facts["history_events_of_known_time"] = timed.height
    facts["history_events_later_than_target"] = timed.select((pl.col(_TIME) > pl.col("at")).sum()).item()
    facts["history_events_at_time_of_target"] = timed.select((pl.col(_TIME) == pl.col("at")).sum()).item()
    return facts


def fact_rows(facts: Mapping[str, int | None]) -> list[list[str]]:
    """
    The facts as text: for each what it counts, the number, and its share of the targets or of the events in histories.

    Example:
        ```python
        >>> fact_rows({"targets": 4, "targets_without_train_event": 1})
        [['targets', '4', ''], ['targets without a training event', '1', '25.0%']]

        ```
    """
    rows = []
    for name, words in _WORDS.items():
        if name not in facts:
            continue
        value = facts[name]
        whole = facts.get("targets" if name.startswith("targets_") else "history_events")
        share = (
            f"{value / whole:.1%}" if "_" in name and name != "history_events" and value is not None and whole else ""
        )
        if name == _AT_LEAST and value is not None and _is_part(facts):
            words += ", at least"
        rows.append([words, "unknown" if value is None else f"{value:,}", share])
    return rows


def _is_part(facts: Mapping[str, int | None]) -> bool:
    """Whether the records tell the time of a part of the events in histories alone, and so not all that are tied."""
    known, events = facts.get("history_events_of_known_time"), facts.get("history_events")
    return known is not None and events is not None and known < events


def _tied(ours: pl.DataFrame, known: pl.DataFrame) -> int:
    """Targets with another event at their time: another record, or one between those earlier and its place."""
    together = known.unique([_USER, _TIME, _ITEM]).group_by(_USER, _TIME).agg(pl.len().alias("together"))
    tied = ours.join(together, on=[_USER, _TIME], how="left")
    within = pl.col(_PLACES[0]) > pl.col(_PLACES[1]) if set(_PLACES) <= set(ours.columns) else pl.lit(False)
    return tied.select(((pl.col("together") > 1) | within.fill_null(False)).sum()).item()


def _frame(records: Any, *more: str) -> pl.DataFrame | None:
    if not has_columns(records, _NEEDED):
        return None
    return read_columns(records, [*_NEEDED[:3], *more])
