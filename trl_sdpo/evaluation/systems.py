"""What every system says of the records, by protocol: models, one after the other in memory, baselines, and files."""

import gc
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers.utils import logging

from ..recommender.recommender import Recommender
from ..recommender.scores import LIKELIHOOD, PMI
from ..recsys.baselines.identity import check_same_records, record_identity
from ..recsys.baselines.scores import Scorer, read_identity, read_lists, read_scores, score_records, write_scores
from ..recsys.prompts.wordings import get_template
from ..recsys.records.recommender_files import Catalogue, RecommenderConfig, load_recommender_files
from ..scoring.generation import END_OF_TITLE, candidate_titles, stop_strings_of
from ..scoring.log_probs import implicit_rewards
from .baselines import (
    CONTENT_BASELINES,
    TEXT_BASELINES,
    answers_of_scores,
    consumed_items,
    lists_of_scorer,
    title_vectors,
    train_baseline,
)
from .verdict import IMPLICIT_REWARD


logger = logging.get_logger(__name__)

# What messages call the model that rewards are taken against.
REFERENCE = "the reference"
# What a model must have had as the data set has it, for its prompts to be those of the records.
_COMPARED = ("history_size", "conversational", "ends_in_eos", "max_length")


@dataclass
class Task:
    """
    What is evaluated, and how.

    Args:
        dataset (`str`):
            What messages call the data set.
        splits (`Mapping[str, Dataset]`), split (`str`):
            Its splits, and the one that is evaluated.
        rows (`numpy.ndarray`, *optional*):
            The rows of the split that are evaluated; `None` for all.
        config ([`RecommenderConfig`], *optional*), catalogue ([`Catalogue`], *optional*):
            Of the data set.
        protocols (`Sequence[str]`):
            Of `"ranking"`, `"generation"` and `"catalogue"`.
        seed (`int`), batch_size (`int`), per_token (`bool`):
            See [`Recommender.log_probs`].
        pmi (`bool`):
            Whether to rank by pointwise mutual information too: the log-probabilities less those without the history.
        top_k (`int`), num_beams (`int`, *optional*), exact (`bool`):
            Of the lists from the catalogue, see [`Recommender.recommend_ids`].
        repeats (`bool`):
            Whether these may hold what the user had.
        ignore_differences (`bool`):
            Whether to go on where a model was trained on other prompts than the records have.
        device (`str`, *optional*), dtype (`str`):
            Of the models.
        text_model (`str`, *optional*):
            Directory or Hub id of the model whose vectors of titles the baselines `"text"` and `"sasrec-text"` read.
    """

    dataset: str
    splits: Mapping[str, Dataset]
    split: str
    rows: np.ndarray | None = None
    config: RecommenderConfig | None = None
    catalogue: Catalogue | None = None
    protocols: Sequence[str] = ("ranking",)
    seed: int = 0
    batch_size: int = 16
    per_token: bool = False
    pmi: bool = False
    top_k: int = 10
    num_beams: int | None = None
    exact: bool = False
    repeats: bool = False
    ignore_differences: bool = False
    device: str | None = None
    dtype: str = "auto"
    text_model: str | None = None
    records: Dataset = field(init=False)

    def __post_init__(self) -> None:
        records = self.splits[self.split]
        self.total = len(records)
        self.records = records if self.rows is None else records.select(self.rows)

    @property
    def train(self) -> Dataset | None:
        """The training records, unless they are what is evaluated."""
        return self.splits.get("train") if self.split != "train" else None

    @property
    def beams(self) -> int:
        """Width of the search in the catalogue."""
        return max(2, self.top_k, 10 if self.num_beams is None else self.num_beams)

    @property
    def stop_strings(self) -> Sequence[str]:
        """What ends the titles of the records."""
        return END_OF_TITLE if self.config is None else stop_strings_of(self.config.templates)

    def excluded(self) -> list[list[str]] | None:
        """For each record what no list from the catalogue may hold: all that the user had, unless it may come back."""
        if self.repeats:
            return None
        consumed, complete = consumed_items(self.records, list(self.splits.values()))
        if not complete:
            logger.warning(
                f"{self.dataset}: its records have no column 'consumed_item_ids', so what a user had before is read off "
                "the records of all splits, which may not show all of it. Make them anew with `trl-sdpo prepare`."
            )
        known = set(self.catalogue.item_ids) if self.catalogue is not None else set()
        return [[item for item in row if item in known] for row in consumed]


def check_task(task: Task, models: Mapping[str, str], baselines: Sequence[str]) -> dict[str, list[str]]:
    """
    Find what would fail later, before the first model is loaded.

    Args:
        task ([`Task`]):
            The task.
        models (`Mapping[str, str]`):
            Directories or Hub ids of models by name, the reference among them.
        baselines (`Sequence[str]`):
            Names of baselines.

    Returns:
        `dict[str, list[str]]`: By model what its `recommender.json` has otherwise than the data set's, where that is
        to be ignored.

    Raises:
        ValueError: columns or splits are missing, or a model was trained on other prompts than the records have.
    """
    columns = set(task.records.column_names)
    needed = {"history_item_ids", "item_id"} if "catalogue" in task.protocols or baselines else set()
    needed |= {"rejected_item_ids"} if baselines and {"ranking", "generation"} & set(task.protocols) else set()
    if needed - columns:
        why = "--baseline" if baselines else "--protocol catalogue"
        raise ValueError(
            f"{task.dataset}: no columns {sorted(needed - columns)}, which {why} needs. Make the records with "
            "`trl-sdpo prepare`."
        )
    if baselines and task.train is None:
        raise ValueError(f"{task.dataset}: --baseline needs a split 'train', and another one to evaluate.")
    if set(baselines) & set(CONTENT_BASELINES) and task.catalogue is None:
        raise ValueError(
            f"{task.dataset}: it has no catalogue.json, from which --baseline {', '.join(CONTENT_BASELINES)} know the items. "
            "Make the records with `trl-sdpo prepare`."
        )
    if set(baselines) & set(TEXT_BASELINES) and task.text_model is None:
        raise ValueError(
            f"--baseline {', '.join(TEXT_BASELINES)} read vectors of titles. Pass --text_model with an encoder of sentences or "
            "a language model."
        )
    differing = {}
    for name, path in models.items():
        config = load_recommender_files(path).config
        asked = config or task.config
        is_asked = name != REFERENCE and "catalogue" in task.protocols
        if is_asked and asked is not None and asked.templates[0].style == "candidates":
            raise ValueError(
                f"{name}: template '{asked.templates[0].name}' shows candidates, and --protocol catalogue has none to "
                "show. Use a model that was trained on prompts without them (prompt_style='history')."
            )
        if config is not None and task.config is not None and (found := differences(config, task.config)):
            differing[name] = found
            if not task.ignore_differences:
                raise ValueError(
                    f"{name}: {path} was trained on other prompts than {task.dataset} has: {'; '.join(found)}. Evaluate "
                    "it on records that were made as those of its training, or pass --ignore_differences."
                )
    return differing


def differences(model: RecommenderConfig, data: RecommenderConfig) -> list[str]:
    """
    What `recommender.json` of a model and of a data set have differently, of all that makes prompts.

    Args:
        model ([`RecommenderConfig`]), data ([`RecommenderConfig`]):
            The two.

    Returns:
        `list[str]`: A phrase for each. Templates of the model that the data set has not are no difference.
    """
    found = []
    strange = [one.name for one in data.templates if one not in model.templates]
    if strange:
        found.append(f"templates {[one.name for one in model.templates]} there, {strange} here")
    for name in _COMPARED:
        theirs, ours = getattr(model, name), getattr(data, name)
        # text alone ends in an EOS token or not
        if theirs != ours and not (name == "ends_in_eos" and model.conversational and data.conversational):
            found.append(f"{name} {theirs} there, {ours} here")
    return found


def read_systems(task: Task, files: Mapping[str, str], kind: str) -> dict[str, list]:
    """
    Scores or lists of other systems, of the records that are evaluated.

    Args:
        task ([`Task`]):
            The task.
        files (`Mapping[str, str]`):
            Files by name, of all records of the split or of those that are evaluated.
        kind (`str`):
            `"scores"`, see [`read_scores`], or `"lists"`, see [`read_lists`].

    Returns:
        `dict[str, list]`: By name.

    Raises:
        ValueError: a file is of other records. The message names the first that differs.
    """
    found, ours = {}, record_identity(task.records)
    for name, path in files.items():
        rows = (read_scores if kind == "scores" else read_lists)(path)
        theirs = read_identity(path)
        if task.rows is not None and len(rows) == task.total:
            rows = [rows[index] for index in task.rows]
            theirs = {column: [values[index] for index in task.rows] for column, values in theirs.items()}
        if len(rows) != len(task.records):
            raise ValueError(
                f"{path}: {kind} of {len(rows)} records, where --dataset_split {task.split} has {task.total} and "
                f"{len(task.records)} are evaluated. {'Score' if kind == 'scores' else 'Make lists for'} the same records."
            )
        if "candidates" not in check_same_records(theirs, ours, str(path)):
            logger.warning(
                f"{path}: says nothing of the records that its {kind} are of, so only their number was compared. "
                f"`trl_sdpo.recsys.write_{kind}(..., records=records)` writes it down."
            )
        found[name] = rows
    return found


def train_baselines(task: Task, names: Sequence[str]) -> dict[str, Scorer]:
    """Baselines by name, trained on the training records of a task."""
    validation = task.splits.get("validation")
    vectors = None
    if set(names) & set(TEXT_BASELINES):
        vectors = title_vectors(task.text_model, task.catalogue, task.config, device=task.device)
    options: dict[str, Any] = {"seed": task.seed, "vectors": vectors}
    return {name: train_baseline(name, task.train, validation, task.catalogue, **options) for name in names}


def ask_baselines(
    task: Task, scorers: Mapping[str, Scorer], excluded: list[list[str]] | None
) -> dict[str, dict[str, Any]]:
    """Scores, answers and lists of trained baselines, by protocol and name."""
    found: dict[str, dict[str, Any]] = {protocol: {} for protocol in ("ranking", "generation", "catalogue")}
    for name, scorer in scorers.items():
        if {"ranking", "generation"} & set(task.protocols):
            scores = score_records(scorer, task.records, desc=name)
            if "ranking" in task.protocols:
                found["ranking"][name] = scores
            if "generation" in task.protocols:
                titles = candidate_titles(task.records, stop_strings=task.stop_strings)
                found["generation"][name] = answers_of_scores(scores, titles)
        if "catalogue" in task.protocols:
            found["catalogue"][name] = lists_of_scorer(scorer, task.records, task.catalogue, task.top_k, excluded)
    return found


def ask_models(
    task: Task,
    models: Mapping[str, str],
    reference: str | None,
    excluded: list[list[str]] | None,
    keep: Callable[[str, list[np.ndarray]], None],
) -> dict[str, dict[str, Any]]:
    """
    Scores, answers and lists of every model, by protocol and name.

    Args:
        task ([`Task`]):
            The task. Without a catalogue it gets that of the first model that has one.
        models (`Mapping[str, str]`):
            Directories or Hub ids by name.
        reference (`str`, *optional*):
            One of them, or another one: also rank by the implicit reward against it.
        excluded (`list[list[str]]`, *optional*):
            See [`Task.excluded`].
        keep (`Callable`):
            Gets name and scores as soon as they are there.

    Returns:
        `dict[str, dict[str, Any]]`: By protocol and name.
    """
    found: dict[str, dict[str, Any]] = {protocol: {} for protocol in ("ranking", "generation", "catalogue")}
    before = None
    if reference is not None and "ranking" in task.protocols:
        before = _log_probs(task, load_model(task, models.get(reference, reference)), "reference")
    for name, path in models.items():
        recommender = load_model(task, path)
        task.catalogue = task.catalogue or recommender.catalogue
        if "ranking" in task.protocols:
            is_reference = before is not None and reference in (name, path)
            scores = before if is_reference else _log_probs(task, recommender, name)
            keep(name, scores)
            found["ranking"][name] = scores
            if before is not None and not is_reference:
                found["ranking"][f"{name}{IMPLICIT_REWARD}"] = implicit_rewards(scores, before)
            if task.pmi:
                others = _log_probs(task, recommender, f"{name} without histories", history=False)
                found["ranking"][f"{name} (mutual information)"] = implicit_rewards(scores, others)
        if "generation" in task.protocols:
            found["generation"][name] = recommender.answers(task.records, task.batch_size, desc=f"Generating, {name}")
        if "catalogue" in task.protocols:
            found["catalogue"][name] = _lists(task, recommender, excluded, name)
            if task.pmi:
                lists = _lists(task, recommender, excluded, f"{name} by mutual information", PMI)
                found["catalogue"][f"{name} (mutual information)"] = lists
        del recommender
        gc.collect()
    return found


def load_model(task: Task, path: str) -> Recommender:
    """A model with its own prompts, or those of the data set where it is from before the training, such as a base."""
    config = None
    if load_recommender_files(path).config is None:
        config = task.config
        if config is None and "catalogue" not in task.protocols:
            config = RecommenderConfig([get_template("watched")])  # which the prompts of the records do without
    return Recommender.from_pretrained(
        path, catalogue=task.catalogue, config=config, device=task.device, dtype=task.dtype
    )


def _log_probs(task: Task, recommender: Recommender, name: str, history: bool = True) -> list[np.ndarray]:
    options = {"per_token": task.per_token, "history": history}
    return recommender.log_probs(task.records, task.batch_size, desc=f"Ranking, {name}", **options)


def _lists(
    task: Task, recommender: Recommender, excluded: list[list[str]] | None, name: str, score: str = LIKELIHOOD
) -> list[list[str]]:
    exact = task.exact or score != LIKELIHOOD
    found = recommender.recommend_ids(
        [list(map(str, row)) for row in task.records["history_item_ids"]],
        top_k=task.top_k,
        num_beams=None if exact else task.beams,
        exclude_history=False,
        exclude=excluded,
        exact=exact,
        batch_size=max(1, task.batch_size // 2),
        desc=f"{'Ranking the catalogue' if exact else 'Searching the catalogue'}, {name}",
        score=score,
    )
    return [[item.item_id for item in row] for row in found]


class ScoreFiles:
    """
    The scores of a report, one file for each model.

    Args:
        directory (`Path`):
            Where to.
        records (`Dataset`):
            What they are of, which is written beside them.
    """

    def __init__(self, directory: Path, records: Dataset) -> None:
        self.directory, self.records = directory, records
        self.written: set[str] = set()

    def __call__(self, name: str, scores: list[np.ndarray]) -> None:
        """Write the scores of a system."""
        path = self.directory / f"{re.sub(r'[^0-9A-Za-z._-]+', '-', name)}.parquet"
        write_scores(scores, path, self.records)
        self.written.add(path.name)

    def remove_others(self, keep: Sequence[str]) -> None:
        """Remove the scores of an earlier report, but for those that were read for this one."""
        kept = {Path(path).resolve() for path in keep}
        for path in sorted(self.directory.glob("*.parquet")):
            if path.name not in self.written and path.resolve() not in kept:
                path.unlink()
