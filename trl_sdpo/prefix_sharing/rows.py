"""
Shared-prefix rows: a prompt with its 1 + K completions in one row, the prompt computed once.

    tokens     p1 … p(n-1) | pn c1 … cm | pn r1 … rl | …         position ids restart at n-1 in each segment
    segment     0 …   0    |  1  …   1  |  2  …   2  | …         attend: causal, and (same segment or segment 0)

Each segment starts with a repeat of the last prompt token, so that the position before every completion token is the
one that predicts it, as in a row of its own. Padding has segment -1.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers.utils import ModelOutput, logging

from .backbone import extended_backbone, hands_on_keywords
from .masks import PADDING_SEGMENT, PROMPT_SEGMENT, BatchMasks, base_model


logger = logging.get_logger(__name__)

# What `with_targets` adds to a batch
TARGETS = ("completion_exists", "target_rows", "target_positions", "target_ids", "target_completions")


# Tensors with an entry per row rather than per record; the last two are there where a record has several shared rows
ROW_TENSORS = (
    *("input_ids", "position_ids", "segment_ids", "completion_mask", "attention_mask"),
    *("row_records", "row_completions"),
)


def split_completions(prompt_length: int, lengths: list[int], max_row_length: int | None) -> list[tuple[int, int]]:
    """
    Cut the completions of a record into runs that fit a row each, the prompt repeated.

    Args:
        prompt_length (`int`):
            Tokens of the prompt.
        lengths (`list[int]`):
            Tokens of each completion.
        max_row_length (`int` or `None`):
            Most tokens of a row, see [`shared_prefix_row`]; a completion that does not fit has a row by itself.

    Returns:
        `list[tuple[int, int]]`: First completion of each row, and the one behind its last.
    """
    if max_row_length is None:
        return [(0, len(lengths))]
    starts, room = [0], 0
    for number, length in enumerate(lengths):
        width = length + (1 if prompt_length else 0)  # with the repeat of the last prompt token
        if number == 0 or width > room:
            starts += [number] if number else []
            room = max_row_length - max(prompt_length - 1, 0)
        room -= width
    return list(zip(starts, [*starts[1:], len(lengths)], strict=True))


def shared_prefix_row(
    prompt_ids: list[int], completions: list[list[int]], first_segment: int = 1
) -> dict[str, list[int]]:
    """
    Lay a prompt and its completions out in one row.

    Args:
        prompt_ids (`list[int]`):
            Tokens of the prompt. It may be empty: the first token of each completion is then context only, as it is
            in a row of its own, where nothing predicts it.
        completions (`list[list[int]]`):
            Tokens of the completions, the chosen one first.
        first_segment (`int`, *optional*, defaults to `1`):
            Number of the first of them, where a record has several rows.

    Returns:
        `dict[str, list[int]]`: `input_ids`, `position_ids`, `segment_ids` (0 for the prompt, 1 to 1 + K for the
        completions) and `completion_mask` (1 on the tokens whose log-probability counts), all of the same length.
    """
    start = max(len(prompt_ids) - 1, 0)
    row = {
        "input_ids": list(prompt_ids[:start]),
        "position_ids": list(range(start)),
        "segment_ids": [PROMPT_SEGMENT] * start,
        "completion_mask": [0] * start,
    }
    for number, completion in enumerate(completions, start=first_segment):
        segment = list(prompt_ids[start:]) + list(completion)
        row["input_ids"] += segment
        row["position_ids"] += range(start, start + len(segment))
        row["segment_ids"] += [number] * len(segment)
        row["completion_mask"] += [0] + [1] * (len(segment) - 1)
    return row


def is_shared(batch: dict[str, torch.Tensor]) -> bool:
    """Whether a batch of the collator holds shared-prefix rows rather than one padded row per completion."""
    # position ids restart in every segment, so only shared rows need to carry them
    return "position_ids" in batch


def record_of_row(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Index of the record that each row of a batch belongs to, of shape `(rows,)`."""
    if "row_records" in batch:
        return batch["row_records"]
    num_completions = batch["num_completions"]
    records = torch.arange(num_completions.size(0), device=num_completions.device)
    if is_shared(batch):
        return records
    # the size is told, or a device would be waited for
    return records.repeat_interleave(num_completions, output_size=batch["input_ids"].size(0))


def with_targets(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Add to a batch where its completion tokens are, as the collator does, for scoring on a device that need not be waited
    for.

    Args:
        batch (`dict[str, torch.Tensor]`):
            Batch in shared-prefix or padded rows.

    Returns:
        `dict[str, torch.Tensor]`: The batch with `completion_exists`, of shape `(B, C)`, and of each of its N completion
        tokens, all of shape `(N,)`, `target_rows` and `target_positions` (of the position before it, which predicts it),
        `target_ids` (the token) and `target_completions` (record times C plus the number of the completion). A batch that
        has them is returned as it is.
    """
    if "target_ids" in batch:
        return batch
    exists = completion_exists(batch["num_completions"])
    rows, positions = batch["completion_mask"][:, 1:].nonzero(as_tuple=True)
    completions = record_of_row(batch)[rows] * exists.size(1) + batch["segment_ids"][rows, positions + 1] - 1
    targets = (exists, rows, positions, batch["input_ids"][rows, positions + 1], completions)
    return {**batch, **dict(zip(TARGETS, targets, strict=True))}


def completion_exists(num_completions: torch.Tensor) -> torch.Tensor:
    """True where a record has a completion: from 1 + K of each record, `(B,)`, to a mask of shape `(B, C)`."""
    columns = torch.arange(int(num_completions.max()), device=num_completions.device)
    return columns < num_completions.unsqueeze(1)


def _completions_of_rows(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each shared row the number of its first completion, from 1, and how many it has."""
    num_completions = batch["num_completions"]
    if "row_records" not in batch:
        return torch.ones_like(num_completions), num_completions
    counts, records = batch["row_completions"], batch["row_records"]
    before = counts.cumsum(0) - counts
    is_first = torch.nn.functional.pad(records[1:] != records[:-1], (1, 0), value=True)
    first = before - before[is_first][records - records[0]] + 1
    # where `num_completions` was lowered, the first so many are meant
    return first, torch.minimum(counts, num_completions[records] + 1 - first).clamp(min=0)


def first_records(batch: dict[str, torch.Tensor], num_records: int) -> dict[str, torch.Tensor]:
    """The first records of a batch in shared rows, without what [`with_targets`] adds."""
    rows = num_records
    if "row_records" in batch:
        rows = int((batch["row_records"] < num_records).sum())
    return {
        name: tensor[: rows if name in ROW_TENSORS else num_records]
        for name, tensor in batch.items()
        if name not in TARGETS
    }


def expand_shared_rows(
    batch: dict[str, torch.Tensor], pad_token_id: int, pad_to_multiple_of: int | None = None
) -> dict[str, torch.Tensor]:
    """
    Turn shared-prefix rows into padded rows, one per completion: `[chosen; rejected_1; …]` of the first record, then
    of the next. This is the layout for models that cannot share a prefix, and the reference for those that can.

    Args:
        batch (`dict[str, torch.Tensor]`):
            Batch of shared-prefix rows, as [`DataCollatorForMultiPreference`] returns it.
        pad_token_id (`int`):
            Token to pad the rows with, on the right.
        pad_to_multiple_of (`int`, *optional*):
            If set, the rows are padded to a multiple of this value.

    Returns:
        `dict[str, torch.Tensor]`: The batch with `sum(1 + K)` rows and no `position_ids`.
    """
    segment_ids = batch["segment_ids"]
    device = segment_ids.device
    first, counts = _completions_of_rows(batch)
    records = torch.arange(counts.size(0), device=device).repeat_interleave(counts)  # rows, one each but for long ones
    start = (counts.cumsum(0) - counts).repeat_interleave(counts)
    number = torch.arange(records.size(0), device=device) - start + first[records]  # 1 for the chosen, 2.. rejected
    segments = segment_ids[records]
    keep = (segments == PROMPT_SEGMENT) | (segments == number.unsqueeze(1))
    multiple = pad_to_multiple_of or 1
    length = -(-int(keep.sum(dim=1).max()) // multiple) * multiple
    # a stable sort moves the kept positions of each row to its front, in their order
    order = (~keep).long().argsort(dim=1, stable=True)[:, :length]
    kept = keep.gather(1, order)

    def rows(name: str, padding: int) -> torch.Tensor:
        return batch[name][records].gather(1, order).masked_fill(~kept, padding)

    expanded = {
        name: value
        for name, value in batch.items()
        if name not in ("position_ids", "row_records", "row_completions", *TARGETS)
    }
    expanded["input_ids"] = rows("input_ids", pad_token_id)
    expanded["segment_ids"] = rows("segment_ids", PADDING_SEGMENT)
    expanded["completion_mask"] = rows("completion_mask", 0)
    expanded["attention_mask"] = kept.long()
    return expanded


class CompletionScores(NamedTuple):
    """
    What a model makes of the completions of a batch. `C` is the largest 1 + K of the batch, column 0 the chosen one;
    entries of completions that a record does not have are 0.

    Args:
        log_probs (`torch.Tensor` of shape `(B, C)`):
            Log-probability of each completion given its prompt: the sum over its tokens, in nats.
        num_tokens (`torch.Tensor` of shape `(B, C)`):
            Number of tokens summed over.
        token_sums (`dict[str, torch.Tensor]` with values of shape `(B, C)`):
            Sums over the same tokens of the other outputs of TRL's fused LM head, without gradient.
        aux_loss (`torch.Tensor`, *optional*):
            Load-balancing loss of a mixture-of-experts model.
        token_log_probs (`torch.Tensor` of shape `(N,)`, *optional*):
            Log-probability of each token, completion after completion, those of a record together.
    """

    log_probs: torch.Tensor
    num_tokens: torch.Tensor
    token_sums: dict[str, torch.Tensor]
    aux_loss: torch.Tensor | None = None
    token_log_probs: torch.Tensor | None = None

    def padded_token_log_probs(self) -> torch.Tensor:
        """`token_log_probs` by completion, of shape `(B, C, T)` with T the longest, padded with 0 on the right."""
        lengths = self.num_tokens.long().flatten().tolist()
        padded = torch.nn.utils.rnn.pad_sequence(self.token_log_probs.split(lengths), batch_first=True)
        return padded.view(*self.num_tokens.shape, -1)


def _tokens_of_padded_rows(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """How often each position stands in padded rows, of shape `(rows, L)`: a shared prompt in 1 + K of them."""
    if not is_shared(batch):
        return batch["attention_mask"]
    repeats = _completions_of_rows(batch)[1].unsqueeze(1) - 1
    return batch["attention_mask"] + repeats * (batch["segment_ids"] == PROMPT_SEGMENT)


def log_probs_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probabilities, in float32, of labels of shape `(..., N)` under logits of shape `(..., N, vocab)`."""
    logits = logits.float()
    labels = labels.to(logits.device).unsqueeze(-1)
    return logits.gather(-1, labels).squeeze(-1) - logits.logsumexp(-1)


def has_plain_head(model: torch.nn.Module) -> bool:
    """Whether TRL's fused LM head can multiply with the head of a model, of which it takes `weight` and `bias`."""
    head = base_model(model).get_output_embeddings()
    return hasattr(head, "weight") and hasattr(head, "bias")


def _scored_logits(logits: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Logits of the scored positions, of shape `(N, vocab)`, where the head was given them alone and where it was not."""
    if logits.size(0) == 1 and logits.size(1) == scored.size(1):
        return logits.squeeze(0)
    rows, from_the_end = scored.to(logits.device)
    return logits[rows, logits.size(1) + from_the_end]


def score_completions(
    model: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    unwrapped_model: torch.nn.Module | None = None,
    masks: BatchMasks | None = None,
    fused_lm_head: bool = True,
    **model_kwargs,
) -> CompletionScores:
    """
    Log-probabilities of all completions of a batch in one forward pass.

    Args:
        model (`torch.nn.Module`):
            Model to call, wrapped for distributed training or not.
        batch (`dict[str, torch.Tensor]`):
            Batch of [`DataCollatorForMultiPreference`], in shared-prefix or padded rows.
        unwrapped_model (`torch.nn.Module`, *optional*):
            The model inside the wrappers of distributed training. Defaults to `model`.
        masks ([`BatchMasks`], *optional*):
            Those of the batch, if they serve several models.
        fused_lm_head (`bool`, *optional*, defaults to `True`):
            Whether TRL's fused LM head multiplies, which the transformers model must have been given by
            `trl.trainer.utils.add_fused_lm_head`, as the trainers of TRL do. It keeps no logits, and knows the weight of
            the head alone. If `False` the head is what the model itself makes of it, with adapters, quantisation, scaling
            and soft-capping: there are logits of all N tokens, and `log_probs` are all that comes out.
        **model_kwargs:
            Passed on to the forward, for example `output_router_logits`.

    Returns:
        [`CompletionScores`]: One column per completion, the chosen one first.
    """
    batch = with_targets(batch)
    causal_lm = base_model(model if unwrapped_model is None else unwrapped_model)
    attention_mask = batch["attention_mask"]
    if model_kwargs.get("output_router_logits"):
        # the load-balancing loss is a mean over tokens, and takes the mask for their weights
        attention_mask = _tokens_of_padded_rows(batch)
    if is_shared(batch):
        masks = BatchMasks(batch) if masks is None else masks
        model_kwargs |= {"position_ids": batch["position_ids"], "prefix_mask": masks.of(causal_lm)}
    scored = torch.stack([batch["target_rows"], batch["target_positions"] - batch["input_ids"].size(1)])
    if fused_lm_head:
        model_kwargs |= {"shift_labels": batch["target_ids"].unsqueeze(0), "fused_lm_head": True}
    if fused_lm_head or hands_on_keywords(causal_lm):
        model_kwargs["scored"] = scored
    with extended_backbone(causal_lm):
        outputs = model(input_ids=batch["input_ids"], attention_mask=attention_mask, use_cache=False, **model_kwargs)
    if not fused_lm_head:
        if is_shared(batch) and outputs.logits.size(1) != scored.size(1):
            raise ValueError(
                f"The forward pass of {type(causal_lm).__name__} calls another module than its backbone, or hands on no "
                "keywords, so that the mask of shared-prefix rows does not reach its layers. Use padded rows."
            )
        logits = _scored_logits(outputs.logits, scored)
        outputs["log_probs"] = log_probs_of(logits, batch["target_ids"]).unsqueeze(0)
    if "log_probs" not in outputs:
        raise ValueError(
            f"The forward pass of {type(getattr(model, 'base_model', model)).__name__} around {type(causal_lm).__name__} does "
            "not reach TRL's LM head, which computes log-probabilities. Use another kind of adapter, such as LoRA."
        )
    return _summed(outputs, batch)


def _summed(outputs: ModelOutput, batch: dict[str, torch.Tensor]) -> CompletionScores:
    """What a model says of the tokens, summed over those of each completion."""
    exists, slots = batch["completion_exists"], batch["target_completions"]

    def per_completion(values: torch.Tensor) -> torch.Tensor:  # (N,) -> (B, C)
        sums = torch.zeros(exists.numel(), dtype=torch.float32, device=slots.device)
        # a model split over devices may end on another one than it began
        return sums.index_add(0, slots, values.to(slots.device, torch.float32)).view(exists.shape)

    names = [name for name in ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1") if name in outputs]
    return CompletionScores(
        log_probs=per_completion(outputs.log_probs.squeeze(0)),
        num_tokens=per_completion(torch.ones_like(slots, dtype=torch.float32)),
        token_sums={name: per_completion(outputs[name].squeeze(0).detach()) for name in names},
        aux_loss=outputs.get("aux_loss"),
        token_log_probs=outputs.log_probs.squeeze(0).to(slots.device, torch.float32),
    )


def sharing_tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """
    Absolute (in nats) and relative tolerance within which shared-prefix and padded rows must agree. A mask that is not
    heeded is off by whole nats; half precision rounds by a few percent, as it does between two paddings.
    """
    return (1e-3, 1e-3) if dtype in (torch.float32, torch.float64) else (0.5, 0.05)


def sharing_excess(
    score: Callable[[dict[str, torch.Tensor]], CompletionScores],
    batch: dict[str, torch.Tensor],
    pad_token_id: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """
    Score the first two records of a batch in shared-prefix rows, and the first four completions of each in padded rows
    too, to find out a model whose attention does something else with the mask.

    Args:
        score (`Callable`):
            Scores a batch, without dropout.
        batch (`dict[str, torch.Tensor]`):
            Batch of shared-prefix rows.
        pad_token_id (`int`):
            Token to pad with.
        dtype (`torch.dtype`):
            Type that the model computes in, for the tolerance.

    Returns:
        `torch.Tensor`: Scalar, the largest difference beyond the tolerance, in nats: not above 0 if they agree,
        infinite if the model raises an error on shared-prefix rows, which is logged.
    """
    sample = first_records(batch, 2)
    # a wrong mask shows in the second completion already; 1 + K padded rows could need more memory than the training
    few = {**sample, "num_completions": sample["num_completions"].clamp(max=4)}
    with torch.no_grad():
        padded = score(expand_shared_rows(few, pad_token_id)).log_probs
        try:
            shared = score(sample).log_probs[:, : padded.size(1)]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # code of any kind, which may have never met a mask of four dimensions
            logger.warning(f"The model raises {type(error).__name__} on shared-prefix rows: {error}")
            return padded.new_tensor(torch.inf)
    atol, rtol = sharing_tolerance(dtype)
    excess = (shared - padded).abs() - rtol * padded.abs() - atol
    excess = excess.masked_fill(excess.isnan(), torch.inf)
    # weights of NaN say nothing about the mask
    return excess.masked_fill(~padded.isfinite() | ~completion_exists(few["num_completions"]), 0).max()


def head_excess(
    model: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    pad_token_id: int,
    dtype: torch.dtype,
    unwrapped_model: torch.nn.Module | None = None,
) -> torch.Tensor:
    """
    Score the first two completions of a batch in padded rows by TRL's fused LM head, and by the logits of the model's own
    forward pass, without any keyword of ours, to find out a head that is more than its weight.

    Args:
        model (`torch.nn.Module`):
            Model to call, in evaluation mode.
        batch (`dict[str, torch.Tensor]`):
            Batch in shared-prefix or padded rows.
        pad_token_id (`int`):
            Token to pad with.
        dtype (`torch.dtype`):
            Type that the model computes in, for the tolerance.
        unwrapped_model (`torch.nn.Module`, *optional*):
            The model inside the wrappers of distributed training. Defaults to `model`.

    Returns:
        `torch.Tensor`: Scalar, the largest difference beyond the tolerance, in nats: not above 0 if they agree.
    """
    if is_shared(batch):
        sample = first_records(batch, 1)
        sample = expand_shared_rows(
            {**sample, "num_completions": sample["num_completions"].clamp(max=2)}, pad_token_id
        )
    else:
        sample = {
            name: tensor[: 2 if name in ROW_TENSORS else 1] for name, tensor in batch.items() if name not in TARGETS
        }
        sample["num_completions"] = sample["num_completions"].clamp(max=2)
    sample = with_targets(sample)
    with torch.no_grad():
        fused = score_completions(model, sample, unwrapped_model).token_log_probs
        logits = model(input_ids=sample["input_ids"], attention_mask=sample["attention_mask"], use_cache=False).logits
    scored = torch.stack([sample["target_rows"], sample["target_positions"] - sample["input_ids"].size(1)])
    own = log_probs_of(_scored_logits(logits, scored), sample["target_ids"]).to(fused.device)
    atol, rtol = sharing_tolerance(dtype)
    excess = (fused - own).abs() - rtol * own.abs() - atol
    # weights of NaN say nothing about the head
    return excess.masked_fill(excess.isnan(), torch.inf).masked_fill(~own.isfinite(), 0).max()
