"""Results of a run as a table, as JSON and as a plot. Imported by the examples as a sibling module."""

from pathlib import Path

import matplotlib
import numpy as np


matplotlib.use("Agg")

from matplotlib import pyplot as plt  # the backend comes first

from trl_sdpo.recsys import chance_metrics, compare_scores, ranking_metrics, ranks


def metrics_of_stages(scores: dict[str, np.ndarray | list[np.ndarray]], num_candidates: int, seed: int) -> dict:
    """
    Metrics of each stage on the same records.

    Args:
        scores (`dict[str, np.ndarray]`):
            For each stage the scores of the candidates of each record, the target first.
        num_candidates (`int`):
            Length of the lists, for the row of chance.
        seed (`int`):
            Seed of the intervals.

    Returns:
        `dict`: For each stage, and for `chance`, `hr@1`, `hr@1_ci`, `ndcg@10`, `mrr` and `n`.
    """
    names = ("hr@1", "hr@1_ci", "ndcg@10", "mrr", "n")
    num_records = len(next(iter(scores.values())))
    stages = {"chance": {**chance_metrics(num_candidates), "n": num_records}}
    stages |= {name: ranking_metrics(ranks(values), seed=seed) for name, values in scores.items()}
    return {stage: {name: metrics[name] for name in names} for stage, metrics in stages.items()}


def difference(scores: dict, better: str, baseline: str, seed: int) -> dict:
    """
    How much more often one stage puts the target first than another, over the same records.

    Args:
        scores (`dict`):
            See [`metrics_of_stages`].
        better (`str`), baseline (`str`):
            The stages.
        seed (`int`):
            Seed of the interval.

    Returns:
        `dict`: `hr@1`, the mean of the paired differences, `hr@1_ci`, its 95% interval, and `hr@1_p`, the
        p-value of the exact McNemar test. See [`trl_sdpo.recsys.compare_scores`].
    """
    comparison = compare_scores(scores[better], scores[baseline], ks=(1,), seed=seed)
    return {name: comparison[name] for name in ("hr@1", "hr@1_ci", "hr@1_p")}


def baselines(scores: dict) -> list[str]:
    """The stages that S-DPO is compared with."""
    return [name for name in ("popularity", "sft", "more sft") if name in scores]


def compare(scores: dict, num_candidates: int, seed: int) -> dict:
    """
    What results.json says of the scores of a run.

    Args:
        scores (`dict`), num_candidates (`int`), seed (`int`):
            See [`metrics_of_stages`].

    Returns:
        `dict`: `stages`, see [`metrics_of_stages`], and `differences`, see [`difference`], by `"stage - baseline"`.
    """
    differences = {
        f"{stage} - {baseline}": difference(scores, stage, baseline, seed)
        for stage in scores
        if stage.startswith("s-dpo")
        for baseline in baselines(scores)
    }
    return {"stages": metrics_of_stages(scores, num_candidates, seed), "differences": differences}


def verdict(differences: dict, better: str, baseline: str) -> str:
    """Say in one sentence whether one stage beats another."""
    gain = differences[f"{better} - {baseline}"]
    low, high = gain["hr@1_ci"]
    says = "beats" if low > 0 else "loses to" if high < 0 else "does not differ measurably from"
    chance = f"p = {gain['hr@1_p']:.2g}"
    return f"{better} {says} {baseline}: {gain['hr@1']:+.3f} hr@1, 95% interval {low:+.3f} to {high:+.3f}, {chance}."


def format_table(stages: dict) -> str:
    """The metrics of the stages as a table of text."""
    header = ("", "hr@1", "95% interval", "ndcg@10", "mrr", "n")
    rows = [header]
    for name, row in stages.items():
        low, high = row["hr@1_ci"]
        # what chance does is known without an interval
        interval = "exact" if name == "chance" else f"{low:.3f} to {high:.3f}"
        rows.append(
            (name, f"{row['hr@1']:.3f}", interval, f"{row['ndcg@10']:.3f}", f"{row['mrr']:.3f}", str(row["n"]))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _series(log: list[dict], key: str) -> tuple[list[int], list[float]]:
    points = [(entry["step"], entry[key]) for entry in log if key in entry]
    return [step for step, _ in points], [value for _, value in points]


def _plot_log(axis, log: list[dict], keys: dict[str, str], title: str, ylabel: str) -> None:
    for (key, label), color in zip(keys.items(), ("#2f6db3", "#c2571a"), strict=False):
        axis.plot(*_series(log, key), color=color, label=label)
    axis.set(title=title, xlabel="optimizer step", ylabel=ylabel)
    axis.grid(alpha=0.25)
    if len(keys) > 1:
        axis.legend(frameon=False)


def plot_run(stages: dict, sft_log: list[dict], softmax_dpo_log: list[dict], path: Path, title: str) -> None:
    """
    Plot a run: the loss of both stages, reward margin and accuracy of Softmax-DPO, and hr@1 by stage.

    Args:
        stages (`dict`):
            Of [`metrics_of_stages`].
        sft_log (`list[dict]`), softmax_dpo_log (`list[dict]`):
            Log histories of the trainers.
        path (`Path`):
            PNG file to write.
        title (`str`):
            Title.
    """
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    figure.suptitle(title)
    _plot_log(axes[0, 0], sft_log, {"loss": "loss"}, "SFT: loss", "nats per token")
    _plot_log(axes[0, 1], softmax_dpo_log, {"loss": "loss"}, "S-DPO: loss", "nats per record")
    _plot_log(
        axes[1, 0], softmax_dpo_log, {"rewards/margins": "margin"}, "S-DPO: reward margin", "chosen − mean rejected"
    )
    _plot_log(
        axes[1, 1],
        softmax_dpo_log,
        {"rewards/accuracies": "accuracy"},
        "S-DPO: reward accuracy",
        "chosen above all rejected",
    )
    grid = axes[0, 2].get_gridspec()
    for axis in axes[:, 2]:
        axis.remove()
    _plot_stages(figure.add_subplot(grid[:, 2]), stages)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)
    temporary.replace(path)


def _plot_stages(axis, stages: dict) -> None:
    names = list(stages)
    values = np.array([stages[name]["hr@1"] for name in names])
    intervals = np.array([stages[name]["hr@1_ci"] for name in names]).T
    colors = ["#b9bec6" if name in ("chance", "popularity") else "#2f6db3" for name in names]
    heights = np.arange(len(names))
    errors = np.abs(intervals - values)
    axis.barh(heights, values, xerr=errors, color=colors, ecolor="#333333", capsize=3)
    for height, value, error in zip(heights, values, errors[1], strict=True):
        axis.text(value + error + 0.01, height, f"{value:.3f}", va="center")
    axis.set_yticks(heights, names)
    axis.invert_yaxis()
    axis.set(
        title=f"hr@1 on {stages[names[-1]]['n']} held-out records",
        xlabel="hr@1, 95% interval",
        xlim=(0, 1.15 * (values + errors[1]).max() + 0.02),
    )
    axis.grid(axis="x", alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
