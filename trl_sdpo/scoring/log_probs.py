"""Ranking the candidates of multi-preference records by the likelihood that a language model gives them."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .._progress import progress
from ..prefix_sharing.collator import DataCollatorForMultiPreference
from ..prefix_sharing.masks import base_model, why_prefix_sharing_is_unsound
from ..prefix_sharing.rows import (
    CompletionScores,
    log_probs_of,
    score_completions,
    sharing_tolerance,
    split_completions,
)
from ..tokenization import check_tokens_have_embeddings, tokenize_dataset


logger = logging.get_logger(__name__)

# Most tokens of a shared row, and of a forward pass, whatever the size of a pool and of a batch
ROW_TOKENS, PASS_TOKENS = 4_096, 65_536


@contextmanager
def _scoring(model: torch.nn.Module) -> Iterator[None]:
    """Set the model to evaluation, and leave every module as it was."""
    modules = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in modules:
            module.training = True


def _score(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> CompletionScores:
    """With the head of the model itself: adapters, quantisation, scaling and soft-capping are all in it."""
    return score_completions(model, batch, fused_lm_head=False)


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
    device of the model. The prompt of a record is computed once, for models that allow it. They are those of the model's
    own forward pass, LM head included (adapters on it, tied embeddings, quantisation, scaling, soft-capping): the first
    batch is compared with it.

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
        `ValueError`: If a record is malformed, see [`check_multi_preference`], if the dataset is empty, or if the model
            gives padded rows other log-probabilities than a row by itself.
    """
    if len(dataset) == 0:
        raise ValueError("There are no records to rank: the dataset is empty.")
    if processing_class.pad_token_id is None:
        raise ValueError("The tokenizer has no pad token. Set `tokenizer.pad_token`, for example to its `eos_token`.")
    tokenized = tokenize_dataset(
        dataset, processing_class, processing_class.eos_token, desc=f"{desc}: tokenizing"
    ).select_columns(["prompt_ids", "chosen_ids", "rejected_ids", "length"])
    check_tokens_have_embeddings(model, processing_class, {"given": tokenized})
    if prefix_sharing is None:
        prefix_sharing = why_prefix_sharing_is_unsound(model) is None
    pad_token_id = processing_class.pad_token_id
    prefix_sharing = sharing_agrees(model, tokenized, pad_token_id, batch_size, prefix_sharing=prefix_sharing)
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
            Most records in a forward pass. Rows and passes have bounds of their own (4,096 and 65,536 tokens): a record with
            a large pool has several rows, with the same results.
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
    scores: list[list[np.ndarray]] = [[] for _ in range(len(records))]
    with _scoring(model), progress(total=len(records), desc=desc, unit="records") as bar:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size].tolist()
            for pieces in _passes([(index, records[index]) for index in indices], prefix_sharing):
                batch = collator([piece for _, piece in pieces])
                batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
                completions = _score(model, batch)
                log_probs = completions.log_probs
                if per_token:
                    log_probs = log_probs / completions.num_tokens.clamp(min=1)
                log_probs = log_probs.cpu().numpy()
                for (index, piece), row in zip(pieces, log_probs, strict=True):
                    scores[index].append(row[: piece["num_completions"]])
            bar.update(len(indices))
    return [np.concatenate(pieces) for pieces in scores]


def _passes(records: list[tuple[int, dict]], prefix_sharing: bool) -> Iterator[list[tuple[int, dict]]]:
    """
    Cut records into pieces of some of their completions, and those into forward passes, by the tokens of a row and of a
    pass: a pool of hundreds would be rows of thousands, or hundreds of rows.
    """
    pieces: list[Any] = []
    width, rows = 0, 0
    for index, record in records:
        for piece in _pieces(record, prefix_sharing):
            length = piece["length"]
            num_rows = 1 if prefix_sharing else max(piece["num_completions"], 2)
            if pieces and max(width, length) * (rows + num_rows) > PASS_TOKENS:
                yield pieces
                pieces, width, rows = [], 0, 0
            pieces.append((index, piece))
            width, rows = max(width, length), rows + num_rows
    if pieces:
        yield pieces


def _pieces(record: dict, prefix_sharing: bool) -> Iterator[dict]:
    prompt_ids, completions = record["prompt_ids"], [record["chosen_ids"], *record["rejected_ids"]]
    lengths = [len(ids) for ids in completions]
    longest = len(prompt_ids) + max(lengths)
    if prefix_sharing:
        spans = split_completions(len(prompt_ids), lengths, ROW_TOKENS)
    else:
        step = max(PASS_TOKENS // longest, 1)
        spans = [(start, min(start + step, len(lengths))) for start in range(0, len(lengths), step)]
    for start, stop in spans:
        some = completions[start:stop]
        yield {
            "prompt_ids": prompt_ids,
            "chosen_ids": some[0],
            "rejected_ids": some[1:] or some,  # a record has at least two completions
            "num_completions": len(some),
            "length": len(prompt_ids) + sum(lengths[start:stop]) + len(some) if prefix_sharing else longest,
        }


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


def own_log_probs(model: PreTrainedModel, record: dict, num_completions: int | None = None) -> np.ndarray:
    """
    Log-probabilities of the completions of a record by the forward pass of the model alone, a row of one completion at a
    time, without padding, masks or positions of ours: what every other way to score has to give.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model in evaluation mode.
        record (`dict`):
            Of [`tokenize_multi_preference`].
        num_completions (`int`, *optional*):
            How many, the chosen one first. By default all.

    Returns:
        `np.ndarray` of shape `(1 + K,)`: Log-probabilities, in nats.
    """
    scores = []
    takes_places = "logits_to_keep" in inspect.signature(type(base_model(model)).forward).parameters
    for completion in [record["chosen_ids"], *record["rejected_ids"]][:num_completions]:
        tokens = torch.tensor([[*record["prompt_ids"], *completion]], device=model.device)
        places = {"logits_to_keep": len(completion) + 1} if takes_places else {}
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False, **places).logits
        # behind an empty prompt nothing predicts the first token
        scored = completion if record["prompt_ids"] else completion[1:]
        labels = torch.tensor(scored, dtype=torch.long)
        scores.append(log_probs_of(logits[0, -len(scored) - 1 : -1], labels).sum().item())
    return np.array(scores)


def sharing_agrees(
    model: PreTrainedModel,
    records: Dataset | Sequence[dict],
    pad_token_id: int,
    batch_size: int = 32,
    *,
    prefix_sharing: bool = True,
) -> bool:
    """
    Whether a model gives shared-prefix rows the log-probabilities of its own forward pass, on the longest records; a
    warning says so if it does not, and padded rows are held to the same.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]), records ([`~datasets.Dataset`] or
            `Sequence[dict]`), pad_token_id (`int`), batch_size (`int`, *optional*, defaults to `32`):
            See [`score_tokenized`].
        prefix_sharing (`bool`, *optional*, defaults to `True`):
            If `False`, padded rows alone are looked at.

    Returns:
        `bool`: Whether shared-prefix rows agree but for rounding.

    Raises:
        `ValueError`: If padded rows do not agree either.
    """
    few = [records[int(index)] for index in _longest_first(records)[: min(batch_size, 2)]]
    # a wrong mask shows in the second completion already
    few = [{**record, "rejected_ids": record["rejected_ids"][:3]} for record in few]
    name = type(base_model(model)).__name__
    with _scoring(model):
        own = [own_log_probs(model, record) for record in few]
        for shared in [True, False] if prefix_sharing else [False]:
            excess = _excess(model, few, own, pad_token_id, shared)
            if excess <= 0:
                return shared
            if shared:
                logger.warning(
                    f"Shared-prefix rows are {excess:.3g} nats beyond rounding off the log-probabilities of the model's own "
                    f"forward pass on the first batch: {name} does not heed the mask. Ranking with padded rows, which is "
                    "slower."
                )
    raise ValueError(
        f"Padded rows are {excess:.3g} nats beyond rounding off the log-probabilities that {name} itself gives the same "
        "completions one by one, so that a ranking would be of another model. Load it with attn_implementation='sdpa' or "
        "'eager', and in a dtype of its own."
    )


def _excess(
    model: PreTrainedModel, records: list[dict], own: list[np.ndarray], pad_token_id: int, shared: bool
) -> float:
    """How far a layout is off beyond the tolerance, in nats; infinite if the model raises an error."""
    collator = DataCollatorForMultiPreference(pad_token_id, prefix_sharing=shared)
    batch = _batch(model, records, np.arange(len(records)), collator)
    try:
        scores = _score(model, batch).log_probs.cpu().numpy()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # code of any kind, which may have never met a mask of four dimensions
        logger.warning(
            f"The model raises {type(error).__name__} on {'shared-prefix' if shared else 'padded'} rows: {error}"
        )
        return float("inf")
    atol, rtol = sharing_tolerance(model.dtype)
    excess = [
        np.abs(row[: len(ours)] - ours) - rtol * np.abs(ours) - atol for row, ours in zip(scores, own, strict=True)
    ]
    # weights of NaN say nothing about the mask
    known = np.concatenate(excess)[np.isfinite(np.concatenate(own))]
    return float(np.nan_to_num(known, nan=np.inf).max(initial=0.0))
