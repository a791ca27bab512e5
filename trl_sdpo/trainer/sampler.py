"""The order of training records where rows of like length are grouped."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from datasets import Dataset

from ..prefix_sharing.collator import draw_negatives
from ..tokenization import column_lengths, inner_lengths


class DrawnLengths:
    """
    Number of tokens of each record in a shared-prefix row with the negatives that an epoch draws, which is what is padded:
    pools of unlike sizes say little of it.

    Args:
        dataset ([`~datasets.Dataset`]):
            Tokenized multi-preference records.
        num_negatives (`int`):
            Number of rejected completions to draw.
        seed (`int`):
            Seed of the draw, see [`draw_negatives`].
    """

    def __init__(self, dataset: Dataset, num_negatives: int, seed: int) -> None:
        self.num_negatives, self.seed = num_negatives, seed
        self.record_ids = np.asarray(dataset["record_id"])
        self.pool_sizes = column_lengths(dataset, "rejected_ids")
        self.rejected = inner_lengths(dataset, "rejected_ids")
        # as `length` counts: every completion repeats the last token of the prompt, but for the one that it ends with
        self.prompt_and_chosen = column_lengths(dataset, "prompt_ids") + column_lengths(dataset, "chosen_ids")
        self.prompt_and_chosen = self.prompt_and_chosen.astype(np.int64)

    def __len__(self) -> int:
        return len(self.record_ids)

    def __call__(self, epoch: int) -> np.ndarray:
        """The lengths of an epoch, of shape `(records,)`."""
        ends = np.cumsum(self.pool_sizes)
        lengths = self.prompt_and_chosen.copy()
        for row, (record_id, size) in enumerate(zip(self.record_ids.tolist(), self.pool_sizes.tolist(), strict=True)):
            drawn = draw_negatives(size, self.num_negatives, self.seed, epoch, record_id)
            lengths[row] += self.rejected[ends[row] - size + np.asarray(drawn)].sum() + len(drawn)
        return lengths


class LengthGroupedSampler(torch.utils.data.Sampler[int]):
    """
    Random order in which the records of a batch have about the same length, so that little of a batch is padding.

    The order is a function of the seed and the epoch, where the sampler of the same name in transformers draws from the
    global generator: so it is the same on resume, and on any number of processes with the same global batch.

    The records are shuffled, cut into groups of `group_size`, and sorted by length within each group. The batches are
    then shuffled, but for the one with the longest record, which comes first, so that memory runs out at the start or
    not at all.

    Args:
        lengths (`Sequence[int]` or [`DrawnLengths`]):
            Number of tokens of each record, or a function of the epoch that gives them, where they are drawn.
        batch_size (`int`):
            Number of records of an optimizer step, over all processes and accumulation steps.
        seed (`int`):
            Seed of the run.
        groups (`int`, *optional*, defaults to `50`):
            Number of batches that a group holds.

    Example:

    ```python
    >>> from trl_sdpo.trainer.sampler import LengthGroupedSampler

    >>> list(LengthGroupedSampler([5, 1, 6, 2], batch_size=2, seed=0))
    [2, 0, 3, 1]
    ```
    """

    def __init__(self, lengths: "Sequence[int] | DrawnLengths", batch_size: int, seed: int, groups: int = 50) -> None:
        self.lengths = lengths if callable(lengths) else np.asarray(lengths)
        self.batch_size = batch_size
        self.group_size = batch_size * groups
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """The Trainer calls this before every epoch, on resume too."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        # a stream of its own beside those of the negatives, which belong to (seed, epoch, record)
        lengths = self.lengths(self.epoch) if callable(self.lengths) else self.lengths
        generator = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch], spawn_key=(0,)))
        order = generator.permutation(len(lengths))
        batches = []
        for start in range(0, len(order), self.group_size):
            group = order[start : start + self.group_size]
            group = group[np.argsort(-lengths[group], kind="stable")]
            batches += [group[first : first + self.batch_size] for first in range(0, len(group), self.batch_size)]
        # only the last batch may be short, and short batches belong at the end
        short = batches.pop() if len(batches[-1]) < self.batch_size else batches[-1][:0]
        if batches:
            longest = max(range(len(batches)), key=lambda index: lengths[batches[index][0]])
            first = batches.pop(longest)
            batches = [first, *(batches[index] for index in generator.permutation(len(batches)))]
        yield from np.concatenate([*batches, short]).tolist()
