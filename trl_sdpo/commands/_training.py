"""What `trl-sdpo sft` and `trl-sdpo train` share: their flags, the model to train, and what a run leaves."""

import argparse
import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from trl import ModelConfig, ScriptArguments
from trl.scripts.utils import TrlParser

from ..cli import suggest
from ._launch import launch_flags
from ._parser import CommandParser, FlagHelpFormatter


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

    from ..recsys.records.recommender_files import RecommenderFiles

logger = logging.getLogger(__name__)

NO_SPLIT = "none"

DATA_FLAGS = ("dataset_name", "dataset_train_split", "dataset_test_split", "template", "max_length")
MODEL_FLAGS = (
    *("model_name_or_path", "dtype", "attn_implementation", "load_in_4bit", "load_in_8bit"),
    *("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
)
RUN_FLAGS = (
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "optim", "seed"),
    *("bf16", "gradient_checkpointing", "use_cpu", "logging_steps", "report_to"),
    *("eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit", "push_to_hub", "hub_model_id"),
)
_EPILOG = (
    "The flags are those of TRL's scripts: --help_all shows the rest. --accelerate_config (single_gpu, multi_gpu, zero1, "
    "zero2, zero3, fsdp1, fsdp2, or a file) and the flags of `accelerate launch`, such as --num_processes, start the "
    "processes. Without an accelerator, --use_cpu, no --bf16 and no --gradient_checkpointing are the defaults."
)


@dataclasses.dataclass
class RecordArguments(ScriptArguments):
    """
    TRL's arguments of a script, with the splits of `trl-sdpo prepare`, and what TRL's scripts have not.

    Args:
        dataset_test_split (`str`, *optional*, defaults to `"validation"`):
            Split to evaluate on, during training and after it; `"none"` for no evaluation.
        template (`str`, *optional*):
            See [`load_records`].
        overwrite_output_dir (`bool`, *optional*, defaults to `False`):
            Remove the checkpoints that an earlier run left in `output_dir`.
    """

    dataset_name: str | None = dataclasses.field(
        default=None,
        metadata={"help": "Directory of `trl-sdpo prepare`, file of records (.json, .jsonl, .parquet), or Hub id."},
    )
    dataset_train_split: str = dataclasses.field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = dataclasses.field(
        default="validation", metadata={"help": f"Split to evaluate on; '{NO_SPLIT}' for no evaluation."}
    )
    template: str | None = dataclasses.field(
        default=None, metadata={"help": "Wording of prompts for S-DPO's json, such as music-choose. Default: choose."}
    )
    overwrite_output_dir: bool = dataclasses.field(
        default=False, metadata={"help": "Remove the checkpoints of an earlier run in --output_dir."}
    )


@dataclasses.dataclass
class TrainingRun:
    """The flags of a run, those of `accelerate launch` apart, and the words that they were read from."""

    script_args: RecordArguments
    training_args: "TrainingArguments"
    model_args: ModelConfig
    launch_words: list[str]
    words: list[str]


class TrainingParser(CommandParser):
    """
    A parser of [`RecordArguments`], a configuration of a trainer and TRL's `ModelConfig`.

    Flags of `accelerate launch` and `--accelerate_config` are taken as well, see [`_launch`].

    Args:
        config (`type`):
            The configuration of the trainer.
        help_groups (`dict[str, tuple[str, ...]]`):
            Flags that `--help` shows besides those that all have.
        **kwargs:
            Passed to `argparse.ArgumentParser`.
    """

    def __init__(self, config: type, help_groups: dict[str, tuple[str, ...]], **kwargs) -> None:
        self.launch_words: list[str] = []
        groups = {"data": DATA_FLAGS, "model": MODEL_FLAGS, **help_groups, "training": RUN_FLAGS}
        super().__init__(
            (RecordArguments, config, ModelConfig),
            groups,
            formatter_class=FlagHelpFormatter,
            epilog=_EPILOG,
            **kwargs,
        )
        self.set_defaults(output_dir=None)
        if not torch.accelerator.is_available():
            self.set_defaults(use_cpu=True, bf16=False, gradient_checkpointing=False, dataloader_pin_memory=False)

    def parse_args(self, args: list[str]) -> TrainingRun:
        """As the parent; dataset, model and output directory must be there."""
        parsed = super().parse_args(args)
        return TrainingRun(*parsed, launch_words=self.launch_words, words=list(args))

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        # past the parent, whose answer to what it does not know is an error
        known, unknown = TrlParser.parse_known_args(self, args, namespace)
        self._take_launch_words(unknown)
        for name in ("dataset_name", "model_name_or_path", "output_dir"):
            if getattr(known, name) is None:
                self.error(f"--{name} is missing. Usage: {self.usage}")
        return known, []

    def set_defaults_with_config(self, **kwargs) -> list[str]:
        others = {name: value for name, value in kwargs.items() if name not in self.flags}
        words = [word for name, value in others.items() for word in _to_words(name, value)]
        self._take_launch_words(words, where="--config: ")
        return super().set_defaults_with_config(**{name: kwargs[name] for name in kwargs if name not in others})

    def _take_launch_words(self, words: list[str], where: str = "") -> None:
        if not words:
            return
        known = launch_flags()
        for position, word in enumerate(words):
            flag = word.partition("=")[0]
            is_value = not word.startswith("-") and position > 0 and words[position - 1].startswith("-")
            if not is_value and flag not in known:
                own = list(self._option_string_actions)
                name = flag.removeprefix("--") if where else flag
                self.error(f"{where}{name!r} is no flag.{suggest(flag, [*own, *known])} See --help.")
        self.launch_words += words


def _to_words(name: str, value: Any) -> list[str]:
    """A line of YAML as words of a command line; a switch that is on stands alone."""
    if value is True or value is None:
        return [f"--{name}"]
    return [] if value is False else [f"--{name}", str(value)]


def load_policy(
    model_args: ModelConfig, training_args: "TrainingArguments"
) -> tuple["str | PeftModel", "PreTrainedTokenizerBase", dict]:
    """
    The model that a stage trains.

    Args:
        model_args ([`~trl.ModelConfig`]):
            What the flags say of the model.
        training_args ([`~transformers.TrainingArguments`]):
            Configuration of the trainer, whose `model_init_kwargs` are completed.

    Returns:
        `tuple`: The name of a model for the trainer to load, or where that is an adapter, its base with the adapter,
        to train it further; the tokenizer; and more arguments of the trainer.
    """
    from peft import PeftConfig, PeftModel
    from transformers.utils.peft_utils import find_adapter_config_file
    from trl import get_peft_config, get_quantization_config
    from trl.trainer.utils import create_model_from_path

    from ..recommender.loading import resize_for_adapter

    name, revision = model_args.model_name_or_path, model_args.model_revision
    init_kwargs = {
        "revision": revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        "trust_remote_code": training_args.trust_remote_code,
    } | (training_args.model_init_kwargs or {})
    quantization_config = get_quantization_config(model_args)
    is_adapter = find_adapter_config_file(name, revision=revision) is not None
    base = PeftConfig.from_pretrained(name, revision=revision).base_model_name_or_path if is_adapter else name
    tokenizer = _load_tokenizer(name, revision, base, training_args.trust_remote_code)
    if not is_adapter:
        training_args.model_init_kwargs = init_kwargs
        peft_config = get_peft_config(model_args)
        return name, tokenizer, {"quantization_config": quantization_config, "peft_config": peft_config}

    # the revision is the adapter's, not its base's
    model = create_model_from_path(
        base, **init_kwargs | {"revision": "main", "quantization_config": quantization_config}
    )
    resize_for_adapter(model, name, revision=revision)
    training_args.model_init_kwargs = None
    zero3 = training_args.deepspeed_plugin is not None and training_args.deepspeed_plugin.zero_stage == 3
    model = PeftModel.from_pretrained(
        model,
        name,
        is_trainable=True,
        revision=revision,
        # as TRL for a new adapter: DeepSpeed gathers parameters of one type only
        autocast_adapter_dtype=not zero3 or quantization_config is not None,
    )
    logger.info("%s: an adapter of %s, which is trained further. The LoRA flags are its own.", name, base)
    return model, tokenizer, {}


def _load_tokenizer(name: str, revision: str, base: str, trust_remote_code: bool) -> "PreTrainedTokenizerBase":
    """The tokenizer that lies beside a model; an adapter may have come without one."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        if name == base:
            raise
        return AutoTokenizer.from_pretrained(base, trust_remote_code=trust_remote_code)


def load_splits(
    script_args: RecordArguments,
) -> tuple["Dataset | IterableDataset", "Dataset | IterableDataset | None"]:
    """The split to train on, and the one to evaluate on, if any."""
    from ..pipeline.datasets import load_records, select_split

    name = script_args.dataset_name
    splits = load_records(name, script_args.dataset_config, script_args.dataset_streaming, script_args.template)
    train = select_split(splits, script_args.dataset_train_split, "--dataset_train_split", name)
    split = script_args.dataset_test_split
    if split == NO_SPLIT:
        return train, None
    if split not in splits and split == RecordArguments.dataset_test_split:
        logger.warning("The dataset %r has no split %r, so nothing is evaluated.", name, split)
        return train, None
    return train, select_split(splits, split, f"--dataset_test_split, or '{NO_SPLIT}',", name)


def check_output_dir(script_args: RecordArguments, training_args: "TrainingArguments") -> None:
    """
    Refuse to train into a directory with checkpoints of another run, which would mix with those of this one.

    Raises:
        FileExistsError: there are checkpoints, and neither are they to be resumed from nor removed.
    """
    checkpoints = sorted(Path(training_args.output_dir).glob("checkpoint-*"))
    if not checkpoints or training_args.resume_from_checkpoint:
        return
    if not script_args.overwrite_output_dir:
        raise FileExistsError(
            f"{training_args.output_dir}: holds {checkpoints[-1].name} of an earlier run. Pass --resume_from_checkpoint "
            "True to go on with that, --overwrite_output_dir to remove its checkpoints, or another --output_dir."
        )
    if training_args.should_save:
        for checkpoint in checkpoints:
            shutil.rmtree(checkpoint)


def prepare_quantized(trainer: "Trainer", model_args: ModelConfig) -> None:
    """Keep what TRL and bitsandbytes make of an adapter on a base in 4 or 8 bits from hindering its training."""
    from ..trainer.adapters import keep_4bit_layers_differentiable, raise_adapter_to_float32

    if not model_args.load_in_4bit and not model_args.load_in_8bit:
        return
    keep_4bit_layers_differentiable(trainer.model)
    # sharded, all parameters are to have one type
    if not trainer.is_fsdp_enabled and not trainer.is_deepspeed_enabled:
        raise_adapter_to_float32(trainer.model)


def train_and_save(trainer: "Trainer", script_args: RecordArguments, append_eos: bool) -> None:
    """
    Train, evaluate where there is a split for it, and save the model with its metrics.

    The output directory then holds the adapter or the model, its tokenizer, `train_results.json`, `eval_results.json`,
    `trainer_state.json` with the log, and where the dataset has them, `recommender.json` and `catalogue.json`.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer.
        script_args ([`RecordArguments`]):
            Where the dataset is.
        append_eos (`bool`):
            Whether an EOS token ended the completions, which a recommender must know.
    """
    from ..hub.model_card import copy_data_report
    from ..hub.pushes import push_command, try_again
    from ..recsys.records.recommender_files import CATALOGUE_FILE, save_recommender_files
    from ..trainer.checkpoints import resolve_checkpoint

    args = trainer.args
    checkpoint = resolve_checkpoint(args.resume_from_checkpoint, args.output_dir, args.save_only_model)
    files = _recommender_files(script_args.dataset_name, append_eos) if args.should_save else None
    if files is not None:
        save_recommender_files(args.output_dir, files.config)
        # of an earlier run; it comes back at the end
        Path(args.output_dir, CATALOGUE_FILE).unlink(missing_ok=True)
        copy_data_report(script_args.dataset_name, args.output_dir)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(args.output_dir, _internal_call=True)  # pushed below, when all that belongs to it is on disk
    trainer.log_metrics("train", result.metrics)
    # with what a report of several models plots them over
    facts = {name: getattr(args, name, None) for name in ("num_negatives", "beta")}
    trainer.save_metrics("train", result.metrics | {name: value for name, value in facts.items() if value is not None})
    trainer.save_state()
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    is_local = Path(script_args.dataset_name).exists()
    trainer.accelerator.print(f"{args.output_dir}: the model, its tokenizer and all_results.json.")
    try:
        if args.push_to_hub:
            # a path of this machine is no name for others
            trainer.push_to_hub(dataset_name=None if is_local else script_args.dataset_name)
            trainer.accelerator.print(f"Pushed to {trainer.hub_model_id}.")
    except Exception as error:
        if not getattr(error, "__notes__", None):  # of a trainer of TRL's own
            command = push_command(args.output_dir, trainer.hub_model_id, args.hub_private_repo is True)
            error.add_note(try_again(Path(args.output_dir), command))
        raise
    finally:
        if files is not None:
            # behind all pushes: few publishers let their catalogue be passed on, and `trl-sdpo push` knows which
            save_recommender_files(args.output_dir, files.config, files.catalogue)
    trainer.end()


def _recommender_files(dataset_name: str, append_eos: bool) -> "RecommenderFiles | None":
    """What a recommender needs of the dataset, with what became of the end of its completions."""
    from ..recsys.records.recommender_files import RecommenderFiles, load_recommender_files

    files = load_recommender_files(dataset_name) if Path(dataset_name).is_dir() else RecommenderFiles()
    if files.config is None:
        return None
    config = dataclasses.replace(files.config, append_eos=append_eos)
    return dataclasses.replace(files, config=config)
