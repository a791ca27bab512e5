"""The plot of the table."""

from pathlib import Path

import matplotlib
import numpy as np


matplotlib.use("Agg")

from matplotlib import pyplot as plt  # the backend comes first


BLUE, ORANGE, GREY = "#2f6db3", "#c2571a", "#8b929c"
COLORS = {"history": BLUE, "candidates": ORANGE}
LABELS = {"history": "prompt without the list", "candidates": "prompt with the list"}


def plot_results(content: dict, path: Path) -> None:
    """
    Plot the systems with their intervals, and the sweeps of K, β and negatives.

    Args:
        content (`dict`):
            What [`report.collect`] returns.
        path (`Path`):
            PNG file to write.
    """
    sweeps = content["styles"].get("history", {}).get("sweeps", {})
    sweeps = {name: rows for name, rows in sweeps.items() if len(rows) > 1}
    figure = plt.figure(figsize=(15, max(8.5, 2.4 * len(sweeps))), layout="constrained")
    grid = figure.add_gridspec(max(1, len(sweeps)), 2, width_ratios=[1.25, 1])
    _plot_systems(figure.add_subplot(grid[:, 0] if sweeps else grid[:, :]), content)
    for row, (name, points) in enumerate(sweeps.items()):
        _plot_sweep(figure.add_subplot(grid[row, 1]), name, points)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
    temporary.replace(path)


def _plot_systems(axis, content: dict) -> None:
    rows = [(name, row, GREY) for name, row in content["baselines"].items()]
    for style, results in content["styles"].items():
        rows += [(f"{name}\n{LABELS[style]}", row, COLORS[style]) for name, row in results["systems"].items()]
    heights = np.arange(len(rows))
    for height, (_, row, color) in zip(heights, rows, strict=True):
        low, high = row["hr@1_ci"]
        axis.errorbar(
            row["hr@1"], height, xerr=[[row["hr@1"] - low], [high - row["hr@1"]]], fmt="o", color=color, capsize=3
        )
        axis.annotate(
            f"{row['hr@1']:.3f}", (row["hr@1"], height), xytext=(0, 6), textcoords="offset points", ha="center", size=8
        )
    axis.axvline(0.05, color=GREY, linestyle=":")
    axis.annotate("chance", (0.05, 0), xytext=(4, 0), textcoords="offset points", color=GREY)
    axis.set_yticks(heights, [name for name, *_ in rows], size=8)
    axis.invert_yaxis()
    axis.set(
        title="hr@1 of 20 candidates on held-out records, by likelihood, 95% interval", xlabel="hr@1", xlim=(0, None)
    )
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _plot_sweep(axis, name: str, points: list[dict]) -> None:
    places = np.arange(len(points))
    differences = [point["difference"] for point in points]
    means = np.array([one["mean"] for one in differences])
    ends = np.array([one["ci"] for one in differences])
    errors = np.abs(ends.T - means)
    axis.errorbar(places, means, yerr=errors, fmt="o-" if name != "negatives" else "o", color=BLUE, capsize=3)
    axis.axhline(0, color=GREY, linestyle="--")
    axis.set_title(f"S-DPO by {name}: hr@1 minus SFT, n = {points[0]['n']}, 95% interval over users", size=10)
    axis.set_xticks(places, [str(point["value"]) for point in points])
    axis.set_xlabel(name, size=9)
    axis.grid(axis="y", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
