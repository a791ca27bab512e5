"""The training curves of a run as a figure for its model card."""

import importlib.util
import re
from pathlib import Path

from ..files import writing


_PANELS = [
    ("Loss", r"loss|eval_(?:.+_)?loss"),
    ("Reward margin, and how often the chosen beats all", r"(?:eval_(?:.+_)?)?rewards/(?:margins|accuracies)"),
    ("Ranking of the evaluation", r"eval_(?:.+_)?(?:hr@1|ndcg@10|mrr)"),
]


def plot_training_curves(log_history: list[dict], path: str | Path) -> bool:
    """
    Plot losses, rewards and ranking over the steps of training.

    Args:
        log_history (`list[dict]`):
            `trainer.state.log_history`.
        path (`str` or `Path`):
            The PNG file. It is whole, or as it was before.

    Returns:
        `bool`: Whether the figure was written: not without matplotlib, and not where nothing was logged.
    """
    panels = [(title, _curves(log_history, pattern)) for title, pattern in _PANELS]
    panels = [(title, curves) for title, curves in panels if curves]
    if not panels or importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot: no global state, and the same in any thread
    figure = Figure(figsize=(5 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, points in sorted(curves.items()):
            steps, values = zip(*points, strict=True)
            axis.plot(steps, values, "o-" if len(points) < 30 else "-", markersize=3, label=name)
        axis.set(title=title, xlabel="step")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize="small")
    with writing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    return True


def _curves(log_history: list[dict], pattern: str) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in log_history:
        for name, value in entry.items():
            if re.fullmatch(pattern, name) and isinstance(value, (int, float)):
                curves.setdefault(name, []).append((entry.get("step", 0), float(value)))
    return curves
