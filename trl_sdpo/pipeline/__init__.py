"""
A run: records, supervised fine-tuning, alignment, evaluation. The commands, the examples and the benchmarks share it.

Enters: a source of interactions, the configurations of the trainers, a model. Leaves: a directory with the records, a model
of each stage and a report, each with the settings that it depends on, so that a second start goes on where the first broke
off. It may import everything but the commands.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_names
from .._terminal import log_to_terminal
from .machine import keep_freed_memory, machine_defaults


if TYPE_CHECKING:
    from .base_models import resolve_model
    from .datasets import load_records
    from .models import load_model, load_tokenizer
    from .run import Run
    from .small_llama import build_small_llama, make_small_llama, train_title_tokenizer
    from .stage_records import non_overlapping_windows
    from .state import StageState
    from .trainers import make_sft_trainer, make_softmax_dpo_trainer
    from .training import TrainedStage, run_stage

__all__ = [
    "Run",
    "StageState",
    "TrainedStage",
    "build_small_llama",
    "keep_freed_memory",
    "load_model",
    "load_records",
    "load_tokenizer",
    "log_to_terminal",
    "machine_defaults",
    "make_sft_trainer",
    "make_small_llama",
    "make_softmax_dpo_trainer",
    "non_overlapping_windows",
    "resolve_model",
    "run_stage",
    "train_title_tokenizer",
]

# Imported when they are asked for: `trl-sdpo run` and `prepare` need no trainer
_NAMES_BY_MODULE = {
    "base_models": ("resolve_model",),
    "datasets": ("load_records",),
    "models": ("load_model", "load_tokenizer"),
    "run": ("Run",),
    "small_llama": ("build_small_llama", "make_small_llama", "train_title_tokenizer"),
    "stage_records": ("non_overlapping_windows",),
    "state": ("StageState",),
    "trainers": ("make_sft_trainer", "make_softmax_dpo_trainer"),
    "training": ("TrainedStage", "run_stage"),
}

__getattr__ = lazy_names(__name__, _NAMES_BY_MODULE)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
