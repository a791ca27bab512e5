"""Scores and lists of every system, kept beside it: what is there is not computed again."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from trl_sdpo import Recommender
from trl_sdpo.evaluation.baselines import lists_of_scorer, title_vectors, train_baseline
from trl_sdpo.files import write_text
from trl_sdpo.recsys import read_lists, read_scores, score_records, write_lists, write_scores
from trl_sdpo.recsys.baselines.identity import check_same_records, record_identity
from trl_sdpo.recsys.baselines.scores import read_identity

from .data import Setting
from .plan import ATTRIBUTES, NUM_CANDIDATES, SEED


BASELINES = ("popularity", "content", "item-knn", "sasrec", "gru4rec")
# With embeddings of what prompts show of items, by the SFT checkpoint
TEXT, SASREC_TEXT = "text", "sasrec-text"
# All others have the same score for all items without a training event
_SCORE_COLD = ("content", TEXT, SASREC_TEXT)
COLD, COLD_VALIDATION = "cold-test", "cold-validation"
WARM, LISTS, PRIOR = ("validation", "test"), "catalogue", "prior.json"
SPLITS = (*WARM, COLD, COLD_VALIDATION)
# Log-probabilities of what stands before the titles alone
ATTRIBUTES_OF = "attributes-of-"
_TOP_K, _BEAMS = 10, 20
_BATCH_SIZE = 32


def read(setting: Setting, place: Path, split: str) -> list[np.ndarray] | None:
    """Scores of the candidates of a split as they lie in a directory, if they do, of the records of the setting."""
    path, records = place / f"{split}.parquet", setting.held_out(split.removeprefix(ATTRIBUTES_OF))
    if not path.is_file():
        return None
    check_same_records(read_identity(path), record_identity(records), str(path))
    return read_scores(path, len(records))


def read_catalogue_lists(setting: Setting, place: Path) -> list[list[str]] | None:
    """Lists from the whole catalogue as they lie in a directory, if they do."""
    path = place / f"{LISTS}.parquet"
    return read_lists(path) if path.is_file() else None


def _keep(setting: Setting, place: Path, split: str, compute: Callable[[Dataset], list]) -> None:
    if read(setting, place, split) is None:
        records = setting.held_out(split.removeprefix(ATTRIBUTES_OF))
        write_scores(compute(records), place / f"{split}.parquet", records)


def score_baselines(setting: Setting, names: Sequence[str], text_model: Path | None = None) -> None:
    """Scores of all splits, and lists from the whole catalogue, by systems that are not trained on text."""
    for name in names:
        place = setting.directory / "baselines" / name
        splits = SPLITS if name in _SCORE_COLD else WARM
        if all((place / f"{one}.parquet").is_file() for one in (*splits, LISTS)):
            continue
        records = setting.records
        vectors = None
        if text_model is not None:
            vectors = title_vectors(str(text_model), setting.catalogue, setting.files.config)
        options = {"seed": SEED, "vectors": vectors}
        scorer = train_baseline(name, records["train"], records["validation"], setting.catalogue, **options)
        for split in splits:
            _keep(setting, place, split, lambda records: score_records(scorer, records, desc=None))  # noqa: B023
        some = setting.held_out(LISTS)
        lists = lists_of_scorer(scorer, some, setting.catalogue, _TOP_K, setting.excluded())
        write_lists(lists, place / f"{LISTS}.parquet", some)


def score_model(setting: Setting, place: Path, splits: tuple[str, ...] = SPLITS, more: bool = False) -> None:
    """
    Log-probabilities of the candidates of splits by the model in a directory, and for fits of all items without a history;
    and where more is asked for, of the attributes of cold candidates alone, and lists from the whole catalogue.
    """
    fitted = "validation" in splits
    names = [*(f"{split}.parquet" for split in splits), *([PRIOR] if fitted else [])]
    parts = [ATTRIBUTES_OF + split for split in (COLD_VALIDATION, COLD)] if setting.form == ATTRIBUTES else []
    names += [f"{name}.parquet" for name in (*parts, LISTS)] if more else []
    if all((place / name).is_file() for name in names):
        return
    recommender = Recommender.from_pretrained(place, dtype="float32")
    for split in splits:
        desc = f"Ranking {split}, {place.name}"
        _keep(setting, place, split, lambda records: recommender.log_probs(records, _BATCH_SIZE, desc=desc))  # noqa: B023
    if fitted and not (place / PRIOR).is_file():
        write_text(place / PRIOR, json.dumps(item_log_probs(recommender)))
    if not more:
        return
    for split in parts:
        _keep(setting, place, split, lambda records: attribute_log_probs(recommender, records))
    if not (place / f"{LISTS}.parquet").is_file():
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


def attribute_log_probs(recommender: Recommender, records: Dataset) -> list[np.ndarray]:
    """Log-probabilities, in nats, of what stands before the titles of the candidates of records."""
    histories = [list(map(str, row)) for row in records["history_item_ids"]]
    candidates = [list(map(str, row)) for row in items_of(records)]
    return [parts[:, 0] for parts in recommender.score_parts(histories, candidates, _BATCH_SIZE)]


def items_of(records: Dataset) -> list[list]:
    """The candidates of each record, the target first."""
    pairs = zip(records["item_id"], records["rejected_item_ids"], strict=True)
    return [[target, *others] for target, others in pairs]


def read_prior(setting: Setting, place: Path, split: str) -> list[np.ndarray] | None:
    """The log-probabilities of the candidates of a split without their histories, where they were asked for."""
    if not (place / PRIOR).is_file():
        return None
    known = json.loads((place / PRIOR).read_text(encoding="utf-8"))
    return [np.array([known[str(item)] for item in row]) for row in items_of(setting.held_out(split))]
