"""
Draw the row and the mask of one record with three rejected completions, from the functions that training uses.

    python docs/draw_prefix_mask.py    # writes docs/prefix_mask.svg
"""

from pathlib import Path

import matplotlib
import torch

from trl_sdpo.prefix_sharing.masks import shared_prefix_mask
from trl_sdpo.prefix_sharing.rows import shared_prefix_row


matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes


PROMPT = ["Alien,", "Ran,", "Big.", "Next:"]
COMPLETIONS = [["Heat", "(1995)"], ["Fargo", "(1996)"], ["Clue"], ["Babe", "2", "(1998)"]]
NAMES = ["prompt", "chosen", "rejected 1", "rejected 2", "rejected 3"]
# Of a colour scale that colour-blind readers tell apart (Okabe and Ito, 2008): the prompt grey, the chosen green
COLOURS = ["#999999", "#009E73", "#D55E00", "#0072B2", "#CC79A7"]
HIDDEN = "#F4F4F4"


def build_row() -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """The tokens of the row as text, their segments and their positions."""
    words = PROMPT + [word for completion in COMPLETIONS for word in completion]
    ids = iter(range(len(words)))
    prompt_ids = [next(ids) for _ in PROMPT]
    completion_ids = [[next(ids) for _ in completion] for completion in COMPLETIONS]
    row = shared_prefix_row(prompt_ids, completion_ids)
    return (
        [words[index] for index in row["input_ids"]],
        torch.tensor(row["segment_ids"]),
        torch.tensor(row["position_ids"]),
    )


def draw_mask(axis: Axes, words: list[str], segments: torch.Tensor, positions: torch.Tensor) -> None:
    """One square for each query (row) and key (column): coloured by the segment of the key where it is seen."""
    mask = shared_prefix_mask(segments[None], positions[None], "sdpa", torch.bool)[0, 0]
    length = len(words)
    for query in range(length):
        for key in range(length):
            colour = COLOURS[segments[key]] if mask[query, key] else HIDDEN
            axis.add_patch(plt.Rectangle((key, query), 0.92, 0.92, color=colour, linewidth=0))
    starts = [index for index in range(1, length) if segments[index] != segments[index - 1]]
    for start in starts:
        axis.axhline(start - 0.04, color="#333333", linewidth=0.8)
        axis.axvline(start - 0.04, color="#333333", linewidth=0.8)
    axis.set(xlim=(-0.1, length), ylim=(length, -0.1), aspect="equal")
    ticks = [index + 0.46 for index in range(length)]
    axis.set_xticks(ticks, words, rotation=90)
    axis.set_yticks(ticks, [f"{word}  {position}" for word, position in zip(words, positions.tolist(), strict=True)])
    axis.xaxis.tick_top()
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        for label, segment in zip(labels, segments.tolist(), strict=True):
            label.set_color("#555555" if segment == 0 else COLOURS[segment])
    axis.tick_params(length=0)
    axis.set_frame_on(False)
    axis.set_ylabel("token (query) and its position", labelpad=8)
    axis.set_title("tokens that it sees (keys), coloured", pad=12, fontsize=10)


def main() -> None:
    words, segments, positions = build_row()
    plt.rcParams["svg.hashsalt"] = "prefix mask"  # the same file from the same drawing
    figure, axis = plt.subplots(figsize=(7, 6.4), facecolor="white")
    draw_mask(axis, words, segments, positions)
    patches = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS]
    axis.legend(patches, NAMES, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    path = Path(__file__).with_name("prefix_mask.svg")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    print(path)


if __name__ == "__main__":
    main()
