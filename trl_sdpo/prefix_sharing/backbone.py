"""
The forward pass of a backbone with what scoring completions needs besides: its own mask, and the positions to hand on.

As [`~trl.trainer.utils.add_fused_lm_head`] extends the forward of a model, this extends the forward of the backbone
below it. All that a pass depends on is an argument of it, so nothing is left behind, and compilers see through.
"""

import functools
import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


def is_extended(backbone: torch.nn.Module) -> bool:
    """Whether [`extend_backbone`] was called on the model."""
    return getattr(backbone.forward, "takes_prefix_mask", False)


def hands_on_keywords(causal_lm: PreTrainedModel) -> bool:
    """Whether the forward pass of a model takes keywords that it does not know, as most hand them on to the backbone."""
    parameters = inspect.signature(type(causal_lm).forward).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def extend_backbone(causal_lm: PreTrainedModel) -> None:
    """
    Let the backbone of a model take, through the model's forward, two more keyword arguments:

    - `prefix_mask`, what its layers attend under. The `attention_mask` of two dimensions then only says which tokens
      count: TRL's LM head takes the load-balancing loss of a mixture of experts over it, and wrappers (PEFT, DDP, FSDP)
      see a mask as they know it;
    - `scored`, of shape `(2, N)`: rows, and positions counted from the end of the row. Only these hidden states come out,
      as one row: outside of Triton devices the head scores all that it is given, and a vocabulary is wide.

    Args:
        causal_lm ([`~transformers.PreTrainedModel`]):
            Model with an LM head. Nothing is done to one that takes them already.
    """
    backbone = causal_lm.base_model
    if is_extended(backbone):
        return
    backbone._plain_forward = backbone.forward

    # Keep the original signature, which tells whether a model takes position ids
    @functools.wraps(type(backbone).forward)
    def forward(
        self: torch.nn.Module,
        *args,
        attention_mask: Any = None,
        prefix_mask: Any = None,
        scored: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        mask = attention_mask if prefix_mask is None else prefix_mask
        output = self._plain_forward(*args, attention_mask=mask, **kwargs)
        hidden_states = getattr(output, "last_hidden_state", None)  # Llama 4's text model is its own "backbone"
        if scored is not None and hidden_states is not None:
            # from the end, because prompt-learning PEFT prepends virtual tokens
            rows, positions = scored.to(hidden_states.device)
            width = hidden_states.size(1)
            index = rows * width + width + positions
            output.last_hidden_state = hidden_states.flatten(0, 1).index_select(0, index).unsqueeze(0)
        return output

    forward.takes_prefix_mask = True  # type: ignore[attr-defined]  # a mark of ours on a function of ours
    backbone.forward = types.MethodType(forward, backbone)


@contextmanager
def extended_backbone(causal_lm: PreTrainedModel) -> Iterator[None]:
    """[`extend_backbone`] for a while, unless it was extended already."""
    backbone = causal_lm.base_model
    if is_extended(backbone):
        yield
        return
    own = vars(backbone).get("forward")  # as accelerate sets it, for models on several devices
    extend_backbone(causal_lm)
    try:
        yield
    finally:
        del backbone.forward, backbone._plain_forward
        if own is not None:
            backbone.forward = own
