"""The rows that the trainer computes: shared-prefix rows where they are sound, and else padded rows, a pass at a time."""

from functools import partial

import torch
from accelerate.logging import get_logger
from trl.models.utils import disable_gradient_checkpointing

from ..prefix_sharing.masks import BatchMasks, why_prefix_sharing_is_unsound
from ..prefix_sharing.passes import num_passes, score_in_passes
from ..prefix_sharing.rows import (
    CompletionScores,
    expand_shared_rows,
    has_plain_head,
    is_shared,
    score_completions,
    sharing_excess,
    with_targets,
)
from .reference_trainer import FixedReferenceTrainer


logger = get_logger(__name__)

Batch = dict[str, torch.Tensor]


class RowLayoutTrainer(FixedReferenceTrainer):
    """[`FixedReferenceTrainer`] that scores all completions of the records of a batch, laid out in rows."""

    _share_prefix: bool | None = None  # decided on first use

    def _score(
        self, model: torch.nn.Module, inputs: Batch, masks: BatchMasks | None = None, **model_kwargs
    ) -> CompletionScores:
        unwrapped = self.accelerator.unwrap_model(model)

        def score(batch: Batch) -> CompletionScores:
            fused = has_plain_head(unwrapped)
            return score_completions(model, batch, unwrapped, masks, fused_lm_head=fused, **model_kwargs)

        # the load-balancing loss of a mixture of experts is one of the whole batch
        passes = 1 if is_shared(inputs) or model_kwargs else self._num_passes(inputs)
        return score(inputs) if passes == 1 else score_in_passes(score, inputs, passes)

    def _num_passes(self, inputs: Batch) -> int:
        """As many on all processes, which wait for each other in every pass."""
        passes = num_passes(inputs, self.args.max_tokens_per_pass)
        if self.accelerator.num_processes == 1:
            return passes
        passes = torch.tensor([passes], device=self.accelerator.device)
        return int(self.accelerator.gather(passes).max())

    def _masks(self, inputs: Batch) -> BatchMasks | None:
        with self.accelerator.autocast():  # as it wraps the forward of the models
            return BatchMasks(inputs) if is_shared(inputs) else None

    def _log_probs_of(self, model: torch.nn.Module, inputs: Batch) -> torch.Tensor:
        shared = "segment_ids" in inputs
        return self._score(model, inputs).log_probs if shared else super()._log_probs_of(model, inputs)

    def _check_sharing(self, model: torch.nn.Module, inputs: Batch) -> bool:
        """Whether sharing gives the results of padded rows on the first batch; all processes come to the same answer."""
        dtype = torch.bfloat16 if self.args.bf16 or self.args.fp16 else self.model.dtype
        options = self.args.gradient_checkpointing_kwargs
        training = model.training
        model.eval()  # dropout, where it is left on, would make any two passes differ
        try:
            with disable_gradient_checkpointing(self.model, options):
                excess = sharing_excess(partial(self._score, model), inputs, self._tokenizer.pad_token_id, dtype)
        finally:
            model.train(training)
        excess = self.accelerator.gather(excess.reshape(1)).max().item()
        return sharing_holds(excess, self.args.prefix_sharing)

    def _lay_out(self, model: torch.nn.Module, inputs: Batch) -> Batch:
        """Shared-prefix rows if they are sound, else padded rows."""
        inputs = with_targets(inputs)
        if not is_shared(inputs):
            return inputs
        if self._share_prefix is None:
            self._share_prefix = self._check_sharing(model, inputs)
            if not self._share_prefix:
                self.data_collator.prefix_sharing = False
        # batches on their way from the workers are still shared
        return inputs if self._share_prefix else with_targets(expand_shared_rows(inputs, self._tokenizer.pad_token_id))


def can_share_prefix(models: list[torch.nn.Module], prefix_sharing: str) -> bool:
    """
    Whether to lay records out in shared-prefix rows, as far as the models tell before they have seen a batch.

    Args:
        models (`list[torch.nn.Module]`):
            Policy and, if it is another model, reference.
        prefix_sharing (`str`):
            `"auto"`, `"true"` or `"false"`, see [`SoftmaxDPOConfig`].

    Returns:
        `bool`: The answer. A warning says why `"auto"` is no.

    Raises:
        `ValueError`: If `prefix_sharing` is `"true"` and a model does not allow it.
    """
    if prefix_sharing == "false":
        return False
    reasons = [why_prefix_sharing_is_unsound(model) for model in models]
    reason = next((reason for reason in reasons if reason is not None), None)
    if reason is not None and prefix_sharing == "true":
        raise ValueError(
            f"`prefix_sharing='true'` is not possible here: {reason}. Use `prefix_sharing='auto'`, which falls back "
            "to padded rows."
        )
    if reason is not None:
        logger.warning(
            f"The prompt is computed once per completion instead of once per record, because {reason}. The results "
            "are the same, but slower. `prefix_sharing='false'` silences this warning."
        )
    return reason is None


def sharing_holds(excess: float, prefix_sharing: str) -> bool:
    """
    Whether to stay with shared-prefix rows after the first batch.

    Args:
        excess (`float`):
            Largest difference to padded rows beyond rounding, in nats, see [`sharing_excess`].
        prefix_sharing (`str`):
            `"auto"` or `"true"`.

    Returns:
        `bool`: The answer. A warning says why it is no.

    Raises:
        `ValueError`: If it is no, and `prefix_sharing` is `"true"`.
    """
    if excess <= 0:
        return True
    message = (
        "Shared-prefix rows and padded rows give different log-probabilities on the first batch, by "
        f"{excess:.3g} nats beyond rounding: the model does not heed the mask"
    )
    if prefix_sharing == "true":
        raise ValueError(f"{message}. Use `prefix_sharing='false'`.")
    logger.warning(f"{message}. Falling back to padded rows.")
    return False
