"""How much candidate lists tell about their targets, without a look at the history."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from ..._progress import progress
from .columns import completion_text
from .intervals import warn_of_seed, wilson_interval


class LeakProbe(NamedTuple):
    """
    What [`leak_probe`] returns.

    Args:
        hr_at_1 (`float`):
            Share of records whose target the lookup finds.
        ci (`tuple[float, float]`):
            Its 95% interval, over users where the records have them, see [`wilson_interval`].
        chance (`float`):
            The mean of one over the number of candidates.
        popularity (`float`):
            Share of records whose target was a target more often than every other candidate.
        n (`int`):
            Number of records.
    """

    hr_at_1: float
    ci: tuple[float, float]
    chance: float
    popularity: float
    n: int


def leak_probe(
    records: Any, reference: Any = None, *, max_records: int | None = 5000, seed: int | None = None
) -> LeakProbe:
    """
    Guess the target of every record from its candidate list alone.

    The lookup takes, among the records before it or those of a reference set, the one whose candidate list shares the
    most candidates with that of the record, of equally similar ones the latest, and answers with its target, which is
    a miss where it is no candidate here. Where lists are drawn independently of their targets, the lookup stays at or
    below chance. In the files published with the S-DPO paper (https://huggingface.co/papers/2406.09215) the target
    seeds the draw, and the lookup finds more than half of the targets of LastFM.

    Args:
        records (`Dataset` or `dict[str, Sequence]`):
            Multi-preference records, standard or conversational, with `chosen`, `rejected` and optionally `candidates`,
            the titles that the prompt shows, and `user_id`, for the interval.
        reference (`Dataset` or `dict[str, Sequence]`, *optional*):
            Records to look up in, such as those for training. If `None`, the records before each one.
        max_records (`int`, *optional*, defaults to `5000`):
            Probe this many, evenly spread over the records; `None` for all.
        seed (`int`, *optional*):
            Deprecated: the intervals draw nothing any longer. Passing it warns.

    Returns:
        [`LeakProbe`]: Hit rate of the lookup with its interval, chance, popularity and the number of records. A record
        without any answer counts as a miss. Ties of popularity count against it.

    Raises:
        ValueError: there are no records, or a target is not among its candidates.

    Example:
        ```python
        >>> seen = {"chosen": ["A", "B"], "rejected": [["C", "D"], ["E", "F"]]}
        >>> probe = leak_probe({"chosen": ["A"], "rejected": [["C", "B"]]}, seen)
        >>> probe.hr_at_1, probe.n, round(probe.chance, 3)
        (1.0, 1, 0.333)

        ```
    """
    warn_of_seed("leak_probe", seed)
    probed, seen = _coded(records, reference)
    try:
        users = list(records["user_id"])
    except (KeyError, ValueError):  # a dict, a `Dataset`
        users = None
    known = users is not None and None not in users
    return probe_lists(probed._replace(users=users) if known else probed, seen, max_records=max_records)


def leak_probe_hits(records: Any, reference: Any = None) -> np.ndarray:
    """Whether the lookup of [`leak_probe`] finds the target of each record: of shape `(n,)`."""
    return _hits_and_popular(*_coded(records, reference), np.arange(len(records["chosen"])))[0]


def _coded(records: Any, reference: Any) -> "tuple[CodedLists, CodedLists | None]":
    targets, lists = _titles(records, "records")
    seen_targets, seen_lists = ([], []) if reference is None else _titles(reference, "reference")
    names = pl.Series([*targets, *seen_targets, *_flatten(lists), *_flatten(seen_lists)], dtype=pl.String)
    codes = names.rank("dense").to_numpy().astype(np.int64)
    cuts = np.cumsum([len(targets), len(seen_targets), sum(map(len, lists))])
    targets, seen_targets, flat, seen_flat = np.split(codes, cuts)
    probed = CodedLists(targets, flat, np.array([len(row) for row in lists]))
    seen = None if reference is None else CodedLists(seen_targets, seen_flat, np.array(list(map(len, seen_lists))))
    return probed, seen


class CodedLists(NamedTuple):
    """
    Candidate lists as whole numbers.

    Args:
        targets (`numpy.ndarray`):
            Of shape `(n,)`.
        candidates (`numpy.ndarray`):
            The lists, one behind the other.
        lengths (`numpy.ndarray`):
            How long they are, of shape `(n,)`.
        users (`Sequence`, *optional*):
            Whose they are.
    """

    targets: np.ndarray
    candidates: np.ndarray
    lengths: np.ndarray
    users: Sequence | None = None


def probe_lists(records: CodedLists, reference: CodedLists | None, *, max_records: int | None = 5000) -> LeakProbe:
    """As [`leak_probe`], of lists of whole numbers."""
    places = _spread(len(records.targets), max_records)
    hits, popular = _hits_and_popular(records, reference, places)
    chance = float(np.mean(1 / records.lengths[places]))
    users = None if records.users is None else [records.users[place] for place in places]
    interval = wilson_interval(hits, groups=users)
    return LeakProbe(float(hits.mean()), interval, chance, float(popular.mean()), len(places))


def _hits_and_popular(
    records: CodedLists, reference: CodedLists | None, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    rows = np.split(records.candidates, np.cumsum(records.lengths)[:-1])
    index = _Index(*(records if reference is None else reference)[:3])
    hits, popular = np.zeros(len(places)), np.zeros(len(places))
    for number, place in enumerate(progress(places, desc="Leak probe", unit="records")):
        end = place if reference is None else len(reference.targets)
        hits[number] = index.lookup(rows[place], end) == records.targets[place]
        popular[number] = index.most_popular(rows[place], end) == records.targets[place]
    return hits, popular


class _Index:
    """Which reference records have an item in their list, and which have it as their target."""

    def __init__(self, targets: np.ndarray, flat: np.ndarray, lengths: np.ndarray) -> None:
        self.targets = targets
        owner = np.repeat(np.arange(len(lengths)), lengths)
        order = np.argsort(flat, kind="stable")
        self.items, self.owners = flat[order], owner[order]
        self.by_target = np.argsort(targets, kind="stable")
        self.sorted_targets = targets[self.by_target]

    def lookup(self, candidates: np.ndarray, end: int) -> int:
        """The target of the most similar of the first `end` lists, -1 for none."""
        low, high = np.searchsorted(self.items, [candidates, candidates + 1])
        sharing = np.concatenate([self.owners[a:b] for a, b in zip(low.tolist(), high.tolist(), strict=True)])
        overlap = np.bincount(sharing, minlength=len(self.targets))[:end]
        if not len(overlap) or not overlap.max():
            return -1
        return int(self.targets[np.flatnonzero(overlap == overlap.max())[-1]])

    def most_popular(self, candidates: np.ndarray, end: int) -> int:
        """The candidate that was a target most often among the first `end`, -1 where there is more than one."""
        low, high = np.searchsorted(self.sorted_targets, [candidates, candidates + 1])
        if end < len(self.targets):
            counts = [np.searchsorted(self.by_target[a:b], end) for a, b in zip(low, high, strict=True)]
        else:
            counts = high - low
        first = np.flatnonzero(counts == np.max(counts))
        return int(candidates[first[0]]) if len(first) == 1 else -1


def _titles(records: Any, name: str) -> tuple[list[str], list[list[str]]]:
    targets = [_text(one) for one in records["chosen"]]
    if not targets:
        raise ValueError(f"{name}: no rows. Pass at least one record.")
    try:
        lists = [list(map(str.strip, row)) for row in records["candidates"]]
    except (KeyError, ValueError):  # a dict, a `Dataset`
        lists = [[target, *map(_text, row)] for target, row in zip(targets, records["rejected"], strict=True)]
    for row, (target, candidates) in enumerate(zip(targets, lists, strict=True)):
        if target not in candidates:
            raise ValueError(
                f"{name}: row {row}, column 'candidates': the target {target!r} is not among them. Add it to the list."
            )
    return targets, lists


def _text(completion: str | Sequence[dict[str, str]]) -> str:
    return completion_text(completion).strip()


def _flatten(lists: list[list[str]]) -> list[str]:
    return [title for row in lists for title in row]


def _spread(count: int, most: int | None) -> np.ndarray:
    return np.arange(count) if most is None or most >= count else np.arange(most) * count // most
