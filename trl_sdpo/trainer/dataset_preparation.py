"""From a multi-preference dataset to the tokens that the trainer takes, and the order in which it takes them."""

import itertools
import shutil
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset, load_from_disk
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import global_then_local_main_first

from ..data_utils import (
    check_no_list_as_text,
    drop_too_long,
    flat_rejected_columns,
    from_flat_columns,
    readable_records,
)
from ..graded_records import RANKED, check_scores, from_ranked
from ..losses.graded import RATIO
from ..prefix_sharing.collator import STREAM_PASS, draw_negatives
from ..tokenization import column_lengths, inner_lengths, tokenize_dataset
from .softmax_dpo_config import SoftmaxDPOConfig


logger = get_logger(__name__)


def with_first_example(
    dataset: Dataset | IterableDataset, dataset_name: str
) -> tuple[Dataset | IterableDataset, dict[str, Any]]:
    """
    Look at the first record of a dataset.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Records of any format that is taken.
        dataset_name (`str`):
            Name for messages.

    Returns:
        `tuple`: The dataset, to be read as Python values, with a list `rejected` in the place of flat columns, as published S-DPO
        data have them, or of a `ranked` list; and its first record.

    Raises:
        `ValueError`: If there is none, or `rejected` is a list that was written as a text.
    """
    dataset = readable_records(dataset)
    first_example = next(iter(dataset), None)
    if first_example is None:
        raise ValueError(f"The {dataset_name} dataset is empty.")
    check_no_list_as_text(first_example)
    if "rejected" not in first_example and RANKED in first_example:
        dataset = from_ranked(dataset)
        first_example = next(iter(dataset))
    if "rejected" not in first_example and flat_rejected_columns(list(first_example)):
        dataset = from_flat_columns(dataset)
        first_example = next(iter(dataset))
    return dataset, first_example


def prepare_multi_preference(
    dataset: Dataset | IterableDataset,
    processing_class: PreTrainedTokenizerBase,
    args: SoftmaxDPOConfig,
    dataset_name: str,
    graded_types: Collection[str] = (),
) -> Dataset | IterableDataset:
    """
    Tokenize the records of a dataset, and drop those that do not fit.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Multi-preference records, standard, conversational or tokenized.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        args ([`SoftmaxDPOConfig`]):
            Configuration, of which `max_length`, `dataset_num_proc` and the options of scores are read.
        dataset_name (`str`):
            Name for messages.
        graded_types (`Collection[str]`, *optional*):
            Loss types that take scores, which every record must have then.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`]: The records, see [`tokenize_multi_preference`].

    Raises:
        `ValueError`: If a record is malformed, or none is left.
    """
    stream = not isinstance(dataset, Dataset)
    # Build the kwargs for the `map` function: IterableDataset supports neither `num_proc` nor `desc`
    map_kwargs = {} if stream else {"num_proc": args.dataset_num_proc}
    with global_then_local_main_first():
        if not stream:
            map_kwargs["desc"] = f"Tokenizing {dataset_name} dataset"
        dataset = tokenize_dataset(dataset, processing_class, processing_class.eos_token, **map_kwargs)
        if graded_types:
            if not stream:
                map_kwargs["desc"] = f"Checking scores of {dataset_name} dataset"
            positive = args.score_margin == RATIO and "softmax_margin" in graded_types
            fn_kwargs = {"unrated_score": args.unrated_score, "positive": positive}
            dataset = dataset.map(check_scores, with_indices=True, fn_kwargs=fn_kwargs, **map_kwargs)
        if args.max_length is not None:
            if not stream:
                map_kwargs["desc"] = f"Dropping too long examples from {dataset_name} dataset"
            dataset = drop_too_long(dataset, args.max_length, dataset_name, **map_kwargs)
    return dataset


def shared_by_processes(dataset: Dataset, folder: str, accelerator: Accelerator) -> Dataset:
    """
    A dataset that all processes read from the same files: what the first one computes beside them, the others find. One in
    memory has none, and each process would look for them in a temporary folder of its own.

    Args:
        dataset ([`~datasets.Dataset`]):
            Dataset, the same on all processes.
        folder (`str`):
            Where the first process writes one that is in memory, overwriting what is there.
        accelerator ([`~accelerate.Accelerator`]):
            Of the run.

    Returns:
        [`~datasets.Dataset`]: The dataset, on files.
    """
    in_memory = [accelerator.num_processes > 1 and not dataset.cache_files]
    if not broadcast_object_list(in_memory)[0]:
        return dataset
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        dataset.save_to_disk(folder)
    accelerator.wait_for_everyone()
    return load_from_disk(folder)


class WholeStream(torch.utils.data.IterableDataset):
    """
    A stream that every process reads from its start to its end, to keep its part of every batch: accelerate would give each
    its own files, of which one has more records than another, and the processes would wait for each other at the end.

    Args:
        dataset ([`~datasets.IterableDataset`]):
            The stream.
    """

    def __init__(self, dataset: IterableDataset) -> None:
        self.dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        """See [`~datasets.IterableDataset.set_epoch`]."""
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.dataset)


def shards_for_each_process(dataset: Dataset | IterableDataset, accelerator: Accelerator) -> bool:
    """Whether each process of several can read its own shards of a dataset: a stream of at least as many."""
    several = accelerator.num_processes > 1 and not accelerator.dataloader_config.split_batches
    return several and isinstance(dataset, IterableDataset) and dataset.num_shards >= accelerator.num_processes


class OwnShards(torch.utils.data.IterableDataset):
    """
    A stream of which each process reads its own shards: every so many, from its number on. One pass follows the other
    without an end, since the passes of processes are not equally long, and at an end they would wait for each other. The
    number of the pass is the column `stream_pass` of a record.

    accelerate takes a batch of all processes from what a process iterates over, and keeps the part of that process: what
    stands for the records of the others is `None`.

    Args:
        dataset ([`~datasets.IterableDataset`]):
            The stream.
        seed (`int`):
            Of the order of the shards, which is another one in every pass but the first.
        batch_size (`int`):
            Records of a process in a batch.
        process (`int`), num_processes (`int`):
            The process, and how many there are.
    """

    def __init__(self, dataset: IterableDataset, seed: int, batch_size: int, process: int, num_processes: int) -> None:
        self.dataset, self.seed, self.batch_size = dataset, seed, batch_size
        self.process, self.num_processes = process, num_processes

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        numbers = list(range(self.process, self.dataset.num_shards, self.num_processes))
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            numbers = numbers[worker.id :: worker.num_workers]
        if not numbers:
            return
        records = self._passes(numbers)
        while True:
            for process in range(self.num_processes):
                for _ in range(self.batch_size):
                    yield next(records) if process == self.process else None

    def _passes(self, numbers: list[int]) -> Iterator[dict[str, Any]]:
        """The records of shards, again and again."""
        for stream_pass in itertools.count():
            is_empty, order = True, numbers
            if stream_pass:
                order = np.random.default_rng([self.seed, stream_pass]).permutation(numbers).tolist()
            for number in order:
                shard = self.dataset.shard(self.dataset.num_shards, number)
                shard.set_epoch(stream_pass)
                # by `iter`: in a worker of a data loader, one shard would be for the first of them
                for batch in shard.iter(batch_size=1):
                    is_empty = False
                    yield {**{name: values[0] for name, values in batch.items()}, STREAM_PASS: stream_pass}
            if is_empty:
                raise ValueError(
                    f"The shards {numbers} of the training stream, which has {self.dataset.num_shards}, hold no record that "
                    "can be trained on: every one is longer than `max_length`, or there is none. Raise `max_length`, or write "
                    "the records in files of about the same number."
                )


def largest_pool(dataset: Dataset, num_negatives: int | None, dataset_name: str) -> int:
    """Most rejected completions of a record; says so once where some records have fewer than `num_negatives`."""
    pool_sizes = column_lengths(dataset, "rejected_ids")
    if num_negatives is not None and num_negatives > pool_sizes.min():
        logger.warning_once(
            f"`num_negatives={num_negatives}` is more than some records have (the smallest pool of the "
            f"{dataset_name} dataset is {pool_sizes.min()}): all of theirs are used."
        )
    return int(pool_sizes.max())


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
    >>> from trl_sdpo.trainer.dataset_preparation import LengthGroupedSampler

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
