"""
The attention masks of shared-prefix rows, and the models that can take them.

A completion sees its prompt and itself. Positions restart in every segment, so a sliding window is a bound on the
difference of positions, whatever the length of the row.
"""

import inspect

import torch
from accelerate.utils import is_peft_model
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedConfig, PreTrainedModel


PADDING_SEGMENT = -1
PROMPT_SEGMENT = 0

# Rows are looked at in squares of so many tokens by flex attention, the default of torch
FLEX_BLOCK = 128

FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
ATTN_IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention")


def base_model(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model below the wrappers of PEFT."""
    return model.get_base_model() if is_peft_model(model) else model


def row_multiple(models: list[torch.nn.Module]) -> int | None:
    """
    What rows are padded to a multiple of, where the models ask for more than the collator's own: whole blocks of flex
    attention, which is compiled anew for a length that it has not met.
    """
    flex = any(base_model(model).config.get_text_config()._attn_implementation == "flex_attention" for model in models)
    return FLEX_BLOCK if flex else None


def shared_prefix_mask(
    segment_ids: torch.Tensor,
    position_ids: torch.Tensor,
    attn_implementation: str,
    dtype: torch.dtype,
    window: int | None = None,
) -> torch.Tensor | BlockMask:
    """
    Attention mask of shared-prefix rows: causal, within the own segment or to the prompt, and within a window.

    Args:
        segment_ids (`torch.Tensor` of shape `(B, L)`):
            Segment of each position, -1 for padding. Padding attends to padding, so that no row of the mask is empty.
        position_ids (`torch.Tensor` of shape `(B, L)`):
            Position of each token in a row of its own.
        attn_implementation (`str`):
            `"sdpa"` and `"eager"` take a mask that is added to the scores, `"flex_attention"` a block mask.
        dtype (`torch.dtype`):
            Type of the mask. For `"sdpa"` it is the one that attention computes in, or `torch.bool` (True where
            attention is allowed), which every layer converts for itself.
        window (`int`, *optional*):
            Number of positions that a token sees, its own included. `None` is all of them.

    Returns:
        `torch.Tensor` of shape `(B, 1, L, L)` or [`~torch.nn.attention.flex_attention.BlockMask`]: The mask, which
        transformers passes on to the attention as it is.
    """
    if attn_implementation == "flex_attention":
        return _block_mask(segment_ids, position_ids, window)
    query, key = segment_ids.unsqueeze(2), segment_ids.unsqueeze(1)  # (B, L, 1), (B, 1, L)
    mask = (query == key).logical_or_(key == PROMPT_SEGMENT).tril_()
    if window is not None:
        # Padding has position 0 throughout, so it goes on seeing padding
        mask.logical_and_(position_ids.unsqueeze(2) - window < position_ids.unsqueeze(1))
    mask = mask.unsqueeze(1)
    if dtype == torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask.logical_not_(), torch.finfo(dtype).min)


def _block_mask(segment_ids: torch.Tensor, position_ids: torch.Tensor, window: int | None) -> BlockMask:
    """
    What `create_block_mask` gives, without the mask of B x L x L entries that it makes first, and without a compiler.
    Segments ascend in a row, so that the first and the last one of a block say what is in it.
    """

    def allowed(
        record: torch.Tensor, head: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        own = segment_ids[record, query] == segment_ids[record, key]
        seen = (query >= key) & (own | (segment_ids[record, key] == PROMPT_SEGMENT))
        if window is not None:
            seen = seen & (position_ids[record, query] - position_ids[record, key] < window)
        return seen

    length, none = segment_ids.size(1), torch.iinfo(segment_ids.dtype).max
    # padding comes last: as a segment behind all others it ascends too
    segments = _in_blocks(segment_ids.masked_fill(segment_ids == PADDING_SEGMENT, none))
    first, last = segments[..., 0], segments[..., -1]  # (B, blocks)
    first_completion = segments.masked_fill(segments == PROMPT_SEGMENT, none).amin(-1)
    index = torch.arange(first.size(1), device=first.device)
    diagonal, before = index.unsqueeze(1) == index, index.unsqueeze(1) > index  # (blocks of queries, blocks of keys)
    met = before & ((first == PROMPT_SEGMENT).unsqueeze(1) | (last.unsqueeze(1) == first.unsqueeze(2)))
    of_one = (
        (first == last).unsqueeze(2)
        & (first_completion == last).unsqueeze(1)
        & (last.unsqueeze(1) == last.unsqueeze(2))
    )
    # what is cut off at the end of a row is no whole block
    full = before & ((last == PROMPT_SEGMENT).unsqueeze(1) | of_one) & (index < length // FLEX_BLOCK).unsqueeze(1)
    if window is not None:
        positions = _in_blocks(position_ids)
        lowest, highest = positions.amin(-1), positions.amax(-1)
        met = met & (lowest.unsqueeze(2) - highest.unsqueeze(1) < window)
        full = full & (highest.unsqueeze(2) - lowest.unsqueeze(1) < window)
    return BlockMask.from_kv_blocks(
        *_ordered(diagonal | (met & ~full)), *_ordered(full), BLOCK_SIZE=FLEX_BLOCK, mask_mod=allowed,
        seq_lengths=(length, length),
    )  # fmt: skip


def _in_blocks(values: torch.Tensor) -> torch.Tensor:
    """Rows `(B, L)` as `(B, blocks, FLEX_BLOCK)`, the last block filled up with its last value."""
    missing = -values.size(1) % FLEX_BLOCK
    return torch.cat([values, values[:, -1:].expand(-1, missing)], dim=1).unflatten(1, (-1, FLEX_BLOCK))


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each block of queries, how many blocks of keys there are, and all of them, those first: of one head."""
    blocks = blocks.unsqueeze(1).to(torch.int32)
    order = blocks.argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1, dtype=torch.int32), order.to(torch.int32)


def windows_of_layers(config: PreTrainedConfig) -> dict[str, int | None]:
    """
    The attention windows of a model by type of layer, in the names of transformers.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of a text model.

    Returns:
        `dict[str, int | None]`: For each type of attention layer that the model has, its window in tokens, or `None`.
    """
    window = getattr(config, "sliding_window", None)
    layer_types = set(getattr(config, "layer_types", None) or [])
    if not layer_types:
        # models without types of layers (Mistral, Phi-3) slide in all of them
        slides = window is not None and getattr(config, "use_sliding_window", True)
        layer_types = {SLIDING_ATTENTION if slides else FULL_ATTENTION}
    return {name: window if name == SLIDING_ATTENTION else None for name in sorted(layer_types)}


def shared_prefix_masks(
    config: PreTrainedConfig, batch: dict[str, torch.Tensor], dtype: torch.dtype
) -> torch.Tensor | BlockMask | dict[str, torch.Tensor | BlockMask]:
    """
    What to give a model as `attention_mask` for a batch of shared-prefix rows.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the text model.
        batch (`dict[str, torch.Tensor]`):
            Batch of shared-prefix rows, see [`DataCollatorForMultiPreference`].
        dtype (`torch.dtype`):
            Type of an additive mask.

    Returns:
        One mask, or for a model whose layers have different windows a `dict` of one for each type of layer.
    """
    masks = {
        name: shared_prefix_mask(
            batch["segment_ids"], batch["position_ids"], config._attn_implementation, dtype, window
        )
        for name, window in windows_of_layers(config).items()
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


class BatchMasks:
    """
    The masks of a batch of shared-prefix rows, built once for all models that take the same: policy and reference.

    Args:
        batch (`dict[str, torch.Tensor]`):
            Batch of [`DataCollatorForMultiPreference`]. To be made under the autocast that the models compute in.
    """

    def __init__(self, batch: dict[str, torch.Tensor]) -> None:
        self.batch = batch
        device = batch["segment_ids"].device.type
        self.autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        self._built: dict[tuple, torch.Tensor | BlockMask | dict] = {}

    def of(self, causal_lm: PreTrainedModel) -> torch.Tensor | BlockMask | dict[str, torch.Tensor | BlockMask]:
        """What [`shared_prefix_masks`] gives for a model, in the type that it computes in."""
        config, dtype = causal_lm.config.get_text_config(), self.autocast or causal_lm.dtype
        # layers of a quantised model compute in the type of what they are given, which weights do not tell
        if (
            config._attn_implementation == "sdpa"
            and self.autocast is None
            and getattr(causal_lm, "hf_quantizer", None) is not None
        ):
            dtype = torch.bool
        key = (config._attn_implementation, dtype, *windows_of_layers(config).items())
        if key not in self._built:
            self._built[key] = shared_prefix_masks(config, self.batch, dtype)
        return self._built[key]


def why_prefix_sharing_is_unsound(model: torch.nn.Module) -> str | None:
    """
    Say why a model cannot take shared-prefix rows.

    Sharing is sound where every layer is causal softmax attention under a mask that we choose, and positions enter
    through `position_ids`: then a completion sees its prompt and itself, at the positions of a row of its own.

    Args:
        model (`torch.nn.Module`):
            Model, with or without PEFT.

    Returns:
        `str` or `None`: The reason, or `None` if the model can take shared-prefix rows.
    """
    if is_peft_model(model) and any(config.is_prompt_learning for config in model.peft_config.values()):
        return "a prompt-learning adapter adds positions of its own"
    causal_lm = base_model(model)
    config = causal_lm.config.get_text_config()
    name = type(causal_lm).__name__
    if config._attn_implementation not in ATTN_IMPLEMENTATIONS:
        return (
            f"the attention implementation {config._attn_implementation!r} takes no mask of this form (load the model "
            "with attn_implementation='sdpa')"
        )
    if getattr(causal_lm, "_is_stateful", False):
        return f"{name} is recurrent: its state would carry one completion into the next"
    other_layers = sorted(windows_of_layers(config).keys() - {FULL_ATTENTION, SLIDING_ATTENTION})
    if other_layers:
        return f"{name} has layers of another kind than softmax attention: {', '.join(other_layers)}"
    if (
        getattr(config, "alibi", False)
        or "position_ids" not in inspect.signature(causal_lm.base_model.forward).parameters
    ):
        return f"{name} takes no position ids (its positions are those of the row)"
    if getattr(config, "use_bidirectional_attention", False):
        return f"the attention of {name} is not causal"
    if not (causal_lm._supports_sdpa or causal_lm._supports_attention_backend):
        return f"{name} does not use the attention interface of transformers, whose masks may have this form"
    return None
