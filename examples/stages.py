"""The stages of a run: supervised fine-tuning, Softmax-DPO, ranking. Imported by the examples as a sibling module."""

import ctypes
import functools
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import language_models
import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from trl_sdpo import SoftmaxDPOConfig, SoftmaxDPOTrainer, to_prompt_completion


logger = logging.getLogger(__name__)

SETTINGS, DONE, ELAPSED = "settings.json", "stage.json", "elapsed.json"

resolve_model = functools.cache(language_models.resolve_model)


def write_json(path: Path, content: dict) -> None:
    """Write a file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _read_json(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


class Clock:
    """Seconds by phase."""

    def __init__(self):
        self.seconds = {}

    @contextmanager
    def phase(self, name: str):
        logger.info("── %s", name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)


def environment() -> dict[str, str]:
    """The machine and the versions that a result was measured with."""
    libraries = ("trl-sdpo", "trl", "transformers", "peft", "torch", "datasets")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {"device": device, "python": platform.python_version()} | {name: version(name) for name in libraries}


class _Stopwatch(TrainerCallback):
    """Leaves the seconds of training so far in each checkpoint, so that a resumed run knows them."""

    def __init__(self, checkpoint: str | None):
        before = {} if checkpoint is None else _read_json(Path(checkpoint) / ELAPSED) or {}
        self.start = time.perf_counter() - before.get("seconds", 0.0)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def on_save(self, args, state, control, **kwargs):
        write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / ELAPSED, {"seconds": self.seconds})


def run_stage(directory: Path, settings: dict, resume: bool, make_trainer: Callable[[], Trainer]) -> dict:
    """
    Train a stage and save its model, or, to resume, take up what an earlier run with the same settings left.

    Args:
        directory (`Path`):
            Where checkpoints and the final model go.
        settings (`dict`):
            All that the result depends on.
        resume (`bool`):
            Whether a finished stage is taken as it is, and an unfinished one continues from its last checkpoint. If
            not, or if the settings have changed, the stage begins anew.
        make_trainer (`Callable`):
            Makes the trainer, only when there is something to train.

    Returns:
        `dict`: `settings`, `seconds` of training, and `log`, the log history.

    Raises:
        `ValueError`: If the directory holds files of something else.
    """
    done, started = _read_json(directory / DONE), _read_json(directory / SETTINGS)
    if resume and done is not None and done["settings"] == settings:
        logger.info("%s: finished before in %.0f s, taken as it is.", directory, done["seconds"])
        return done
    checkpoint = None
    if directory.is_dir() and any(directory.iterdir()):
        if started is None:
            raise ValueError(f"{directory} holds files of something else. Pass another --output_dir, or empty it.")
        if resume and started == settings:
            checkpoint = get_last_checkpoint(str(directory))
        elif resume:
            changed = sorted(key for key in settings.keys() | started.keys() if settings.get(key) != started.get(key))
            logger.warning("%s: other settings than before (%s), so it begins anew.", directory, ", ".join(changed))
        if checkpoint is None:
            hint = "" if resume else " (--resume would keep it)"
            logger.warning("%s: what an earlier run left there is removed%s.", directory, hint)
            shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / SETTINGS, settings)
    if checkpoint is not None:
        logger.info("%s: resuming from %s.", directory, Path(checkpoint).name)

    trainer = make_trainer()
    stopwatch = _Stopwatch(checkpoint)
    trainer.add_callback(stopwatch)
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = stopwatch.seconds
    trainer.save_model()
    result = {"settings": settings, "seconds": round(seconds, 1), "log": trainer.state.log_history}
    write_json(directory / DONE, result)
    return result


def load_model(model: str | Path, dtype: str = "float32", trainable: bool = False) -> PreTrainedModel | PeftModel:
    """
    Load a model, or the adapter of a stage with its base, onto the GPU if there is one.

    Args:
        model (`str` or `Path`):
            Directory, or id on the Hub.
        dtype (`str`, *optional*, defaults to `"float32"`):
            Type of the weights.
        trainable (`bool`, *optional*, defaults to `False`):
            Whether an adapter is to be trained further.

    Returns:
        [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]: The model.
    """
    adapter = _read_json(Path(model) / "adapter_config.json")
    base = str(model) if adapter is None else adapter["base_model_name_or_path"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = AutoModelForCausalLM.from_pretrained(resolve_model(base), dtype=dtype, device_map=device)
    # the name under which an adapter remembers its base: the id, not where it lies in a cache
    loaded.name_or_path = base
    return loaded if adapter is None else PeftModel.from_pretrained(loaded, str(model), is_trainable=trainable)


def lora_config(r: int) -> LoraConfig:
    """LoRA on all linear layers, with the scale and dropout of the S-DPO paper's code for r = 8."""
    return LoraConfig(r=r, lora_alpha=4 * r, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")


def training_arguments(directory: Path, records: int, sizes: dict, seed: int) -> dict:
    """
    Arguments that both stages share.

    Args:
        directory (`Path`):
            Where checkpoints go.
        records (`int`):
            Number of training records, for logging and saving at even steps.
        sizes (`dict`):
            `epochs`, `batch_size` (of an optimizer step), `micro_batch_size`, `learning_rate` and `max_grad_norm`.
        seed (`int`):
            Seed of order, draws and adapter weights.

    Returns:
        `dict`: Keyword arguments of [`~transformers.TrainingArguments`].
    """
    gpu = torch.cuda.is_available()
    batch_size = sizes["batch_size"]
    # the largest that divides the batch, so that a step takes as many records as it says
    micro_batch_size = next(
        size for size in range(min(sizes["micro_batch_size"], batch_size), 0, -1) if batch_size % size == 0
    )
    steps = max(1, round(records * sizes["epochs"] / batch_size))
    return {
        "output_dir": str(directory),
        "seed": seed,
        "num_train_epochs": sizes["epochs"],
        "per_device_train_batch_size": micro_batch_size,
        "gradient_accumulation_steps": batch_size // micro_batch_size,
        "learning_rate": sizes["learning_rate"],
        "max_grad_norm": sizes["max_grad_norm"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "logging_steps": max(1, steps // 40),
        "save_strategy": "steps",
        "save_steps": max(1, -(-steps // 4)),
        "save_total_limit": 1,
        "report_to": "none",
        # what a GPU wants and a CPU does not
        "bf16": gpu and torch.cuda.is_bf16_supported(including_emulation=False),
        "gradient_checkpointing": gpu,
        "use_cpu": not gpu,
        "dataloader_pin_memory": gpu,
    }


def keep_freed_memory() -> None:
    """
    Let glibc keep the memory of freed tensors. By default it hands large blocks back to the system at once, and each
    training step on a CPU pays for getting them again, page by page: about a quarter of its time here.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def tokenize_without_eos(records: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """
    Tokenize records whose completions end themselves, as a line does with its line break.

    The trainers end each completion with an EOS token. Where every title of a row is a line of its own, only the last
    would have one, and a model would have to count titles to foresee it: noise in the score of a candidate.

    Args:
        records ([`~datasets.Dataset`]):
            Multi-preference records, standard.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer, under which the prompt is a prefix of the prompt with a completion.

    Returns:
        [`~datasets.Dataset`]: The records with `prompt_ids`, `chosen_ids` and `rejected_ids` in the place of the texts.

    Raises:
        `ValueError`: If a prompt is no such prefix.
    """

    def tokenize(example, index):
        texts = [example["prompt"] + completion for completion in [example["chosen"], *example.get("rejected", [])]]
        prompt_ids, *both = tokenizer([example["prompt"], *texts])["input_ids"]
        for text, ids in zip(texts, both, strict=True):
            if ids[: len(prompt_ids)] != prompt_ids or len(ids) == len(prompt_ids):
                raise ValueError(
                    f"Row {index}, column `prompt`: its tokens are not the first of {text!r}. Pass a --template whose "
                    "prompt ends where a token of this tokenizer ends."
                )
        chosen_ids, *rejected_ids = [ids[len(prompt_ids) :] for ids in both]
        return {"prompt_ids": prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids}

    columns = [column for column in ("prompt", "chosen", "rejected") if column in records.column_names]
    return records.map(tokenize, with_indices=True, remove_columns=columns, desc="Tokenizing")


def sft_records(records: Dataset) -> Dataset:
    """
    Prompt and chosen completion of multi-preference records, standard or tokenized, as [`~trl.SFTTrainer`] takes them.
    Rows with `input_ids` and a `completion_mask` of their own stay as they are.
    """
    if "input_ids" in records.column_names:
        return records
    if "prompt_ids" not in records.column_names:
        return to_prompt_completion(records)

    def join(example):
        prompt_ids, chosen_ids = example["prompt_ids"], example["chosen_ids"]
        return {
            "input_ids": prompt_ids + chosen_ids,
            "completion_mask": [0] * len(prompt_ids) + [1] * len(chosen_ids),
        }

    return records.map(join, remove_columns=records.column_names, desc="Joining prompts and completions")


def sft_trainer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Dataset,
    arguments: dict,
    all_tokens: bool,
    lora_r: int | None = None,
) -> SFTTrainer:
    """
    Trainer of supervised fine-tuning on the chosen completions of multi-preference records.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to train, or to continue.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        records ([`~datasets.Dataset`]):
            Multi-preference records.
        arguments (`dict`):
            Of [`training_arguments`], with changes.
        all_tokens (`bool`):
            Whether the prompt is learned too: where a title of the history stands as a completion does, every title
            of a row teaches what comes next.
        lora_r (`int`, *optional*):
            Rank of a new adapter. If `None`, the model is trained as it is.

    Returns:
        [`~trl.SFTTrainer`]: The trainer.
    """
    return SFTTrainer(
        model=model,
        # rows are never cut: TRL would cut the completion
        args=SFTConfig(**arguments, max_length=None, completion_only_loss=not all_tokens),
        train_dataset=sft_records(records),
        processing_class=tokenizer,
        peft_config=None if lora_r is None else lora_config(lora_r),
    )


def softmax_dpo_trainer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Dataset,
    arguments: dict,
    lora_r: int | None = None,
    **options,
) -> SoftmaxDPOTrainer:
    """
    Trainer of Softmax-DPO, which continues the adapter of the model or, where it has none, begins one.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model after supervised fine-tuning. As it is now, it is the reference.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        records ([`~datasets.Dataset`]):
            Multi-preference records.
        arguments (`dict`):
            Of [`training_arguments`].
        lora_r (`int`, *optional*):
            Rank of a new adapter.
        **options:
            More arguments of [`~trl_sdpo.SoftmaxDPOConfig`], such as `beta` and `num_negatives`.

    Returns:
        [`~trl_sdpo.SoftmaxDPOTrainer`]: The trainer.
    """
    return SoftmaxDPOTrainer(
        model=model,
        args=SoftmaxDPOConfig(**arguments, **options),
        train_dataset=records,
        processing_class=tokenizer,
        peft_config=None if lora_r is None else lora_config(lora_r),
    )


def window_indices(records: Dataset, window: int, epochs: int, seed: int) -> np.ndarray:
    """
    Choose training records whose windows of history and target do not overlap, cut anew in every epoch.

    With a loss on all tokens of a row, each title of a user is then learned once an epoch, at a place in the window
    that changes.

    Args:
        records ([`~datasets.Dataset`]):
            Records with the columns `user_id` and `position`.
        window (`int`):
            Titles in a window: the history and the target.
        epochs (`int`):
            Number of cuts.
        seed (`int`):
            Seed of the cuts.

    Returns:
        `np.ndarray`: Indices of records, of one cut after the other. A trainer shuffles them all.
    """
    generator = np.random.default_rng(seed)
    _, users = np.unique(np.asarray(records["user_id"]), return_inverse=True)
    positions = np.asarray(records["position"])
    chosen = []
    for _ in range(epochs):
        offsets = generator.integers(window, size=users.max() + 1)
        chosen.append(np.flatnonzero((positions - offsets[users]) % window == 0))
    return np.concatenate(chosen)
