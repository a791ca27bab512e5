"""
Multi-preference records with grades: `chosen_score` and `rejected_scores` beside `chosen` and `rejected`, or a `ranked` list
of completions in the place of both.
"""

import math
from typing import Any

from datasets import Dataset, IterableDataset

from .data_utils import _fail


CHOSEN_SCORE, REJECTED_SCORES, RANKED = "chosen_score", "rejected_scores", "ranked"


def from_ranked(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """
    Convert ranked lists to the multi-preference format: the best completion is the chosen one, the others are rejected, and
    their places become scores, from `n - 1` for the first to 0 for the last of n, for the losses that take scores.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Dataset with `prompt` and `ranked`, a list of at least two completions, texts or lists of messages, the best
            first.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`]: The dataset with `chosen`, `rejected`, `chosen_score` and
        `rejected_scores` in the place of `ranked`.

    Raises:
        `ValueError`: If there is no such column, it stands beside what it would become, or a list has fewer than two
            completions. The message names row, column, value and remedy.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from trl_sdpo import from_ranked

    >>> from_ranked(Dataset.from_dict({"prompt": ["Next:"], "ranked": [[" A", " B", " C"]]}))[0]
    {'prompt': 'Next:', 'chosen': ' A', 'rejected': [' B', ' C'], 'chosen_score': 2.0, 'rejected_scores': [1.0, 0.0]}
    ```
    """
    columns = list(dataset.column_names or next(iter(dataset)))
    if RANKED not in columns:
        raise ValueError(f"The dataset has no column `{RANKED}`, only {columns}. Name the list of completions so.")
    if both := [name for name in ("chosen", "rejected", CHOSEN_SCORE, REJECTED_SCORES) if name in columns]:
        raise ValueError(f"The dataset has both a column `{RANKED}` and {both}, and it is not clear which to keep.")

    def split(example: dict[str, Any], index: int) -> dict[str, Any]:
        ranked = example[RANKED]
        if not isinstance(ranked, list) or len(ranked) < 2:
            _fail(index, RANKED, ranked, "expected a list of two completions at least", "Remove the record.")
        scores = [float(place) for place in reversed(range(len(ranked)))]
        return {"chosen": ranked[0], "rejected": ranked[1:], CHOSEN_SCORE: scores[0], REJECTED_SCORES: scores[1:]}

    return dataset.map(split, with_indices=True, remove_columns=[RANKED])


def check_scores(
    example: dict[str, Any], index: int, unrated_score: float | None = None, positive: bool = False
) -> dict[str, Any]:
    """
    Check the scores of a record, and fill in those that are missing.

    Args:
        example (`dict[str, Any]`):
            Record with `chosen_score` and `rejected_scores`, one for each rejected completion; `None` (or NaN) is a
            completion that nobody has rated.
        index (`int`):
            Row number, for errors.
        unrated_score (`float`, *optional*):
            What such a completion counts as.
        positive (`bool`, *optional*, defaults to `False`):
            Whether scores must be above 0, as a ratio of them wants it.

    Returns:
        `dict[str, Any]`: `chosen_score` and `rejected_scores`, numbers all of them.

    Raises:
        `ValueError`: If a score is missing or not a number, there is not one for each completion, or a rejected completion
            has a higher one than the chosen. The message names row, column, value and remedy.
    """
    rejected = example["rejected_ids" if "rejected_ids" in example else "rejected"]
    scores = example.get(REJECTED_SCORES)
    if not isinstance(scores, list) or len(scores) != len(rejected):
        problem = f"expected a list of {len(rejected)} scores, one for each rejected completion"
        _fail(
            index, REJECTED_SCORES, scores, problem, "Use a loss without scores, such as 'softmax', for such records."
        )
    chosen = _number(example.get(CHOSEN_SCORE), index, CHOSEN_SCORE, unrated_score, positive)
    filled = []
    for number, score in enumerate(scores):
        column = f"{REJECTED_SCORES}[{number}]"
        filled.append(_number(score, index, column, unrated_score, positive))
        if filled[-1] > chosen:
            remedy = (
                "Remove one of the two, keep targets of high ratings alone (`min_rating`), or lower `unrated_score`."
            )
            _fail(
                index, column, filled[-1], f"a rejected completion above the chosen one, which has {chosen:g}", remedy
            )
    return {CHOSEN_SCORE: chosen, REJECTED_SCORES: filled}


def _number(score: Any, index: int, column: str, unrated_score: float | None, positive: bool) -> float:
    if score is None or (isinstance(score, float) and math.isnan(score)):
        if unrated_score is None:
            remedy = "Set `unrated_score` to what a completion without a rating counts as, or remove the record."
            _fail(index, column, score, "there is no score", remedy)
        score = unrated_score
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        _fail(index, column, score, "expected a finite number", "Correct it, or remove the record.")
    if positive and score <= 0:
        _fail(index, column, score, "not above 0, and `score_margin='ratio'` divides by it", "Use another margin.")
    return float(score)
