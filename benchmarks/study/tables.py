"""The tables of the report in Markdown, and its figure."""

import itertools
from pathlib import Path

import matplotlib
import numpy as np

from trl_sdpo._markdown import markdown_table
from trl_sdpo.files import writing

from .plan import MANY


matplotlib.use("Agg")

from matplotlib import pyplot as plt  # the backend comes first


NAMES = {
    "item-knn": "item-kNN",
    "sasrec": "SASRec",
    "gru4rec": "GRU4Rec",
    "text": "text, frozen",
    "sasrec-text": "SASRec with text",
}
_SHOWN_BY_EVENTS = ("SFT", f"S-DPO, K = {MANY}")
BLUE, ORANGE, GREY = "#2f6db3", "#c2571a", "#8b929c"


def markdown(results: dict[str, dict]) -> str:
    """All tables of results.json, one below the other."""
    parts = []
    for name, content in results.items():
        sections = {
            "20 candidates, and by the training events of the target": _systems(
                content["systems"], events=content["by training events"]
            ),
            "Differences of hr@1": _differences(content["differences"]),
            "hr@1 by implicit reward": _systems(content["reward"]),
            "Fits of ids (item-kNN, SASRec, training events, no training event) and more, made on validation records": (
                _systems(content["fusion"], content["fusion differences"], content["by training events"])
            ),
            "Weights of the fits, first seed": _weights(content["weights"]),
            "20 candidates, all without a training event": _systems(content["cold"], content["cold differences"]),
            "Lists from the whole catalogue": _systems(content["catalogue"]),
            "The search on validation records": _search(content["search"]),
            **{f"The curve of SFT, {form}": _curve(curve) for form, curve in content["curves"].items()},
        }
        parts.append(f"## {name}\n\n{_facts(content['facts'])}")
        parts += [f"### {title}\n\n{table}" for title, table in sections.items() if table]
    return "\n\n".join(parts) + "\n"


def _facts(facts: dict) -> str:
    splits = [f"{split} {one['records']} of {one['users']} users" for split, one in facts.items() if type(one) is dict]
    none = facts["items without training event"]
    return f"Records: {'; '.join(splits)}. {facts['items']} items, {none} of them without a training event."


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Without empty columns; nothing where there are no rows."""
    kept = [place for place in range(len(header)) if any(row[place] for row in rows)]
    rows = [[row[place] for place in kept] for row in rows]
    return "\n".join(markdown_table([header[place] for place in kept], rows)) if rows else ""


def number(value: float | None) -> str:
    """`.512`, as the hit rates of this field are written."""
    return "" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("0.", ".", 1).replace("-", "−")


def difference(row: dict) -> str:
    """With its interval, and the corrected p as far as the number of draws can tell it."""
    p = "p < .001" if row["p_holm"] < 0.001 else f"p = {number(row['p_holm'])}"
    return f"{signed(row['mean'])} ({' to '.join(map(signed, row['ci']))}), {p}"


def _pivot(rows: list[dict]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """What is subtracted, and by system the cells below it."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(row["system"], {})[row["minus"]] = difference(row)
    return [*dict.fromkeys(row["minus"] for row in rows)], cells


def _systems(systems: dict, differences: list[dict] = (), events: dict | None = None) -> str:
    others, cells = _pivot(differences)
    metric = next((name for row in systems.values() for name in row if name.startswith("hr@")), "")
    bins = [] if events is None else [f"{one['label']} events (n = {one['n']})" for one in events["bins"]]
    header = ["system", "lr", metric, "95% interval", "ndcg@10", "mrr", "by seed", *bins]
    rows = []
    for name, row in systems.items():
        seeds = ", ".join(map(number, row["seeds"])) if len(row["seeds"]) > 1 else ""
        rate = f"{row['learning_rate']:g}" if "learning_rate" in row else ""
        interval = " to ".join(map(number, row["ci"]))
        values = [number(row[metric]), interval, number(row["ndcg@10"]), number(row["mrr"]), seeds]
        parts = [number(one["value"]) for one in events["systems"][name]] if bins else []
        rows.append([name, rate, *values, *parts, *(cells.get(name, {}).get(one, "") for one in others)])
    return _table([*header, *(f"minus {one}" for one in others)], rows)


def _differences(rows: list[dict]) -> str:
    others, cells = _pivot(rows)
    header = ["hr@1 of", *(f"minus {one}" for one in others)]
    return _table(header, [[name, *(row.get(one, "") for one in others)] for name, row in cells.items()])


def _weights(weights: dict) -> str:
    columns = ("features", "weights", "errors", "gains")
    rows = [
        [name, feature, f"{weight:.3g}", f"{error:.2g}", f"{gain:.4f}"]
        for name, fit in weights.items()
        for feature, weight, error, gain in zip(*(fit[column] for column in columns), strict=True)
    ]
    return _table(["fit", "feature", "weight", "standard error", "lost without it, nats a record"], rows)


def _search(rows: list[dict]) -> str:
    cells = [[row["system"], f"{row['learning_rate']:g}", number(row["mrr"])] for row in rows]
    return _table(["system", "lr", "mrr"], cells)


def _curve(curve: list[dict]) -> str:
    rows = [[str(point["step"]), number(point["hr@1"]), number(point["mrr"])] for point in curve]
    return _table(["optimizer step", "hr@1", "mrr"], rows)


def plot(results: dict[str, dict], path: Path) -> None:
    """
    Plot of each data set the systems with their intervals, their hit rates by training events of the target, and how many
    negatives counted in a step.

    Args:
        results (`dict[str, dict]`):
            What [`report.collect`] returns, by data set.
        path (`Path`):
            PNG file to write.
    """
    shape = {"figsize": (17, 6 * len(results)), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(len(results), 3, width_ratios=[1.3, 1, 1], **shape)
    for (first, second, third), (name, content) in zip(axes, results.items(), strict=True):
        _plot_systems(first, name, content["systems"] | content["fusion"])
        _plot_events(second, content["by training events"], [*content["systems"]])
        for system, points in content["negatives"].items():
            if points:
                steps, counts = zip(*((one["step"], one["effective_number"]) for one in points), strict=True)
                third.plot(steps, counts, label=system)
        third.set(title="Effective number of negatives", xlabel="step", ylim=(0, None))
        third.legend(fontsize=7)
    with writing(path) as stage:
        figure.savefig(stage, dpi=110, format="png")
    plt.close(figure)


def _is_language_model(name: str) -> bool:
    return name.startswith("Plackett-Luce") or "DPO" in name or "SFT" in name


def _plot_systems(axis, title: str, systems: dict) -> None:
    heights = np.arange(len(systems))
    for height, (name, row) in zip(heights, systems.items(), strict=True):
        low, high = row["ci"]
        color = ORANGE if name.startswith("ids") else BLUE if _is_language_model(name) else GREY
        errors = [[row["hr@1"] - low], [high - row["hr@1"]]]
        axis.errorbar(row["hr@1"], height, xerr=errors, fmt="o", color=color, capsize=3)
    axis.axvline(0.05, color=GREY, linestyle=":")
    axis.set_yticks(heights, [NAMES.get(name, name) for name in systems], size=7)
    axis.invert_yaxis()
    axis.set(title=f"{title}: hr@1 of 20 candidates, 95% interval over users", xlim=(0, None))
    axis.grid(axis="x", alpha=0.25)


def _plot_events(axis, events: dict, names: list[str]) -> None:
    labels = [one["label"] for one in events["bins"]]
    # what follows SFT lies on it: one of them is seen, not all
    shown = [name for name in names if not _is_language_model(name) or name in _SHOWN_BY_EVENTS]
    for name, marker in zip(shown, itertools.cycle("os^vDX*P"), strict=False):
        values = [one["value"] for one in events["systems"][name]]
        axis.plot(labels, values, marker=marker, label=NAMES.get(name, name), markersize=4)
    axis.set(title="hr@1 by training events of the target", xlabel="training events", ylim=(0, None))
    axis.legend(fontsize=6)
    axis.grid(axis="y", alpha=0.25)
