"""Ranking the candidates of multi-preference records by the likelihood that a language model gives them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from trl.trainer.utils import add_fused_lm_head

from ..data_utils import plain_records, tokenize_multi_preference
from ..prefix_sharing.collator import DataCollatorForMultiPreference
from ..prefix_sharing.masks import base_model, why_prefix_sharing_is_unsound
from ..prefix_sharing.rows import (
    completion_exists,
    score_completions,
    sharing_excess,
)
from ..tokenization import check_tokens_have_embeddings


logger = logging.get_logger(__name__)


@contextmanager
def _scoring(model: torch.nn.Module) -> Iterator[None]:
    """Give the model TRL's fused LM head and set it to evaluation, and leave it as it was."""
    causal_lm = base_model(model)
    forward, training = causal_lm.__dict__.get("forward"), model.training
    add_fused_lm_head(causal_lm)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        del causal_lm.forward
        if forward is not None:
            causal_lm.forward = forward


def completion_log_probs(
    model: PreTrainedModel,
    dataset: Dataset,
    processing_class: PreTrainedTokenizerBase,
    batch_size: int = 32,
    prefix_sharing: bool | None = None,
    desc: str = "Ranking",
    *,
    per_token: bool = False,
) -> list[np.ndarray]:
    """
    Log-probabilities of the chosen and all rejected completions of multi-preference records given their prompts, on the
    device of the model. The prompt of a record is computed once, for models that allow it.

    For the implicit reward of DPO, see [`implicit_rewards`].

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to score with. It is not changed.
        dataset ([`~datasets.Dataset`]):
            Multi-preference records, standard, conversational or tokenized.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        batch_size (`int`, *optional*, defaults to `32`):
            Number of records in a batch.
        prefix_sharing (`bool`, *optional*):
            Whether the completions of a record share one row. If `None`, where the model allows it.
        desc (`str`, *optional*, defaults to `"Ranking"`):
            Label of the progress bar.
        per_token (`bool`, *optional*, defaults to `False`):
            Whether to divide by the number of tokens of a completion, its end included: a sum falls with every token,
            so short titles have an advantage that the mean takes away.

    Returns:
        `list[np.ndarray]`: For each record an array of shape `(1 + K,)`, the chosen completion first, in nats, or in
        nats per token.

    Raises:
        `ValueError`: If a record is malformed, see [`check_multi_preference`], or if the dataset is empty.
    """
    if len(dataset) == 0:
        raise ValueError("There are no records to rank: the dataset is empty.")
    if processing_class.pad_token_id is None:
        raise ValueError("The tokenizer has no pad token. Set `tokenizer.pad_token`, for example to its `eos_token`.")
    tokenized = (
        plain_records(dataset)
        .map(
            tokenize_multi_preference,
            with_indices=True,
            fn_kwargs={"processing_class": processing_class, "eos_token": processing_class.eos_token},
            desc=f"{desc}: tokenizing",
        )
        .select_columns(["prompt_ids", "chosen_ids", "rejected_ids", "length"])
    )
    check_tokens_have_embeddings(model, processing_class, {"given": tokenized})
    if prefix_sharing is None:
        prefix_sharing = why_prefix_sharing_is_unsound(model) is None
    pad_token_id = processing_class.pad_token_id
    if prefix_sharing:
        prefix_sharing = sharing_agrees(model, tokenized, pad_token_id, batch_size)
    return score_tokenized(
        model, tokenized, pad_token_id, batch_size, prefix_sharing=prefix_sharing, desc=desc, per_token=per_token
    )


def score_tokenized(
    model: PreTrainedModel,
    records: Dataset | Sequence[dict],
    pad_token_id: int,
    batch_size: int = 32,
    *,
    prefix_sharing: bool,
    desc: str | None = None,
    per_token: bool = False,
) -> list[np.ndarray]:
    """
    What [`completion_log_probs`] does after tokenization, without a check of the layout.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to score with. It is not changed.
        records ([`~datasets.Dataset`] or `Sequence[dict]`):
            Of [`tokenize_multi_preference`].
        pad_token_id (`int`):
            Token to pad with.
        batch_size (`int`, *optional*, defaults to `32`):
            Number of records in a batch.
        prefix_sharing (`bool`):
            Whether the completions of a record share one row, see [`sharing_agrees`].
        desc (`str`, *optional*):
            Label of the progress bar. If `None`, there is none.
        per_token (`bool`, *optional*, defaults to `False`):
            See [`completion_log_probs`].

    Returns:
        `list[np.ndarray]`: As [`completion_log_probs`].
    """
    collator = DataCollatorForMultiPreference(pad_token_id, prefix_sharing=prefix_sharing)
    order = _longest_first(records)
    scores: list[np.ndarray | None] = [None] * len(records)
    with _scoring(model), tqdm(total=len(records), desc=desc, unit=" records", disable=desc is None) as progress:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = _batch(model, records, indices, collator)
            completions = score_completions(model, batch)
            log_probs = completions.log_probs
            if per_token:
                log_probs = log_probs / completions.num_tokens.clamp(min=1)
            log_probs = log_probs.cpu().numpy()
            exists = completion_exists(batch["num_completions"]).cpu().numpy()
            for index, row, mask in zip(indices, log_probs, exists, strict=True):
                scores[index] = row[mask]
            progress.update(len(indices))
    return scores


def _longest_first(records: Dataset | Sequence[dict]) -> np.ndarray:
    """Rows of like length together, the longest first, so that memory runs out at the start or not at all."""
    lengths = records["length"] if isinstance(records, Dataset) else [record["length"] for record in records]
    return np.argsort(-np.asarray(lengths), kind="stable")


def _batch(
    model: PreTrainedModel,
    records: Dataset | Sequence[dict],
    indices: np.ndarray,
    collator: DataCollatorForMultiPreference,
) -> dict[str, torch.Tensor]:
    batch = collator([records[int(index)] for index in indices])
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def implicit_rewards(
    log_probs: Sequence[np.ndarray], ref_log_probs: Sequence[np.ndarray], beta: float = 1.0
) -> list[np.ndarray]:
    """
    Implicit rewards of DPO: $r_i = \\beta (\\log \\pi(y_i|x) - \\log \\pi_\\text{ref}(y_i|x))$, Eq. 5 of the DPO paper
    (https://huggingface.co/papers/2305.18290) up to a constant of the prompt.

    They rank by what training has changed: how likely a title was before, for its length or its frequency, cancels.
    `beta` does not change the order.

    Args:
        log_probs (`Sequence[np.ndarray]`):
            Of the policy, as [`completion_log_probs`] returns them.
        ref_log_probs (`Sequence[np.ndarray]`):
            Of the reference model, on the same records and both summed or both per token.
        beta (`float`, *optional*, defaults to `1.0`):
            Of the loss.

    Returns:
        `list[np.ndarray]`: For each record an array of shape `(1 + K,)`, the chosen completion first.

    Raises:
        `ValueError`: If the records or their completions are not as many.

    Example:
        ```python
        >>> import numpy as np

        >>> policy, reference = [np.array([-4.0, -3.0])], [np.array([-6.0, -3.5])]
        >>> implicit_rewards(policy, reference, beta=0.5)[0].tolist()
        [1.0, 0.25]

        ```
    """
    if len(log_probs) != len(ref_log_probs):
        raise ValueError(
            f"{len(log_probs)} records of the policy, {len(ref_log_probs)} of the reference: score the same."
        )
    rewards = []
    for row, (ours, theirs) in enumerate(zip(log_probs, ref_log_probs, strict=True)):
        if np.shape(ours) != np.shape(theirs):
            raise ValueError(
                f"Row {row}: {len(ours)} completions of the policy, {len(theirs)} of the reference. Score the same records."
            )
        rewards.append(beta * (np.asarray(ours) - np.asarray(theirs)))
    return rewards


def sharing_agrees(
    model: PreTrainedModel, records: Dataset | Sequence[dict], pad_token_id: int, batch_size: int = 32
) -> bool:
    """
    Whether a model gives shared-prefix rows the log-probabilities of padded rows, on the longest records; a warning
    says so if it does not.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]), records ([`~datasets.Dataset`] or
            `Sequence[dict]`), pad_token_id (`int`), batch_size (`int`, *optional*, defaults to `32`):
            See [`score_tokenized`].

    Returns:
        `bool`: Whether they agree but for rounding.
    """
    collator = DataCollatorForMultiPreference(pad_token_id, prefix_sharing=True)
    with _scoring(model):
        batch = _batch(model, records, _longest_first(records)[:batch_size], collator)
        excess = sharing_excess(partial(score_completions, model), batch, pad_token_id, model.dtype).item()
    if excess > 0:
        logger.warning(
            f"Shared-prefix rows and padded rows differ by {excess:.3g} nats beyond rounding on the first batch: "
            f"{type(base_model(model)).__name__} does not heed the mask. Ranking with padded rows, which is slower."
        )
    return excess <= 0
