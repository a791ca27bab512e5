import importlib
from typing import TYPE_CHECKING, Any


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
    from .hub import HubPushError, push_dataset, push_model
    from .losses import dmpo_loss, mppo_loss, nca_loss, softmax_dpo_loss
    from .recommender import Recommendation, Recommender
    from .recommender_files import (
        Catalogue,
        RecommenderConfig,
        RecommenderFiles,
        copy_recommender_files,
        load_recommender_files,
        save_recommender_files,
    )
    from .softmax_dpo_config import SoftmaxDPOConfig, to_softmax_dpo_config
    from .softmax_dpo_trainer import SoftmaxDPOTrainer


__version__ = "0.1.0.dev0"

__all__ = [
    "Catalogue",
    "DataCollatorForMultiPreference",
    "HubPushError",
    "RankingCallback",
    "Recommendation",
    "Recommender",
    "RecommenderConfig",
    "RecommenderFiles",
    "SoftmaxDPOConfig",
    "SoftmaxDPOTrainer",
    "check_multi_preference",
    "copy_recommender_files",
    "dmpo_loss",
    "draw_negatives",
    "from_flat_columns",
    "is_multi_preference",
    "load_recommender_files",
    "mppo_loss",
    "nca_loss",
    "push_dataset",
    "push_model",
    "save_recommender_files",
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
    "hub": ("HubPushError", "push_dataset", "push_model"),
    "losses": ("dmpo_loss", "mppo_loss", "nca_loss", "softmax_dpo_loss"),
    "recommender": ("Recommendation", "Recommender"),
    "recommender_files": (
        "Catalogue",
        "RecommenderConfig",
        "RecommenderFiles",
        "copy_recommender_files",
        "load_recommender_files",
        "save_recommender_files",
    ),
    "softmax_dpo_config": ("SoftmaxDPOConfig", "to_softmax_dpo_config"),
    "softmax_dpo_trainer": ("SoftmaxDPOTrainer",),
}
_MODULE_BY_NAME = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_BY_NAME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
