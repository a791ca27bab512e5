"""How often rules that know nothing of tastes find the target, and what to change where one does."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .columns import has_columns, read_columns
from .intervals import difference_interval, wilson_interval
from .leaks import leak_probe_hits
from .ranking import ranks
from .rules import (
    ABOVE,
    ANOTHERS,
    BELOW,
    Row,
    Rule,
    first_times,
    rules_of_history,
    rules_of_ids,
    rules_of_reference,
    rules_of_time,
)


logger = logging.getLogger(__name__)

# What a rule must find beyond chance to count: less is not what decides a table.
_MATERIAL = 0.02
_IDS_COLUMNS = ("item_id", "rejected_item_ids", "history_item_ids")
_COLUMNS = ("chosen", "rejected", "candidates", "user_id", "timestamp", *_IDS_COLUMNS)
_OWN_IDS = (
    "the ids themselves go with the time or the popularity of the items, which does no harm while ids stand in no prompt; "
    "to be rid of it, number items at random before loading"
)
_SINCE_TRAINING = (
    "among items without a training event, those that records were met in before are the popular ones, of which no training "
    "count tells; `report.md` of the records goes by the times of all events"
)
_AS_POPULAR = (
    "it finds no more than the popularity of the items that it picks explains (matched): records show when popular items were "
    "first met, and of others not; `report.md` of the records goes by the times of all events"
)
_OF_TIME = ("existed by then", "did not exist by then")
_REMEDIES = {
    "list lookup": "draw candidates by (seed, user, position): candidate_seed='record'",
    ABOVE: "order ties by (seed, user, item): order='time'",
    BELOW: "order ties by (seed, user, item): order='time'",
    ANOTHERS: _OWN_IDS,
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
            Whether the interval is above chance, the rule more than .02 above it, and there is no `note`.
        remedy (`str`):
            What to change then.
        popularity (`float`, *optional*), popularity_ci (`tuple[float, float]`, *optional*):
            What the number of training events finds on the same records; `None` where these are not known.
        matched (`float`, *optional*):
            What the rule would find if the target were drawn from the candidates of its record in proportion to one plus
            their training events: what is due to the popularity of the items that it picks.
        note (`str`):
            Why a rule above chance is no leak of how the records were made; empty for all others.
    """

    name: str
    hr_at_1: float
    ci: tuple[float, float]
    chance: float
    n: int
    users: int | None
    leaks: bool
    remedy: str
    popularity: float | None = None
    popularity_ci: tuple[float, float] | None = None
    matched: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """What a table says of it."""
        if self.leaks:
            return f"leaks: {self.remedy}"
        return f"above chance, no leak: {self.note}" if self.note else "no more than chance"

    def as_dict(self) -> dict:
        """The fields and the verdict as JSON has them."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in self._asdict().items()}
        return fields | {"verdict": self.verdict}


def leak_probes(
    records: Any,
    reference: Any = None,
    *,
    counts: Mapping[Any, int] | None = None,
    max_records: int = 5000,
    max_reference: int = 200_000,
    met: Mapping[Any, int] | None = None,
) -> list[Probe]:
    """
    Probe records with rules that know nothing of tastes. A rule above chance is a leak, and a warning says what to change.

    The rules: the target of the most similar candidate list ([`leak_probe`]); the smallest candidate id above the last id
    of the history, the largest below it, and the smallest above the last id of another record; a candidate that was never
    a negative of this user in the reference records; one that was a target or in a history by the time of the record, or
    was not; one that is not among the 100 nearest neighbours, by co-occurrence in the reference records, of an item of
    the history; one that is in the history, or is not. Rules that need ids, users or times are left out for records
    without them.

    Of the two rules of ids that look in opposite directions, one leaks only if it finds more than the other: what both
    find alike is not the order of the events but the ids themselves, whose publishers gave them out by time or
    popularity. `note` says so.

    Args:
        records (`Dataset` or `dict[str, Sequence]`):
            Multi-preference records, as [`build_preference_dataset`] makes them.
        reference (`Dataset` or `dict[str, Sequence]`, *optional*):
            The training records.
        counts (`Mapping`, *optional*):
            Training events by item id, or by the id as text. By default the number of records of the reference that have
            it for a target.
        max_records (`int`, *optional*, defaults to `5000`), max_reference (`int`, *optional*, defaults to `200000`):
            Probe, and learn from, this many, evenly spread. When items were first met is read off all of them.
        met (`Mapping`, *optional*):
            When every item was first met, by item id, where that is known. Records show less of it, which tells popular items
            from others: a rule above chance that finds no more than their popularity explains, or candidates of which none has
            a training event, is then no leak, and `note` says so.

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
    seen = _first_times(records, reference) if met is None else dict(met)
    records = _spread(records, max_records)
    reference = None if reference is None else _spread(reference, max_reference)
    rows = _rows(records)
    hits = {"list lookup": leak_probe_hits(*_texts(records, reference))}
    weights = _weights(rows, reference, counts)
    matched = {}
    for name, rule in {} if rows is None else _rules(reference, rows, seen).items():
        shares = [_shares(rule(row)) for row in rows]
        hits[name] = np.array([share[0] for share in shares])
        if weights is not None:
            matched[name] = float(np.mean([share @ weight for share, weight in zip(shares, weights, strict=True)]))
    notes = {} if met is not None else _notes_of_time(hits, matched, weights)
    return _warn(_probes(hits, matched, weights, records, notes))


def _notes_of_time(hits: dict, matched: dict, weights: list[np.ndarray] | None) -> dict[str, str]:
    """Of rules of time that were read off records: why what they find may be popularity, where it may be that."""
    # all candidates alike in their training events, of which there are none
    if weights is not None and all(np.ptp(row) == 0 for row in weights):
        return dict.fromkeys(_OF_TIME, _SINCE_TRAINING)
    known = [name for name in _OF_TIME if name in matched]
    return {name: _AS_POPULAR for name in known if hits[name].mean() <= matched[name] + _MATERIAL}


def _rules(reference: dict | None, rows: list[Row], met: Mapping[Any, int]) -> dict[str, Rule]:
    rules = rules_of_ids(rows)
    if reference is not None and reference.get("rejected_item_ids") is not None:
        learned = rules_of_reference(reference)
        rules |= {name: rule for name, rule in learned.items() if rows[0].user is not None or "never" not in name}
    if rows[0].time is not None:
        rules |= rules_of_time(met)
    return rules | rules_of_history()


def _probes(
    hits: dict, matched: dict, weights: list[np.ndarray] | None, records: dict, notes: Mapping[str, str]
) -> list[Probe]:
    users = records.get("user_id")
    chance = float(np.mean([1 / (1 + len(row)) for row in records["rejected"]]))
    popularity, popularity_ci = None, None
    if weights is not None:
        popular = ranks(weights) == 1
        popularity, popularity_ci = float(popular.mean()), wilson_interval(popular, groups=users)
    num_users = None if users is None else len(set(users))
    probes = []
    for name, found in hits.items():
        rate, ci = float(found.mean()), wilson_interval(found, groups=users)
        above = bool(ci[0] > chance and rate > chance + _MATERIAL)
        note = _OWN_IDS if above and not _is_of_order(name, hits, users) else ""
        note = notes[name] if above and name in notes else note
        probes.append(
            Probe(
                name,
                rate,
                ci,
                chance,
                len(found),
                num_users,
                above and not note,
                _REMEDIES[name],
                popularity,
                popularity_ci,
                matched.get(name),
                note,
            )
        )
    return probes


def _is_of_order(name: str, hits: dict, users: Sequence | None) -> bool:
    """Whether what a rule of ids finds is in the order of events: more than the rule in the opposite direction."""
    if name == ANOTHERS:
        return False
    mirror = {ABOVE: BELOW, BELOW: ABOVE}.get(name)
    return mirror is None or difference_interval(hits[name] - hits[mirror], users)[0] > 0


def _shares(left: list[bool]) -> np.ndarray:
    """How likely each candidate is drawn from those that a rule leaves, the target first; from all where it leaves none."""
    kept = np.array(left, dtype=np.float64)
    return kept / kept.sum() if kept.any() else np.full(len(left), 1 / len(left))


def _weights(rows: list[Row] | None, reference: dict | None, counts: Mapping | None) -> list[np.ndarray] | None:
    """How likely each candidate is the target by its training events alone, the target first."""
    if rows is None or (counts is None and (reference is None or reference.get("item_id") is None)):
        return None
    counts = Counter(reference["item_id"]) if counts is None else counts
    # files have ids as text
    found = [1.0 + np.array([counts.get(item, counts.get(str(item), 0)) for item in row.candidates]) for row in rows]
    return [row / row.sum() for row in found]


def _first_times(*parts: Any) -> dict:
    needed = ["item_id", "history_item_ids", "timestamp"]
    frames = [read_columns(part, needed) for part in parts if part is not None and has_columns(part, needed)]
    timed = [frame for frame in frames if not frame["timestamp"].null_count()]
    return first_times(*timed) if timed else {}


def _rows(records: dict) -> list[Row] | None:
    columns = [records.get(name) for name in _IDS_COLUMNS]
    if any(column is None for column in columns):
        return None
    size = len(columns[0])
    users, times = records.get("user_id"), records.get("timestamp")
    if times is not None and any(time is None for time in times):
        times = None
    return [
        Row([target, *rejected], history, user, time)
        for target, rejected, history, user, time in zip(
            *columns, users or [None] * size, times or [None] * size, strict=True
        )
    ]


def _warn(probes: list[Probe]) -> list[Probe]:
    for probe in probes:
        if probe.leaks or probe.note:
            logger.warning(
                "%s: the rule '%s' finds %.3f of the targets (95%% interval %.3f to %.3f, chance %.3f, n = %d). %s.",
                *("Leak" if probe.leaks else "Above chance", probe.name, probe.hr_at_1, *probe.ci),
                *(probe.chance, probe.n),
                f"To close it, {probe.remedy}" if probe.leaks else f"No leak of these records: {probe.note}",
            )
    return probes


def _column(records: Any, name: str) -> list:
    return list(records[name][:])


def _texts(records: dict, reference: dict | None) -> tuple[dict, dict | None]:
    """What the list lookup takes of both, the shown candidates only where both have them."""
    names = ["chosen", "rejected"]
    if all(part is None or "candidates" in part for part in (records, reference)):
        names.append("candidates")
    parts = [None if part is None else {name: part[name] for name in names} for part in (records, reference)]
    return parts[0], parts[1]


def _spread(records: Any, most: int) -> dict[str, list]:
    """The columns that are read, of so many records, evenly spread."""
    names = [name for name in _COLUMNS if has_columns(records, [name])]
    size = len(records["chosen"])
    places = (np.arange(most) * size // most).tolist() if size > most else range(size)
    if hasattr(records, "select"):
        records = records.select_columns(names).select(places)
        return {name: _column(records, name) for name in names}
    return {name: [records[name][place] for place in places] for name in names}
