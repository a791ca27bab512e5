"""The language models: the base, supervised fine-tuning, and the second stage."""

import json
from pathlib import Path

from peft import LoraConfig
from trl import SFTConfig

from trl_sdpo import RankingCallback, SoftmaxDPOConfig
from trl_sdpo.pipeline import (
    StageState,
    TrainedStage,
    load_model,
    load_tokenizer,
    machine_defaults,
    make_sft_trainer,
    make_small_llama,
    non_overlapping_windows,
    run_stage,
)
from trl_sdpo.pipeline.digests import digest, digest_of_model
from trl_sdpo.pipeline.stage_records import tokenize_lines

from .data import Setting
from .plan import HISTORY_SIZE, SEED, SMALL_LLAMA, Size, System


_METRIC = "eval_sample_mrr"


def make_base(setting: Setting) -> str:
    """The model that SFT begins with: an id, or the directory of a new one."""
    size, directory = setting.size, setting.directory / "base"
    if size.model != SMALL_LLAMA:
        return size.model
    if not (directory / "config.json").is_file():
        make_small_llama(setting.run.data, directory, seed=SEED, **size.base)
    return str(directory)


def train_sft(setting: Setting, base: str) -> TrainedStage:
    """
    Supervised fine-tuning on all titles of a row, ranked on validation records as it goes and taken at its best mrr, or
    as an earlier start left it. Its log has the curve.
    """
    size, directory = setting.size, setting.directory / "sft"
    every = 1 / (size.rankings * size.sft_epochs)
    arguments = {
        **_arguments(size, size.sft_batch_size, size.sft_learning_rate, SEED),
        "completion_only_loss": False,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_steps": every,
        "load_best_model_at_end": True,
        "metric_for_best_model": _METRIC,
        "greater_is_better": True,
    }

    def make_trainer():
        train = setting.records["train"]
        rows = non_overlapping_windows(train, HISTORY_SIZE + 1, size.sft_epochs, SEED)
        ranked = setting.records["validation"].select(range(min(size.ranked, size.validation_records)))
        tokenizer, args = load_tokenizer(base), SFTConfig(output_dir=str(directory), **arguments)
        peft_config = None if size.model == SMALL_LLAMA else _lora(size)
        options = {"evaluation": ranked.select(range(1)), "peft_config": peft_config}
        trainer = make_sft_trainer(load_model(base, trainable=True), args, rows, tokenizer, **options)
        ranked = tokenize_lines(ranked, "validation", tokenizer, None)
        trainer.add_callback(RankingCallback(trainer, ranked, num_records=None, batch_size=32))
        return trainer

    data = json.loads((setting.run.data / "_run.json").read_text(encoding="utf-8"))["digests"]
    settings = {**arguments, "model": digest_of_model(Path(base)), "data": data, "ranked": size.ranked}
    state = StageState(directory, {name: digest(value) for name, value in settings.items()}, settings)
    return run_stage(state, make_trainer, dataset=setting.run.data)


def sft_curve(stage: TrainedStage) -> list[dict]:
    """The rankings of SFT: `step`, `hr@1` and `mrr`."""
    points = {entry["step"]: entry for entry in stage.log if _METRIC in entry}
    names = ("hr@1", "mrr", "n")
    return [{"step": step} | {name: points[step][f"eval_sample_{name}"] for name in names} for step in sorted(points)]


def train(setting: Setting, system: System, learning_rate: float, seed: int, sft: TrainedStage) -> TrainedStage:
    """
    Train a system of the second stage, or take it as an earlier start left it: a new adapter on the SFT checkpoint,
    whatever the loss. The seed is that of the records, their order, the draw of negatives and the adapter.
    """
    size, name = setting.size, system.folder(learning_rate, seed)
    records = setting.preference_records(system.negatives, seed)
    arguments = _arguments(size, size.batch_size, learning_rate, seed)
    # an adapter of the first stage is trained further
    options = {"name": name, "peft_config": _lora(size) if size.model == SMALL_LLAMA else None}
    if system.loss == "sft":
        return setting.run.sft(sft, SFTConfig(**arguments), records, **options)
    arguments |= {"loss_type": system.loss, "num_negatives": system.num_negatives, "beta": size.beta}
    if system.negatives == "rated":
        arguments["unrated_score"] = setting.source.lowest_rating
    return setting.run.align(sft, SoftmaxDPOConfig(**arguments), records, **options)


def _arguments(size: Size, batch_size: int, learning_rate: float, seed: int) -> dict:
    """Arguments that all stages share. A batch is as many micro-batches as it has records for."""
    micro = next(count for count in range(size.micro_batch_size, 0, -1) if batch_size % count == 0)
    return {
        "num_train_epochs": 1,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": batch_size // micro,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "logging_steps": 0.025,
        "save_strategy": "steps",
        "save_steps": 0.5,
        "save_total_limit": 1,
        "max_length": None,
        "seed": seed,
        **machine_defaults(),
    }


def _lora(size: Size) -> LoraConfig:
    """LoRA on all linear layers, with the scale and dropout of the S-DPO paper's code for r = 8."""
    r = size.lora_r
    return LoraConfig(r=r, lora_alpha=4 * r, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
