"""The tables of the report in Markdown, and its figure."""

from pathlib import Path

import matplotlib
import numpy as np

from trl_sdpo._markdown import markdown_table
from trl_sdpo.files import writing


matplotlib.use("Agg")

from matplotlib import pyplot as plt  # the backend comes first


BLUE, ORANGE, GREY = "#2f6db3", "#c2571a", "#8b929c"


def markdown(results: dict[str, dict]) -> str:
    """All tables of results.json, one below the other."""
    parts = []
    for name, content in results.items():
        facts, events = content["facts"], content["by training events"]
        parts.append(f"## {name}\n\n{_facts(facts)}")
        parts.append(_section("20 candidates", _systems(content["systems"], "hr@1", content["reward"])))
        parts.append(_section("Differences of hr@1", _differences(content["differences"])))
        parts.append(_section("hr@1 by training events of the target", _events(events)))
        parts.append(
            _section(
                "Fits on validation records (ids: item-kNN, SASRec, training events, no training event)",
                _systems(content["fusion"], "hr@1"),
            )
        )
        parts.append(_section("Differences of fits", _differences(content["fusion differences"])))
        parts.append(_section("Weights of the fits, first seed", _weights(content["weights"])))
        parts.append(_section("20 candidates without a training event", _systems(content.get("cold", {}), "hr@1")))
        parts.append(_section("Differences among cold candidates", _differences(content.get("cold differences", []))))
        parts.append(_section("Lists from the whole catalogue", _systems(content["catalogue"], "hr@10")))
        parts.append(_section("The search on validation records", _search(content["search"])))
        for form, curve in content["curves"].items():
            parts.append(_section(f"The curve of SFT, {form}", _curve(curve)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(facts: dict) -> str:
    splits = [f"{split} {one['records']} of {one['users']} users" for split, one in facts.items() if type(one) is dict]
    none = facts["items without training event"]
    return f"Records: {'; '.join(splits)}. {facts['items']} items, {none} of them without a training event."


def _section(title: str, table: str) -> str:
    return f"### {title}\n\n{table}" if table else ""


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Nothing where there are no rows."""
    return "\n".join(markdown_table(header, rows)) if rows else ""


def number(value: float | None) -> str:
    """`.512`, as the hit rates of this field are written."""
    return "" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("0.", ".", 1).replace("-", "−")


def probability(value: float) -> str:
    """What the number of draws can tell."""
    return "< .001" if value < 0.001 else number(value)


def _systems(systems: dict, metric: str, reward: dict | None = None) -> str:
    header = ["system", "lr", metric, "95% interval", "ndcg@10", "mrr", "by seed", "by implicit reward", "n"]
    rows = []
    for name, row in systems.items():
        rate = row.get("learning_rate")
        seeds = ", ".join(map(number, row["seeds"])) if len(row["seeds"]) > 1 else ""
        by_reward = number(reward[name][metric]) if reward and name in reward else ""
        cells = [number(row[metric]), " to ".join(map(number, row["ci"])), number(row["ndcg@10"]), number(row["mrr"])]
        rows.append([name, f"{rate:g}" if rate else "", *cells, seeds, by_reward, str(row["n"])])
    kept = [place for place in range(len(header)) if any(row[place] for row in rows)]
    return _table([header[place] for place in kept], [[row[place] for place in kept] for row in rows])


def _differences(rows: list[dict]) -> str:
    cells = [
        [
            *(row["system"], row["minus"], signed(row["mean"]), " to ".join(map(signed, row["ci"]))),
            *(probability(row["p"]), probability(row["p_holm"])),
        ]
        for row in rows
    ]
    return _table(["hr@1 of", "minus", "difference", "95% interval", "p", "p, Holm"], cells)


def _events(events: dict) -> str:
    header = ["system", *(f"{one['label']} (n = {one['n']})" for one in events["bins"])]
    rows = [[name, *(number(one["value"]) for one in row)] for name, row in events["systems"].items()]
    return _table(header, rows)


def _weights(weights: dict) -> str:
    rows = [
        [name, feature, f"{weight:.3g}", f"{error:.2g}", f"{gain:.4f}"]
        for name, fit in weights.items()
        for feature, weight, error, gain in zip(
            fit["features"], fit["weights"], fit["errors"], fit["gains"], strict=True
        )
    ]
    return _table(["fit", "feature", "weight", "standard error", "lost without it, nats a record"], rows)


def _search(rows: list[dict]) -> str:
    cells = [
        [
            row["system"],
            f"{row['learning_rate']:g}",
            f"**{number(row['mrr'])}**" if row["chosen"] else number(row["mrr"]),
        ]
        for row in rows
    ]
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


def _plot_systems(axis, title: str, systems: dict) -> None:
    heights = np.arange(len(systems))
    for height, (name, row) in zip(heights, systems.items(), strict=True):
        low, high = row["ci"]
        color = ORANGE if name.startswith("ids") else BLUE if "DPO" in name or "SFT" in name else GREY
        errors = [[row["hr@1"] - low], [high - row["hr@1"]]]
        axis.errorbar(row["hr@1"], height, xerr=errors, fmt="o", color=color, capsize=3)
    axis.axvline(0.05, color=GREY, linestyle=":")
    axis.set_yticks(heights, [*systems], size=7)
    axis.invert_yaxis()
    axis.set(title=f"{title}: hr@1 of 20 candidates, 95% interval over users", xlim=(0, None))
    axis.grid(axis="x", alpha=0.25)


def _plot_events(axis, events: dict, names: list[str]) -> None:
    labels = [one["label"] for one in events["bins"]]
    for name in names:
        axis.plot(labels, [one["value"] for one in events["systems"][name]], "o-", label=name, markersize=3)
    axis.set(title="hr@1 by training events of the target", xlabel="training events", ylim=(0, None))
    axis.legend(fontsize=6)
    axis.grid(axis="y", alpha=0.25)
