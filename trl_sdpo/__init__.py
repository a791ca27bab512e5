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
