"""
Losses over one chosen and several rejected completions, as pure functions: tensors in, one loss per record out.

All of them take log-ratios, `log π(y|x) − log π_ref(y|x)`, of shape `(B,)` for the chosen and `(B, K)` for the
rejected completions. `mask` marks the rejected completions that exist, for records with fewer than K of them.
"""

import torch
import torch.nn.functional as F


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


def pairwise_sigmoid_loss(
    chosen_logratios: torch.Tensor,
    rejected_logratios: torch.Tensor,
    beta: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    Sigmoid loss of [DPO](https://huggingface.co/papers/2305.18290) (Eq. 7) over each pair of the chosen with one
    rejected completion, averaged over the pairs of a record: \\( -\frac{1}{K} \sum_d \log \sigma(r_0 - r_d) \\). It is
    the baseline "DPO over K pairs" of the [S-DPO paper](https://huggingface.co/papers/2406.09215), Table 2.

    Args:
        chosen_logratios (`torch.Tensor` of shape `(B,)`):
            Log-ratio of policy to reference of the chosen completions, in nats.
        rejected_logratios (`torch.Tensor` of shape `(B, K)`):
            Log-ratios of the rejected completions.
        beta (`float`):
            Weight of the log-ratios, the β of DPO.
        mask (`torch.Tensor` of shape `(B, K)`, *optional*):
            True where a rejected completion exists.

    Returns:
        `torch.Tensor` of shape `(B,)`: The loss of each record, in float32 (float64 for float64 inputs).

    Raises:
        `ValueError`: If the shapes do not fit.
    """
    _check_shapes(chosen_logratios, rejected_logratios, mask)
    dtype = torch.promote_types(chosen_logratios.dtype, torch.float32)
    deltas = chosen_logratios.to(dtype).unsqueeze(1) - rejected_logratios.to(dtype)  # (B, K)
    exists = torch.ones_like(deltas, dtype=torch.bool) if mask is None else mask.bool()
    # before the sigmoid: a masked entry may hold inf or NaN, which a gradient of 0 does not undo
    losses = -F.logsigmoid(beta * deltas.masked_fill(~exists, 0.0)).masked_fill(~exists, 0.0)
    return losses.sum(dim=1) / exists.sum(dim=1).clamp(min=1)


def check_finite(losses: torch.Tensor, record_ids: torch.Tensor | None, step: int) -> None:
    """
    Refuse a loss that is infinite or not a number, by which one step would ruin all weights.

    Args:
        losses (`torch.Tensor` of shape `(B,)`):
            Loss of each record.
        record_ids (`torch.Tensor` of shape `(B,)`, *optional*):
            Identities of the records, for the error.
        step (`int`):
            Optimizer step, for the error.

    Raises:
        `ValueError`: If a loss is not finite. The message names the records, their losses and remedies.
    """
    losses = losses.detach()
    finite = torch.isfinite(losses)
    if bool(finite.all()):
        return
    where = "" if record_ids is None else f" for the records with `record_id` {record_ids[~finite].tolist()}"
    raise ValueError(
        f"The loss is {losses[~finite].tolist()}{where} at step {step}. Lower the learning rate, clip the gradients "
        "(`max_grad_norm`), or train in bfloat16 or float32."
    )
