"""
Losses over completions with grades, as pure functions: ratings, or places in a ranked list, in the order of preference.

They take, beside what the losses of `multi_negative.py` take, a score of each completion: `(B,)` for the chosen and
`(B, K)` for the rejected ones. Scores where `mask` says that there is no completion may be anything, NaN too.
"""

import torch
import torch.nn.functional as F

from .multi_negative import _in_float32, softmax_dpo_loss


# How a margin is made of two scores
DIFFERENCE, LOG, RATIO = SCORE_MARGINS = ("difference", "log", "ratio")


def score_margins(
    chosen_scores: torch.Tensor, rejected_scores: torch.Tensor, kind: str = LOG, scale: float = 1.0
) -> torch.Tensor:
    r"""
    Margins \\( \gamma_d \\) by which the reward of the chosen completion has to exceed those of the rejected ones, from
    their scores \\( s_0 \geq s_d \\).

    Args:
        chosen_scores (`torch.Tensor` of shape `(B,)`):
            Scores of the chosen completions, such as ratings.
        rejected_scores (`torch.Tensor` of shape `(B, K)`):
            Scores of the rejected completions.
        kind (`str`, *optional*, defaults to `"log"`):
            `"log"` is \\( \lambda \log(1 + s_0 - s_d) \\) and `"ratio"` is \\( \lambda s_0 / s_d \\), for scores above 0:
            the two that the code of [RecPO](https://huggingface.co/papers/2506.02261) has. `"difference"` is
            \\( \lambda (s_0 - s_d) \\).
        scale (`float`, *optional*, defaults to `1.0`):
            λ, in units of the reward.

    Returns:
        `torch.Tensor` of shape `(B, K)`: The margins. Where a score does not exist they are whatever comes out.

    Raises:
        `ValueError`: If there is no such kind.
    """
    dtype = torch.promote_types(chosen_scores.dtype, torch.float32)
    chosen, rejected = chosen_scores.to(dtype).unsqueeze(1), rejected_scores.to(dtype)
    if kind == DIFFERENCE:
        return scale * (chosen - rejected)
    if kind == LOG:
        return scale * torch.log1p(chosen - rejected)
    if kind == RATIO:
        return scale * chosen / rejected
    raise ValueError(f"`score_margin` must be one of {SCORE_MARGINS}, got {kind!r}.")


def softmax_margin_loss(
    chosen_logratios: torch.Tensor,
    rejected_logratios: torch.Tensor,
    margins: torch.Tensor,
    beta: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    Softmax-DPO with a margin for each rejected completion, as in RecPO ([Towards Human-like Preference Profiling in
    Sequential Recommendation](https://huggingface.co/papers/2506.02261)): the more two completions differ in score, the
    more their rewards have to.

    $$ -\log \sigma\Big(-\log \sum_{d=1}^{K} \exp(r_d + \gamma_d - r_0)\Big), \qquad
    r_i = \beta \log \frac{\pi(y_i|x)}{\pi_\text{ref}(y_i|x)} $$

    With margins of 0 it is [`softmax_dpo_loss`], and it starts at \\( \log(1 + \sum_d \exp \gamma_d) \\). RecPO takes the
    time of an item into its margins as well; here a margin may be anything that does not depend on the model.

    Args:
        chosen_logratios (`torch.Tensor` of shape `(B,)`), rejected_logratios (`torch.Tensor` of shape `(B, K)`), mask
            (`torch.Tensor` of shape `(B, K)`, *optional*):
            See [`softmax_dpo_loss`].
        margins (`torch.Tensor` of shape `(B, K)`):
            Margins, in units of the reward, see [`score_margins`].
        beta (`float`):
            Weight of the log-ratios, the β of DPO. It does not multiply the margins.

    Returns:
        `torch.Tensor` of shape `(B,)`: The loss of each record.

    Example:

    ```python
    >>> import torch
    >>> from trl_sdpo import softmax_margin_loss

    >>> softmax_margin_loss(torch.tensor([0.0]), torch.tensor([[0.0]]), torch.tensor([[2.0]]), beta=1.0)  # ln(1 + e^2)
    tensor([2.1269])
    ```
    """
    chosen, rejected, exists = _in_float32(chosen_logratios, rejected_logratios, mask)
    _check_grades(margins, rejected, "margins")
    margins = margins.to(rejected.dtype).masked_fill(~exists, 0.0)
    return softmax_dpo_loss(beta * chosen, beta * rejected + margins, 1.0, exists)


def infonca_loss(
    chosen_logratios: torch.Tensor,
    rejected_logratios: torch.Tensor,
    chosen_scores: torch.Tensor,
    rejected_scores: torch.Tensor,
    beta: float,
    temperature: float = 1.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    InfoNCA loss of each record, from [Noise Contrastive Alignment of Language Models with Explicit
    Rewards](https://huggingface.co/papers/2402.05369): a cross-entropy whose target is a softmax of the scores
    \\( s_i \\), so that a completion of the second best score is not pushed down as the worst is.

    $$ -\sum_{i=0}^{K} \frac{\exp(s_i / \alpha)}{\sum_j \exp(s_j / \alpha)} \log \frac{\exp r_i}{\sum_j \exp r_j},
    \qquad r_i = \beta \log \frac{\pi(y_i|x)}{\pi_\text{ref}(y_i|x)} $$

    A small α makes the target one-hot, and the loss [`softmax_dpo_loss`]. It starts at `log(1 + K)`, and is never below
    the entropy of its target.

    Args:
        chosen_logratios (`torch.Tensor` of shape `(B,)`), rejected_logratios (`torch.Tensor` of shape `(B, K)`), beta
            (`float`), mask (`torch.Tensor` of shape `(B, K)`, *optional*):
            See [`softmax_dpo_loss`].
        chosen_scores (`torch.Tensor` of shape `(B,)`), rejected_scores (`torch.Tensor` of shape `(B, K)`):
            Scores of the completions, the explicit rewards of the paper.
        temperature (`float`, *optional*, defaults to `1.0`):
            α, in units of the scores.

    Returns:
        `torch.Tensor` of shape `(B,)`: The loss of each record.
    """
    rewards, scores, exists = _completions(
        chosen_logratios, rejected_logratios, chosen_scores, rejected_scores, beta, mask
    )
    target = (scores / temperature).masked_fill(~exists, -torch.inf).softmax(dim=1)
    log_probs = rewards.masked_fill(~exists, -torch.inf).log_softmax(dim=1)
    return -(target * log_probs.masked_fill(~exists, 0.0)).sum(dim=1)


def plackett_luce_loss(
    chosen_logratios: torch.Tensor,
    rejected_logratios: torch.Tensor,
    chosen_scores: torch.Tensor,
    rejected_scores: torch.Tensor,
    beta: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    Plackett-Luce loss of each record: the negative log-likelihood of a whole ranking, from Eq. 8 of [On Softmax Direct
    Preference Optimization for Recommendation](https://huggingface.co/papers/2406.09215), of which S-DPO keeps the first
    place alone.

    With completions in the order \\( \tau \\) of their scores, the best first:

    $$ -\sum_{j} \log \frac{\exp r_{\tau(j)}}{\sum_{l \geq j} \exp r_{\tau(l)}}, \qquad
    r_i = \beta \log \frac{\pi(y_i|x)}{\pi_\text{ref}(y_i|x)} $$

    Completions of the same score are not compared: each has itself and all of lower scores in its denominator, and those
    of the lowest score have no term. So a chosen completion above rejected ones that all have the same score gives
    [`softmax_dpo_loss`], and a ranking without ties of n completions starts at `log(n!)`.

    Args:
        chosen_logratios (`torch.Tensor` of shape `(B,)`), rejected_logratios (`torch.Tensor` of shape `(B, K)`), beta
            (`float`), mask (`torch.Tensor` of shape `(B, K)`, *optional*):
            See [`softmax_dpo_loss`].
        chosen_scores (`torch.Tensor` of shape `(B,)`), rejected_scores (`torch.Tensor` of shape `(B, K)`):
            Scores of the completions. Their order alone counts.

    Returns:
        `torch.Tensor` of shape `(B,)`: The loss of each record.
    """
    rewards, scores, exists = _completions(
        chosen_logratios, rejected_logratios, chosen_scores, rejected_scores, beta, mask
    )
    below = (scores.unsqueeze(1) < scores.unsqueeze(2)) & exists.unsqueeze(1) & exists.unsqueeze(2)  # (B, i, j)
    compared = below | torch.eye(scores.size(1), dtype=torch.bool, device=scores.device)
    others = rewards.unsqueeze(1).expand(below.shape).masked_fill(~compared, -torch.inf)
    losses = others.logsumexp(dim=2) - rewards
    return losses.masked_fill(~below.any(dim=2), 0.0).sum(dim=1)


def _check_grades(grades: torch.Tensor, values: torch.Tensor, name: str) -> None:
    if grades.shape != values.shape:
        raise ValueError(f"`{name}` must have the shape {tuple(values.shape)}, got {tuple(grades.shape)}.")


def _completions(
    chosen_logratios: torch.Tensor,
    rejected_logratios: torch.Tensor,
    chosen_scores: torch.Tensor,
    rejected_scores: torch.Tensor,
    beta: float,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards, scores and existence of all completions, of shape `(B, 1 + K)`, 0 for what does not exist."""
    chosen, rejected, exists = _in_float32(chosen_logratios, rejected_logratios, mask)
    _check_grades(chosen_scores, chosen, "chosen_scores")
    _check_grades(rejected_scores, rejected, "rejected_scores")
    rewards = beta * torch.cat([chosen.unsqueeze(1), rejected], dim=1)
    exists = F.pad(exists, (1, 0), value=True)
    scores = torch.cat([chosen_scores.unsqueeze(1), rejected_scores], dim=1).to(rewards.dtype)
    return rewards, scores.masked_fill(~exists, 0.0), exists
