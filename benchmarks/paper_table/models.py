"""Records, tokenizer and supervised fine-tuning of the table."""

import json
import logging
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig

from trl_sdpo.files import write_text
from trl_sdpo.pipeline import (
    StageState,
    TrainedStage,
    build_small_llama,
    load_model,
    load_tokenizer,
    machine_defaults,
    make_sft_trainer,
    non_overlapping_windows,
    run_stage,
    train_title_tokenizer,
)
from trl_sdpo.pipeline.digests import digest
from trl_sdpo.pipeline.stage_records import chosen_rows, tokenize_lines
from trl_sdpo.recsys import Interactions, build_preference_dataset, hit_rate, mean_reciprocal_rank, ranks
from trl_sdpo.recsys.prompts.templates import select_templates
from trl_sdpo.scoring.log_probs import completion_log_probs

from .plan import SMALL_LLAMA, TEMPLATES, Size


logger = logging.getLogger(__name__)

# Of records and candidates, of the tokenizer's model and of SFT: the same in all runs
RECORDS_SEED = 0


class ValidationCurve(TrainerCallback):
    """
    Ranks validation records every so many steps, stops when hr@1 has not risen for `patience` times, and leaves the
    model as it was at its best.

    Args:
        directory (`Path`):
            Where the curve and the best weights are kept, for a run that is taken up again.
        records ([`~datasets.Dataset`]):
            Multi-preference records of the validation split.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        every (`int`):
            Optimizer steps between two rankings.
        patience (`int`):
            Rankings without a new best after which training stops.
    """

    def __init__(
        self, directory: Path, records: Dataset, tokenizer: PreTrainedTokenizerBase, every: int, patience: int
    ):
        self.path, self.best_path = directory / "curve.json", directory / "best.safetensors"
        self.records, self.tokenizer = records, tokenizer
        self.every, self.patience = every, patience
        self.curve = json.loads(self.path.read_text())["curve"] if self.path.is_file() else []

    @property
    def best(self) -> dict:
        """The point of the curve with the highest hr@1, the earliest of several."""
        return max(self.curve, key=lambda point: point["hr@1"])

    def on_step_end(self, args, state, control, model=None, **kwargs):
        last = state.global_step == state.max_steps
        if state.global_step % self.every and not last:
            return
        positions = ranks(completion_log_probs(model, self.records, self.tokenizer, desc="Ranking, validation"))
        point = {"step": state.global_step, "hr@1": hit_rate(positions), "mrr": mean_reciprocal_rank(positions)}
        self.curve = [other for other in self.curve if other["step"] < state.global_step] + [point]
        logger.info("validation: %s", point)
        if self.best is point:
            save_file(dict(_trained(model)), self.best_path)
        write_text(self.path, json.dumps({"n": len(self.records), "curve": self.curve}))
        if len(self.curve) - 1 - self.curve.index(self.best) >= self.patience:
            control.should_training_stop = True

    def on_train_end(self, args, state, control, model=None, **kwargs):
        weights = load_file(self.best_path, device=str(model.device))
        with torch.no_grad():
            for name, parameter in _trained(model):
                parameter.copy_(weights[name])


def _trained(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """What training changes: all weights, or those of an adapter. Tied ones come once."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


@dataclass
class Style:
    """
    A prompt style with all that its runs have in common.

    Args:
        name (`str`):
            `"history"` or `"candidates"`.
        size ([`Size`]):
            How large the table is.
        directory (`Path`):
            Where its stages and runs go.
        interactions ([`Interactions`]):
            The source.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            One tokenizer for both styles.
        base (`str`):
            The model that SFT begins with.
    """

    name: str
    size: Size
    directory: Path
    interactions: Interactions
    tokenizer: PreTrainedTokenizerBase
    base: str

    def build(self, **options) -> DatasetDict:
        """Records of the style, as text. Those of validation and test do not depend on the options of the pool."""
        dataset, _ = build_preference_dataset(
            self.interactions,
            seed=RECORDS_SEED,
            prompt_style=self.name,
            template=TEMPLATES[self.name],
            num_candidates=self.size.num_candidates,
            history_size=self.size.history_size,
            **{
                "max_validation_records": self.size.validation_records,
                "max_test_records": self.size.test_records,
                **options,
            },
        )
        return dataset

    def curve_records(self) -> Dataset:
        """Validation records of the curve of SFT, tokenized."""
        size = self.size.curve_records
        return self.tokenize(self.build(max_validation_records=size, max_train_records=1)["validation"])

    @cached_property
    def records(self) -> DatasetDict:
        """The records of all splits with uniform negatives, as text."""
        # where the list is shown, negatives are those of the list
        return self.build(pool_size=self.size.pool_size if self.name == "history" else None)

    @cached_property
    def held_out(self) -> dict[str, Dataset]:
        """The records of validation and test, and of the latter those of the sweeps, tokenized."""
        records = {split: self.tokenize(self.records[split]) for split in ("validation", "test")}
        return records | {"sweep": records["test"].select(range(0, len(records["test"]), self.size.sweep_step))}

    def tokenize(self, records: Dataset) -> Dataset:
        """Token ids in the place of texts: a completion ends with its line break, without an EOS behind it."""
        return tokenize_lines(records, self.name, self.tokenizer, None)

    def num_records(self, count: int | None = None) -> int:
        """Training records of the second stage, if a run has no number of its own."""
        return self.size.preference_records[self.name] if count is None else count

    def preference_records(self, records: Dataset, seed: int, count: int | None = None) -> Dataset:
        """The same training records for all systems of a seed, whatever their negatives; fewer are the first of more."""
        return records.shuffle(seed=seed).select(range(min(self.num_records(count), len(records))))

    def training_arguments(self, directory: Path, batch_size: int, micro_batch_size: int, **more) -> dict:
        """Arguments that all stages share. A batch is as many micro-batches as it has records for."""
        micro_batch_size = next(size for size in range(micro_batch_size, 0, -1) if batch_size % size == 0)
        return {
            "output_dir": str(directory),
            "num_train_epochs": 1,
            "per_device_train_batch_size": micro_batch_size,
            "gradient_accumulation_steps": batch_size // micro_batch_size,
            "max_grad_norm": self.size.max_grad_norm,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.05,
            "logging_steps": 0.025,
            "save_steps": 0.25,
            "save_total_limit": 1,
            "max_length": None,
            **machine_defaults(),
            **more,
        }

    def stage(self, directory: Path, settings: dict) -> StageState:
        """The state of a stage that depends on these settings."""
        return StageState(directory, {name: digest(value) for name, value in settings.items()}, settings)


def lora_config(r: int) -> LoraConfig:
    """LoRA on all linear layers, with the scale and dropout of the S-DPO paper's code for r = 8."""
    return LoraConfig(r=r, lora_alpha=4 * r, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")


def make_base(size: Size, interactions: Interactions, directory: Path) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer of both styles, and the model that SFT begins with: an id, or the directory of a new one."""
    if size.model != SMALL_LLAMA:
        return load_tokenizer(size.model), size.model
    headers = [
        re.split("{history}|{candidates}", select_templates(style, template)[0].text)[0]
        for style, template in TEMPLATES.items()
    ]
    headers = [header.replace("{num_candidates}", str(size.num_candidates)) for header in headers]
    tokenizer = train_title_tokenizer(interactions.items["title"].to_list(), headers, size.vocab_size)
    if not (directory / "config.json").is_file():
        model = build_small_llama(tokenizer, size.hidden_size, size.num_layers, RECORDS_SEED)
        model.save_pretrained(directory)
    return tokenizer, str(directory)


def sft_training_records(style: Style) -> Dataset:
    """
    Rows of SFT, in which every title but those of a shown list, which are random, is learned.

    Where the number of rows is not set, they are windows of history and target that do not overlap.
    """
    records, sft = style.records["train"], style.size.sft[style.name]
    if sft.records is None:
        epochs = max(1, round(sft.epochs))
        records = non_overlapping_windows(records, style.size.history_size + 1, epochs, RECORDS_SEED)
    else:
        records = records.shuffle(seed=RECORDS_SEED).select(range(min(sft.records, len(records))))
    rows = chosen_rows(records, "train", style.tokenizer, "", None, None)
    return rows if style.name == "history" else mask_list(rows, style.tokenizer)


def mask_list(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Rows of prompt and chosen completion with the mask of what stands behind the list."""
    header = select_templates("history", TEMPLATES["history"])[0].text.partition("{history}")[0]
    header_ids = tokenizer(header, add_special_tokens=False)["input_ids"]

    def mask(row):
        ids = row["input_ids"]
        unlearned = _find(ids, header_ids) + len(header_ids)
        return {"completion_mask": [0] * unlearned + [1] * (len(ids) - unlearned)}

    return rows.map(mask, desc="Masking the list")


def _find(ids: list[int], part: list[int]) -> int:
    """The last place where a part begins."""
    for begin in range(len(ids) - len(part), -1, -1):
        if ids[begin : begin + len(part)] == part:
            return begin
    raise ValueError(f"The tokens {part} of the header before the history are not in the prompt: {ids}.")


def train_sft(style: Style, begin: str | Path) -> TrainedStage:
    """
    SFT of a style until validation hr@1 stops rising, or taken as an earlier start left it.

    Args:
        style ([`Style`]):
            The style.
        begin (`str` or `Path`):
            The model to begin with.

    Returns:
        [`~trl_sdpo.pipeline.TrainedStage`]: The stage.
    """
    sft, directory = style.size.sft[style.name], style.directory / "sft"
    adapter = style.size.lora_r if style.size.model != SMALL_LLAMA and begin == style.base else None

    def make_trainer():
        rows = sft_training_records(style)
        more = {
            "learning_rate": sft.learning_rate,
            "seed": RECORDS_SEED,
            "completion_only_loss": style.name != "history",
        }
        args = SFTConfig(**style.training_arguments(directory, sft.batch_size, sft.micro_batch_size, **more))
        peft_config = None if adapter is None else lora_config(adapter)
        model = load_model(begin, trainable=True)
        trainer = make_sft_trainer(model, args, rows, style.tokenizer, peft_config=peft_config)
        steps = max(1, len(rows) // sft.batch_size)
        every = max(1, steps // max(1, round(sft.rankings * sft.epochs)))
        trainer.add_callback(ValidationCurve(directory, style.curve_records(), style.tokenizer, every, sft.patience))
        return trainer

    settings = {"style": style.name, "begin": Path(begin).name, "seed": RECORDS_SEED, **asdict(sft)}
    return run_stage(style.stage(directory, settings), make_trainer)
