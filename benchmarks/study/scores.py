"""Scores and lists of every system, kept beside it: what is there is not computed again."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datasets import Dataset

from trl_sdpo import Recommender
from trl_sdpo.evaluation.baselines import lists_of_scorer, train_baseline
from trl_sdpo.files import write_text
from trl_sdpo.recsys import read_lists, read_scores, score_records, write_lists, write_scores
from trl_sdpo.recsys.baselines.identity import check_same_records, record_identity
from trl_sdpo.recsys.baselines.scores import read_identity

from .data import Setting
from .plan import NUM_CANDIDATES, SEED


BASELINES = ("popularity", "item-knn", "sasrec", "gru4rec")
SPLITS, LISTS, PRIOR = ("validation", "test", "cold"), "catalogue", "prior.json"
_TOP_K, _BEAMS = 10, 20
_BATCH_SIZE = 32


def read(setting: Setting, place: Path, split: str) -> list[np.ndarray] | None:
    """Scores of the candidates of a split as they lie in a directory, if they do, of the records of the setting."""
    path, records = place / f"{split}.parquet", setting.held_out(split)
    if not path.is_file():
        return None
    check_same_records(read_identity(path), record_identity(records), str(path))
    return read_scores(path, len(records))


def read_catalogue_lists(setting: Setting, place: Path) -> list[list[str]] | None:
    """Lists from the whole catalogue as they lie in a directory, if they do."""
    path = place / f"{LISTS}.parquet"
    return read_lists(path) if path.is_file() else None


def _keep(setting: Setting, place: Path, split: str, compute: Callable[[Dataset], list]) -> None:
    if read(setting, place, split) is None and len(records := setting.held_out(split)):
        write_scores(compute(records), place / f"{split}.parquet", records)


def score_baselines(setting: Setting) -> None:
    """Scores of all splits, and lists from the whole catalogue, by systems without a language model."""
    for name in BASELINES:
        place = setting.directory / "baselines" / name
        names = [*(split for split in SPLITS if len(setting.held_out(split))), LISTS]
        if all((place / f"{one}.parquet").is_file() for one in names):
            continue
        records = setting.records
        scorer = train_baseline(name, records["train"], records["validation"], setting.catalogue, seed=SEED)
        for split in SPLITS:
            _keep(setting, place, split, lambda records: score_records(scorer, records, desc=None))  # noqa: B023
        some = setting.held_out(LISTS)
        lists = lists_of_scorer(scorer, some, setting.catalogue, _TOP_K, setting.excluded())
        write_lists(lists, place / f"{LISTS}.parquet", some)


def score_model(setting: Setting, place: Path, splits: tuple[str, ...] = SPLITS, lists: bool = False) -> None:
    """
    Log-probabilities of the candidates of splits by the model in a directory, and of all items without a history; and
    where that is asked for, lists from the whole catalogue.
    """
    names = [f"{split}.parquet" for split in splits if len(setting.held_out(split))] + [PRIOR]
    names += [f"{LISTS}.parquet"] if lists else []
    if all((place / name).is_file() for name in names):
        return
    recommender = Recommender.from_pretrained(place, dtype="float32")
    for split in splits:
        desc = f"Ranking {split}, {place.name}"
        _keep(setting, place, split, lambda records: recommender.log_probs(records, _BATCH_SIZE, desc=desc))  # noqa: B023
    if not (place / PRIOR).is_file():
        write_text(place / PRIOR, json.dumps(item_log_probs(recommender)))
    if lists and not (place / f"{LISTS}.parquet").is_file():
        some = setting.held_out(LISTS)
        histories = [list(map(str, row)) for row in some["history_item_ids"]]
        options = {"exclude_history": False, "exclude": setting.excluded(), "desc": f"Searching, {place.name}"}
        found = recommender.recommend_ids(histories, top_k=_TOP_K, num_beams=_BEAMS, **options)
        write_lists([[item.item_id for item in row] for row in found], place / f"{LISTS}.parquet", some)


def item_log_probs(recommender: Recommender) -> dict[str, float]:
    """The log-probability of every item of the catalogue without any history, in nats, by its id."""
    items, template = recommender.catalogue, recommender.template
    answers = [template.complete(text) for text in template.answers(items.titles, items.attributes)]
    answers += answers[: -len(answers) % NUM_CANDIDATES]  # the last record is as long as the others
    rows = [answers[begin : begin + NUM_CANDIDATES] for begin in range(0, len(answers), NUM_CANDIDATES)]
    prompt = template.render_without_history()
    records = Dataset.from_list([{"prompt": prompt, "chosen": row[0], "rejected": row[1:]} for row in rows])
    scores = np.concatenate(recommender.log_probs(records, _BATCH_SIZE, desc="Items without histories"))
    return dict(zip(items.item_ids, scores[: len(items)].tolist(), strict=True))


def read_prior(setting: Setting, place: Path, split: str) -> list[np.ndarray]:
    """The log-probabilities of the candidates of a split without their histories."""
    known = json.loads((place / PRIOR).read_text(encoding="utf-8"))
    records = setting.held_out(split)
    pairs = zip(records["item_id"], records["rejected_item_ids"], strict=True)
    return [np.array([known[str(item)] for item in (target, *others)]) for target, others in pairs]
