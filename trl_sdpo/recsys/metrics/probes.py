"""Rules that know nothing of tastes: how often each of them finds the target, and what to change where one does."""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .intervals import wilson_interval
from .leaks import leak_probe_hits


logger = logging.getLogger(__name__)

_MATERIAL = 0.02
_NEIGHBOURS = 100
_REMEDIES = {
    "list lookup": "draw candidates by (seed, user, position): candidate_seed='record'",
    "id above the last": "order ties by (seed, user, item): order='time'; what is left then is that neighbouring ids are "
    "of one time, one kind or popular, which an id in a prompt would tell",
    "id above another's last": "number items at random before loading: their ids go with how popular or old they are",
    "never a training negative": "exclude only what the user touched up to the record's phase: exclude_seen='phase'",
    "existed by then": "draw negatives from what existed by then: existence='first-event'",
    "did not exist by then": "leave out targets that nobody had met before: existence='first-event'",
    "not a neighbour": "draw the negatives of evaluation uniformly: eval_negatives='uniform'",
    "in the history": "merge repeats: merge_repeats=True; or report repeats apart",
    "not in the history": "leave what the user had out of the negatives",
}


class Probe(NamedTuple):
    """
    How often a rule that knows nothing of tastes finds the target.

    Args:
        name (`str`):
            The rule.
        hr_at_1 (`float`):
            The share of targets that it finds; where it leaves several candidates, with one of them drawn.
        ci (`tuple[float, float]`):
            Its 95% interval, over users where the records have them.
        chance (`float`):
            The mean of one over the number of candidates.
        n (`int`), users (`int`, *optional*):
            How many records, and of how many users.
        leaks (`bool`):
            Whether the interval is above chance, and the rule more than .02 above it.
        remedy (`str`):
            What to change then.
    """

    name: str
    hr_at_1: float
    ci: tuple[float, float]
    chance: float
    n: int
    users: int | None
    leaks: bool
    remedy: str


class _Row(NamedTuple):
    candidates: list
    history: list
    user: Any
    time: int | None


# The candidates that a rule leaves, as flags; all where it has nothing to say.
Rule = Callable[[_Row], list[bool]]


def leak_probes(
    records: Any, reference: Any = None, *, max_records: int = 5000, max_reference: int = 200_000
) -> list[Probe]:
    """
    Probe records with rules that know nothing of tastes. A rule above chance is a leak, and a warning says what to change.

    The rules: the target of the most similar candidate list ([`leak_probe`]); the smallest candidate id above the last id
    of the history, and, for comparison, of the history of another record; a candidate that was never a negative of this user in the reference records; one that was a target or
    in a history by the time of the record, or was not; one that is not among the 100 nearest neighbours, by co-occurrence
    in the reference records, of an item of the history; one that is in the history, or is not. Rules that need ids, users
    or times are left out for records without them.

    Args:
        records (`Dataset` or `dict[str, Sequence]`):
            Multi-preference records, as [`build_preference_dataset`] makes them.
        reference (`Dataset` or `dict[str, Sequence]`, *optional*):
            The training records.
        max_records (`int`, *optional*, defaults to `5000`), max_reference (`int`, *optional*, defaults to `200000`):
            Probe, and learn from, this many, evenly spread.

    Returns:
        `list[Probe]`: One per rule.

    Raises:
        ValueError: there are no records, or a target is not among its candidates.

    Example:
        ```python
        >>> rows = {"item_id": [3, 9], "rejected_item_ids": [[1, 5], [4, 2]], "history_item_ids": [[2], [8]]}
        >>> rows |= {"chosen": ["C", "I"], "rejected": [["A", "E"], ["D", "B"]]}
        >>> {probe.name: probe.hr_at_1 for probe in leak_probes(rows)}["id above the last"]
        1.0

        ```
    """
    met = _first_times(records, reference)
    records = _spread(records, max_records)
    reference = None if reference is None else _spread(reference, max_reference)
    users = _column(records, "user_id")
    looked_up = leak_probe_hits(*_texts(records, reference))
    chance = float(np.mean([1 / (1 + len(row)) for row in records["rejected"]]))
    found = [_make("list lookup", looked_up, chance, users)]
    rows = _rows(records)
    if rows is None:
        return _warn(found)
    for name, rule in _rules(reference, rows, met).items():
        hits = np.array([_expected(rule(row)) for row in rows])
        found.append(_make(name, hits, chance, users))
    return _warn(found)


def _rules(reference: Any, rows: list[_Row], first: dict) -> dict[str, Rule]:
    rules: dict[str, Rule] = {"id above the last": _id_above_the_last}
    # Ids of popular items may stand together: what a history of somebody else finds is not of the order of events.
    others = iter([*rows[len(rows) // 2 :], *rows[: len(rows) // 2]])
    rules["id above another's last"] = lambda row: _id_above_the_last(row._replace(history=next(others).history))
    if reference is not None and rows[0].user is not None and _column(reference, "user_id") is not None:
        rules["never a training negative"] = _never_a_negative(reference)
    if rows[0].time is not None:
        rules["existed by then"] = lambda row: [first.get(item, row.time) < row.time for item in row.candidates]
        rules["did not exist by then"] = lambda row: [first.get(item, row.time) >= row.time for item in row.candidates]
    if reference is not None and _column(reference, "history_item_ids") is not None:
        near = _neighbours(reference)
        rules["not a neighbour"] = lambda row: [
            not any(item in near.get(read, ()) for read in row.history) for item in row.candidates
        ]
    rules["in the history"] = lambda row: [item in row.history for item in row.candidates]
    rules["not in the history"] = lambda row: [item not in row.history for item in row.candidates]
    return rules


def _expected(left: list[bool]) -> float:
    """The hit rate of a draw from the candidates that a rule leaves, the target first; from all where it leaves none."""
    return (left[0] / sum(left)) if any(left) else 1 / len(left)


def _id_above_the_last(row: _Row) -> list[bool]:
    above = [item for item in row.candidates if row.history and item > row.history[-1]]
    return [item == min(above) for item in row.candidates] if above else [False] * len(row.candidates)


def _never_a_negative(reference: Any) -> Rule:
    negatives = defaultdict(set)
    for user, items in zip(reference["user_id"], reference["rejected_item_ids"], strict=True):
        negatives[user].update(items)
    return lambda row: [item not in negatives.get(row.user, ()) for item in row.candidates]


def _first_times(*parts: Any) -> dict:
    """By when each item had been met at the latest: as a target, or in a history, which ends before its record."""
    first: dict = {}
    for part in parts:
        times = None if part is None or _column(part, "history_item_ids") is None else _column(part, "timestamp")
        if times is None or any(time is None for time in times):
            continue
        for target, history, time in zip(part["item_id"], part["history_item_ids"], times, strict=True):
            for item, at in ((target, time), *((one, time - 1) for one in history)):
                if at < first.get(item, at + 1):
                    first[item] = at
    return first


def _neighbours(reference: Any) -> dict[Any, set]:
    pairs, counts = defaultdict(Counter), Counter()
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


def _rows(records: Any) -> list[_Row] | None:
    names = ("item_id", "rejected_item_ids", "history_item_ids")
    columns = [_column(records, name) for name in names]
    if any(column is None for column in columns):
        return None
    size = len(columns[0])
    users, times = _column(records, "user_id"), _column(records, "timestamp")
    if times is not None and any(time is None for time in times):
        times = None
    return [
        _Row([target, *rejected], history, user, time)
        for target, rejected, history, user, time in zip(
            *columns, users or [None] * size, times or [None] * size, strict=True
        )
    ]


def _make(name: str, hits: np.ndarray, chance: float, users: Sequence | None) -> Probe:
    rate, ci = float(hits.mean()), wilson_interval(hits, groups=users)
    leaks = bool(ci[0] > chance and rate > chance + _MATERIAL)
    num_users = None if users is None else len(set(users))
    return Probe(name, rate, ci, chance, len(hits), num_users, leaks, _REMEDIES[name])


def _warn(probes: list[Probe]) -> list[Probe]:
    for probe in probes:
        if probe.leaks:
            logger.warning(
                "Leak: the rule '%s' finds %.3f of the targets (95%% interval %.3f to %.3f, chance %.3f, n = %d). To "
                "close it, %s.",
                *(probe.name, probe.hr_at_1, *probe.ci, probe.chance, probe.n, probe.remedy),
            )
    return probes


def _column(records: Any, name: str) -> list | None:
    there = records.column_names if hasattr(records, "column_names") else records
    return list(records[name]) if name in there else None


def _texts(records: Any, reference: Any) -> tuple[dict, dict | None]:
    """What the list lookup takes of both, the shown candidates only where both have them."""
    names = ["chosen", "rejected"]
    if all(part is None or _column(part, "candidates") is not None for part in (records, reference)):
        names.append("candidates")
    parts = [None if part is None else {name: _column(part, name) for name in names} for part in (records, reference)]
    return parts[0], parts[1]


def _spread(records: Any, most: int) -> Any:
    names = records.column_names if hasattr(records, "column_names") else list(records)
    size = len(records["chosen"])
    if size <= most:
        return {name: list(records[name]) for name in names}
    places = (np.arange(most) * size // most).tolist()
    if hasattr(records, "select"):
        records = records.select(places)
        return {name: list(records[name]) for name in names}
    return {name: [records[name][place] for place in places] for name in names}
