"""Rules that know nothing of tastes: which candidates of a record each of them leaves."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import polars as pl


ABOVE, BELOW, ANOTHERS = "id above the last", "id below the last", "id above another's last"
_NEIGHBOURS = 100


class Row(NamedTuple):
    """
    What a rule sees of a record.

    Args:
        candidates (`list`):
            Item ids, the target first. No rule looks at the order.
        history (`list`):
            Item ids, the last one last.
        user (`Any`), time (`int`, *optional*):
            Of the record.
    """

    candidates: list
    history: list
    user: Any
    time: int | None


# The candidates that a rule leaves, as flags; all where it has nothing to say.
Rule = Callable[[Row], list[bool]]


def rules_of_ids(rows: list[Row]) -> dict[str, Rule]:
    """
    The nearest id to the last of the history, above it, and below it; and above the last of another record.

    Where the order of events is that of ids, one direction finds more than the other. What both find alike is in the ids
    themselves, such as the year in which they were given out. What the history of somebody else finds is their
    popularity.
    """
    others = iter([*rows[len(rows) // 2 :], *rows[: len(rows) // 2]])
    return {
        ABOVE: _id_above_the_last,
        BELOW: _id_below_the_last,
        ANOTHERS: lambda row: _id_above_the_last(row._replace(history=next(others).history)),
    }


def rules_of_reference(reference: Any) -> dict[str, Rule]:
    """Rules that learn from training records with `user_id` and ids: by negatives, and by neighbours."""
    rules = {}
    if reference.get("user_id") is not None:
        rules["never a training negative"] = _never_a_negative(reference)
    if reference.get("history_item_ids") is not None:
        near = _neighbours(reference)
        rules["not a neighbour"] = lambda row: [
            not any(item in near.get(read, ()) for read in row.history) for item in row.candidates
        ]
    return rules


def rules_of_time(first: Mapping[Any, int]) -> dict[str, Rule]:
    """Whether somebody had met the candidate before the time of the record, by the first time of every item."""
    return {
        "existed by then": lambda row: [first.get(item, row.time) < row.time for item in row.candidates],
        "did not exist by then": lambda row: [first.get(item, row.time) >= row.time for item in row.candidates],
    }


def rules_of_history() -> dict[str, Rule]:
    """Whether the candidate is in the history."""
    return {
        "in the history": lambda row: [item in row.history for item in row.candidates],
        "not in the history": lambda row: [item not in row.history for item in row.candidates],
    }


def first_times(*parts: pl.DataFrame) -> dict:
    """
    By when each item had been met at the latest: as a target, or in a history, which ends before its record.

    Args:
        *parts (`polars.DataFrame`):
            Records with `item_id`, `history_item_ids` and `timestamp`.

    Returns:
        `dict`: Time by item.
    """
    met = []
    for part in parts:
        time = pl.col("timestamp")
        met.append(part.select(pl.col("item_id").alias("item"), time.alias("time")))
        histories = part.select(pl.col("history_item_ids").alias("item"), (time - 1).alias("time"))
        met.append(histories.explode("item").drop_nulls("item"))
    firsts = pl.concat(met, how="vertical_relaxed").group_by("item").agg(pl.col("time").min())
    return dict(firsts.iter_rows())


def _id_above_the_last(row: Row) -> list[bool]:
    above = [item for item in row.candidates if row.history and item > row.history[-1]]
    return [item == min(above) for item in row.candidates] if above else [False] * len(row.candidates)


def _id_below_the_last(row: Row) -> list[bool]:
    below = [item for item in row.candidates if row.history and item < row.history[-1]]
    return [item == max(below) for item in row.candidates] if below else [False] * len(row.candidates)


def _never_a_negative(reference: Any) -> Rule:
    negatives = defaultdict(set)
    for user, items in zip(reference["user_id"], reference["rejected_item_ids"], strict=True):
        negatives[user].update(items)
    return lambda row: [item not in negatives.get(row.user, ()) for item in row.candidates]


def _neighbours(reference: Any) -> dict[Any, set]:
    pairs: defaultdict[Any, Counter] = defaultdict(Counter)
    counts: Counter = Counter()
    for target, history in zip(reference["item_id"], reference["history_item_ids"], strict=True):
        counts[target] += 1
        for item in history:
            pairs[item][target] += 1
            pairs[target][item] += 1
    near = {}
    for item, others in pairs.items():
        scored = sorted(others, key=lambda other: (-others[other] / max(1, counts[other]) ** 0.5, str(other)))
        near[item] = set(scored[:_NEIGHBOURS])
    return near
