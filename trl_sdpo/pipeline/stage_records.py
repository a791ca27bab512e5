"""What the stages do to records before a trainer takes them: the same tokens for both."""

from itertools import chain
from typing import Any

import numpy as np
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import global_then_local_main_first

from ..data_utils import check_multi_preference, readable_records
from ..tokenization import CompletionTokenizer, tokenize_dataset


logger = get_logger(__name__)

_COLUMNS = ("prompt", "chosen", "rejected")


def completions_are_lines(dataset: Dataset | IterableDataset) -> bool:
    """
    Whether each completion of a multi-preference dataset is a line, whose end is its line break.

    An EOS token behind it would not stand behind the titles of the history, which are lines as well: a model would have
    to count titles to foresee it, noise in the score of a candidate.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Records. Of a stream the first one is looked at; the others are checked when they are read.

    Returns:
        `bool`: The answer; `False` for messages, tokens and preference data of TRL.
    """
    first: dict[str, Any] = next(iter(dataset), {})
    if not isinstance(first.get("rejected"), list) or not isinstance(first.get("chosen"), str):
        return False
    chosen = dataset["chosen"][:] if isinstance(dataset, Dataset) else [first["chosen"]]
    return all(isinstance(text, str) and text.endswith("\n") for text in chosen)


def tokenize_lines(
    dataset: Dataset | IterableDataset,
    dataset_name: str,
    processing_class: PreTrainedTokenizerBase,
    num_proc: int | None,
) -> Dataset | IterableDataset:
    """
    Tokenize multi-preference records whose completions are lines, without an EOS token behind them.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Records, standard.
        dataset_name (`str`):
            Name for messages.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        num_proc (`int`, *optional*):
            Number of processes.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`]: The records with `prompt_ids`, `chosen_ids` and
        `rejected_ids` in the place of texts.

    Raises:
        `ValueError`: If a record is malformed, see [`check_multi_preference`], or a completion is no line.
    """
    dataset = readable_records(dataset)
    # a stream takes neither `desc` nor `num_proc`
    options = {"desc": f"Tokenizing {dataset_name} dataset", "num_proc": num_proc}
    with global_then_local_main_first():
        if isinstance(dataset, Dataset):
            batches = dataset.select_columns(["chosen", "rejected"]).iter(1_000)
            pairs = (zip(batch["chosen"], batch["rejected"], strict=True) for batch in batches)
            for row, (chosen, rejected) in enumerate(chain.from_iterable(pairs)):
                _check_lines(chosen, rejected, row)
        else:
            dataset = dataset.map(_check_lines, with_indices=True, input_columns=["chosen", "rejected"])
        return tokenize_dataset(
            dataset,
            processing_class,
            "",
            remove_columns=list(_COLUMNS),
            **(options if isinstance(dataset, Dataset) else {}),
        )


def chosen_rows(
    dataset: Dataset | IterableDataset,
    dataset_name: str,
    processing_class: PreTrainedTokenizerBase,
    eos_token: str,
    max_length: int | None,
    num_proc: int | None,
) -> Dataset | IterableDataset:
    """
    Rows for [`~trl.SFTTrainer`] of the prompts and chosen completions of records, with the tokens and the boundary that
    Softmax-DPO has. None is cut: those longer than `max_length` are dropped, and counted in a warning.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Multi-preference records, standard, conversational or tokenized, or preference data of TRL with a `prompt`.
        dataset_name (`str`):
            Name for messages.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        eos_token (`str`):
            Token to end the completions of standard records with; empty for [`completions_are_lines`].
        max_length (`int`, *optional*):
            Most tokens of a row.
        num_proc (`int`, *optional*):
            Number of processes.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`]: `input_ids` and `completion_mask`.

    Raises:
        `ValueError`: If a record is malformed, see [`check_multi_preference`], is no line where the others are, or none
            fits.
    """
    dataset = readable_records(dataset)
    columns = list(dataset.column_names or next(iter(dataset), {}))
    if not {"prompt", "chosen", "rejected"} <= set(columns) and "rejected_ids" not in columns:
        raise ValueError(
            f"The {dataset_name} dataset has no `prompt`, `chosen` and `rejected`, only {columns}. Prompts with "
            "completions and bare texts are what `trl sft` trains on."
        )
    # a stream takes neither `desc` nor `num_proc`, and no record of it is read ahead
    options = {"desc": f"Tokenizing {dataset_name} dataset", "num_proc": num_proc}
    with global_then_local_main_first():
        rows = dataset.map(
            _chosen_rows,
            with_indices=True,
            batched=True,
            batch_size=1_000 if isinstance(dataset, Dataset) else 1,
            remove_columns=columns,
            fn_kwargs={"tokenizer": CompletionTokenizer(processing_class, eos_token)},
            **(options if isinstance(dataset, Dataset) else {}),
        )
    rows = rows.with_format(None) if isinstance(rows, Dataset) else rows
    if max_length is None:
        return rows
    return _drop_long_rows(rows, max_length, dataset_name, num_proc)


def non_overlapping_windows(dataset: Dataset, window: int, epochs: int = 1, seed: int = 0) -> Dataset:
    """
    The records whose windows of history and target do not overlap, cut anew in every epoch.

    With a loss on all tokens of a row, each title of a user is then learned once an epoch, at a place in the window that
    changes.

    Args:
        dataset ([`~datasets.Dataset`]):
            Records with the columns `user_id` and `position`, as [`build_preference_dataset`] makes them.
        window (`int`):
            Titles in a window: the history and the target.
        epochs (`int`, *optional*, defaults to `1`):
            Number of cuts. All of them are among the records, so that a trainer goes through these once.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the cuts.

    Returns:
        [`~datasets.Dataset`]: The records of one cut after the other. A trainer shuffles them all.
    """
    generator = np.random.default_rng(seed)
    _, users = np.unique(np.asarray(dataset["user_id"][:]), return_inverse=True)
    positions = np.asarray(dataset["position"][:])
    chosen = []
    for _ in range(epochs):
        offsets = generator.integers(window, size=users.max() + 1)
        chosen.append(np.flatnonzero((positions - offsets[users]) % window == 0))
    return dataset.select(np.concatenate(chosen))


def _check_lines(chosen: Any, rejected: Any, row: int) -> dict:
    """Raise at a completion without a line break at its end, where no EOS token is put behind one. Changes no column."""
    others = enumerate(rejected) if isinstance(rejected, list) else ()
    for column, text in (("chosen", chosen), *((f"rejected[{place}]", text) for place, text in others)):
        if isinstance(text, str) and not text.endswith("\n"):
            raise ValueError(
                f"Row {row}, column `{column}`: {text!r} does not end in a line break, as other completions do. No EOS token is "
                "put behind lines, so that nothing would say where it ends. End all completions with a line break, or none."
            )
    return {}


def _chosen_rows(examples: dict[str, list], indices: list[int], tokenizer: CompletionTokenizer) -> dict[str, list]:
    records = []
    for values, index in zip(zip(*examples.values(), strict=True), indices, strict=True):
        record = dict(zip(examples, values, strict=True))
        if isinstance(record.get("rejected"), str) or _is_messages(record.get("rejected")):
            record["rejected"] = [record["rejected"]]
        check_multi_preference(record, index)
        if tokenizer.eos_token == "":
            _check_lines(record.get("chosen"), None, index)
        records.append(record)
    tokens = tokenizer([{**record, "rejected": []} for record in records if "rejected_ids" not in record])
    rows: dict[str, list] = {"input_ids": [], "completion_mask": []}
    for record in records:
        if "rejected_ids" in record:
            prompt_ids, chosen_ids = record["prompt_ids"], record["chosen_ids"]
        else:
            prompt_ids, (chosen_ids,) = next(tokens)
        rows["input_ids"].append(prompt_ids + chosen_ids)
        rows["completion_mask"].append([0] * len(prompt_ids) + [1] * len(chosen_ids))
    return rows


def _is_messages(rejected: Any) -> bool:
    return isinstance(rejected, list) and bool(rejected) and isinstance(rejected[0], dict)


def _drop_long_rows(
    rows: Dataset | IterableDataset, max_length: int, dataset_name: str, num_proc: int | None
) -> Dataset | IterableDataset:
    options = {"num_proc": num_proc} if isinstance(rows, Dataset) else {}
    with global_then_local_main_first():
        kept = rows.filter(lambda row: len(row["input_ids"]) <= max_length, **options)
    if isinstance(rows, Dataset) and len(kept) < len(rows):
        message = (
            f"{len(rows) - len(kept)} of {len(rows)} records of the {dataset_name} dataset have a prompt and completion "
            f"of more than `max_length={max_length}` tokens"
        )
        if len(kept) == 0:
            raise ValueError(f"{message}, so none is left. Raise `max_length`.")
        logger.warning(f"{message}, and are dropped. Raise `max_length`, or shorten the prompts, to keep them.")
    return kept
