"""
The attention masks of shared-prefix rows, and the models that can take them.

A completion sees its prompt and itself. Positions restart in every segment, so a sliding window is a bound on the
difference of positions, whatever the length of the row.
"""

import inspect

import torch
from accelerate.utils import is_peft_model
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedConfig, PreTrainedModel


PADDING_SEGMENT = -1
PROMPT_SEGMENT = 0

FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
ATTN_IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention")


def base_model(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model below the wrappers of PEFT."""
    return model.get_base_model() if is_peft_model(model) else model


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
            `"sdpa"` takes a boolean mask (True where attention is allowed), `"eager"` an additive one,
            `"flex_attention"` a block mask.
        dtype (`torch.dtype`):
            Type of the additive mask.
        window (`int`, *optional*):
            Number of positions that a token sees, its own included. `None` is all of them.

    Returns:
        `torch.Tensor` of shape `(B, 1, L, L)` or [`~torch.nn.attention.flex_attention.BlockMask`]: The mask, which
        transformers passes on to the attention as it is.
    """
    batch_size, length = segment_ids.shape
    device = segment_ids.device

    def allowed(
        record: torch.Tensor, head: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        own = segment_ids[record, query] == segment_ids[record, key]
        seen = (query >= key) & (own | (segment_ids[record, key] == PROMPT_SEGMENT))
        if window is not None:
            # Padding has position 0 throughout, so it goes on seeing padding
            seen = seen & (position_ids[record, query] - position_ids[record, key] < window)
        return seen

    if attn_implementation == "flex_attention":
        return create_block_mask(allowed, batch_size, None, length, length, device=device)
    records = torch.arange(batch_size, device=device).view(-1, 1, 1, 1)
    positions = torch.arange(length, device=device)
    mask = allowed(records, None, positions.view(1, 1, -1, 1), positions.view(1, 1, 1, -1))
    if attn_implementation == "sdpa":
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


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
