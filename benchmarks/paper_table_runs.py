"""One run of the second stage: its training records, its training, and its scores on disk. Imported by paper_table.py."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import stages
from datasets import Dataset
from paper_table_models import RECORDS_SEED, Style
from paper_table_plan import Run
from peft import PeftModel
from transformers import Trainer

from trl_sdpo.recsys import read_scores, score_records, write_scores
from trl_sdpo.recsys.baselines.scores import Scorer
from trl_sdpo.scoring.generation import generate_answers, generation_metrics
from trl_sdpo.scoring.log_probs import completion_log_probs
from trl_sdpo.scoring.mining import mine_negatives


def cached_scores(path: Path, compute: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
    """Scores from disk, or computed and written there."""
    if not path.is_file():
        write_scores(compute(), path)
    return read_scores(path)


def hardest_of_scorer(records: Dataset, scorer: Scorer, num_negatives: int) -> Dataset:
    """Keep of every pool the negatives that a scorer of item ids puts highest."""
    scores = score_records(scorer, records)

    def keep(record, index):
        places = np.argsort(-scores[index][1:], kind="stable")[:num_negatives]
        return {name: [record[name][place] for place in places] for name in ("rejected", "rejected_item_ids")}

    return records.map(keep, with_indices=True, desc="Keeping the hardest negatives")


def training_records(style: Style, run: Run, sasrec: Scorer | None = None) -> Dataset:
    """
    The records of a run, tokenized.

    Args:
        style ([`Style`]):
            The style.
        run ([`Run`]):
            Its `negatives` are `"uniform"`; `"popularity"` or `"hard"` (neighbours of the history), drawn from the
            catalogue, see [`~trl_sdpo.recsys.sample_negatives`]; or, of the uniform pool, the K that the SFT
            checkpoint (`"mined"`) or SASRec (`"sasrec"`) puts highest.
        sasrec (`Callable`, *optional*):
            Scorer of `"sasrec"`.

    Returns:
        [`~datasets.Dataset`]: The records: the same prompts and targets for all runs of a seed.
    """
    if run.negatives in ("popularity", "hard"):
        records = style.build(negatives=run.negatives, pool_size=style.size.pool_size)["train"]
        return style.tokenize(style.preference_records(records, run.seed, run.records))
    records = style.preference_records(style.records["train"], run.seed, run.records)
    if run.negatives == "sasrec":
        return style.tokenize(hardest_of_scorer(records, sasrec, run.num_negatives))
    records = style.tokenize(records)
    if run.negatives == "mined":
        model = style.load(style.directory / "sft")
        return mine_negatives(records, model, style.tokenizer, num_negatives=run.num_negatives)
    return records


def make_trainer(style: Style, run: Run, records: Dataset, directory: Path) -> Trainer:
    """The trainer of a run: an adapter on the SFT checkpoint, new where the checkpoint has none, whatever the loss."""
    size = style.size
    model = style.load(style.directory / "sft", trainable=True)
    adapter = None if isinstance(model, PeftModel) else size.lora_r
    sizes = {"epochs": 1, "batch_size": size.batch_size, "learning_rate": run.learning_rate}
    arguments = style.training_arguments(directory, len(records), sizes, run.seed)
    if run.loss == "sft":
        records = records.remove_columns("rejected_ids")
        return stages.sft_trainer(model, style.tokenizer, records, arguments, all_tokens=False, lora_r=adapter)
    options = {"loss_type": run.loss, "num_negatives": run.num_negatives, "beta": run.beta, "max_length": None}
    return stages.softmax_dpo_trainer(model, style.tokenizer, records, arguments, lora_r=adapter, **options)


def train(style: Style, run: Run, sft: dict, sasrec: Scorer | None = None) -> dict:
    """Train a run, or take it as an earlier start left it. Returns what [`stages.run_stage`] does."""
    directory = style.directory / "runs" / run.name
    settings = asdict(run) | {
        "style": style.name,
        "records": style.num_records(run.records),
        "batch_size": style.size.batch_size,
        "lora_r": style.size.lora_r,
        "sft": sft["settings"],
    }
    return stages.run_stage(
        directory,
        settings,
        True,
        lambda: make_trainer(style, run, training_records(style, run, sasrec), directory),
    )


def score(style: Style, place: Path, split: str) -> list[np.ndarray]:
    """Log-probabilities of the candidates of a split by the model in a directory, from disk if they are there."""

    def compute():
        model = style.load(place)
        return completion_log_probs(model, style.held_out[split], style.tokenizer, desc=f"Ranking, {place.name}")

    return cached_scores(place / f"{split}.parquet", compute)


def generate(style: Style, place: Path) -> dict:
    """hr@1 and ValidRatio of what the model in a directory writes for the test prompts, from disk if it is there."""
    path = place / "generation.json"
    if not path.is_file():
        records, model = style.held_out["test"], style.load(place)
        answers = generate_answers(model, records, style.tokenizer, batch_size=32)
        metrics = {
            rule: generation_metrics(answers, records, rule, seed=RECORDS_SEED, processing_class=style.tokenizer)
            for rule in ("whole", "substring")
        }
        stages.write_json(path, metrics | {"answers": answers})
    return json.loads(path.read_text(encoding="utf-8"))
