"""
The values of `loss_type` for records with several rejected completions, and the losses of a batch.

Adding one takes a pure function in `multi_negative.py`, `graded.py` or `pairwise.py`, and its name in one of the tables here.
"""

from typing import NamedTuple

import torch
from trl import DPOConfig

from ..prefix_sharing.rows import CompletionScores
from .graded import infonca_loss, plackett_luce_loss, score_margins, softmax_margin_loss
from .multi_negative import boundary_negatives, dmpo_loss, mppo_loss, nca_loss, softmax_dpo_loss
from .pairwise import (
    apo_down_loss,
    apo_zero_loss,
    bco_pair_loss,
    discopop_loss,
    exo_pair_loss,
    f_divergence_scores,
    hinge_loss,
    ipo_loss,
    length_desensitized_log_probs,
    mean_over_pairs,
    nca_pair_loss,
    robust_loss,
    sigmoid_loss,
    sppo_hard_loss,
    wpo_weights,
)


class PreferencePairs(NamedTuple):
    """
    The K pairs of each record, all of shape `(B, K)`: the chosen completion against each rejected one.

    Args:
        chosen_logratios, rejected_logratios (`torch.Tensor`):
            Log-ratios of policy to reference, in nats. With LD-DPO that of the chosen completion differs from pair to
            pair.
        chosen_scores, rejected_scores (`torch.Tensor`):
            Log-ratios, or what another divergence than the reverse KL makes of them.
        chosen_num_tokens, rejected_num_tokens (`torch.Tensor`):
            Lengths of the completions.
    """

    chosen_logratios: torch.Tensor
    rejected_logratios: torch.Tensor
    chosen_scores: torch.Tensor
    rejected_scores: torch.Tensor
    chosen_num_tokens: torch.Tensor
    rejected_num_tokens: torch.Tensor

    @property
    def margins(self) -> torch.Tensor:
        return self.chosen_scores - self.rejected_scores

    @property
    def margins_per_token(self) -> torch.Tensor:
        chosen = self.chosen_scores / self.chosen_num_tokens.clamp(min=1)
        return chosen - self.rejected_scores / self.rejected_num_tokens.clamp(min=1)


# Of the chosen against all rejected completions: (chosen_logratios, rejected_logratios, beta, mask) -> (B,)
MULTI_NEGATIVE_LOSSES = {
    "softmax": softmax_dpo_loss,
    # InfoNCA (https://huggingface.co/papers/2402.05369) with the chosen completion as its one-hot target, unless
    # `score_temperature` makes one of scores
    "infonca": softmax_dpo_loss,
    "nca": nca_loss,
    "dmpo": dmpo_loss,
}

# The same without a reference: (chosen_avg_logps, rejected_avg_logps, mask) -> (B,)
REFERENCE_FREE_LOSSES = {"mppo": mppo_loss}

# Of the scores of all completions: (logratios, grades, args, mask) -> (B,), the first two of shape (B, 1 + K)
GRADED_LOSSES = {
    "softmax_margin": lambda logratios, grades, args, mask: softmax_margin_loss(
        logratios[:, 0],
        logratios[:, 1:],
        score_margins(grades[:, 0], grades[:, 1:], args.score_margin, args.score_margin_scale),
        args.beta,
        mask,
    ),
    "infonca": lambda logratios, grades, args, mask: infonca_loss(
        logratios[:, 0], logratios[:, 1:], grades[:, 0], grades[:, 1:], args.beta, args.score_temperature, mask
    ),
    "plackett_luce": lambda logratios, grades, args, mask: plackett_luce_loss(
        logratios[:, 0], logratios[:, 1:], grades[:, 0], grades[:, 1:], args.beta, mask
    ),
}

# Of each pair, averaged over the pairs of a record: (pairs, args) -> (B, K)
PAIRWISE_LOSSES = {
    "sigmoid": lambda pairs, args: sigmoid_loss(pairs.margins, args.beta),
    "hinge": lambda pairs, args: hinge_loss(pairs.margins, args.beta),
    "ipo": lambda pairs, args: ipo_loss(pairs.margins_per_token, args.beta),
    "exo_pair": lambda pairs, args: exo_pair_loss(pairs.margins, args.beta, args.label_smoothing),
    "nca_pair": lambda pairs, args: nca_pair_loss(pairs.chosen_logratios, pairs.rejected_logratios, args.beta),
    "robust": lambda pairs, args: robust_loss(pairs.margins, args.beta, args.label_smoothing),
    "bco_pair": lambda pairs, args: bco_pair_loss(pairs.chosen_logratios, pairs.rejected_logratios, args.beta),
    "sppo_hard": lambda pairs, args: sppo_hard_loss(pairs.chosen_logratios, pairs.rejected_logratios, args.beta),
    "apo_zero": lambda pairs, args: apo_zero_loss(pairs.chosen_logratios, pairs.rejected_logratios, args.beta),
    "apo_down": lambda pairs, args: apo_down_loss(pairs.chosen_logratios, pairs.rejected_logratios, args.beta),
    "discopop": lambda pairs, args: discopop_loss(pairs.margins, args.beta, args.discopop_tau),
    "sigmoid_norm": lambda pairs, args: sigmoid_loss(pairs.margins_per_token, args.beta),
}

MULTI_PREFERENCE_LOSS_TYPES = (
    *dict.fromkeys((*MULTI_NEGATIVE_LOSSES, *GRADED_LOSSES)),
    *REFERENCE_FREE_LOSSES,
    *PAIRWISE_LOSSES,
    "sft",
)

# What a loss over several rejected completions is for a single one, under the name that TRL has for it
LOSS_TYPES_OF_ONE_PAIR = {"softmax": "sigmoid", "infonca": "sigmoid", "nca": "nca_pair", "dmpo": "sigmoid"}


def graded_loss_types(args: DPOConfig, loss_types: list[str] | None = None) -> list[str]:
    """The loss types of a configuration that need scores of the completions."""
    loss_types = args.loss_type if loss_types is None else loss_types
    soft = getattr(args, "score_temperature", None) is not None
    return [name for name in loss_types if name in GRADED_LOSSES and (name != "infonca" or soft)]


def preference_pairs(
    args: DPOConfig, scores: CompletionScores, ref_scores: CompletionScores, exists: torch.Tensor
) -> PreferencePairs:
    """
    The pairs of a batch, with 0 in place of those that do not exist.

    Args:
        args ([`~trl.DPOConfig`]):
            Configuration, of which `ld_alpha`, `f_divergence_type` and `f_alpha_divergence_coef` are read.
        scores, ref_scores ([`CompletionScores`]):
            What policy and reference make of the completions.
        exists (`torch.Tensor` of shape `(B, 1 + K)`):
            Which completions exist, column 0 the chosen one.

    Returns:
        [`PreferencePairs`]: The pairs, `(B, K)`.
    """
    if args.ld_alpha is None:
        logratios = scores.log_probs - ref_scores.log_probs
        chosen, rejected = logratios[:, :1], logratios[:, 1:]
    else:
        policy, reference = (
            length_desensitized_log_probs(model.padded_token_log_probs(), scores.num_tokens, args.ld_alpha)
            for model in (scores, ref_scores)
        )
        chosen, rejected = (ours - theirs for ours, theirs in zip(policy, reference, strict=True))
    mask = exists[:, 1:]
    # before any function: what does not exist must not reach an exponential, whose infinity a gradient of 0 does not undo
    chosen, rejected = (values.expand(mask.shape).masked_fill(~mask, 0.0) for values in (chosen, rejected))
    chosen_scores, rejected_scores = (
        f_divergence_scores(values, args.f_divergence_type, args.f_alpha_divergence_coef)
        for values in (chosen, rejected)
    )
    num_tokens = scores.num_tokens
    return PreferencePairs(
        chosen, rejected, chosen_scores, rejected_scores, num_tokens[:, :1].expand(mask.shape), num_tokens[:, 1:]
    )


def multi_preference_losses(
    args: DPOConfig,
    loss_weights: list[float],
    scores: CompletionScores,
    ref_scores: CompletionScores,
    exists: torch.Tensor,
    grades: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Loss of each record of a batch: the sum of the losses of `args.loss_type` by their weights.

    Args:
        args ([`~trl.DPOConfig`]):
            Configuration that [`check_multi_preference_options`] accepts.
        loss_weights (`list[float]`):
            Weight of each loss type.
        scores, ref_scores ([`CompletionScores`]):
            What policy and reference make of the completions.
        exists (`torch.Tensor` of shape `(B, 1 + K)`):
            Which completions exist, column 0 the chosen one.
        grades (`torch.Tensor` of shape `(B, 1 + K)`, *optional*):
            Scores of the completions, for the loss types that take them.

    Returns:
        `torch.Tensor` of shape `(B,)`: The losses.
    """
    mask = exists[:, 1:]
    logratios = scores.log_probs - ref_scores.log_probs
    avg_logps = scores.log_probs / scores.num_tokens.clamp(min=1)
    pairs = preference_pairs(args, scores, ref_scores, exists)
    if getattr(args, "boundary_negatives", False):  # a plain DPOConfig has none
        mask = boundary_negatives(scores.log_probs[:, 0], scores.log_probs[:, 1:], mask)
    losses, graded = torch.zeros_like(logratios[:, 0]), graded_loss_types(args)
    for loss_type, loss_weight in zip(args.loss_type, loss_weights, strict=True):
        if loss_type in graded:
            per_record = GRADED_LOSSES[loss_type](logratios, grades, args, mask)
        elif loss_type in MULTI_NEGATIVE_LOSSES:
            per_record = MULTI_NEGATIVE_LOSSES[loss_type](logratios[:, 0], logratios[:, 1:], args.beta, mask)
        elif loss_type in REFERENCE_FREE_LOSSES:
            per_record = REFERENCE_FREE_LOSSES[loss_type](avg_logps[:, 0], avg_logps[:, 1:], mask)
        elif loss_type in PAIRWISE_LOSSES:
            per_pair = PAIRWISE_LOSSES[loss_type](pairs, args)
            if args.use_weighting:
                weights = wpo_weights(scores.log_probs, scores.token_sums["log_sum_sq_probs"], scores.num_tokens)
                per_pair = per_pair * weights[:, :1] * weights[:, 1:]
            per_record = mean_over_pairs(per_pair, mask)
        else:  # "sft": as TRL, the mean over the tokens of the batch
            batch_loss = -scores.log_probs[:, 0].sum() / scores.num_tokens[:, 0].sum()
            per_record = batch_loss.expand(mask.size(0))
        losses = losses + loss_weight * per_record
    return losses
