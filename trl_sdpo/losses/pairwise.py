# Copyright 2020-2026 The HuggingFace Team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
#
# This file re-states the losses in `DPOTrainer._compute_loss` of TRL 1.16 as functions of pairs of any shape.

"""
TRL's losses of a (chosen, rejected) pair, as pure functions: tensors of one shape in, a loss of that shape out. A
record with K rejected completions is K pairs, `(B, K)`, over which [`mean_over_pairs`] averages.

Throughout, the log-ratio of a completion is `log π(y|x) − log π_ref(y|x)` in nats, and its score is the log-ratio,
or what another divergence makes of it ([`f_divergence_scores`]). A margin is the score of the chosen minus that of the
rejected completion.
"""

import math

import torch
import torch.nn.functional as F


def mean_over_pairs(
    losses: torch.Tensor,  # (B, K)
    mask: torch.Tensor,  # (B, K)
) -> torch.Tensor:
    """Mean loss of the pairs of a record that exist, `(B,)`; 0 for a record without any."""
    return losses.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def length_desensitized_log_probs(
    token_log_probs: torch.Tensor,
    num_tokens: torch.Tensor,
    ld_alpha: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Log-probabilities in which the tokens beyond the shorter completion of a pair count α times, from [Length
    Desensitization in Direct Preference Optimization](https://huggingface.co/papers/2409.06411) (LD-DPO).

    With \\( n \\) the length of the shorter completion of the pair:

    $$ \log \hat\pi(y|x) = \sum_{t \le n} \log \pi(y_t|x, y_{<t}) + \alpha \sum_{t > n} \log \pi(y_t|x, y_{<t}) $$

    Args:
        token_log_probs (`torch.Tensor` of shape `(B, 1 + K, T)`):
            Log-probabilities of the tokens of each completion, column 0 the chosen one, padded with 0 on the right.
        num_tokens (`torch.Tensor` of shape `(B, 1 + K)`):
            Number of tokens of each completion.
        ld_alpha (`float`):
            Weight of the tokens beyond the shorter completion, α: 1 gives plain log-probabilities.

    Returns:
        `tuple` of two `torch.Tensor` of shape `(B, K)`: The chosen completion's, one for each pair, and the rejected
        completions'.
    """
    shared = torch.minimum(num_tokens[:, :1], num_tokens[:, 1:]).unsqueeze(2)  # (B, K, 1)
    positions = torch.arange(token_log_probs.size(2), device=token_log_probs.device)
    weights = torch.where(positions < shared, 1.0, ld_alpha)
    return (token_log_probs[:, :1] * weights).sum(dim=2), (token_log_probs[:, 1:] * weights).sum(dim=2)


def wpo_weights(
    log_probs: torch.Tensor,
    log_sum_sq_probs: torch.Tensor,
    num_tokens: torch.Tensor,
) -> torch.Tensor:
    r"""
    Weight of a completion in [WPO](https://huggingface.co/papers/2406.11827) (Eq. 2): the geometric mean over its
    tokens of their probability, relative to what the policy expects of its own samples. The weight of a pair is the
    product of its two.

    $$ w(x, y) = \exp\Big(\frac{1}{|y|} \sum_t \log \frac{\pi(y_t|x, y_{<t})}{\sum_v \pi(v|x, y_{<t})^2}\Big) $$

    Args:
        log_probs (`torch.Tensor`):
            Log-probabilities of completions under the policy, summed over their tokens.
        log_sum_sq_probs (`torch.Tensor` of the same shape):
            `log(sum_v p_v²)` of the next-token distributions, summed over the same tokens.
        num_tokens (`torch.Tensor` of the same shape):
            Number of tokens of each completion.

    Returns:
        `torch.Tensor` of the same shape: The weights, without gradient.
    """
    return torch.exp((log_probs.detach() - log_sum_sq_probs) / num_tokens.clamp(min=1))


def f_divergence_scores(
    logratios: torch.Tensor, f_divergence_type: str, f_alpha_divergence_coef: float = 0.5
) -> torch.Tensor:
    r"""
    Scores \\( f'(t) \\) at \\( t = \pi/\pi_\text{ref} \\), from [Beyond Reverse
    KL](https://huggingface.co/papers/2309.16240) (f-DPO). Their difference over a pair takes the place of the difference
    of log-ratios, since a divergence adds the same constant to all completions of a prompt.

    Args:
        logratios (`torch.Tensor`):
            Log-ratios of policy to reference.
        f_divergence_type (`str`):
            `"reverse_kl"` (f' = log t, up to a constant), `"forward_kl"` (1 − 1/t), `"js_divergence"`
            (log(2t / (1 + t))) or `"alpha_divergence"` ((t^(α−1) − 1) / (α − 1)).
        f_alpha_divergence_coef (`float`, *optional*, defaults to `0.5`):
            α of the α-divergence; 1 is the reverse KL divergence.

    Returns:
        `torch.Tensor` of the same shape: The scores.

    Raises:
        `ValueError`: If the divergence is unknown.
    """
    if f_divergence_type == "reverse_kl":
        return logratios
    if f_divergence_type == "forward_kl":
        return 1 - torch.exp(-logratios)
    if f_divergence_type == "js_divergence":
        return math.log(2) + F.logsigmoid(logratios)
    if f_divergence_type == "alpha_divergence":
        exponent = f_alpha_divergence_coef - 1.0
        if abs(exponent) < 1e-6:  # limit case f'(t) -> log(t)
            return logratios
        # Clamp max so exp(.) stays representable
        return (torch.exp(torch.clamp(exponent * logratios, max=80.0)) - 1.0) / exponent
    raise ValueError(f"Unknown f_divergence_type: {f_divergence_type}")


def sigmoid_loss(margins: torch.Tensor, beta: float) -> torch.Tensor:
    r"""
    [DPO](https://huggingface.co/papers/2305.18290), Eq. 7: \\( -\log \sigma(\beta \Delta) \\), with the margin Δ. Of margins per
    token, [`ipo_loss`], it is `sigmoid_norm`, the length-normalized DPO of [Tülu
    3](https://huggingface.co/papers/2411.15124).
    """
    return -F.logsigmoid(beta * margins)


def hinge_loss(margins: torch.Tensor, beta: float) -> torch.Tensor:
    r"""Hinge loss of [SLiC](https://huggingface.co/papers/2305.10425) on DPO's margin: \\( \max(0, 1 - \beta \Delta) \\)."""
    return torch.relu(1 - beta * margins)


def ipo_loss(margins_per_token: torch.Tensor, beta: float) -> torch.Tensor:
    r"""
    [IPO](https://huggingface.co/papers/2310.12036), Eq. 17: \\( (\bar\Delta - \frac{1}{2\beta})^2 \\), β being τ there. As in
    TRL, the margin is of scores per token: those of each completion are divided by its number of tokens.
    """
    return (margins_per_token - 1 / (2 * beta)) ** 2


def exo_pair_loss(margins: torch.Tensor, beta: float, label_smoothing: float) -> torch.Tensor:
    r"""
    [EXO](https://huggingface.co/papers/2402.00856), Eq. 16, of two completions: the reverse KL divergence of
    \\( (\sigma(\beta\Delta), \sigma(-\beta\Delta)) \\) to the smoothed label \\( (1 - \varepsilon, \varepsilon) \\), ε in (0, 1).
    """
    logits = beta * margins
    chosen = torch.sigmoid(logits) * (F.logsigmoid(logits) - math.log1p(-label_smoothing))
    rejected = torch.sigmoid(-logits) * (F.logsigmoid(-logits) - math.log(label_smoothing))
    return chosen + rejected


def robust_loss(margins: torch.Tensor, beta: float, label_smoothing: float) -> torch.Tensor:
    r"""
    [Robust DPO](https://huggingface.co/papers/2403.00409), an unbiased DPO loss where a share ε in [0, 0.5) of the labels
    is flipped: \\( \frac{-(1-\varepsilon) \log \sigma(\beta\Delta) + \varepsilon \log \sigma(-\beta\Delta)}{1 - 2\varepsilon} \\).
    """
    clean = -(1 - label_smoothing) * F.logsigmoid(beta * margins)
    flipped = -label_smoothing * F.logsigmoid(-beta * margins)
    return (clean - flipped) / (1 - 2 * label_smoothing)


def discopop_loss(margins: torch.Tensor, beta: float, tau: float) -> torch.Tensor:
    r"""
    [DiscoPOP](https://huggingface.co/papers/2406.08414), Eq. 5: with \\( s = \sigma(\beta\Delta / \tau) \\),
    \\( -(1 - s) \log \sigma(\beta\Delta) + s \exp(-\beta\Delta) \\).
    """
    logits = beta * margins
    modulation = torch.sigmoid(logits / tau)
    return -F.logsigmoid(logits) * (1 - modulation) + torch.exp(-logits) * modulation


def nca_pair_loss(chosen_logratios: torch.Tensor, rejected_logratios: torch.Tensor, beta: float) -> torch.Tensor:
    r"""
    [NCA](https://huggingface.co/papers/2402.05369) of two completions:
    \\( -\log \sigma(r_c) - \frac12 \log \sigma(-r_c) - \frac12 \log \sigma(-r_r) \\), with r = β · log-ratio.
    """
    chosen, rejected = beta * chosen_logratios, beta * rejected_logratios
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_pair_loss(chosen_logratios: torch.Tensor, rejected_logratios: torch.Tensor, beta: float) -> torch.Tensor:
    r"""
    [BCO](https://huggingface.co/papers/2404.04656) without its reward shift, as in TRL:
    \\( -\log \sigma(r_c) - \log \sigma(-r_r) \\), with r = β · log-ratio.
    """
    return -F.logsigmoid(beta * chosen_logratios) - F.logsigmoid(-beta * rejected_logratios)


def sppo_hard_loss(chosen_logratios: torch.Tensor, rejected_logratios: torch.Tensor, beta: float) -> torch.Tensor:
    r"""
    [SPPO](https://huggingface.co/papers/2405.00675), Eq. 4.7, with a probability of winning of 1 for the chosen and 0 for
    the rejected completion: \\( (\rho_c - \frac{1}{2\beta})^2 + (\rho_r + \frac{1}{2\beta})^2 \\), with ρ the log-ratio.
    """
    return (chosen_logratios - 0.5 / beta) ** 2 + (rejected_logratios + 0.5 / beta) ** 2


def apo_zero_loss(chosen_logratios: torch.Tensor, rejected_logratios: torch.Tensor, beta: float) -> torch.Tensor:
    r"""
    [APO](https://huggingface.co/papers/2408.06266)-zero, Eq. 7, for chosen completions that are better than the model's:
    \\( 1 - \sigma(r_c) + \sigma(r_r) \\), with r = β · log-ratio.
    """
    return 1 - torch.sigmoid(beta * chosen_logratios) + torch.sigmoid(beta * rejected_logratios)


def apo_down_loss(chosen_logratios: torch.Tensor, rejected_logratios: torch.Tensor, beta: float) -> torch.Tensor:
    r"""
    [APO](https://huggingface.co/papers/2408.06266)-down, Eq. 8, for chosen completions that are worse than the model's:
    \\( \sigma(r_c) + 1 - \sigma(r_c - r_r) \\), with r = β · log-ratio.
    """
    return torch.sigmoid(beta * chosen_logratios) + 1 - torch.sigmoid(beta * (chosen_logratios - rejected_logratios))
