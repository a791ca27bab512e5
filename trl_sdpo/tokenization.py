"""Tokens of multi-preference records: what they are, and whether a model has rows for them."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase


def column_lengths(dataset: Dataset, column: str) -> np.ndarray:
    """Lengths of the lists of a column, of shape `(rows,)`, by Arrow: no list becomes one of Python."""
    table = dataset.select_columns([column]).with_format("arrow")
    return np.concatenate([pc.list_value_length(batch[column]).to_numpy() for batch in table.iter(10_000)])


def largest_token(dataset: Dataset) -> int:
    """The largest token id of tokenized multi-preference records."""
    columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
    table, largest = dataset.select_columns(columns).with_format("arrow"), 0
    for batch in table.iter(10_000):
        for column in columns:
            values = batch[column].combine_chunks()
            while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
                values = values.flatten()
            largest = max(largest, pc.max(values).as_py() or 0)
    return largest


def check_tokens_have_embeddings(
    model: torch.nn.Module,
    processing_class: PreTrainedTokenizerBase,
    datasets: dict[str, Dataset | IterableDataset],
) -> None:
    """
    Refuse tokens that the model has no row for, which would be an index error in the midst of a pass.

    Args:
        model (`torch.nn.Module`):
            Policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer, whose pad token counts too.
        datasets (`dict[str, Dataset | IterableDataset]`):
            Tokenized records by name. Of streams only the tokenizer is looked at.

    Raises:
        `ValueError`: If a token is outside of the embeddings. The message names it and the remedy.
    """
    embeddings = model.get_input_embeddings()
    size = getattr(embeddings, "num_embeddings", None)
    if size is None:
        return
    remedy = "Call `model.resize_token_embeddings(len(tokenizer))`, or take the tokenizer of the model."
    if processing_class.pad_token_id is not None and processing_class.pad_token_id >= size:
        raise ValueError(
            f"The pad token {processing_class.pad_token!r} of the tokenizer has id {processing_class.pad_token_id}, and the "
            f"model has embeddings for {size} tokens (ids from 0). Set `tokenizer.pad_token = tokenizer.eos_token`. {remedy}"
        )
    for name, dataset in datasets.items():
        if isinstance(dataset, Dataset) and "rejected_ids" in dataset.column_names and len(dataset):
            largest = largest_token(dataset)
            if largest >= size:
                token = processing_class.convert_ids_to_tokens(largest)
                raise ValueError(
                    f"The {name} dataset holds the token {token!r} of id {largest}, and the model has embeddings for {size} "
                    f"tokens (ids from 0). {remedy}"
                )
