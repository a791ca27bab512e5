"""
Padded rows in several forward passes. A record is as many of them as it has completions, so a pool of hundreds would be
a pass of hundreds of rows, whatever the batch size.
"""

import math
from collections.abc import Callable

import torch

from .rows import ROW_TENSORS, TARGETS, CompletionScores, with_targets


def num_passes(batch: dict[str, torch.Tensor], max_tokens: int) -> int:
    """
    Forward passes that a batch of padded rows needs.

    Args:
        batch (`dict[str, torch.Tensor]`):
            Batch in padded rows.
        max_tokens (`int`):
            Most tokens of a pass, padding included. A row is never cut.

    Returns:
        `int`: Their number, from 1 to that of the rows.
    """
    num_rows, width = batch["input_ids"].shape
    return math.ceil(num_rows / max(max_tokens // width, 1))


def score_in_passes(
    score: Callable[[dict[str, torch.Tensor]], CompletionScores], batch: dict[str, torch.Tensor], passes: int
) -> CompletionScores:
    """
    Score padded rows a part at a time. All that a row gives depends on that row alone, so the results are those of one
    pass; what depends on several, the load-balancing loss of a mixture of experts, is left out.

    Args:
        score (`Callable`):
            Scores a batch, see [`score_completions`].
        batch (`dict[str, torch.Tensor]`):
            Batch in padded rows.
        passes (`int`):
            Number of passes, the same on all processes, whose passes wait for each other. One that has fewer rows takes its
            first row in the others, and counts it 0 times.

    Returns:
        [`CompletionScores`]: As of the whole batch.
    """
    batch = with_targets(batch)
    num_rows = batch["input_ids"].size(0)
    bounds = [num_rows * number // passes for number in range(passes + 1)]
    places = torch.tensor(bounds, device=batch["target_rows"].device)
    targets = torch.searchsorted(batch["target_rows"], places).tolist()  # rows ascend
    parts, idle = [], []
    for number in range(passes):
        rows, tokens = slice(*bounds[number : number + 2]), slice(*targets[number : number + 2])
        if tokens.start == tokens.stop:  # no row, or one of which nothing is scored
            first = int(torch.searchsorted(batch["target_rows"], batch["target_rows"][0] + 1))
            idle.append(score(_part(batch, slice(0, int(batch["target_rows"][0]) + 1), slice(0, first))))
        else:
            parts.append(score(_part(batch, rows, tokens)))
    log_probs = _total([part.log_probs for part in parts])
    for part in idle:
        log_probs = log_probs + 0.0 * part.log_probs
    return CompletionScores(
        log_probs=log_probs,
        num_tokens=_total([part.num_tokens for part in parts]),
        token_sums={name: _total([part.token_sums[name] for part in parts]) for name in parts[0].token_sums},
        token_log_probs=torch.cat([part.token_log_probs for part in parts]),
    )


def _total(parts: list[torch.Tensor]) -> torch.Tensor:
    return sum(parts[1:], parts[0])


def _part(batch: dict[str, torch.Tensor], rows: slice, tokens: slice) -> dict[str, torch.Tensor]:
    """Some rows of a batch, with where in them its completion tokens are, under the same numbers of completions."""
    part = {name: tensor[rows] if name in ROW_TENSORS else tensor for name, tensor in batch.items()}
    part |= {name: batch[name][tokens] for name in TARGETS if name != "completion_exists"}
    part["target_rows"] = part["target_rows"] - rows.start
    return part
