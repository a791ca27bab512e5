"""One run of the second stage: its training records, its training, and its scores on disk."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from datasets import Dataset
from peft import PeftModel
from transformers import Trainer
from trl import SFTConfig

from trl_sdpo import SoftmaxDPOConfig
from trl_sdpo.files import write_text
from trl_sdpo.pipeline import TrainedStage, load_model, make_sft_trainer, make_softmax_dpo_trainer, run_stage
from trl_sdpo.recsys import read_scores, score_records, write_scores
from trl_sdpo.recsys.baselines.scores import Scorer
from trl_sdpo.scoring.generation import generate_answers, generation_metrics
from trl_sdpo.scoring.log_probs import completion_log_probs
from trl_sdpo.scoring.mining import mine_negatives

from .models import RECORDS_SEED, Style, lora_config
from .plan import Run


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
        model = load_model(style.directory / "sft")
        return mine_negatives(records, model, style.tokenizer, num_negatives=run.num_negatives)
    return records


def make_trainer(style: Style, run: Run, records: Dataset, directory: Path) -> Trainer:
    """The trainer of a run: an adapter on the SFT checkpoint, new where the checkpoint has none, whatever the loss."""
    size = style.size
    model = load_model(style.directory / "sft", trainable=True)
    peft_config = None if isinstance(model, PeftModel) else lora_config(size.lora_r)
    more = {"learning_rate": run.learning_rate, "seed": run.seed}
    arguments = style.training_arguments(directory, size.batch_size, size.micro_batch_size, **more)
    if run.loss == "sft":
        return make_sft_trainer(model, SFTConfig(**arguments), records, style.tokenizer, peft_config=peft_config)
    options = {"loss_type": run.loss, "num_negatives": run.num_negatives, "beta": run.beta}
    args = SoftmaxDPOConfig(**arguments, **options)
    return make_softmax_dpo_trainer(model, args, records, style.tokenizer, peft_config=peft_config)


def train(style: Style, run: Run, sft: TrainedStage, sasrec: Scorer | None = None) -> TrainedStage:
    """Train a run, or take it as an earlier start left it."""
    directory = style.directory / "runs" / run.name
    settings = asdict(run) | {
        "style": style.name,
        "records": style.num_records(run.records),
        "batch_size": style.size.batch_size,
        "lora_r": style.size.lora_r,
        "sft": json.loads((sft.directory / "_run.json").read_text(encoding="utf-8"))["digests"],
    }
    return run_stage(
        style.stage(directory, settings),
        lambda: make_trainer(style, run, training_records(style, run, sasrec), directory),
    )


def score(style: Style, place: Path, split: str) -> list[np.ndarray]:
    """Log-probabilities of the candidates of a split by the model in a directory, from disk if they are there."""

    def compute():
        model = load_model(place)
        return completion_log_probs(model, style.held_out[split], style.tokenizer, desc=f"Ranking, {place.name}")

    return cached_scores(place / f"{split}.parquet", compute)


def generate(style: Style, place: Path) -> dict:
    """hr@1 and ValidRatio of what the model in a directory writes for the test prompts, from disk if it is there."""
    path = place / "generation.json"
    if not path.is_file():
        records, model = style.held_out["test"], load_model(place)
        answers = generate_answers(model, records, style.tokenizer, batch_size=32)
        metrics = {
            rule: generation_metrics(answers, records, rule, seed=RECORDS_SEED, processing_class=style.tokenizer)
            for rule in ("whole", "substring")
        }
        write_text(path, json.dumps(metrics | {"answers": answers}))
    return json.loads(path.read_text(encoding="utf-8"))
