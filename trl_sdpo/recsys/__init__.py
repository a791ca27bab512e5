"""
From files of interactions to multi-preference records, and the evaluation of what recommends. What asks a language model
is imported when it is asked for, so that the rest needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .baselines import cooccurrence_scorer, events_of_records, item_knn_scorer, popularity_scorer
from .candidates import sample_negatives
from .catalogue_metrics import catalogue_metrics, coverage, exposure, gini, mean_popularity, recommendation_ranks
from .comparison import compare_scores, exact_mcnemar_test, paired_comparison, sampled_label, sign_flip_test
from .goodbooks import load_goodbooks
from .goodreads import load_goodreads
from .interactions import (
    ITEM_ID,
    RATING,
    TIMESTAMP,
    TITLE,
    USER_ID,
    Interactions,
    canonical_title,
    drop_untitled,
    resolve_duplicate_titles,
)
from .lastfm import load_lastfm
from .leaks import LeakProbe, leak_probe
from .matching import match_title, normalize_title
from .metrics import (
    bootstrap_interval,
    chance_level,
    chance_metrics,
    hit_rate,
    mean_reciprocal_rank,
    ndcg,
    ranking_metrics,
    ranks,
)
from .movielens import load_movielens
from .preferences import build_preference_dataset, popularity_scores
from .preparation import prepare
from .prompts import CANDIDATE_TEMPLATES, HISTORY_TEMPLATES, TEMPLATES, PromptTemplate, get_template
from .recbole import load_recbole
from .recipes import recipe_options
from .record_config import RecordConfig
from .scorers import read_scores, score_records, write_scores
from .sdpo_json import load_sdpo_json
from .sequences import build_sequences
from .sources import load_source
from .splits import leave_one_out_split, split_leaks, temporal_split, user_split
from .table import load_table
from .token_budget import check_token_boundary


if TYPE_CHECKING:
    from .catalogue_search import search_catalogue
    from .generation import candidate_titles, generate_answers, generation_metrics
    from .ranking import completion_log_probs, implicit_rewards
    from .title_trie import TitleTrie


__all__ = [
    "CANDIDATE_TEMPLATES",
    "HISTORY_TEMPLATES",
    "ITEM_ID",
    "RATING",
    "TEMPLATES",
    "TIMESTAMP",
    "TITLE",
    "USER_ID",
    "Interactions",
    "LeakProbe",
    "PromptTemplate",
    "RecordConfig",
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
    "cooccurrence_scorer",
    "coverage",
    "drop_untitled",
    "events_of_records",
    "exact_mcnemar_test",
    "exposure",
    "generate_answers",
    "generation_metrics",
    "get_template",
    "gini",
    "hit_rate",
    "implicit_rewards",
    "item_knn_scorer",
    "leak_probe",
    "leave_one_out_split",
    "load_goodbooks",
    "load_goodreads",
    "load_lastfm",
    "load_movielens",
    "load_recbole",
    "load_sdpo_json",
    "load_source",
    "load_table",
    "match_title",
    "mean_popularity",
    "mean_reciprocal_rank",
    "ndcg",
    "normalize_title",
    "paired_comparison",
    "popularity_scorer",
    "popularity_scores",
    "prepare",
    "ranking_metrics",
    "ranks",
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
    "write_scores",
]

_NAMES_BY_MODULE = {
    "catalogue_search": ("search_catalogue",),
    "generation": ("candidate_titles", "generate_answers", "generation_metrics"),
    "ranking": ("completion_log_probs", "implicit_rewards"),
    "title_trie": ("TitleTrie",),
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
