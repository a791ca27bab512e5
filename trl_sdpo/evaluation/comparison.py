"""
Several systems on the same records, put together: metrics with chance and intervals, paired tests, what is easy and what
is hard, and examples. The three protocols are a ranking of the candidates, answers that are written, and lists from the
whole catalogue. All functions are pure: scores, answers or lists in, plain values that `json` writes out.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset

from ..recsys.metrics.catalogue import catalogue_metrics, recommendation_ranks
from ..recsys.metrics.matching import match_title
from ..recsys.metrics.ranking import chance_metrics, ranking_metrics, ranks
from ..recsys.metrics.statistics import sampled_label
from ..recsys.records.recommender_files import Catalogue
from ..scoring.generation import END_OF_TITLE, candidate_titles, generation_metrics, title_of_completion
from .sections import CHANCE, check_systems, make_section, users_of
from .verdict import same_titles


PROTOCOLS = ("ranking", "generation", "catalogue")
POPULARITY = "popularity"
KS = (1, 3, 5, 10)
_SHOWN = 3


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
        `verdict` says what that of `metric` means), `breakdowns`, `examples`, and of a ranking `candidates`, the fewest and the
        most of a record.

    Raises:
        ValueError: there are no systems, or a system has not one score for each candidate of each record.
    """
    scores = dict(scores)
    check_systems(scores, records)
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
    section = make_section(
        "ranking", label, systems, placed, 1, ks, records, seed, catalogue, num_examples, shown, train
    )
    return section | {"candidates": [int(lengths.min()), int(lengths.max())]}


def evaluate_answers(
    answers: Mapping[str, Sequence[str]],
    records: Dataset,
    *,
    seed: int,
    catalogue: Catalogue | None = None,
    num_examples: int = 5,
    rule: str = "whole",
    stop_strings: Sequence[str] = END_OF_TITLE,
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
        stop_strings (`Sequence[str]`, *optional*, defaults to `("\\n",)`):
            What ends the titles of the records, see [`stop_strings_of`].

    Returns:
        `dict`: As [`evaluate_ranking`], with `valid_ratio` and `hr@1_of_valid` among the metrics.

    Raises:
        ValueError: there are no systems, or a system has not one answer to each record.
    """
    check_systems(answers, records)
    candidates = candidate_titles(records, stop_strings=stop_strings)
    systems, placed = {}, {}
    for name, texts in answers.items():
        metrics = generation_metrics(texts, records, rule, groups=users_of(records), stop_strings=stop_strings)
        level = metrics.pop("chance")
        systems[CHANCE] = {"hr@1": level, "hr@1_ci": [level, level], "n": len(records)}
        systems[name] = metrics
        texts = [title_of_completion(text, stop_strings) for text in texts]
        named = [match_title(text, titles, rule) for text, titles in zip(texts, candidates, strict=True)]
        placed[name] = np.array([1.0 if one == 0 else np.inf for one in named])
    systems = {CHANCE: systems.pop(CHANCE), **systems}
    label = f"written answers: hr@1 by the {rule} title, {len(candidates[0])} candidates of a record"

    def shown(name: str, row: int) -> list[dict]:
        return [{"title": answers[name][row]}]

    section = make_section(
        "generation", label, systems, placed, 1, (1,), records, seed, catalogue, num_examples, shown, train
    )
    return section | {"notes": same_titles({name: [[text] for text in texts] for name, texts in answers.items()})}


def evaluate_catalogue(
    recommended: Mapping[str, Sequence[Sequence[str]]],
    records: Dataset,
    catalogue: Catalogue,
    *,
    seed: int,
    ks: Sequence[int] = KS,
    num_examples: int = 5,
    exclude: Sequence[Sequence[str]] | None = None,
    searches: Mapping[str, str] | None = None,
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
        exclude (`Sequence[Sequence[str]]`, *optional*):
            For each record the item ids that no list may hold, such as what the user had. They are taken out of lists
            that hold them, and chance is that of the items that are left: none for a target that is excluded itself.
        searches (`Mapping[str, str]`, *optional*):
            How lists were found, of systems that did not rank all items, such as `"beam search, 10 beams"`.

    Returns:
        `dict`: As [`evaluate_ranking`], with the metrics of [`catalogue_metrics`]; `excluded` (by system how many items
        were taken out of lists), `repeats` (how many targets are excluded), and `searches`.

    Raises:
        ValueError: there are no systems, a system has not one list for each record, or an item is not in the catalogue.
    """
    check_systems(recommended, records)
    targets = list(map(str, records["item_id"]))
    popularity = None if catalogue.train_counts is None else _counts(catalogue)
    consumed = None
    if "history_item_ids" in records.column_names:
        consumed = [list(map(str, row)) for row in records["history_item_ids"]]
    ks = tuple(k for k in ks if k < len(catalogue))
    gone = [set()] * len(records) if exclude is None else [set(map(str, row)) for row in exclude]
    lists = {name: _without(rows, gone, max(ks)) for name, rows in recommended.items()}
    systems, placed = {CHANCE: _chance_of_lists(targets, gone, catalogue, ks) | {"n": len(records)}}, {}
    for name, rows in lists.items():
        metrics = catalogue_metrics(
            rows, targets, catalogue.item_ids, ks, popularity=popularity, consumed=consumed, groups=users_of(records)
        )
        systems[name] = {key: value for key, value in metrics.items() if not key.startswith("chance@")}
        placed[name] = recommendation_ranks(rows, targets)
    titles = dict(zip(catalogue.item_ids, catalogue.titles, strict=True))

    def shown(name: str, row: int) -> list[dict]:
        return [{"title": titles[item]} for item in lists[name][row][:_SHOWN]]

    repeats = sum(target in row for target, row in zip(targets, gone, strict=True))
    label = _catalogue_label(len(catalogue), exclude is not None, repeats, len(records), searches or {})
    section = make_section(
        "catalogue", label, systems, placed, max(ks), ks, records, seed, catalogue, num_examples, shown, train
    )
    taken_out = {name: _num_taken_out(rows, gone) for name, rows in recommended.items()}
    notes = same_titles({name: [[titles[item] for item in row] for row in rows] for name, rows in lists.items()})
    return section | {"notes": notes, "excluded": taken_out, "repeats": repeats, "searches": dict(searches or {})}


def _without(rows: Sequence[Sequence[str]], gone: list[set[str]], most: int) -> list[list[str]]:
    return [
        [item for item in map(str, row) if item not in there][:most] for row, there in zip(rows, gone, strict=True)
    ]


def _num_taken_out(rows: Sequence[Sequence[str]], gone: list[set[str]]) -> int:
    return sum(item in there for row, there in zip(rows, gone, strict=True) for item in row)


def _chance_of_lists(targets: list[str], gone: list[set[str]], catalogue: Catalogue, ks: tuple[int, ...]) -> dict:
    """HR@k of lists drawn from the items that are left, the mean over records."""
    items = set(catalogue.item_ids)
    left = np.array([len(items) - len(row & items) for row in gone])
    possible = np.array([target not in row for target, row in zip(targets, gone, strict=True)])
    return {f"hr@{k}": float(np.mean(possible * np.minimum(1, k / np.maximum(left, 1)))) for k in ks}


def _catalogue_label(size: int, excluded: bool, repeats: int, count: int, searches: Mapping[str, str]) -> str:
    label = f"full ranking: lists from all {size:,} items"
    if searches:
        found = "; ".join(f"{how}: {name}" for name, how in searches.items())
        label = f"whole catalogue: lists from all {size:,} items, of which a search sees a part ({found})"
    if excluded:
        label += ", without what a user had before"
    if repeats:
        label += (
            f"; {repeats:,} of {count:,} targets are repeats of what the user had before, which no list holds: they are "
            "misses (--repeats lets them come back)"
        )
    return label


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
