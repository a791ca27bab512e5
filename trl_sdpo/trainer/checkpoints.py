"""
Checkpoints of a run that may have been killed: which of them are whole.

`Trainer` writes `trainer_state.json` last, so its presence says that the other files were written before it. The files
are looked at all the same: a full disk or an interrupted copy or deletion leaves parts of a checkpoint, too.
"""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from ..files import write_text
from ..prefix_sharing.collator import passes_of_stream
from .checks import check_trained


logger = get_logger(__name__)

# What one of must be there, of the model and of the optimizer: of plain, PEFT, FSDP and DeepSpeed checkpoints
_MODEL = ("model*.safetensors", "pytorch_model*", "adapter_model.*", "*/adapter_model.*", "latest")
STREAM_FILE = "stream.json"  # how many processes read a stream, and whether each reads shards of its own
_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_*", "latest")


def why_checkpoint_is_not_whole(checkpoint: str | os.PathLike, with_optimizer: bool = True) -> str | None:
    """
    Say what is missing from a checkpoint of `Trainer`, as a run leaves it that was killed while writing it.

    Args:
        checkpoint (`str` or `os.PathLike`):
            Folder of the checkpoint.
        with_optimizer (`bool`, *optional*, defaults to `True`):
            Whether the state of the optimizer must be there, which `save_only_model=True` leaves out.

    Returns:
        `str` or `None`: The reason, which names the file, or `None` if the checkpoint is whole. Only the ends of large
        files are read, which a write that was cut short lacks.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        return "it is not a folder"
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {TRAINER_STATE_NAME}, which is written last"
    except ValueError:
        return f"{TRAINER_STATE_NAME} is cut short"
    if not _has_any(checkpoint, _MODEL):
        return "it has no weights"
    if with_optimizer and not _has_any(checkpoint, _OPTIMIZER):
        return "it has no state of the optimizer"
    reasons = (_why_file_is_not_whole(path) for path in sorted(checkpoint.rglob("*")) if path.is_file())
    return next((reason for reason in reasons if reason is not None), None)


def _has_any(checkpoint: Path, patterns: tuple[str, ...]) -> bool:
    return any(next(checkpoint.glob(pattern), None) is not None for pattern in patterns)


def _why_file_is_not_whole(path: Path) -> str | None:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):  # compares the length of the file with its header
                return None
        except SafetensorError:
            return f"{path.name} is cut short"
    if path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):  # the directory of a zip is its end
        return f"{path.name} is cut short"
    if path.name.endswith(".index.json"):
        try:
            shards = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        except ValueError:
            return f"{path.name} is cut short"
        missing = sorted(shard for shard in shards if not (path.parent / shard).is_file())
        return f"{missing[0]} is missing" if missing else None
    return None


def find_last_checkpoint(
    output_dir: str | os.PathLike, with_optimizer: bool = True
) -> tuple[str | None, dict[str, str]]:
    """
    Find the last whole checkpoint of a run.

    Args:
        output_dir (`str` or `os.PathLike`):
            Folder of the run.
        with_optimizer (`bool`, *optional*, defaults to `True`):
            See [`why_checkpoint_is_not_whole`].

    Returns:
        `tuple[str | None, dict[str, str]]`: The checkpoint with the most steps among the whole ones, `None` if there
        is none, and the folders with more steps that are not whole, each with the reason.
    """
    skipped: dict[str, str] = {}
    for folder in sorted(Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=_steps, reverse=True):
        if not folder.is_dir() or _steps(folder) < 0:
            continue
        reason = why_checkpoint_is_not_whole(folder, with_optimizer)
        if reason is None:
            return str(folder), skipped
        skipped[str(folder)] = reason
    return None, skipped


def _steps(folder: Path) -> int:
    steps = folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(steps) if steps.isdecimal() else -1


def resolve_checkpoint(
    resume_from_checkpoint: str | bool | None, output_dir: str, save_only_model: bool
) -> str | None:
    """
    Turn what `train` takes into the folder to resume from. All processes get the answer of the first.

    Args:
        resume_from_checkpoint (`str` or `bool` or `None`):
            A folder, or `True` (or `"True"`) for the last whole checkpoint of `output_dir`. Half-written ones after it
            are skipped with a warning that names them.
        output_dir (`str`):
            Folder of the run.
        save_only_model (`bool`):
            Whether the run saves no optimizer.

    Returns:
        `str` or `None`: The folder; `None` to start from the beginning.

    Raises:
        `ValueError`: If there is no whole checkpoint, or the one asked for is not whole.
    """
    if not resume_from_checkpoint:
        return None
    # `TrainingArguments` take it as text from a command line
    if resume_from_checkpoint is True or resume_from_checkpoint in ("True", "true"):
        checkpoint, skipped = broadcast_object_list([*find_last_checkpoint(output_dir, not save_only_model)])
        for folder, reason in skipped.items():
            logger.warning(f"Skipping the checkpoint {folder}, which is not whole: {reason}.")
        if checkpoint is None:
            raise ValueError(
                f"No valid checkpoint found in output directory ({output_dir}). Leave `resume_from_checkpoint` out to "
                "start from the beginning."
            )
        logger.info(f"Resuming from {checkpoint}.")
        return checkpoint
    # a folder that was asked for by name may have been saved without an optimizer
    (reason,) = broadcast_object_list([why_checkpoint_is_not_whole(resume_from_checkpoint, with_optimizer=False)])
    if reason is not None:
        raise ValueError(
            f"Can't resume from {resume_from_checkpoint}: {reason}. `resume_from_checkpoint=True` takes the last whole "
            f"checkpoint of the output directory ({output_dir})."
        )
    return resume_from_checkpoint


def warn_without_optimizer(checkpoint: str | os.PathLike) -> None:
    """Say what a run that goes on from a model alone begins anew."""
    if not _has_any(Path(checkpoint), _OPTIMIZER):
        logger.warning(
            f"{checkpoint} holds a model alone (`save_only_model=True`): the optimizer and the schedule of the learning rate "
            "begin anew, from the first step's, though the steps are counted on. A run that goes on as if it had not ended "
            "takes checkpoints that were saved with `save_only_model=False`."
        )


def invalidate_checkpoint(output_dir: str, step: int) -> None:
    """Before a checkpoint is written anew over one of the same step: it must not pass for whole half-way."""
    (Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}" / TRAINER_STATE_NAME).unlink(missing_ok=True)


def place_in_stream(checkpoint: str | os.PathLike, gradient_accumulation_steps: int) -> tuple[int, int]:
    """
    Where in a stream a checkpoint was saved.

    The length of a stream is not known, and `Trainer` skips all batches of a run as if they were of its first pass.
    Its epoch says in which they were, see [`passes_of_stream`].

    Args:
        checkpoint (`str` or `os.PathLike`):
            Folder of the checkpoint.
        gradient_accumulation_steps (`int`):
            Batches in a step of the run.

    Returns:
        `tuple[int, int]`: The passes before the one it was saved in, and the batches taken in that one, at least 1.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    passes = passes_of_stream(state.epoch)
    return passes, round((state.epoch - passes) * state.max_steps * gradient_accumulation_steps)


def check_stream(checkpoint: str | os.PathLike, now: dict[str, int | bool]) -> None:
    """
    Refuse to go on in a stream where each process would be at another place than it was.

    Args:
        checkpoint (`str` or `os.PathLike`):
            Folder of the checkpoint.
        now (`dict`):
            Of the run: `own_shards`, whether each process reads its own shards of the stream; `processes`; `shards`;
            `workers`, those that read for a process.

    Raises:
        `ValueError`: If it was saved by other processes or of other shards. The message names what differs.
    """
    path = Path(checkpoint) / STREAM_FILE
    then = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"own_shards": False}
    if not then["own_shards"] and not now["own_shards"]:
        return  # the same order on any number of processes
    differing = [name for name in now if then.get(name) != now[name]]
    if differing:
        said = ", ".join(
            f"{name.replace('_', ' ')}: {then.get(name, 'unknown')} then, {now[name]} now" for name in differing
        )
        raise ValueError(
            f"Can't resume from {checkpoint} at its place in the stream ({said}): each process reads its own shards, so that "
            "others are at other places. Go on with the processes, files and workers of then; or begin the stream anew with "
            "these weights and this optimizer, by `ignore_data_skip=True`."
        )


class WholeCheckpoints(Trainer):
    """
    A trainer that resumes from the last whole checkpoint of a run that was killed, and at the place of a stream where it was.
    To stand before the trainer of TRL among the bases of a class.
    """

    _saving_checkpoint = False  # whether what is saved is a checkpoint, and not the model of the run

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        resume_from_checkpoint = resolve_checkpoint(
            resume_from_checkpoint, self.args.output_dir, self.args.save_only_model
        )
        if resume_from_checkpoint:
            warn_without_optimizer(resume_from_checkpoint)
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        check_trained(self.state, self.args)
        return output

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        epochs_trained, steps_trained_in_current_epoch = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if self.state.global_step >= max_steps:
            # The parent would take one more step, since it looks at the number after a step only
            return num_train_epochs, 0
        if resume_from_checkpoint is None or isinstance(self.train_dataset, Dataset):
            return epochs_trained, steps_trained_in_current_epoch
        if not self.args.ignore_data_skip:
            check_stream(resume_from_checkpoint, self._stream())
        # The parent takes all steps of a stream as those of its first pass
        passes, batches = place_in_stream(resume_from_checkpoint, self.args.gradient_accumulation_steps)
        return passes, 0 if self.args.ignore_data_skip else batches

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        if self.args.should_save:
            invalidate_checkpoint(self._get_output_dir(trial=trial), self.state.global_step)
        self._saving_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving_checkpoint = False

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.should_save and not isinstance(self.train_dataset, Dataset):
            write_text(Path(output_dir) / STREAM_FILE, json.dumps(self._stream()))
        # The state of the trainer is written next, and says that what every process writes is there
        self.accelerator.wait_for_everyone()

    @property
    def _reads_own_shards(self) -> bool:
        """Whether each process reads its own shards of the training stream."""
        return False

    def _stream(self) -> dict[str, int | bool]:
        return {
            "own_shards": self._reads_own_shards,
            "processes": self.accelerator.num_processes,
            "shards": getattr(self.train_dataset, "num_shards", 1),
            "workers": self.args.dataloader_num_workers,
        }
