from typing import TYPE_CHECKING

from ._lazy import lazy_names
from ._versions import warn_of_untested_trl


if TYPE_CHECKING:
    from .data_utils import (
        check_multi_preference,
        from_flat_columns,
        is_multi_preference,
        to_preference_pairs,
        to_prompt_completion,
    )
    from .evaluation.ranking_callback import RankingCallback
    from .graded_records import from_ranked
    from .hub.pushes import HubPushError, push_dataset, push_model
    from .losses.graded import infonca_loss, plackett_luce_loss, score_margins, softmax_margin_loss
    from .losses.multi_negative import dmpo_loss, mppo_loss, nca_loss, softmax_dpo_loss
    from .prefix_sharing.collator import DataCollatorForMultiPreference, draw_negatives
    from .recommender.recommender import Recommendation, Recommender
    from .recsys.records.recommender_files import (
        Catalogue,
        RecommenderConfig,
        RecommenderFiles,
        copy_recommender_files,
        load_recommender_files,
        save_recommender_files,
    )
    from .trainer.softmax_dpo_config import SoftmaxDPOConfig, to_softmax_dpo_config
    from .trainer.softmax_dpo_trainer import SoftmaxDPOTrainer


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
    "from_ranked",
    "infonca_loss",
    "is_multi_preference",
    "load_recommender_files",
    "mppo_loss",
    "nca_loss",
    "plackett_luce_loss",
    "push_dataset",
    "push_model",
    "save_recommender_files",
    "score_margins",
    "softmax_dpo_loss",
    "softmax_margin_loss",
    "to_preference_pairs",
    "to_prompt_completion",
    "to_softmax_dpo_config",
]

# Names are imported when they are asked for, so that what needs no torch, such as `trl-sdpo --help`, does not wait for it.
_NAMES_BY_MODULE = {
    "evaluation.ranking_callback": ("RankingCallback",),
    "prefix_sharing.collator": ("DataCollatorForMultiPreference", "draw_negatives"),
    "data_utils": (
        "check_multi_preference",
        "from_flat_columns",
        "is_multi_preference",
        "to_preference_pairs",
        "to_prompt_completion",
    ),
    "graded_records": ("from_ranked",),
    "hub.pushes": ("HubPushError", "push_dataset", "push_model"),
    "losses.graded": ("infonca_loss", "plackett_luce_loss", "score_margins", "softmax_margin_loss"),
    "losses.multi_negative": ("dmpo_loss", "mppo_loss", "nca_loss", "softmax_dpo_loss"),
    "recommender.recommender": ("Recommendation", "Recommender"),
    "recsys.records.recommender_files": (
        "Catalogue",
        "RecommenderConfig",
        "RecommenderFiles",
        "copy_recommender_files",
        "load_recommender_files",
        "save_recommender_files",
    ),
    "trainer.softmax_dpo_config": ("SoftmaxDPOConfig", "to_softmax_dpo_config"),
    "trainer.softmax_dpo_trainer": ("SoftmaxDPOTrainer",),
}

__getattr__ = lazy_names(__name__, _NAMES_BY_MODULE)

warn_of_untested_trl()


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
