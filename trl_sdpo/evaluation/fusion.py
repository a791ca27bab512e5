"""One system of several, fitted on validation records: see [`fit_fusion`]."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from datasets import Dataset

from ..recsys.baselines.scores import Scorer, score_records
from ..recsys.metrics.fusion import COLD, EVENTS, Fusion, fit_fusion
from ..recsys.records.recommender_files import Catalogue
from .comparison import popularity_of_candidates
from .sections import users_of
from .systems import Task, ask_models


FUSION, FIT_SPLIT = "fusion", "validation"
_FIT_RECORDS = 2000


def cold_features(records: Dataset, catalogue: Catalogue | None) -> dict[str, list[np.ndarray]]:
    """
    What training counts say of the candidates of records, as features of [`fit_fusion`].

    Args:
        records (`Dataset`):
            With `item_id` and `rejected_item_ids`.
        catalogue ([`Catalogue`], *optional*):
            With training counts.

    Returns:
        `dict[str, list[numpy.ndarray]]`: `"log(1 + training events)"` and `"no training event"` (1 or 0), each an array
        of shape `(1 + K,)` for each record, the target first; nothing where the counts are not known.
    """
    counts = popularity_of_candidates(records, catalogue)
    if counts is None:
        return {}
    return {EVENTS: [np.log1p(row) for row in counts], COLD: [(row == 0).astype(float) for row in counts]}


def check_fusion(task: Task, names: Sequence[str], known: Sequence[str], flag: str) -> None:
    """
    Find what would fail later, before the first model is loaded.

    Args:
        task ([`Task`]):
            The task.
        names (`Sequence[str]`):
            What is to be fused.
        known (`Sequence[str]`):
            Baselines and models, which can score validation records too.
        flag (`str`):
            What messages call the option.

    Raises:
        ValueError: a system is not known, or there are no other records to fit on.
    """
    for name in names:
        if name not in known:
            raise ValueError(
                f"{flag}: {name!r} is no baseline and no model of this evaluation, but they are {list(known)}. What comes "
                "as a file of scores has none of the validation records, on which the weights are fitted."
            )
    if FUSION in known:
        raise ValueError(f"{flag}: a system is called {FUSION!r} already. Pass NAME=... with another name.")
    if "ranking" not in task.protocols:
        raise ValueError(
            f"{flag}: scores are fused under --protocol ranking, which is not among those that were given."
        )
    if FIT_SPLIT not in task.splits or task.split == FIT_SPLIT:
        raise ValueError(
            f"{flag}: {task.dataset} needs a split '{FIT_SPLIT}' to fit the weights on, and another one to evaluate, where "
            f"--dataset_split is {task.split!r} of {list(task.splits)}."
        )


def fit_on_validation(task: Task, scorers: Mapping[str, Scorer], models: Mapping[str, str]) -> Fusion:
    """
    Score the validation records, 2,000 at most, and fit.

    Args:
        task ([`Task`]):
            The task of the evaluation.
        scorers (`Mapping[str, Callable]`):
            Trained baselines by name.
        models (`Mapping[str, str]`):
            Directories or Hub ids by name.

    Returns:
        [`Fusion`]: Over the systems in the order given, and [`cold_features`].
    """
    total = len(task.splits[FIT_SPLIT])
    some = (
        np.random.default_rng(task.seed).choice(total, _FIT_RECORDS, replace=False) if total > _FIT_RECORDS else None
    )
    rows = None if some is None else np.sort(some)
    asked = replace(task, split=FIT_SPLIT, rows=rows, protocols=("ranking",))
    scores = {
        name: score_records(scorer, asked.records, desc=f"{name}, validation") for name, scorer in scorers.items()
    }
    scores |= ask_models(asked, models, None, None, lambda name, rows: None)["ranking"]
    return fit_fusion(scores | cold_features(asked.records, task.catalogue), groups=users_of(asked.records))


def fused_scores(fusion: Fusion, task: Task, found: Mapping[str, Sequence[np.ndarray]]) -> list[np.ndarray]:
    """
    The scores of the fusion for the records of a task.

    Args:
        fusion ([`Fusion`]):
            The fit.
        task ([`Task`]):
            The task.
        found (`Mapping[str, Sequence[numpy.ndarray]]`):
            The scores of every system of it.

    Returns:
        `list[numpy.ndarray]`: As [`Fusion.scores`].
    """
    return fusion.scores({**found, **cold_features(task.records, task.catalogue)})
