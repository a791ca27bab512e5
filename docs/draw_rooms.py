"""
Draw the rooms of the package in the order of their import contract in pyproject.toml.

    python docs/draw_rooms.py    # writes docs/rooms.svg
"""

import tomllib
from html import escape
from pathlib import Path


ROOT = Path(__file__).parents[1]
# What a room does, in the words of its user
CAPTIONS = {
    "cli": "trl-sdpo …",
    "commands": "one module a command",
    "serving": "a page, a server, a Space",
    "pipeline": "a run: records, SFT, alignment, evaluation; resumes",
    "evaluation": "tables, tests, figures",
    "recommender": "a history in, titles out",
    "trainer": "SoftmaxDPOTrainer, checkpoints, reference",
    "hub": "cards, licences, pushes",
    "scoring": "a language model on candidates and catalogues",
    "interactions": "who took what",
    "negatives": "what is not taken",
    "metrics": "ranks, intervals",
    "prompts": "words",
    "records": "rows to train on",
    "baselines": "counts, SASRec",
    "losses": "tensors in, a loss out",
    "prefix_sharing": "the prompt once",
    "data_utils": "the format",
    "graded_records": "scores, ranked lists",
    "tokenization": "text to tokens",
    "files": "whole or not at all",
}
WIDTH, HEIGHT, GAP, LEFT, TOP = 860, 46, 10, 20, 16
# Okabe and Ito, 2008: what needs no torch is green, what trains or asks a model is blue, what a user starts is orange
COLOURS = {"recsys": "#009E73", "model": "#0072B2", "top": "#D55E00", "plain": "#666666"}
TOP_ROOMS = ("cli", "commands", "serving", "pipeline")
PLAIN = ("data_utils", "graded_records", "tokenization", "files")


def layers(contract: str) -> list[list[str]]:
    """The rooms of a contract, the highest first; those of one line know each other or stand side by side."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    found = next(one for one in contracts if one["id"] == contract)["layers"]
    rows = [[name.strip() for name in row.replace("|", ":").split(":")] for row in found]
    public = [[name for name in row if not name.startswith("_")] for row in rows]
    return [row for row in public if row]


def box(x: float, y: float, width: float, name: str, colour: str, height: float = HEIGHT, fill: float = 0.12) -> str:
    caption = CAPTIONS.get(name, "")
    middle = x + width / 2
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{colour}" fill-opacity="{fill:g}" '
        f'stroke="{colour}"/>'
        f'<text x="{middle:g}" y="{y + 20:g}" class="name">{escape(name)}</text>'
        f'<text x="{middle:g}" y="{y + 36:g}" class="caption">{escape(caption)}</text>'
    )


def row(names: list[str], y: float, x: float, width: float, colour: str | None = None) -> list[str]:
    each = (width - GAP * (len(names) - 1)) / len(names)
    parts = []
    for number, name in enumerate(names):
        kind = "top" if name in TOP_ROOMS else "plain" if name in PLAIN else "model"
        parts.append(box(x + number * (each + GAP), y, each, name, colour or COLOURS[kind]))
    return parts


def draw() -> str:
    """The picture as SVG."""
    parts, y, inner = [], TOP, WIDTH - 2 * LEFT - 90
    for names in layers("rooms"):
        if names == ["recsys"]:
            rooms = [name for line in reversed(layers("recsys")) for name in line]  # in the order of the data
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{inner}" height="{HEIGHT + 38}" rx="6" fill="none" '
                f'stroke="{COLOURS["recsys"]}"/><text x="{LEFT + 10}" y="{y + 18}" class="left">recsys: from left to right, '
                "no torch but in neural baselines</text>"
            )
            parts += row(rooms, y + 28, LEFT + 10, inner - 20, COLOURS["recsys"])
            y += HEIGHT + 38 + GAP
            continue
        parts += row(names, y, LEFT, inner)
        y += HEIGHT + GAP
    x = LEFT + inner + 40
    parts.append(f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{y - GAP - 8}" class="arrow" marker-end="url(#head)"/>')
    parts.append(
        f'<text x="{x + 16}" y="{y / 2:g}" class="caption" transform="rotate(90 {x + 16} {y / 2:g})">imports go down only</text>'
    )
    style = (
        "text{font-family:system-ui,sans-serif;fill:#1b1f24}.name{font-size:14px;font-weight:600;text-anchor:middle}"
        ".caption{font-size:11px;text-anchor:middle}.left{font-size:12px}.arrow{stroke:#666;stroke-width:2}"
    )
    head = '<marker id="head" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 6}" role="img" aria-label="The rooms">',
            f'<style>{style}</style><defs>{head}<path d="M0 0 8 4 0 8Z" fill="#666"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{y + 6}" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    (ROOT / "docs" / "rooms.svg").write_text(draw(), encoding="utf-8")
