"""What the sections of all protocols have in common: paired tests with their verdicts, breakdowns and examples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from ..recsys.metrics.statistics import holm_correction, paired_comparison, verdict
from ..recsys.records.recommender_files import Catalogue
from ..scoring.generation import candidate_titles
from .breakdowns import breakdowns
from .verdict import of_likelihood


CHANCE = "chance"
# With more systems every pair would be a long table; then each is compared with the first.
_MOST_IN_PAIRS = 6


def users_of(records: Dataset) -> list | None:
    """The user of every record; `None` where the records don't say, or not of all."""
    if "user_id" not in records.column_names:
        return None
    users = records["user_id"][:]
    return None if None in users else users


def check_systems(values: Mapping[str, Sequence], records: Dataset) -> None:
    """A `ValueError` unless there are systems and records, with a value of each system for each record."""
    if not values:
        raise ValueError("There are no systems. Pass the scores, answers or lists of at least one.")
    if len(records) == 0:
        raise ValueError("There are no records. Pass at least one.")
    if CHANCE in values:
        raise ValueError(f"A system is called {CHANCE!r}, which the table has already. Rename it.")
    for name, rows in values.items():
        if len(rows) != len(records):
            raise ValueError(
                f"{name}: {len(rows)} rows for {len(records)} records. Pass one for each, in their order."
            )


def make_section(
    protocol: str,
    label: str,
    systems: dict[str, dict],
    placed: dict[str, np.ndarray],
    k: int,
    ks: tuple[int, ...],
    records: Dataset,
    seed: int,
    catalogue: Catalogue | None,
    num_examples: int,
    shown: Callable[[str, int], list[dict]],
    train: Dataset | None,
) -> dict:
    """
    A section of the results.

    Args:
        protocol (`str`), label (`str`):
            What was asked, and what stands above the table.
        systems (`dict[str, dict]`):
            The row of metrics of each system.
        placed (`dict[str, numpy.ndarray]`):
            For each system the rank of the target of each record, infinity where it was not found.
        k (`int`), ks (`tuple[int, ...]`):
            The cut-off of the metric that verdicts, breakdowns and examples are of, and all cut-offs.
        records (`Dataset`), seed (`int`), catalogue ([`Catalogue`], *optional*), num_examples (`int`), train
            (`Dataset`, *optional*):
            See [`evaluate_ranking`].
        shown (`Callable`):
            What an example shows of a system and a record.

    Returns:
        `dict`: See [`evaluate_ranking`].
    """
    hits = {name: values <= k for name, values in placed.items()}
    names = list(placed)
    return {
        "protocol": protocol,
        "label": label,
        "metric": f"hr@{k}",
        "systems": systems,
        "comparisons": _comparisons(placed, ks, seed, users_of(records), f"hr@{k}"),
        "breakdowns": breakdowns(hits, records, catalogue, train=train),
        "examples": _examples(of_likelihood(names)[-1], placed, hits, records, catalogue, seed, num_examples, shown),
    }


def _comparisons(
    placed: dict[str, np.ndarray], ks: tuple[int, ...], seed: int, users: list | None, metric: str
) -> list[dict]:
    names = list(placed)
    if len(names) <= _MOST_IN_PAIRS:
        pairs = [(names[later], names[first]) for later in range(len(names)) for first in range(later)]
    else:
        pairs = [(name, names[0]) for name in names[1:]]
    compared = [
        {
            "system": name,
            "baseline": baseline,
            **paired_comparison(placed[name], placed[baseline], ks, seed=seed, groups=users),
        }
        for name, baseline in pairs
    ]
    for key in [key for key in (compared[0] if compared else ()) if key.endswith("_p")]:
        for one, corrected in zip(compared, holm_correction([one[key] for one in compared]), strict=True):
            one[f"{key}_holm"] = corrected
    return [one | {"verdict": verdict(one[metric], one[f"{metric}_p_holm"])} for one in compared]


def _examples(
    name: str,
    placed: dict[str, np.ndarray],
    hits: dict[str, np.ndarray],
    records: Dataset,
    catalogue: Catalogue | None,
    seed: int,
    num_examples: int,
    shown: Callable[[str, int], Any],
) -> dict:
    titles = {} if catalogue is None else dict(zip(catalogue.item_ids, catalogue.titles, strict=True))
    order = np.random.default_rng(seed).permutation(len(records))
    chosen = {}
    for kind, wanted in (("hits", True), ("misses", False)):
        rows = [int(row) for row in order if hits[name][row] == wanted][:num_examples]
        chosen[kind] = [_example(row, placed, records, titles) | {"shown": shown(name, row)} for row in rows]
    return {"system": name, **chosen}


def _example(row: int, placed: dict[str, np.ndarray], records: Dataset, titles: dict[str, str]) -> dict[str, Any]:
    record = records[row]
    history = [titles.get(str(item), str(item)) for item in record.get("history_item_ids") or ()]
    target = titles.get(str(record.get("item_id")))
    if target is None:
        target = candidate_titles(records.select([row]))[0][0] if "chosen" in record else "the chosen completion"
    found = {name: None if np.isinf(values[row]) else int(values[row]) for name, values in placed.items()}
    return {"record": row, "history": history, "target": target, "ranks": found}
