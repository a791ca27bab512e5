"""
Losses over one chosen and several rejected completions, as pure functions: tensors in, one loss per record out. Losses
of pairs are in `pairwise.py`, and `loss_types.py` gives them their names.

They take a value of each completion, of shape `(B,)` for the chosen and `(B, K)` for the rejected ones: log-ratios,
`log π(y|x) − log π_ref(y|x)`, but for `mppo_loss`, which has no reference. `mask` marks the rejected completions that
exist, for records with fewer than K of them. What [`softmax_dpo_loss`] says of shapes, precision, masks and errors holds
for all.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F


if TYPE_CHECKING:
    from accelerate import Accelerator


def _check_shapes(
    chosen_logratios: torch.Tensor,  # (B,)
    rejected_logratios: torch.Tensor,  # (B, K)
    mask: torch.Tensor | None,  # (B, K)
) -> None:
    if chosen_logratios.dim() != 1 or rejected_logratios.dim() != 2:
        raise ValueError(
            "`chosen_logratios` must have shape (B,) and `rejected_logratios` shape (B, K), got "
            f"{tuple(chosen_logratios.shape)} and {tuple(rejected_logratios.shape)}."
        )
    if rejected_logratios.size(0) != chosen_logratios.size(0) or rejected_logratios.size(1) == 0:
        raise ValueError(
            "`rejected_logratios` must hold at least one column and a row per record: got "
            f"{tuple(rejected_logratios.shape)} for {chosen_logratios.size(0)} records."
        )
    if mask is not None and mask.shape != rejected_logratios.shape:
        raise ValueError(
            f"`mask` must have the shape of `rejected_logratios`, {tuple(rejected_logratios.shape)}, got "
            f"{tuple(mask.shape)}."
        )


def _in_float32(
    chosen: torch.Tensor, rejected: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Checked inputs in float32 at least, 0 in place of what does not exist, and the mask, which is never `None`."""
    _check_shapes(chosen, rejected, mask)
    exists = torch.ones_like(rejected, dtype=torch.bool) if mask is None else mask.bool()
    # half precision would round away the differences that the losses are made of
    dtype = torch.promote_types(chosen.dtype, torch.float32)
    # before any function: a masked entry may hold inf or NaN, which a gradient of 0 does not undo
    return chosen.to(dtype), rejected.to(dtype).masked_fill(~exists, 0.0), exists


@torch.no_grad()
def boundary_negatives(
    chosen_logps: torch.Tensor,  # (B,)
    rejected_logps: torch.Tensor,  # (B, K)
    mask: torch.Tensor | None = None,  # (B, K)
) -> torch.Tensor:
    """
    The rejected completions at the boundary of a policy: those that it finds at least as likely as the chosen one. Where
    there are none, those of the likeliest of three clusters of their log-probabilities.

    This is the *dynamic boundary negative selection* of DynamicPO (https://huggingface.co/papers/2605.00327), as its
    published code has it: easy negatives, of which there are many, take part of the gradient from the few that are hard. The
    clusters are those of the least sum of squares, found exactly, where that code takes k-means from a fixed seed. Its other
    part, which changes β with the margins, is not here.

    Args:
        chosen_logps (`torch.Tensor` of shape `(B,)`), rejected_logps (`torch.Tensor` of shape `(B, K)`):
            Log-probabilities of the completions by the policy, in nats.
        mask (`torch.Tensor` of shape `(B, K)`, *optional*):
            Which rejected completions exist.

    Returns:
        `torch.Tensor` of shape `(B, K)`: Which of them are at the boundary: one at least of every record that has any.

    Example:
        ```python
        >>> rejected = torch.tensor([[-1.0, -3.0, -9.0], [-4.0, -4.5, -9.0]])
        >>> boundary_negatives(torch.tensor([-2.0, -2.0]), rejected).tolist()
        [[True, False, False], [True, False, False]]

        ```
    """
    _, rejected, exists = _in_float32(chosen_logps, rejected_logps, mask)
    likelier = exists & (rejected_logps >= chosen_logps.unsqueeze(1))
    return torch.where(likelier.any(dim=1, keepdim=True), likelier, exists & _in_likeliest_cluster(rejected, exists))


def _in_likeliest_cluster(values: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
    """Of each row, which values are in the highest of three clusters `(B, K)`; of two where there are but two."""
    count = exists.sum(dim=1)[:, None, None]
    mean = values.sum(dim=1, keepdim=True) / count[:, :, 0].clamp(min=1)
    centred = (values - mean).double()
    ordered = centred.masked_fill(~exists, -torch.inf).sort(dim=1, descending=True).values
    # sums of the first n, n from 0, of which those beyond what exists are in no valid cluster
    finite = ordered.masked_fill(ordered.isinf(), 0.0)
    sums, squares = (torch.nn.functional.pad(part.cumsum(dim=1), (1, 0)) for part in (finite, finite**2))
    places = torch.arange(sums.size(1), device=values.device)
    first, second = places[None, :, None], places[None, None, :]

    def spread(begin: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """Of the values from one place to another: how far they are from their mean, squared."""
        size = (end - begin).clamp(min=1)
        taken = [part.gather(1, end.expand(len(part), *end.shape[1:]).flatten(1)) for part in (sums, squares)]
        left = [part.gather(1, begin.expand(len(part), *begin.shape[1:]).flatten(1)) for part in (sums, squares)]
        total, square = (one - other for one, other in zip(taken, left, strict=True))
        return (square - total**2 / size.flatten(1)).view(len(sums), *size.shape[1:])

    shape = (len(sums), len(places), len(places))
    cost = spread(torch.zeros_like(first).expand(shape), first.expand(shape)) + spread(
        first.expand(shape), second.expand(shape)
    )
    cost = cost + spread(second.expand(shape), count.expand(shape))
    valid = (first >= 1) & (second >= first + (count >= 2)) & (second <= count - (count >= 3).long())
    cost = cost.masked_fill(~valid, torch.inf).flatten(1)
    # of equal ones the first, as the fewest are at the boundary: which has the least is up to rounding
    rounding = 1e-12 * (1 + squares[:, -1:])
    best = (cost <= cost.min(dim=1, keepdim=True).values + rounding).int().argmax(dim=1)
    lowest = ordered.gather(1, (best // len(places) - 1).clamp(min=0).unsqueeze(1))
    return centred >= lowest


def softmax_dpo_loss(
    chosen_logratios: torch.Tensor,
    rejected_logratios: torch.Tensor,
    beta: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    Softmax-DPO loss of each record, from [On Softmax Direct Preference Optimization for
    Recommendation](https://huggingface.co/papers/2406.09215), Eq. 11.

    With the implicit rewards \\( r_i = \beta \log \frac{\pi(y_i|x)}{\pi_\text{ref}(y_i|x)} \\), chosen \\( r_0 \\):

    $$ -\log \sigma\Big(-\log \sum_{d=1}^{K} \exp(r_d - r_0)\Big) = -\log \frac{\exp r_0}{\sum_{i=0}^{K} \exp r_i} $$

    The right-hand side, a cross-entropy with the chosen completion as the target, is what is computed: it needs no
    `log(sum(exp(·)))`, which overflows in float32 from a margin of 88.7. The loss starts at `log(1 + K)` when policy
    and reference agree, and is the sigmoid loss of DPO for K = 1. Its gradient weighs the rejected completions by
    their softmax (Eq. 12), so that the hardest count most.

    Args:
        chosen_logratios (`torch.Tensor` of shape `(B,)`):
            Log-ratio of policy to reference of the chosen completions, in nats.
        rejected_logratios (`torch.Tensor` of shape `(B, K)`):
            Log-ratios of the rejected completions.
        beta (`float`):
            Weight of the log-ratios, the β of DPO.
        mask (`torch.Tensor` of shape `(B, K)`, *optional*):
            True where a rejected completion exists. A record without any has a loss of 0.

    Returns:
        `torch.Tensor` of shape `(B,)`: The loss of each record, in float32 (float64 for float64 inputs).

    Raises:
        `ValueError`: If the shapes do not fit.

    Example:

    ```python
    >>> import torch
    >>> from trl_sdpo import softmax_dpo_loss

    >>> softmax_dpo_loss(torch.tensor([0.0]), torch.tensor([[0.0, 0.0, 0.0]]), beta=1.0)  # ln 4
    tensor([1.3863])
    ```
    """
    _check_shapes(chosen_logratios, rejected_logratios, mask)
    logratios = torch.cat([chosen_logratios.unsqueeze(1), rejected_logratios], dim=1)  # (B, 1+K)
    # half precision would round away the differences that the loss is made of
    rewards = beta * logratios.to(torch.promote_types(logratios.dtype, torch.float32))
    if mask is not None:
        exists = F.pad(mask.bool(), (1, 0), value=True)
        rewards = rewards.masked_fill(~exists, -torch.inf)
    target = rewards.new_zeros(rewards.size(0), dtype=torch.long)
    return F.cross_entropy(rewards, target, reduction="none")


def nca_loss(
    chosen_logratios: torch.Tensor,
    rejected_logratios: torch.Tensor,
    beta: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    NCA loss of each record, from [Noise Contrastive Alignment of Language Models with Explicit
    Rewards](https://huggingface.co/papers/2402.05369), for a one-hot target on the chosen completion.

    The paper weighs M completions of a prompt with explicit rewards \\( R_i \\) by \\( w = \text{softmax}(R/\alpha) \\),
    and minimizes

    $$ -\sum_{i} w_i \log \sigma(r_i) - \frac{1}{M} \sum_{i} \log \sigma(-r_i) $$

    over the implicit rewards \\( r_i = \beta \log \frac{\pi(y_i|x)}{\pi_\text{ref}(y_i|x)} \\). Here \\( w \\) is 1 for the
    chosen completion and 0 for the others, the limit of a small α, and M = 1 + K:

    $$ -\log \sigma(r_0) - \frac{1}{1 + K} \sum_{i=0}^{K} \log \sigma(-r_i) $$

    It trains the likelihood of each completion, not the differences between them, so that the chosen one does not
    lose likelihood. It starts at 2 log 2 whatever K is, and is `nca_pair` of TRL for K = 1. (InfoNCA of the same paper
    is [`softmax_dpo_loss`] for a one-hot target.)

    Args:
        chosen_logratios (`torch.Tensor` of shape `(B,)`), rejected_logratios (`torch.Tensor` of shape `(B, K)`), beta
            (`float`), mask (`torch.Tensor` of shape `(B, K)`, *optional*):
            See [`softmax_dpo_loss`].

    Returns:
        `torch.Tensor` of shape `(B,)`: The loss of each record.
    """
    chosen, rejected, exists = _in_float32(chosen_logratios, rejected_logratios, mask)
    noise = -F.logsigmoid(-beta * chosen) - F.logsigmoid(-beta * rejected).masked_fill(~exists, 0.0).sum(dim=1)
    losses = -F.logsigmoid(beta * chosen) + noise / (1 + exists.sum(dim=1))
    return losses.masked_fill(~exists.any(dim=1), 0.0)


def dmpo_loss(
    chosen_logratios: torch.Tensor,
    rejected_logratios: torch.Tensor,
    beta: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    DMPO loss of each record, from [Finetuning Large Language Model for Personalized
    Ranking](https://huggingface.co/papers/2405.16127): DPO of the chosen completion against the mean of the rejected
    ones.

    $$ -\log \sigma\Big(r_0 - \frac{1}{K} \sum_{d=1}^{K} r_d\Big), \qquad
    r_i = \beta \log \frac{\pi(y_i|x)}{\pi_\text{ref}(y_i|x)} $$

    By Jensen's inequality it is at most the mean of DPO's loss over the K pairs (`loss_type="sigmoid"`), and it is the
    same for K = 1. All rejected completions have the same weight in its gradient, however hard they are.

    Args:
        chosen_logratios (`torch.Tensor` of shape `(B,)`), rejected_logratios (`torch.Tensor` of shape `(B, K)`), beta
            (`float`), mask (`torch.Tensor` of shape `(B, K)`, *optional*):
            See [`softmax_dpo_loss`].

    Returns:
        `torch.Tensor` of shape `(B,)`: The loss of each record.
    """
    chosen, rejected, exists = _in_float32(chosen_logratios, rejected_logratios, mask)
    mean_rejected = rejected.sum(dim=1) / exists.sum(dim=1).clamp(min=1)
    return -F.logsigmoid(beta * (chosen - mean_rejected)).masked_fill(~exists.any(dim=1), 0.0)


def mppo_loss(
    chosen_avg_logps: torch.Tensor,
    rejected_avg_logps: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    MPPO loss of each record, from [MPPO: Multi Pair-wise Preference Optimization for LLMs with Arbitrary Negative
    Samples](https://huggingface.co/papers/2412.15244), Eq. 10: the variant *Pair-MNM*, which the paper recommends.

    The reward of a completion is the geometric mean of the probabilities of its tokens (Eq. 4), without a reference
    model and without β:

    $$ -\log \sigma\Big(K p_0 - \sum_{d=1}^{K} p_d\Big), \qquad
    p_i = \pi(y_i|x)^{1/|y_i|} = \exp \frac{\log \pi(y_i|x)}{|y_i|} $$

    Since each \\( p_i \\) is between 0 and 1, the margin is between -K and K, and more rejected completions weigh more.

    Args:
        chosen_avg_logps (`torch.Tensor` of shape `(B,)`):
            Log-probability of the chosen completions under the policy, in nats per token.
        rejected_avg_logps (`torch.Tensor` of shape `(B, K)`):
            Log-probabilities of the rejected completions, in nats per token.
        mask (`torch.Tensor` of shape `(B, K)`, *optional*):
            See [`softmax_dpo_loss`].

    Returns:
        `torch.Tensor` of shape `(B,)`: The loss of each record.
    """
    chosen, rejected, exists = _in_float32(chosen_avg_logps, rejected_avg_logps, mask)
    margins = (chosen.exp().unsqueeze(1) - rejected.exp()).masked_fill(~exists, 0.0).sum(dim=1)
    return -F.logsigmoid(margins).masked_fill(~exists.any(dim=1), 0.0)


def check_finite(
    losses: torch.Tensor, record_ids: torch.Tensor | None, step: int, accelerator: "Accelerator | None" = None
) -> None:
    """
    Refuse a loss that is infinite or not a number, by which one step would ruin all weights.

    Args:
        losses (`torch.Tensor` of shape `(B,)`):
            Loss of each record.
        record_ids (`torch.Tensor` of shape `(B,)`, *optional*):
            Identities of the records, for the error.
        step (`int`):
            Optimizer step, for the error.
        accelerator ([`~accelerate.Accelerator`], *optional*):
            Of the run. With several processes all of them raise the error: one alone would leave the others waiting.

    Raises:
        `ValueError`: If a loss is not finite. The message names the records, their losses and remedies.
    """
    losses = losses.detach()
    finite = torch.isfinite(losses)
    several = accelerator is not None and accelerator.num_processes > 1
    all_finite = finite.all()
    if bool(accelerator.gather(all_finite.reshape(1)).all() if several else all_finite):
        return
    if bool(all_finite):
        raise ValueError(f"The loss of another process is not finite at step {step}. Its error names the records.")
    where = "" if record_ids is None else f" for the records with `record_id` {record_ids[~finite].tolist()}"
    raise ValueError(
        f"The loss is {losses[~finite].tolist()}{where} at step {step}. Lower the learning rate, clip the gradients "
        "(`max_grad_norm`), or train in bfloat16 or float32."
    )
