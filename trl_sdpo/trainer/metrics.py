"""Logged metrics of multi-preference batches, as sums and counts per record."""

import torch
from accelerate import Accelerator

from ..prefix_sharing.rows import CompletionScores, record_of_row


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


def negative_weights(rewards: torch.Tensor, exists: torch.Tensor) -> dict[str, torch.Tensor]:
    r"""
    How many of the rejected completions of a record the gradient of Softmax-DPO is made of. It weighs them by the softmax
    of their rewards, \\( w_d = \exp r_d / \sum_{d'} \exp r_{d'} \\) (Eq. 12 of https://huggingface.co/papers/2406.09215).

    Args:
        rewards (`torch.Tensor` of shape `(B, C)`):
            Implicit rewards, column 0 the chosen one.
        exists (`torch.Tensor` of shape `(B, C)`):
            Which completions exist, at least one rejected of each record.

    Returns:
        `dict[str, torch.Tensor]` with values of shape `(B,)`: `negatives/effective_number`, the exponential of the entropy
        of the weights, from 1 (one of them has all the weight) to K (all have the same), and `negatives/hardest_weight`,
        the largest weight.
    """
    weights = rewards[:, 1:].masked_fill(~exists[:, 1:], -torch.inf).softmax(dim=1)
    return {
        "negatives/effective_number": torch.special.entr(weights).sum(dim=1).exp(),
        "negatives/hardest_weight": weights.amax(dim=1),
    }


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
        records; `rewards/accuracies` says how often the chosen beats *all* of them (by chance 1 / (1 + K)); for
        `negatives/*` see [`negative_weights`].
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
        **negative_weights(rewards, exists),
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


def logged_columns(
    batch: dict[str, torch.Tensor],
    scores: CompletionScores,
    rewards: torch.Tensor,
    exists: torch.Tensor,
    losses: torch.Tensor,
    evaluation: bool,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """
    What is logged of a batch: [`preference_metrics`], the load-balancing loss of a mixture of experts, in training the
    number of tokens, and in evaluation the loss, in place of the mean of the `Trainer`, in which the records that fill
    up the last batch count again.

    Args:
        batch (`dict[str, torch.Tensor]`):
            Batch of the collator.
        scores, rewards, exists:
            See [`preference_metrics`].
        losses (`torch.Tensor` of shape `(B,)`):
            Loss of each record.
        evaluation (`bool`):
            Whether the batch is one of an evaluation.

    Returns:
        `dict[str, tuple[torch.Tensor, torch.Tensor]]`: As [`preference_metrics`].
    """
    columns = preference_metrics(scores, rewards, exists, ranking=evaluation)
    ones = torch.ones_like(losses)
    if scores.aux_loss is not None:
        columns["aux_loss"] = (scores.aux_loss.detach().expand(losses.shape), ones)
    if evaluation:
        columns["loss"] = (losses, ones)
    else:
        tokens_of_row = batch["attention_mask"].sum(dim=1)
        num_tokens = tokens_of_row.new_zeros(losses.shape).index_add(0, record_of_row(batch), tokens_of_row)
        columns["num_tokens"] = (num_tokens, ones)
    return columns


class MetricSums:
    """
    Totals of the metrics of many batches, exact over unequal batches and processes. They stay on the device until they
    are read: reading one waits for all that the device has to do.
    """

    def __init__(self) -> None:
        self._totals: dict[tuple[str, ...], torch.Tensor] = {}  # (names, 2): what is summed, and what is counted
        self._first_record_ids: list[int] | None = None

    def add(
        self,
        columns: dict[str, tuple[torch.Tensor, torch.Tensor]],
        accelerator: Accelerator,
        evaluation: bool,
        record_ids: torch.Tensor | None = None,
    ) -> None:
        """
        Add the records of a batch, those of all processes at once.

        Args:
            columns (`dict[str, tuple[torch.Tensor, torch.Tensor]]`):
                See [`logged_columns`].
            accelerator ([`~accelerate.Accelerator`]):
                Gathers the records of the processes.
            evaluation (`bool`):
                Whether the last batch is filled up with records that must not count again. In training,
                `gather_for_metrics` would cut every micro-batch of the last step to the remainder of the epoch, since
                the `Trainer` fetches all of them before it computes the first.
            record_ids (`torch.Tensor` of shape `(B,)`, *optional*):
                Identities of the records, by which those that fill up a stream are told.
        """
        names = tuple(columns)
        table = torch.stack([column.float() for pair in columns.values() for column in pair], dim=1)
        table = self._gather_evaluated(table, accelerator, record_ids) if evaluation else accelerator.gather(table)
        # Apple's devices have no float64
        table = table.float() if table.device.type == "mps" else table.double()
        totals = table.sum(dim=0).view(len(names), 2)
        self._totals[names] = self._totals[names] + totals if names in self._totals else totals

    def _gather_evaluated(
        self, table: torch.Tensor, accelerator: Accelerator, record_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """As `gather_for_metrics`, which keeps the records that fill up the last batch of a stream."""
        state = accelerator.gradient_state
        if accelerator.num_processes == 1 or state.remainder != -1 or record_ids is None:
            return accelerator.gather_for_metrics(table)
        table, gathered = accelerator.gather(table), accelerator.gather(record_ids).tolist()
        if self._first_record_ids is None:
            self._first_record_ids = gathered
        if not state.end_of_dataloader:
            return table
        return table[: num_before_padding(gathered, self._first_record_ids)]

    def read(self) -> dict[str, tuple[float, float]]:
        """For each metric, what was summed and what was counted."""
        merged: dict[str, tuple[float, float]] = {}
        for names, totals in self._totals.items():
            for name, (total, count) in zip(names, totals.tolist(), strict=True):
                before = merged.get(name, (0.0, 0.0))
                merged[name] = (before[0] + total, before[1] + count)
        return merged

    def clear(self) -> None:
        """Begin anew."""
        self._totals.clear()
        self._first_record_ids = None
