import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .callbacks import RankingCallback
    from .collators import DataCollatorForMultiPreference, draw_negatives
    from .data_utils import (
        check_multi_preference,
        from_flat_columns,
        is_multi_preference,
        to_preference_pairs,
        to_prompt_completion,
    )
    from .losses import dmpo_loss, mppo_loss, nca_loss, softmax_dpo_loss
    from .softmax_dpo_config import SoftmaxDPOConfig, to_softmax_dpo_config
    from .softmax_dpo_trainer import SoftmaxDPOTrainer


__version__ = "0.1.0.dev0"

__all__ = [
    "DataCollatorForMultiPreference",
    "RankingCallback",
    "SoftmaxDPOConfig",
    "SoftmaxDPOTrainer",
    "check_multi_preference",
    "dmpo_loss",
    "draw_negatives",
    "from_flat_columns",
    "is_multi_preference",
    "mppo_loss",
    "nca_loss",
    "softmax_dpo_loss",
    "to_preference_pairs",
    "to_prompt_completion",
    "to_softmax_dpo_config",
]

# Names are imported when they are asked for, so that what needs no torch, such as `trl-sdpo --help`, does not wait for it.
_NAMES_BY_MODULE = {
    "callbacks": ("RankingCallback",),
    "collators": ("DataCollatorForMultiPreference", "draw_negatives"),
    "data_utils": (
        "check_multi_preference",
        "from_flat_columns",
        "is_multi_preference",
        "to_preference_pairs",
        "to_prompt_completion",
    ),
    "losses": ("dmpo_loss", "mppo_loss", "nca_loss", "softmax_dpo_loss"),
    "softmax_dpo_config": ("SoftmaxDPOConfig", "to_softmax_dpo_config"),
    "softmax_dpo_trainer": ("SoftmaxDPOTrainer",),
}
_MODULE_BY_NAME = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}


def __getattr__(name: str):
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_BY_NAME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
