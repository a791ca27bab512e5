"""
From files of interactions to multi-preference records, and the evaluation of what recommends. What asks a language model
is imported when it is asked for, so that the rest needs no torch.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_names
from .baselines.content import content_scorer
from .baselines.counting import (
    cooccurrence_scorer,
    events_of_records,
    item_knn_scorer,
    popularity_scorer,
    popularity_scores,
)
from .baselines.scores import read_lists, read_scores, score_records, write_lists, write_scores
from .interactions.interactions import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID, Interactions
from .interactions.readers.histories import ItemId, Title
from .interactions.registry import load_source
from .interactions.sources.amazon import load_amazon
from .interactions.sources.goodbooks import load_goodbooks
from .interactions.sources.goodreads import load_goodreads
from .interactions.sources.lastfm import load_lastfm
from .interactions.sources.lastfm_1k import load_lastfm_1k
from .interactions.sources.movielens import load_movielens
from .interactions.sources.recbole import load_recbole
from .interactions.sources.steam import load_steam
from .interactions.sources.table import load_table
from .interactions.titles import canonical_title, drop_untitled, resolve_duplicate_titles
from .metrics.catalogue import catalogue_metrics, coverage, exposure, gini, mean_popularity, recommendation_ranks
from .metrics.fusion import Fusion, fit_fusion
from .metrics.intervals import bootstrap_interval, difference_interval, mean_interval, wilson_interval
from .metrics.leaks import LeakProbe, leak_probe
from .metrics.matching import match_title, normalize_title
from .metrics.ranking import (
    chance_level,
    chance_metrics,
    hit_rate,
    mean_per_group,
    mean_reciprocal_rank,
    ndcg,
    ranking_metrics,
    ranks,
)
from .metrics.statistics import (
    compare_scores,
    exact_mcnemar_test,
    holm_correction,
    paired_comparison,
    sampled_label,
    sign_flip_test,
    verdict,
)
from .negatives.candidates import sample_negatives
from .prompts.templates import PromptTemplate
from .prompts.token_budget import check_token_boundary
from .prompts.wordings import CANDIDATE_TEMPLATES, HISTORY_TEMPLATES, TEMPLATES, get_template
from .records.compact import load_prepared
from .records.config import RecordConfig, recipe_options
from .records.dataset import build_preference_dataset
from .records.preparation import prepare
from .records.sdpo_json import load_sdpo_json
from .records.sequences import build_sequences
from .records.splits import item_split, leave_one_out_split, split_leaks, temporal_split, user_split


if TYPE_CHECKING:
    from ..scoring.catalogue_ranking import rank_catalogue
    from ..scoring.catalogue_search import search_catalogue
    from ..scoring.generation import candidate_titles, generate_answers, generation_metrics
    from ..scoring.log_probs import completion_log_probs, implicit_rewards
    from ..scoring.title_trie import TitleTrie


__all__ = [
    "CANDIDATE_TEMPLATES",
    "HISTORY_TEMPLATES",
    "ITEM_ID",
    "RATING",
    "TEMPLATES",
    "TIMESTAMP",
    "TITLE",
    "USER_ID",
    "Fusion",
    "Interactions",
    "ItemId",
    "LeakProbe",
    "PromptTemplate",
    "RecordConfig",
    "Title",
    "TitleTrie",
    "bootstrap_interval",
    "build_preference_dataset",
    "build_sequences",
    "candidate_titles",
    "canonical_title",
    "catalogue_metrics",
    "chance_level",
    "chance_metrics",
    "check_token_boundary",
    "compare_scores",
    "completion_log_probs",
    "content_scorer",
    "cooccurrence_scorer",
    "coverage",
    "difference_interval",
    "drop_untitled",
    "events_of_records",
    "exact_mcnemar_test",
    "exposure",
    "fit_fusion",
    "generate_answers",
    "generation_metrics",
    "get_template",
    "gini",
    "hit_rate",
    "holm_correction",
    "implicit_rewards",
    "item_knn_scorer",
    "item_split",
    "leak_probe",
    "leave_one_out_split",
    "load_amazon",
    "load_goodbooks",
    "load_goodreads",
    "load_lastfm",
    "load_lastfm_1k",
    "load_movielens",
    "load_prepared",
    "load_recbole",
    "load_sdpo_json",
    "load_source",
    "load_steam",
    "load_table",
    "match_title",
    "mean_interval",
    "mean_per_group",
    "mean_popularity",
    "mean_reciprocal_rank",
    "ndcg",
    "normalize_title",
    "paired_comparison",
    "popularity_scorer",
    "popularity_scores",
    "prepare",
    "rank_catalogue",
    "ranking_metrics",
    "ranks",
    "read_lists",
    "read_scores",
    "recipe_options",
    "recommendation_ranks",
    "resolve_duplicate_titles",
    "sample_negatives",
    "sampled_label",
    "score_records",
    "search_catalogue",
    "sign_flip_test",
    "split_leaks",
    "temporal_split",
    "user_split",
    "verdict",
    "wilson_interval",
    "write_lists",
    "write_scores",
]

_NAMES_BY_MODULE = {
    ".scoring.catalogue_ranking": ("rank_catalogue",),
    ".scoring.catalogue_search": ("search_catalogue",),
    ".scoring.generation": ("candidate_titles", "generate_answers", "generation_metrics"),
    ".scoring.log_probs": ("completion_log_probs", "implicit_rewards"),
    ".scoring.title_trie": ("TitleTrie",),
}

__getattr__ = lazy_names(__name__, _NAMES_BY_MODULE)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
