"""From a multi-preference dataset to the tokens that the trainer takes."""

import shutil
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset, load_from_disk
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import global_then_local_main_first

from ..data_utils import drop_too_long, flat_rejected_columns, from_flat_columns, plain_records
from ..tokenization import column_lengths, tokenize_dataset
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
        `tuple`: The dataset without a format, and with a list `rejected` in the place of flat columns, as published S-DPO
        data have them; and its first record.

    Raises:
        `ValueError`: If there is none.
    """
    dataset = plain_records(dataset)
    first_example = next(iter(dataset), None)
    if first_example is None:
        raise ValueError(f"The {dataset_name} dataset is empty.")
    if "rejected" not in first_example and flat_rejected_columns(list(first_example)):
        dataset = from_flat_columns(dataset)
        first_example = next(iter(dataset))
    return dataset, first_example


def prepare_multi_preference(
    dataset: Dataset | IterableDataset,
    processing_class: PreTrainedTokenizerBase,
    args: SoftmaxDPOConfig,
    dataset_name: str,
) -> Dataset | IterableDataset:
    """
    Tokenize the records of a dataset, and drop those that do not fit.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Multi-preference records, standard, conversational or tokenized.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        args ([`SoftmaxDPOConfig`]):
            Configuration, of which `max_length` and `dataset_num_proc` are read.
        dataset_name (`str`):
            Name for messages.

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


def largest_pool(dataset: Dataset, num_negatives: int | None, dataset_name: str) -> int:
    """Most rejected completions of a record; says so once where some records have fewer than `num_negatives`."""
    pool_sizes = column_lengths(dataset, "rejected_ids")
    if num_negatives is not None and num_negatives > pool_sizes.min():
        logger.warning_once(
            f"`num_negatives={num_negatives}` is more than some records have (the smallest pool of the "
            f"{dataset_name} dataset is {pool_sizes.min()}): all of theirs are used."
        )
    return int(pool_sizes.max())
