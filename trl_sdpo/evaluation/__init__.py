"""
Several systems on the same records: metrics with chance and intervals, paired tests, breakdowns, and the report of it all.

Enters: records, and the scores or answers of systems. Leaves: `results.json`, `results.md`, `results.html`. Names that are
public here are imported when they are asked for; [`RankingCallback`] is imported from `trl_sdpo`.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_names


if TYPE_CHECKING:
    from .comparison import evaluate_answers, evaluate_catalogue, evaluate_ranking
    from .probing import probe_all, probe_records
    from .report import collect_results, results_text, write_report

__all__ = [
    "collect_results",
    "evaluate_answers",
    "evaluate_catalogue",
    "evaluate_ranking",
    "probe_all",
    "probe_records",
    "results_text",
    "write_report",
]

_NAMES_BY_MODULE = {
    "comparison": ("evaluate_answers", "evaluate_catalogue", "evaluate_ranking"),
    "probing": ("probe_all", "probe_records"),
    "report": ("collect_results", "results_text", "write_report"),
}

__getattr__ = lazy_names(__name__, _NAMES_BY_MODULE)
