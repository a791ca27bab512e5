import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.data.data_collator import DataCollatorMixin
from transformers.trainer_utils import has_length
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import pad

from .masks import PADDING_SEGMENT
from .rows import expand_shared_rows, shared_prefix_row, split_completions, with_targets


ROW_MULTIPLE = 16
# The pass over a stream that a record was read in, where passes are of each process
STREAM_PASS = "stream_pass"


def draw_negatives(pool_size: int, num_negatives: int | None, seed: int, epoch: int, record_id: int) -> list[int]:
    """
    Draw the rejected completions that a training step takes from the pool of a record.

    The draw depends on its arguments alone, so it is the same in every data loader worker, on any number of
    processes and after a resume, and another one in the next epoch.

    Args:
        pool_size (`int`):
            Number of rejected completions of the record.
        num_negatives (`int` or `None`):
            Number to draw without replacement; `None`, or more than there are, takes all.
        seed (`int`):
            Seed of the run.
        epoch (`int`):
            Epoch, from 0.
        record_id (`int`):
            Identity of the record, not negative.

    Returns:
        `list[int]`: Indices into the pool, ascending.
    """
    if num_negatives is None or num_negatives >= pool_size:
        return list(range(pool_size))
    generator = np.random.default_rng([seed, epoch, record_id])
    return sorted(generator.choice(pool_size, size=num_negatives, replace=False).tolist())


@dataclass
class DataCollatorForMultiPreference(DataCollatorMixin):
    """
    Data collator used for multi-preference data: one chosen and K rejected completions per record, K free to differ
    from record to record. Inputs are dynamically padded to the maximum length of a batch.

    This collator expects each example in the input list to be a dictionary containing the keys `"prompt_ids"`,
    `"chosen_ids"` and `"rejected_ids"`, the latter a list of lists. The collator returns a dictionary containing the
    following keys, for shared-prefix rows (see [`shared_prefix_row`]):
    - `"num_completions"`: Tensor of shape `(B,)`, 1 + K of each record.
    - `"input_ids"`: Tensor of input IDs of shape `(B, L)`, one row per record, padded to the maximum length.
    - `"attention_mask"`: Tensor of attention mask.
    - `"position_ids"`: Tensor of position IDs, which restart in each segment.
    - `"segment_ids"`: Tensor of segment IDs: 0 for the prompt, 1 for the chosen, 2 to 1 + K for the rejected
        completions, -1 for padding.
    - `"completion_mask"`: Tensor indicating the positions of the completion tokens.
    - `"completion_exists"` and `"target_…"`: see [`with_targets`].

    With `prefix_sharing=False` there is one padded row per completion instead, `[chosen; rejected_1; …]` of the first
    record, then of the next, and no `"position_ids"`.

    Optionally, the examples can contain a `"record_id"` and the `"ref_chosen_logps"` and `"ref_rejected_logps"` keys,
    in which case the returned dictionary will also contain these keys with the corresponding tensors, the latter
    padded with NaN. Examples in which `"rejected_ids"` is a flat list are preference data of TRL, and are collated by
    [`~trl.trainer.dpo_trainer.DataCollatorForPreference`].

    Args:
        pad_token_id (`int`):
            Token ID to use for padding.
        max_length (`int`, *optional*):
            Maximum length of the sequences of preference data of TRL. Completions of multi-preference data are never
            cut: the trainer drops the records that do not fit.
        truncation_mode (`str`, *optional*, defaults to `"keep_start"`):
            Truncation mode of preference data of TRL.
        pad_to_multiple_of (`int`, *optional*):
            If set, the sequences will be padded to a multiple of this value. If not, shared-prefix rows are padded to a
            multiple of 16, which the kernels of attention on a GPU want of a mask, and other rows are not.
        prefix_sharing (`bool`, *optional*, defaults to `True`):
            Whether to lay the completions of a record out in one row.
        max_row_length (`int`, *optional*):
            Most tokens of a shared-prefix row. A longer record has several rows, each with its prompt and some of its
            completions, and `"row_records"` and `"row_completions"` say of each row of such a batch whose it is and how
            many completions it has. `None` is no bound.
        num_negatives (`int`, *optional*):
            Number of rejected completions to draw for each record, see [`draw_negatives`]. `None` takes all.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draw.
        evaluation (`bool`, *optional*, defaults to `False`):
            Whether to take all rejected completions whatever `num_negatives` says, as evaluation and the precomputation
            of the reference do.
        with_scores (`bool`, *optional*, defaults to `False`):
            Whether the batch has `"grades"`, of shape `(B, C)`: the `"chosen_score"` of each record, then the
            `"rejected_scores"` of the completions that are drawn, padded with NaN.
        return_tensors (`str`, *optional*, defaults to `"pt"`):
            Type of Tensor to return. Only `"pt"` is currently supported.

    Examples:
    ```python
    >>> from trl_sdpo import DataCollatorForMultiPreference

    >>> collator = DataCollatorForMultiPreference(pad_token_id=0, pad_to_multiple_of=1)
    >>> batch = collator([{"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [[6], [7, 8]]}])
    >>> batch["input_ids"]
    tensor([[1, 2, 3, 4, 5, 3, 6, 3, 7, 8]])
    >>> batch["segment_ids"]
    tensor([[0, 0, 1, 1, 1, 2, 2, 3, 3, 3]])
    >>> batch["position_ids"]
    tensor([[0, 1, 2, 3, 4, 2, 3, 2, 3, 4]])
    ```
    """

    pad_token_id: int
    max_length: int | None = None
    truncation_mode: str = "keep_start"
    pad_to_multiple_of: int | None = None
    prefix_sharing: bool = True
    max_row_length: int | None = None
    num_negatives: int | None = None
    seed: int = 0
    evaluation: bool = False
    with_scores: bool = False
    return_tensors: str = "pt"
    # in shared memory, so that data loader workers that outlive an epoch see it change
    epoch: torch.Tensor = field(
        default_factory=lambda: torch.zeros((), dtype=torch.long).share_memory_(), repr=False, compare=False
    )

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        if not isinstance(examples[0]["rejected_ids"][0], list):
            collator = DataCollatorForPreference(
                self.pad_token_id, self.max_length, self.truncation_mode, self.pad_to_multiple_of
            )
            return collator(examples)

        draws = [self._draw(example) for example in examples]
        rows, spans = self._rows(examples, draws)
        # First, because transformers reads the number of records in a batch off the first tensor
        output = {"num_completions": torch.tensor([1 + len(draw) for draw in draws])}
        padding = {"input_ids": self.pad_token_id, "segment_ids": PADDING_SEGMENT}
        for name in rows[0]:
            multiple = self.pad_to_multiple_of or (ROW_MULTIPLE if self.prefix_sharing else 1)
            output[name] = _padded([row[name] for row in rows], padding.get(name, 0), multiple)
        output["attention_mask"] = (output["segment_ids"] != PADDING_SEGMENT).long()
        if len(spans) > len(examples):
            output["row_records"] = torch.tensor([record for record, _ in spans])
            output["row_completions"] = torch.tensor([count for _, count in spans])
        if "record_id" in examples[0]:
            output["record_id"] = torch.tensor([example["record_id"] for example in examples])
        if "ref_chosen_logps" in examples[0]:
            output["ref_chosen_logps"] = torch.tensor([example["ref_chosen_logps"] for example in examples])
            output["ref_rejected_logps"] = _ragged(_drawn(examples, draws, "ref_rejected_logps"))
        if self.with_scores:
            scores = zip(examples, _drawn(examples, draws, "rejected_scores"), strict=True)
            output["grades"] = _ragged([[example["chosen_score"], *drawn] for example, drawn in scores])
        if not self.prefix_sharing:
            output = expand_shared_rows(output, self.pad_token_id, self.pad_to_multiple_of)
        return with_targets(output)

    def _rows(
        self, examples: list[dict[str, Any]], draws: list[list[int]]
    ) -> tuple[list[dict[str, list[int]]], list[tuple[int, int]]]:
        """The shared rows of all records, and of each row its record and how many completions it has."""
        rows, spans = [], []
        for record, (example, draw) in enumerate(zip(examples, draws, strict=True)):
            prompt_ids = example["prompt_ids"]
            completions = [example["chosen_ids"], *(example["rejected_ids"][i] for i in draw)]
            limit = self.max_row_length if self.prefix_sharing else None
            for start, stop in split_completions(len(prompt_ids), [len(ids) for ids in completions], limit):
                rows.append(shared_prefix_row(prompt_ids, completions[start:stop], 1 + start))
                spans.append((record, stop - start))
        return rows, spans

    def _draw(self, example: dict[str, Any]) -> list[int]:
        pool_size = len(example["rejected_ids"])
        if self.num_negatives is None or self.evaluation:
            return list(range(pool_size))
        if "record_id" not in example:
            raise ValueError(
                f"`num_negatives={self.num_negatives}` draws by the `record_id` of a record, and the record has none. "
                "Add a column `record_id` of integers, as `SoftmaxDPOTrainer` does."
            )
        epoch = example.get(STREAM_PASS, self.epoch)
        return draw_negatives(pool_size, self.num_negatives, self.seed, int(epoch), example["record_id"])


def _drawn(examples: list[dict[str, Any]], draws: list[list[int]], column: str) -> list[list[float]]:
    """What a column says of the rejected completions that are drawn."""
    return [[example[column][i] for i in draw] for example, draw in zip(examples, draws, strict=True)]


def _ragged(rows: list[list[float]]) -> torch.Tensor:
    """Rows of different lengths, padded with NaN on the right."""
    rows = [torch.tensor(row, dtype=torch.get_default_dtype()) for row in rows]
    return pad(rows, padding_value=float("nan"), padding_side="right")


def _padded(rows: list[list[int]], value: int, multiple: int) -> torch.Tensor:
    """Rows of integers in one table, padded on the right; by numpy, which reads lists several times as fast as torch."""
    width = -(-max(map(len, rows)) // multiple) * multiple
    table = np.full((len(rows), width), value, dtype=np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return torch.from_numpy(table)


def passes_of_stream(epoch: float) -> int:
    """
    Whole passes over a stream before the one that a checkpoint was saved in, by the epoch of the `Trainer`: the number
    of the pass, from 0, plus the batches taken in it over those of the run. At least one was taken, so a whole number
    is the end of a pass, not the start of the next.
    """
    return max(math.ceil(epoch) - 1, 0)


class EpochCallback(TrainerCallback):
    """Tells [`DataCollatorForMultiPreference`] the epoch, on which its draw of negatives depends."""

    def __init__(self, epoch: torch.Tensor) -> None:
        self.epoch = epoch

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: torch.utils.data.DataLoader | None = None,
        **kwargs,
    ) -> None:
        # on resume, within an epoch, `state.epoch` has a fraction
        self.next_epoch = int(state.epoch or 0)
        if state.epoch and not has_length(train_dataloader):
            self.next_epoch = passes_of_stream(state.epoch)

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        # counted, because `state.epoch` of a stream, whose length is not known, is a fraction of `max_steps`
        self.epoch.fill_(self.next_epoch)
        self.next_epoch += 1
