"""Hard negatives of a model: what it ranks highest among the wrong answers."""

from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset

from ..data_utils import readable_records, rendered_columns
from ..tokenization import column_lengths
from .log_probs import completion_log_probs


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PARALLEL = ("rejected", "rejected_ids", "rejected_item_ids", "rejected_scores")


def mine_negatives(
    dataset: Dataset,
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    *,
    num_negatives: int,
    share: float = 1.0,
    batch_size: int = 32,
) -> Dataset:
    """
    Keep, of every record's pool of rejected completions, those that a model finds most likely.

    The pool is all that is ever looked at, so what holds of it (no item of the user, no title twice, see
    [`sample_negatives`]) holds of what is kept: make the records with a large `pool_size`, such as 100. The prompts stay
    as they are, with the candidates that they show. Log-probabilities are sums over the tokens of a completion, scored
    in shared-prefix rows, see [`completion_log_probs`]. Mine for training records alone: a list of a test record that
    depends on a model favours the others.

    Args:
        dataset (`Dataset`):
            Multi-preference records with pools, standard, conversational or tokenized.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model, such as that of supervised fine-tuning.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        num_negatives (`int`):
            How many to keep.
        share (`float`, *optional*, defaults to `1.0`):
            The share of mined ones, rounded; the others are the first of the pool that are left, which are random.
        batch_size (`int`, *optional*, defaults to `32`):
            Records in a batch.

    Returns:
        `Dataset`: The records in their order with `num_negatives` rejected, the mined ones first and of these the most
        likely first. `rejected_item_ids` and `rejected_scores`, where they are there, go along.

    Raises:
        ValueError: a number is out of range, or a pool is smaller than `num_negatives`.

    Example:
        ```python
        from trl_sdpo.recsys import build_preference_dataset
        from trl_sdpo.scoring.mining import mine_negatives

        dataset, _ = build_preference_dataset(interactions, seed=0, pool_size=100)
        hard = mine_negatives(dataset["train"], model, tokenizer, num_negatives=15, share=0.5)
        ```
    """
    if num_negatives < 1 or not 0 <= share <= 1:
        raise ValueError(f"num_negatives={num_negatives} must be at least 1, and share={share} from 0 to 1.")
    dataset = readable_records(dataset)
    column = "rejected" if "rejected" in dataset.column_names else "rejected_ids"
    sizes = column_lengths(dataset, column)
    short = np.flatnonzero(sizes < num_negatives)
    if len(short):
        raise ValueError(
            f"row {short[0]}, column '{column}': {sizes[short[0]]} completions are fewer than num_negatives="
            f"{num_negatives} ({len(short)} such rows). Make the records with a larger pool_size."
        )
    scores = completion_log_probs(model, dataset, processing_class, batch_size=batch_size, desc="Mining negatives")
    num_mined = round(share * num_negatives)
    rendered = rendered_columns(dataset)

    def keep(record: dict, index: int) -> dict:
        # index 0 of the scores is the chosen; ties go to the earlier one
        ranked = np.argsort(-scores[index][1:], kind="stable")
        mined = ranked[:num_mined].tolist()
        left = [place for place in range(len(ranked)) if place not in set(mined)]
        places = mined + left[: num_negatives - num_mined]
        kept = {name: [record[name][place] for place in places] for name in _PARALLEL if record.get(name) is not None}
        return {name: record[name] for name in rendered} | kept

    mined = dataset.map(keep, with_indices=True, remove_columns=rendered, desc="Keeping the mined negatives")
    return mined.select_columns(dataset.column_names).with_format(None)
