"""
Layers that policy and reference have in common run once: where adapters sit in the upper layers only, the hidden states
below them are the same for both.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import is_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.utils import logging

from ..prefix_sharing.masks import base_model
from ..prefix_sharing.rows import CompletionScores


logger = logging.get_logger(__name__)


def frozen_layers(model: nn.Module) -> list[nn.Module]:
    """
    The lowest decoder layers of a PEFT model that no adapter changes, up to the first one that has any.

    Args:
        model (`nn.Module`):
            Model. One without adapters has no layers in common with a reference of its own.

    Returns:
        `list[nn.Module]`: The layers, which compute the same with every adapter and with none. Empty if there is none,
        if something outside of the decoder layers is adapted or trained (embeddings, norms), or if dropout is left on.
    """
    if not is_peft_model(model) or any(config.is_prompt_learning for config in model.peft_config.values()):
        return []
    causal_lm = base_model(model)
    backbone, config = causal_lm.base_model, causal_lm.config.get_text_config()
    lists = [child for child in backbone.children() if isinstance(child, nn.ModuleList)]
    stacks = [child for child in lists if len(child) == config.num_hidden_layers]
    if len(stacks) != 1 or getattr(config, "attention_dropout", 0.0):
        return []
    (layers,) = stacks
    in_layers = {id(module) for module in layers.modules()}
    if any(_is_adapted(module) for module in backbone.modules() if id(module) not in in_layers):
        return []
    frozen = []
    for layer in layers:
        if any(_is_adapted(module) or _drops(module) for module in layer.modules()):
            break
        frozen.append(layer)
    return frozen


def _is_adapted(module: nn.Module) -> bool:
    own = module.parameters(recurse=False)
    return isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) or any(param.requires_grad for param in own)


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.Dropout) and module.p > 0


class FrozenTrunk:
    """
    Keeps what the frozen layers gave in the pass of the policy, and gives it again in the pass of the reference, on the
    same batch.

    Args:
        layers (`list[nn.Module]`):
            See [`frozen_layers`]. With an empty list nothing is kept, and every pass runs all layers.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers = layers
        self.output = None
        self.checked = False

    @contextmanager
    def record(self) -> Iterator[None]:
        """While a pass runs all layers, keep what comes out of the last frozen one."""

        def keep(module: nn.Module, args: tuple, output: torch.Tensor | tuple) -> None:
            self.output = output

        handles = [layer.register_forward_hook(keep) for layer in self.layers[-1:]]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def replay(self) -> Iterator[None]:
        """While another pass runs, the frozen layers give what was kept, for which they compute nothing."""
        replaced = [(layer, layer.__dict__.get("forward")) for layer in self.layers]
        for layer in self.layers:
            # of the instance, as accelerate's hooks set it; the class stays as it is
            layer.forward = lambda *args, **kwargs: self.output
        try:
            yield
        finally:
            self.output = None
            for layer, forward in replaced:
                del layer.forward
                if forward is not None:
                    layer.forward = forward

    def run(self, score: Callable[[], CompletionScores]) -> CompletionScores:
        """
        Run the pass of the reference. The first one is run without sharing as well: layers may have ways to each other
        that are not seen from here.

        Args:
            score (`Callable`):
                Runs the pass, on the batch that was recorded.

        Returns:
            [`CompletionScores`]: Those of the reference.
        """
        if not self.layers:
            return score()
        with self.replay():
            scores = score()
        if self.checked:
            return scores
        expected = score()
        self.checked = True
        if not torch.allclose(scores.log_probs, expected.log_probs, rtol=1e-5, atol=1e-4, equal_nan=True):
            logger.warning(
                "The layers below the lowest adapter are run for policy and reference separately, because sharing them "
                "changes the reference."
            )
            self.layers = []
        return expected
