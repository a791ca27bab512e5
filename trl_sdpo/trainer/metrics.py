"""Logged metrics of multi-preference batches, as sums and counts per record."""

import torch

from ..prefix_sharing.rows import CompletionScores


RANKING_CUTOFFS = (1, 5, 10)


def rank_of_chosen(scores: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
    """
    Rank of the chosen completion among those of its record, 1 the best. Ties count against it.

    Args:
        scores (`torch.Tensor` of shape `(B, C)`):
            Score of each completion, column 0 the chosen one.
        exists (`torch.Tensor` of shape `(B, C)`):
            Which completions exist.

    Returns:
        `torch.Tensor` of shape `(B,)`: The ranks.
    """
    return 1 + ((scores[:, 1:] >= scores[:, :1]) & exists[:, 1:]).sum(dim=1)


def ranking_columns(ranks: torch.Tensor, prefix: str = "") -> dict[str, torch.Tensor]:
    """Hit rate, NDCG and reciprocal rank of each record, `(B,)`, from its rank: a single item is relevant."""
    columns = {f"{prefix}hr@{k}": (ranks <= k).float() for k in RANKING_CUTOFFS}
    gain = 1 / torch.log2(1 + ranks.float())
    columns |= {f"{prefix}ndcg@{k}": gain * (ranks <= k) for k in RANKING_CUTOFFS if k > 1}
    columns[f"{prefix}mrr"] = 1 / ranks.float()
    return columns


def num_before_padding(record_ids: list[int], first_record_ids: list[int]) -> int:
    """
    Number of records in the last batch of a stream before those that accelerate fills it up with.

    A stream has no length that would tell. It is filled with the records of the first batch, from its start.

    Args:
        record_ids (`list[int]`):
            Records of the last batch, of all processes.
        first_record_ids (`list[int]`):
            Records of the first batch, which may be the last.

    Returns:
        `int`: The smallest number after which only records of the first batch follow, in their order.
    """
    for number in range(1, len(record_ids)):
        padding = record_ids[number:]
        if padding == (first_record_ids * len(padding))[: len(padding)]:
            return number
    return len(record_ids)


def preference_metrics(
    scores: CompletionScores, rewards: torch.Tensor, exists: torch.Tensor, ranking: bool
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """
    Metrics of a batch under the names that [`~trl.DPOTrainer`] logs, for several rejected completions.

    Args:
        scores ([`CompletionScores`]):
            Log-probabilities of the policy.
        rewards (`torch.Tensor` of shape `(B, C)`):
            Implicit rewards, β times the log-ratios, column 0 the chosen.
        exists (`torch.Tensor` of shape `(B, C)`):
            Which completions exist.
        ranking (`bool`):
            Whether to add hr@k, ndcg@k and mrr, by the policy's likelihood and, with the prefix `reward_`, by reward.

    Returns:
        `dict[str, tuple[torch.Tensor, torch.Tensor]]`: For each metric, what it sums and what it counts, per record;
        the metric is the ratio of the totals. `rewards/rejected` is a mean over the negatives of a record, then over
        records; `rewards/accuracies` says how often the chosen beats *all* of them (by chance 1 / (1 + K)).
    """
    log_probs = scores.log_probs.detach()
    num_rejected = exists[:, 1:].sum(dim=1).clamp(min=1)

    def rejected_mean(values: torch.Tensor) -> torch.Tensor:
        return values[:, 1:].masked_fill(~exists[:, 1:], 0).sum(dim=1) / num_rejected

    per_record = {
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rejected_mean(rewards),
        "rewards/accuracies": (rank_of_chosen(rewards, exists) == 1).float(),
        "rewards/margins": rewards[:, 0] - rejected_mean(rewards),
        "logps/chosen": log_probs[:, 0],
        "logps/rejected": rejected_mean(log_probs),
    }
    if ranking:
        per_record |= ranking_columns(rank_of_chosen(log_probs, exists))
        per_record |= ranking_columns(rank_of_chosen(rewards, exists), prefix="reward_")
    columns = {name: (values, torch.ones_like(values)) for name, values in per_record.items()}

    num_tokens = scores.num_tokens
    chosen_tokens, rejected_tokens = num_tokens[:, 0], num_tokens[:, 1:].sum(dim=1)
    if "entropy" in scores.token_sums:
        columns["entropy"] = (scores.token_sums["entropy"].sum(dim=1), num_tokens.sum(dim=1))
    if "mean_logits" in scores.token_sums:
        mean_logits = scores.token_sums["mean_logits"]
        columns["logits/chosen"] = (mean_logits[:, 0], chosen_tokens)
        columns["logits/rejected"] = (mean_logits[:, 1:].sum(dim=1), rejected_tokens)
    if "is_top1" in scores.token_sums:
        columns["mean_token_accuracy"] = (scores.token_sums["is_top1"][:, 0], chosen_tokens)
    return columns
