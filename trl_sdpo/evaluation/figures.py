"""The figures of an evaluation, as SVG to stand within a page: its colours are the page's, and follow light and dark."""

import html
import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure


# Colours that no figure has otherwise, and what the page calls them.
_INK, _MUTED, _LINE = "#1b1f24", "#6a737d", "#d8dee4"
_SERIES = ("#2f6db3", "#c2571a", "#3a8a4d", "#8a4fb0", "#b08a00", "#0b8a94", "#b03060", "#5a6b2f")
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _LINE: "--line"}
_VARIABLES |= {color: f"--series-{number}" for number, color in enumerate(_SERIES, start=1)}
_MARKERS = "osD^vXP*"
_DASHES: tuple[Any, ...] = ("-", (0, (6, 3)), (0, (3, 6)), (0, (1.5, 7.5)))
# As wide as a phone: wider ones would have to shrink there, with their letters.
_WIDTH = 4.6
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "trl-sdpo",
    "font.size": 9.5,
    "font.family": "sans-serif",
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _LINE,
    "axes.axisbelow": True,
}


class Drawing(NamedTuple):
    """
    A figure of a page.

    Args:
        svg (`str`):
            The element.
        caption (`str`):
            What stands below it.
    """

    svg: str
    caption: str


def draw_section(section: dict, facts: dict[str, dict], axes: dict[str, str]) -> list[Drawing]:
    """
    The figures of a section: systems, what they depend on, and breakdowns.

    Args:
        section (`dict`):
            Of [`evaluate_ranking`] and its kin.
        facts (`dict[str, dict]`):
            What is known of the systems.
        axes (`dict[str, str]`):
            The facts to plot over, where systems differ in them, with the label of the axis.

    Returns:
        `list[Drawing]`: The figures.
    """
    prefix, metric = section["protocol"], section["metric"]
    systems = {name: row for name, row in section["systems"].items() if metric in row}
    drawings = [_drawing(_draw(f"{prefix}-systems", _systems, systems, metric), f"{metric} of every system")]
    for fact, label in axes.items():
        points = {name: facts[name][fact] for name in systems if facts.get(name, {}).get(fact) is not None}
        if len(set(points.values())) > 1:
            svg = _draw(f"{prefix}-{fact}", _over, systems, metric, points, label)
            drawings.append(_drawing(svg, f"{metric} over {label}"))
    for number, one in enumerate(section["breakdowns"]):
        if len(one["bins"]) > 1:
            svg = _draw(f"{prefix}-parts-{number}", _parts, one, metric)
            drawings.append(_drawing(svg, f"{metric} by {one['name']}"))
    return drawings


def _drawing(svg: str, caption: str) -> Drawing:
    """The figure with its caption as the text for who cannot see it; the table beside it has the numbers."""
    return Drawing(
        svg.replace('role="img"', f'role="img" aria-label="{html.escape(caption, quote=True)}"', 1), caption
    )


def _draw(name: str, plot: Callable[..., None], *args) -> str:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(layout="constrained")
        FigureCanvasSVG(figure)
        plot(figure, *args)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # the ids of several figures in one page must differ
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    # as large as the page has room for
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r'<svg role="img" \1', svg, count=1)
    return re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", svg, count=1)


def _short(name: str, length: int = 26) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _error(row: dict, metric: str) -> tuple[float, float]:
    low, high = row.get(f"{metric}_ci") or (row[metric], row[metric])
    return row[metric] - low, high - row[metric]


def _systems(figure: Figure, systems: dict[str, dict], metric: str) -> None:
    figure.set_size_inches(_WIDTH, 0.9 + 0.36 * len(systems))
    axis = figure.subplots()
    heights = np.arange(len(systems))
    values = [row[metric] for row in systems.values()]
    errors = np.array([_error(row, metric) for row in systems.values()]).T
    colors = [_MUTED if name in ("chance", "popularity") else _SERIES[0] for name in systems]
    axis.barh(heights, values, color=colors, height=0.62, alpha=0.85)
    for height, value, low, high in zip(heights, values, *errors, strict=True):
        if low or high:
            axis.plot([value - low, value + high], [height, height], color=_INK, linewidth=1.3)
        beside: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(f"{value:.3f}", (value + high, height), color=_INK, **beside)
    axis.set_yticks(heights, [_short(name) for name in systems])
    axis.invert_yaxis()
    top = max(value + high for value, high in zip(values, errors[1], strict=True))
    axis.set(xlim=(0, 1.22 * max(top, 1e-3)), xlabel=f"{metric}, 95% interval")
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", linewidth=0.7)


def _over(figure: Figure, systems: dict[str, dict], metric: str, points: dict[str, float], label: str) -> None:
    figure.set_size_inches(_WIDTH, 2.7)
    axis = figure.subplots()
    ticks = sorted(set(points.values()))
    for name, x in points.items():
        row, last = systems[name], x == ticks[-1]
        axis.errorbar([x], [row[metric]], np.array([_error(row, metric)]).T, fmt="o", color=_SERIES[0], capsize=3)
        place: dict[str, Any] = {
            "xytext": (-6, 5) if last else (6, 5),
            "textcoords": "offset points",
            "ha": "right" if last else "left",
        }
        axis.annotate(_short(name, 18), (x, row[metric]), fontsize=8, color=_INK, **place)
    if ticks[0] > 0:
        axis.set_xscale("log")
        axis.minorticks_off()
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.margins(x=0.1)
    if "chance" in systems:
        axis.axhline(systems["chance"][metric], color=_MUTED, linestyle="--", linewidth=1)
    axis.set(xlabel=label, ylabel=metric, ylim=(0, None))
    axis.grid(axis="y", linewidth=0.7)


def _parts(figure: Figure, breakdown: dict, metric: str) -> None:
    systems, bins = breakdown["systems"], breakdown["bins"]
    columns = 2
    figure.set_size_inches(_WIDTH, 2.9 + 0.2 * -(-len(systems) // columns))
    axis = figure.subplots()
    places = np.arange(len(bins))
    for number, (name, row) in enumerate(systems.items()):
        plain = name == "popularity"
        color = _MUTED if plain else _SERIES[number % len(_SERIES)]
        values, intervals = [one["value"] for one in row], np.array([one["ci"] for one in row])
        # a later line has more gaps, and each its own kind of points: of lines that lie on each other all are seen
        lines = number - ("popularity" in list(systems)[:number])
        axis.plot(
            places,
            values,
            color=color,
            linestyle=(0, (2, 2)) if plain else _DASHES[lines % len(_DASHES)],
            marker=None if plain else _MARKERS[lines % len(_MARKERS)],
            markersize=5,
            markerfacecolor="none" if lines % 2 else color,
            linewidth=1.5,
            label=_short(name),
        )
        axis.fill_between(places, *intervals.T, color=color, alpha=0.12, linewidth=0)
    labels = [f"{part['label']}\nn = {part['n']:,}" for part in bins]
    axis.set_xticks(places, labels, rotation=45, ha="right", rotation_mode="anchor")
    axis.set(xlabel=breakdown["unit"], ylabel=metric, ylim=(0, None))
    axis.grid(axis="y", linewidth=0.7)
    figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize=8.5)
