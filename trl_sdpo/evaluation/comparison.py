"""
Several systems on the same records, put together: metrics with chance and intervals, paired tests, what is easy and what
is hard, and examples. The three protocols are a ranking of the candidates, answers that are written, and lists from the
whole catalogue. All functions are pure: scores, answers or lists in, plain values that `json` writes out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from ..recsys.metrics.catalogue import catalogue_metrics, recommendation_ranks
from ..recsys.metrics.leaks import leak_probe
from ..recsys.metrics.matching import match_title
from ..recsys.metrics.ranking import chance_metrics, ranking_metrics, ranks
from ..recsys.metrics.statistics import holm_correction, paired_comparison, sampled_label, verdict
from ..recsys.records.recommender_files import Catalogue
from ..scoring.generation import candidate_titles, generation_metrics
from .breakdowns import breakdowns


PROTOCOLS = ("ranking", "generation", "catalogue")
CHANCE, POPULARITY = "chance", "popularity"
KS = (1, 3, 5, 10)
# With more systems every pair would be a long table; then each is compared with the first.
_MOST_IN_PAIRS = 6
_SHOWN = 3
_PROBED = 2000


def evaluate_ranking(
    scores: Mapping[str, Sequence[np.ndarray]],
    records: Dataset,
    *,
    seed: int,
    ks: Sequence[int] = KS,
    catalogue: Catalogue | None = None,
    num_examples: int = 5,
    train: Dataset | None = None,
) -> dict:
    """
    Rank the candidates of records by the scores of systems.

    Args:
        scores (`Mapping[str, Sequence[np.ndarray]]`):
            For each system the scores of the candidates of each record, the target first, as [`completion_log_probs`]
            and [`score_records`] return them.
        records (`Dataset`):
            The records. Intervals and tests are over users where there is a column `user_id`, since records of one
            user are not independent; otherwise over records.
        seed (`int`):
            Seed of tests and of the choice of examples.
        ks (`Sequence[int]`, *optional*, defaults to `(1, 3, 5, 10)`):
            Cut-offs; those that every list is too short for are left out.
        catalogue ([`Catalogue`], *optional*):
            Titles, and training counts: with these there is a system `"popularity"`, and a breakdown by it.
        num_examples (`int`, *optional*, defaults to `5`):
            Hits of the last system to show, and as many misses.
        train (`Dataset`, *optional*):
            The training records, for breakdowns by what training has seen, see [`breakdowns`].

    Returns:
        `dict`: `protocol`, `label`, `metric` (of verdicts, breakdowns and examples), `systems` (a row of metrics each,
        `chance` first), `comparisons` (see [`paired_comparison`]; `{metric}_p_holm` is corrected over the pairs, and
        `verdict` says what that of `metric` means), `breakdowns` and `examples`.

    Raises:
        ValueError: there are no systems, or a system has not one score for each candidate of each record.
    """
    scores = dict(scores)
    _check_systems(scores, records)
    if POPULARITY not in scores and (popular := popularity_of_candidates(records, catalogue)) is not None:
        scores = {POPULARITY: popular, **scores}
    lengths = _num_candidates(scores, records)
    ks = tuple(k for k in ks if k < lengths.max())
    placed = {name: ranks(rows) for name, rows in scores.items()}
    size = None if catalogue is None else max(len(catalogue), int(lengths.max()))
    systems = {CHANCE: _mean_chance(lengths, ks) | {"n": len(records)}}
    systems |= {name: ranking_metrics(values, ks, groups=users_of(records)) for name, values in placed.items()}
    titles = _candidate_titles(records)

    def shown(name: str, row: int) -> list[dict]:
        values = scores[name][row]
        best = np.argsort(-np.asarray(values), kind="stable")[:_SHOWN]
        return [{"title": titles[row][index], "score": float(values[index])} for index in best]

    label = (
        sampled_label(int(lengths[0]), size)
        if lengths.min() == lengths.max()
        else f"sampled metrics: the target among {lengths.min()} to {lengths.max()} candidates"
    )
    return _section("ranking", label, systems, placed, 1, ks, records, seed, catalogue, num_examples, shown, train)


def evaluate_answers(
    answers: Mapping[str, Sequence[str]],
    records: Dataset,
    *,
    seed: int,
    catalogue: Catalogue | None = None,
    num_examples: int = 5,
    rule: str = "whole",
    train: Dataset | None = None,
) -> dict:
    """
    Count which written answers name the target, as the S-DPO paper (https://huggingface.co/papers/2406.09215) does.

    Args:
        answers (`Mapping[str, Sequence[str]]`):
            For each system an answer to each record, see [`generate_answers`].
        records (`Dataset`):
            The records.
        seed (`int`), catalogue ([`Catalogue`], *optional*), num_examples (`int`, *optional*, defaults to `5`), train
            (`Dataset`, *optional*):
            See [`evaluate_ranking`].
        rule (`str`, *optional*, defaults to `"whole"`):
            What naming is, see [`match_title`].

    Returns:
        `dict`: As [`evaluate_ranking`], with `valid_ratio` among the metrics.

    Raises:
        ValueError: there are no systems, or a system has not one answer to each record.
    """
    _check_systems(answers, records)
    candidates = candidate_titles(records)
    systems, placed = {}, {}
    for name, texts in answers.items():
        metrics = generation_metrics(texts, records, rule, groups=users_of(records))
        level = metrics.pop("chance")
        systems[CHANCE] = {"hr@1": level, "hr@1_ci": [level, level], "n": len(records)}
        systems[name] = metrics
        named = [match_title(text, titles, rule) for text, titles in zip(texts, candidates, strict=True)]
        placed[name] = np.array([1.0 if one == 0 else np.inf for one in named])
    systems = {CHANCE: systems.pop(CHANCE), **systems}
    label = f"written answers: hr@1 by the {rule} title, {len(candidates[0])} candidates of a record"

    def shown(name: str, row: int) -> list[dict]:
        return [{"title": answers[name][row]}]

    return _section(
        "generation", label, systems, placed, 1, (1,), records, seed, catalogue, num_examples, shown, train
    )


def evaluate_catalogue(
    recommended: Mapping[str, Sequence[Sequence[str]]],
    records: Dataset,
    catalogue: Catalogue,
    *,
    seed: int,
    ks: Sequence[int] = KS,
    num_examples: int = 5,
    train: Dataset | None = None,
) -> dict:
    """
    Look for the target in lists from the whole catalogue.

    Args:
        recommended (`Mapping[str, Sequence[Sequence[str]]]`):
            For each system a list of item ids for each record, the best first.
        records (`Dataset`):
            The records, with `item_id`.
        catalogue ([`Catalogue`]):
            All items.
        seed (`int`), ks (`Sequence[int]`, *optional*, defaults to `(1, 3, 5, 10)`), num_examples (`int`, *optional*,
            defaults to `5`), train (`Dataset`, *optional*):
            See [`evaluate_ranking`].

    Returns:
        `dict`: As [`evaluate_ranking`], with the metrics of [`catalogue_metrics`].

    Raises:
        ValueError: there are no systems, a system has not one list for each record, or an item is not in the catalogue.
    """
    _check_systems(recommended, records)
    targets = list(map(str, records["item_id"]))
    popularity = None if catalogue.train_counts is None else _counts(catalogue)
    consumed = None
    if "history_item_ids" in records.column_names:
        consumed = [list(map(str, row)) for row in records["history_item_ids"]]
    ks, size = tuple(k for k in ks if k < len(catalogue)), len(catalogue)
    systems = {CHANCE: {f"hr@{k}": k / size for k in ks} | {"n": len(records)}}
    placed = {}
    for name, lists in recommended.items():
        metrics = catalogue_metrics(
            lists,
            targets,
            catalogue.item_ids,
            ks,
            popularity=popularity,
            consumed=consumed,
            groups=users_of(records),
        )
        systems[name] = {key: value for key, value in metrics.items() if not key.startswith("chance@")}
        placed[name] = recommendation_ranks(lists, targets)
    titles = dict(zip(catalogue.item_ids, catalogue.titles, strict=True))

    def shown(name: str, row: int) -> list[dict]:
        return [{"title": titles[item]} for item in recommended[name][row][:_SHOWN]]

    label = f"full ranking: lists from all {size:,} items"
    return _section(
        "catalogue", label, systems, placed, max(ks), ks, records, seed, catalogue, num_examples, shown, train
    )


def probe_records(records: Dataset, train: Dataset | None, seed: int) -> dict | None:
    """
    The score of a lookup that never sees a history, see [`leak_probe`], or `None` for records without texts.

    Args:
        records (`Dataset`):
            The records that are evaluated.
        train (`Dataset`, *optional*):
            Training records to look up in. If `None`, the records before each one.
        seed (`int`):
            Seed of the interval.

    Returns:
        `dict`: The fields of [`LeakProbe`].
    """
    if not {"chosen", "rejected"} <= set(records.column_names):
        return None
    columns = ["chosen", "rejected", *(["candidates"] if "candidates" in records.column_names else [])]
    parts = [records] if train is None else [records, train]
    parts = [part.select_columns(columns) for part in parts]
    try:
        probe = leak_probe(*parts, max_records=_PROBED, seed=seed)
    except ValueError:  # titles of the list are not the texts of the completions
        probe = leak_probe(*[part.select_columns(columns[:2]) for part in parts], max_records=_PROBED, seed=seed)
    return probe._asdict() | {"ci": list(probe.ci)}


def popularity_of_candidates(records: Dataset, catalogue: Catalogue | None) -> list[np.ndarray] | None:
    """
    Training events of the candidates of records, the target first; `None` where these are not known.

    Args:
        records (`Dataset`):
            With `item_id` and `rejected_item_ids`.
        catalogue ([`Catalogue`], *optional*):
            With `train_counts`.

    Returns:
        `list[np.ndarray]`: For each record an array of shape `(1 + K,)`.
    """
    known = {"item_id", "rejected_item_ids"} <= set(records.column_names)
    if not known or catalogue is None or catalogue.train_counts is None:
        return None
    counts = _counts(catalogue)
    pairs = zip(records["item_id"], records["rejected_item_ids"], strict=True)
    return [np.array([counts.get(str(item), 0) for item in (target, *others)], float) for target, others in pairs]


def _counts(catalogue: Catalogue) -> dict[str, int]:
    return dict(zip(catalogue.item_ids, catalogue.train_counts, strict=True))


def users_of(records: Dataset) -> list | None:
    """The user of every record; `None` where the records don't say, or not of all."""
    if "user_id" not in records.column_names:
        return None
    users = records["user_id"][:]
    return None if None in users else users


def _check_systems(values: Mapping[str, Sequence], records: Dataset) -> None:
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


def _num_candidates(scores: Mapping[str, Sequence[np.ndarray]], records: Dataset) -> np.ndarray:
    """Candidates of every record, which must be as many for all systems and in the records."""
    column = next((name for name in ("rejected", "rejected_ids") if name in records.column_names), None)
    expected = None if column is None else np.array([1 + len(row) for row in records[column]])
    for name, rows in scores.items():
        lengths = np.array([len(row) for row in rows])
        expected = lengths if expected is None else expected
        wrong = np.flatnonzero(lengths != expected)
        if len(wrong):
            raise ValueError(
                f"{name}: record {wrong[0]}: {lengths[wrong[0]]} scores for {expected[wrong[0]]} candidates. Score the "
                "same records, the target first."
            )
    return expected


def _mean_chance(lengths: np.ndarray, ks: tuple[int, ...]) -> dict:
    """Chance over lists of several lengths: the mean over records."""
    sizes, counts = np.unique(lengths, return_counts=True)
    rows = [chance_metrics(int(size), ks) for size in sizes]
    return {name: np.average([row[name] for row in rows], axis=0, weights=counts).tolist() for name in rows[0]}


def _candidate_titles(records: Dataset) -> list[list[str]]:
    if "rejected" in records.column_names:
        return candidate_titles(records)
    return [[f"candidate {number}" for number in range(1 + len(row))] for row in records["rejected_ids"]]


def _section(
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
    hits = {name: values <= k for name, values in placed.items()}
    names = list(placed)
    return {
        "protocol": protocol,
        "label": label,
        "metric": f"hr@{k}",
        "systems": systems,
        "comparisons": _comparisons(placed, ks, seed, users_of(records), f"hr@{k}"),
        "breakdowns": breakdowns(hits, records, catalogue, train=train),
        "examples": _examples(names[-1], placed, hits, records, catalogue, seed, num_examples, shown),
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
