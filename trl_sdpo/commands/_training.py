"""What `trl-sdpo sft` and `trl-sdpo train` share: their flags, and the way from these to a trainer."""

import argparse
import dataclasses
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import ModelConfig, ScriptArguments
from trl.scripts.utils import TrlParser

from .._errors import INTERRUPTED, LAUNCH, SPOKEN_FOR, how_training_goes_on, passing_on_termination
from ..cli import suggest
from ..pipeline.machine import OLD_CHECKPOINTING, checkpointing_name, machine_defaults
from ._parser import CommandParser, check_model_flag, error_of


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

NO_SPLIT = "none"

ACCELERATE_CONFIG = "--accelerate_config"
# What launchers set in the processes that they start
_OF_A_LAUNCHER = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_RANK")

DATA_FLAGS = ("dataset_name", "dataset_train_split", "dataset_test_split", "template", "max_length")
MODEL_FLAGS = (
    *("model_name_or_path", "dtype", "attn_implementation", "load_in_4bit", "load_in_8bit"),
    *("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
)
RUN_FLAGS = (
    *("output_dir", "overwrite", "resume_from_checkpoint", "num_train_epochs", "max_steps"),
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
        overwrite (`bool`, *optional*, defaults to `False`):
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
    overwrite: bool = dataclasses.field(
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

    Flags of `accelerate launch` and `--accelerate_config` are taken as well, see [`launch`].

    Args:
        config (`type`):
            The configuration of the trainer.
        help_groups (`dict[str, tuple[str, ...]]`):
            Flags that `--help` shows besides those that all have.
        check_values (`Callable`, *optional*):
            Raises a `ValueError` for values that the configuration would refuse, of which a file is to be told before its
            first command runs.
        **kwargs:
            Passed to `argparse.ArgumentParser`.
    """

    def __init__(
        self,
        config: type,
        help_groups: dict[str, tuple[str, ...]],
        check_values: Callable[[argparse.Namespace], None] = lambda values: None,
        **kwargs,
    ) -> None:
        self.launch_words: list[str] = []
        groups = {"data": DATA_FLAGS, "model": MODEL_FLAGS, **help_groups, "training": RUN_FLAGS}
        self._check_values = check_values
        super().__init__(
            (RecordArguments, config, ModelConfig),
            groups,
            epilog=_EPILOG,
            **kwargs,
        )
        self.set_defaults(output_dir=None)
        defaults = machine_defaults()
        # as TRL's flag, which may be given: the other name would win over it
        defaults = {OLD_CHECKPOINTING if one == checkpointing_name() else one: defaults[one] for one in defaults}
        self.set_defaults(**defaults)

    def check_file(self, path: str) -> None:
        """As the parent, without making the dataclasses: TRL's take an accelerator into this process."""
        self._sets_environment = False
        try:
            self._set_defaults_from_file(path)
        except (ValueError, OSError) as error:
            self.error(str(error))
        try:
            self._check_values(self.parse_known_args([])[0])
        except ValueError as error:
            self.error(str(error))

    def parse_args(self, args: list[str]) -> TrainingRun:
        """As the parent; dataset, model and output directory must be there."""
        script, training, model = super().parse_args(args)
        return TrainingRun(script, training, model, launch_words=self.launch_words, words=list(args))

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        # past the parent, whose answer to what it does not know is an error
        known, unknown = TrlParser.parse_known_args(self, args, namespace)
        self._take_launch_words(unknown)
        for name in ("dataset_name", "model_name_or_path", "output_dir"):
            if getattr(known, name) is None:
                self.error(f"--{name} is missing. Usage: {self.usage}")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(known, name) < 1:
                self.error(f"--{name} is {getattr(known, name)}. Pass at least 1.")
        new = checkpointing_name()
        if new != OLD_CHECKPOINTING and getattr(known, new, None) is None:
            setattr(known, new, known.gradient_checkpointing)
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


def load_splits(
    script_args: RecordArguments,
) -> tuple["Dataset | IterableDataset", "Dataset | IterableDataset | None"]:
    """The split to train on, and the one to evaluate on, if any."""
    from ..pipeline.datasets import load_records, select_split

    name = script_args.dataset_name
    with error_of("--dataset_name"):
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
    if not script_args.overwrite:
        raise FileExistsError(
            f"{training_args.output_dir}: holds {checkpoints[-1].name} of an earlier run. Pass --resume_from_checkpoint "
            "True to go on with that, --overwrite to remove its checkpoints, or another --output_dir."
        )
    if training_args.should_save:
        for checkpoint in checkpoints:
            shutil.rmtree(checkpoint)


def check_names(args: TrainingRun) -> None:
    """Say at once, before anything is loaded, that what is named as a model is none."""
    model_args = args.model_args
    check_model_flag("model_name_or_path", model_args.model_name_or_path, revision=model_args.model_revision)


def train_here(args: TrainingRun, make_trainer: Callable) -> None:
    """
    Train in this process, which may be one of several.

    Args:
        args ([`TrainingRun`]):
            The flags.
        make_trainer (`Callable`):
            [`make_sft_trainer`] or [`make_softmax_dpo_trainer`].
    """
    from ..pipeline.models import load_policy, prepare_quantized
    from ..pipeline.stage_records import completions_are_lines
    from ..pipeline.training import train_and_save

    script_args, training_args, model_args = args.script_args, args.training_args, args.model_args
    check_output_dir(script_args, training_args)
    train, evaluation = load_splits(script_args)
    check_names(args)
    model, tokenizer, kwargs = load_policy(model_args, training_args)
    if getattr(training_args, "eos_token", None) is not None:
        tokenizer.eos_token = training_args.eos_token
    trainer = make_trainer(model, training_args, train, tokenizer, evaluation, **kwargs)
    prepare_quantized(trainer, model_args)
    append_eos = not completions_are_lines(train)
    train_and_save(trainer, script_args.dataset_name, training_args.resume_from_checkpoint, append_eos)


def how_it_goes_on(args: TrainingRun) -> str:
    """What the same command does after an interruption."""
    training_args = args.training_args
    return how_training_goes_on(training_args.output_dir, bool(training_args.resume_from_checkpoint))


def launch_flags() -> list[str]:
    """The flags of `accelerate launch`, and TRL's name for a file of them."""
    from accelerate.commands.launch import launch_command_parser

    return [ACCELERATE_CONFIG, *launch_command_parser()._option_string_actions]


def needs_launch(launch_words: Sequence[str]) -> bool:
    """
    Whether a run is to be started by accelerate rather than in this process: it was asked for, accelerate was
    configured on this machine, or there are several accelerators. In a process of a launcher it never is.
    """
    import torch
    from accelerate.commands.config import default_config_file

    if any(name in os.environ for name in _OF_A_LAUNCHER):
        return False
    return bool(launch_words) or os.path.isfile(default_config_file) or torch.accelerator.device_count() > 1


def launch(module: str, launch_words: Sequence[str], words: Sequence[str]) -> None:
    """
    Run a module under `accelerate launch`.

    Args:
        module (`str`):
            Name of the module.
        launch_words (`Sequence[str]`):
            Flags of `accelerate launch`; `--accelerate_config` takes a file or the name of a file that TRL ships.
        words (`Sequence[str]`):
            The words of the module.

    Raises:
        ValueError: there is no such file, or the flags do not go together.
        SystemExit: the run failed.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    # the processes find this very package, wherever it is
    root = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    launch_words = resolve_accelerate_config_argument(list(launch_words))
    args = launch_command_parser().parse_args([*launch_words, "--module", module, *words])
    spoken_for = os.environ.get(SPOKEN_FOR)
    os.environ.setdefault(SPOKEN_FOR, LAUNCH)
    try:
        with passing_on_termination():
            launch_command(args)
    except subprocess.CalledProcessError as error:
        if error.returncode in (INTERRUPTED, -signal.SIGINT):
            raise KeyboardInterrupt from error
        sys.exit(error.returncode)
    finally:
        if spoken_for is None:  # this process speaks for itself
            del os.environ[SPOKEN_FOR]
