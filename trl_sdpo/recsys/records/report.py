"""The report of a preparation, in Markdown and as a figure, and what it says, gathered while records are made."""

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._errors import install
from ..._markdown import markdown_table
from ..metrics.facts import fact_rows
from ..metrics.leaks import CodedLists
from .rows import Chunk
from .splits import SPLITS


if TYPE_CHECKING:  # matplotlib draws where it is installed
    from matplotlib.axes import Axes


logger = logging.getLogger(__name__)

# Enough lists to look up in; more cost time and change little.
_MOST_REFERENCE_LISTS = 200_000

_COUNTS = {
    "targets": "events of the split",
    "dropped_short_history": "dropped: too few events before",
    "dropped_first_of_item": "dropped: nobody had met the item before, so no list could hold it",
    "dropped_other_user": "dropped: not of the users to learn from (`max_train_users`)",
    "dropped_not_cold": "dropped: the target has a training event (`eval_candidates`)",
    "dropped_by_stride": "dropped: stride",
    "dropped_by_windows": "dropped: not among the last of the user",
    "dropped_by_subsampling": "dropped: subsampling",
    "dropped_small_catalogue": "dropped: too few items existed by then to draw from",
    "dropped_few_cold": "dropped: too few items without a training event to draw from",
    "dropped_too_long": "dropped: too long for `max_length`",
    "records": "**records**",
    "histories_shortened": "of these with a shortened history",
    "users": "users",
    "items": "items that are a target",
}
_SUMMARIES = {
    "history_titles": "titles in the history",
    "tokens": "tokens of prompt and longest completion",
    "train_events_of_targets": "training events of a target",
    "train_events_of_negatives": "training events of a negative",
}
_POINTS = 300
_COLORS = {"train": "#2f6db3", "validation": "#c2571a", "test": "#3a8a4d"}


class SplitStatistics:
    """
    Gathers statistics of the chunks of a split.

    Args:
        num_targets (`int`):
            How many targets the split has.
        num_candidates (`int`):
            The length of a list.
        train_counts (`numpy.ndarray`):
            Training events of every item.
    """

    def __init__(self, num_targets: int, num_candidates: int, train_counts: np.ndarray) -> None:
        self.num_candidates, self.train_counts = num_candidates, train_counts
        self.stride = -(-num_targets // _MOST_REFERENCE_LISTS)
        self.target_hits = np.zeros(len(train_counts), dtype=np.int64)
        self.negative_hits = np.zeros(len(train_counts), dtype=np.int64)
        self._lists: list[np.ndarray] = []
        self._users: list = []
        self._tokens: list[np.ndarray] = []
        self._history_lengths: list[np.ndarray] = []

    def add(self, chunk: Chunk) -> None:
        """Count a chunk."""
        size = len(self.train_counts)
        self.target_hits += np.bincount(chunk.rows.items, minlength=size)
        self.negative_hits += np.bincount(chunk.pool.ravel(), minlength=size)
        shown = np.column_stack([chunk.rows.items, chunk.pool[:, : self.num_candidates - 1]])
        self._lists.append(shown[:: self.stride].astype(np.int32))
        self._users += chunk.table["user_id"].to_pylist()[:: self.stride]
        self._history_lengths.append((chunk.rows.histories >= 0).sum(axis=1))
        if chunk.tokens is not None:
            self._tokens.append(chunk.tokens)

    @property
    def lists(self) -> CodedLists:
        """Candidate lists, the target first; every so many-th of a large split."""
        lists = np.concatenate(self._lists)
        return CodedLists(lists[:, 0], lists.ravel(), np.full(len(lists), self.num_candidates), self._users)

    @property
    def tokens(self) -> np.ndarray | None:
        """Tokens of the records, where they were counted."""
        return np.concatenate(self._tokens) if self._tokens else None

    @property
    def history_lengths(self) -> np.ndarray:
        """Titles in the histories."""
        return np.concatenate(self._history_lengths)

    def summary(self) -> dict:
        """Quantiles of lengths and of popularity, for the report."""
        result: dict[str, Any] = {
            "history_titles": _quantiles(self.history_lengths),
            "train_events_of_targets": _weighted(self.train_counts, self.target_hits),
            "train_events_of_negatives": _weighted(self.train_counts, self.negative_hits),
        }
        cold = int(self.target_hits[self.train_counts == 0].sum())
        result["share_of_targets_without_train_event"] = round(cold / max(1, int(self.target_hits.sum())), 4)
        if self.tokens is not None:
            result["tokens"] = _quantiles(self.tokens)
        return result


def _quantiles(values: np.ndarray) -> dict[str, float]:
    counts = np.bincount(values)
    return _weighted(np.arange(len(counts)), counts)


def _weighted(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Mean, quantiles and largest of values that occur so many times."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    total = int(cumulative[-1])
    quantiles = {
        name: int(values[order[np.searchsorted(cumulative, share * total)]])
        for name, share in (("median", 0.5), ("95%", 0.95))
    }
    mean = float((values * weights).sum() / total)
    return {"mean": round(mean, 2), **quantiles, "max": int(values[weights > 0].max())}


def write_markdown(report: dict, path: Path, figure: bool) -> None:
    """
    Write the report for people.

    Args:
        report (`dict`):
            What [`prepare`] returns.
        path (`Path`):
            The file.
        figure (`bool`):
            Whether `report.png` lies beside it.
    """
    splits = [split for split in SPLITS if split in report]
    lines = [f"# {report['source']}: multi-preference records", ""]
    lines += [f"Recipe `{report['recipe']}`, split `{report['split']}`, seed {report['seed']}.", ""]
    on_disk = {"text": "texts", "ids": "rows of `catalogue.parquet`, which `trl_sdpo.recsys.load_prepared` renders"}
    lines += [f"On disk the records are {on_disk[report['form']]} ({report['form_reason']}).", ""]
    ways = {"memory": "in memory", "disk": "a partition at a time"}
    lines += (
        [f"They were made {ways[report['engine']]} ({report['engine_reason']}).", ""] if "engine" in report else []
    )
    lines += ["![Counts, lengths, popularity and leak probe](report.png)", ""] if figure else []
    lines += ["## Source", "", *markdown_table(["", "count"], _source_rows(report)), ""]
    rows = [[text, *_values(report, splits, key)] for key, text in _COUNTS.items() if _any(report, splits, key)]
    lines += ["## Records", "", *markdown_table(["", *splits], rows), ""]
    lines += ["## Lengths and popularity", ""]
    for key, text in _SUMMARIES.items():
        if key in report[splits[0]]:
            names = list(report[splits[0]][key])
            rows = [[split, *(_number(report[split][key][name]) for name in names)] for split in splits]
            lines += [*markdown_table([text, *names], rows), ""]
    filled = report["negatives_drawn_uniformly_instead"]
    if filled:
        lines += [f"{filled:,} negatives were drawn uniformly, where another strategy had none left to give.", ""]
    lines += ["## Leaks", "", *markdown_table(["of the split", "count"], _leak_rows(report)), ""]
    lines += [*markdown_table(["of the records", *splits], _fact_rows(report, splits)), "", *_probe_lines(report), ""]
    options = [[f"`{name}`", f"`{value}`"] for name, value in report["options"].items()]
    lines += ["## Options", "", *markdown_table(["", ""], options), ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def _source_rows(report: dict) -> list[list[str]]:
    counts = {f"loader: {key}": value for key, value in report["loader"].items()}
    names = ("events", "events_below_min_rating", "events_repeated", "events_below_min_interactions")
    names += ("events_below_min_length", "events_of_held_out_items", "users", "items")
    counts |= {name: report[name] for name in names if name in report}
    if report["events_tied_in_time"] is not None:
        counts["events at the same time as another of their user, whose order is not known"] = report[
            "events_tied_in_time"
        ]
    return [[name.replace("_", " "), _number(value)] for name, value in counts.items()]


def _leak_rows(report: dict) -> list[list[str]]:
    return [
        [name.replace("_", " "), "unknown (no time)" if value is None else _number(value)]
        for name, value in report["leaks"].items()
    ]


def _probe_lines(report: dict) -> list[str]:
    probe = report["leak_probe"]
    low, high = probe["ci"]
    rows = [
        ["history-blind lookup", f"{probe['hr_at_1']:.3f}", f"{low:.3f} to {high:.3f}"],
        ["chance", f"{probe['chance']:.3f}", "exact"],
        ["popularity as a target", f"{probe['popularity']:.3f}", ""],
    ]
    verdict = (
        "The lists tell more of their targets than popularity does: **results on these records are not of the history**."
        if low > max(probe["popularity"], probe["chance"])
        else "The lists tell no more of their targets than popularity does."
    )
    return [
        f"Leak probe: {probe['n']:,} records of `{probe['split']}`, looked up in {probe['reference']}, 95% interval.",
        "",
        *markdown_table(["", "hr@1", "95% interval"], rows),
        "",
        verdict,
        "",
        *_rule_lines(report.get("leak_probes", [])),
    ]


def _fact_rows(report: dict, splits: list[str]) -> list[list[str]]:
    """What [`record_facts`] counts, a column for each split."""
    columns = [fact_rows(report[split]["record_facts"]) for split in splits]
    return [
        [cells[0][0], *(f"{count} ({share})" if share else count for _, count, share in cells)]
        for cells in zip(*columns, strict=True)
    ]


def _rule_lines(probes: list[dict]) -> list[str]:
    if not probes:
        return []
    first = probes[0]
    known = first["popularity"] is not None
    rows = [_rule_row(probe, known) for probe in probes]
    users = f" of {first['users']:,} users, over which the intervals are" if first["users"] else ""
    lines = [f"Rules that know nothing of tastes, on {first['n']:,} records{users}; chance {first['chance']:.3f}"]
    header = ["rule", "hr@1", "95% interval", ""]
    if known:
        low, high = first["popularity_ci"]
        lines[0] += f"; popularity (training events) {first['popularity']:.3f}, {low:.3f} to {high:.3f}"
        header.insert(3, "matched")
        text = "Matched: what the rule would find if targets were drawn from the candidates by their popularity alone."
        return [f"{lines[0]}:", "", *markdown_table(header, rows), "", text]
    return [f"{lines[0]}:", "", *markdown_table(header, rows)]


def _rule_row(probe: dict, known: bool) -> list[str]:
    matched = ["" if probe["matched"] is None else f"{probe['matched']:.3f}"] if known else []
    verdict, colon, words = probe["verdict"].partition(":")
    verdict = f"**{verdict}**{colon}{words}" if probe["leaks"] else probe["verdict"]
    interval = f"{probe['ci'][0]:.3f} to {probe['ci'][1]:.3f}"
    return [probe["name"], f"{probe['hr_at_1']:.3f}", interval, *matched, verdict]


def _any(report: dict, splits: list[str], key: str) -> bool:
    return any(key in report[split] for split in splits)


def _values(report: dict, splits: list[str], key: str) -> list[str]:
    return [_number(report[split].get(key, 0)) for split in splits]


def _number(value: float | str) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def plot_report(report: dict, statistics: dict[str, SplitStatistics], path: Path) -> bool:
    """
    Plot counts, lengths, popularity and the leak probe.

    Args:
        report (`dict`):
            The report.
        statistics (`dict[str, SplitStatistics]`):
            What was gathered by split.
        path (`Path`):
            The PNG file.

    Returns:
        `bool`: Whether there is a figure: `False` without matplotlib, with a warning.
    """
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning(f"matplotlib is not installed: the report has no figure. Run `{install('examples')}`.")
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot: no global state, and the same in any thread.
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    figure.suptitle(f"{report['source']}: recipe {report['recipe']}, split {report['split']}, seed {report['seed']}")
    _plot_counts(axes[0, 0], report, list(statistics))
    _plot_lengths(axes[0, 1], statistics)
    _plot_popularity(axes[1, 0], statistics)
    _plot_probe(axes[1, 1], report["leak_probe"])
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return True


def _plot_counts(axis: "Axes", report: dict, splits: list[str]) -> None:
    kept = np.array([report[split]["records"] for split in splits])
    begun = np.array([report[split]["targets"] for split in splits])
    axis.barh(splits, begun, color="#d9dce1", label="events of the split")
    axis.barh(splits, kept, color=[_COLORS[split] for split in splits], height=0.5, label="records")
    for row, (records, events) in enumerate(zip(kept, begun, strict=True)):
        axis.text(events, row, f"  {records:,} of {events:,}", va="center")
    axis.invert_yaxis()
    axis.set(title="Records (narrow bars) of the events of a split", xlim=(0, 1.4 * begun.max()))


def _plot_lengths(axis: "Axes", statistics: dict[str, SplitStatistics]) -> None:
    in_tokens = all(gathered.tokens is not None for gathered in statistics.values())
    for split, gathered in statistics.items():
        values = gathered.tokens if in_tokens else gathered.history_lengths
        shares = np.bincount(values) / len(values)
        if in_tokens:
            axis.plot(np.arange(len(shares)), np.cumsum(shares), color=_COLORS[split], label=split)
        else:
            axis.plot(np.flatnonzero(shares), shares[shares > 0], "o-", color=_COLORS[split], label=split)
    if in_tokens:
        axis.set(title="Tokens of prompt and longest completion", xlabel="tokens", ylabel="share of records below")
    else:
        axis.set(title="Titles in the history", xlabel="titles", ylabel="share of records")
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)


def _plot_popularity(axis: "Axes", statistics: dict[str, SplitStatistics]) -> None:
    for split, gathered in statistics.items():
        counts, places = np.unique(gathered.train_counts, return_inverse=True)
        for hits, style, what in ((gathered.target_hits, "-", "targets"), (gathered.negative_hits, ":", "negatives")):
            shares = np.cumsum(np.bincount(places, weights=hits)) / hits.sum()
            # some hundreds of points show what tens of thousands would, sooner
            shown = np.unique(np.searchsorted(shares, np.linspace(0, shares[-1], _POINTS)).clip(max=len(shares) - 1))
            label = f"{split}, {what}"
            axis.plot(np.maximum(counts[shown], 0.5), shares[shown], style, color=_COLORS[split], label=label)
    axis.set(
        title="Popularity", xlabel="training events of the item (0 drawn at 0.5)", ylabel="share of items at or below"
    )
    axis.set_xscale("log")
    axis.legend(frameon=False, fontsize="small")
    axis.grid(alpha=0.25)


def _plot_probe(axis: "Axes", probe: dict) -> None:
    names = ["history-blind lookup", "chance", "popularity as a target"]
    values = [probe["hr_at_1"], probe["chance"], probe["popularity"]]
    axis.barh(names, values, color=["#c2571a", "#b9bec6", "#b9bec6"])
    low, high = probe["ci"]
    axis.plot([low, high], [0, 0], color="#333333")
    for row, value in enumerate(values):
        axis.text(max(value, high if row == 0 else 0) + 0.01, row, f"{value:.3f}", va="center")
    axis.invert_yaxis()
    axis.set(
        title=f"Leak probe: hr@1 on {probe['n']:,} records of {probe['split']}",
        xlim=(0, min(1.15, 1.4 * max(0.3, *values))),
    )
