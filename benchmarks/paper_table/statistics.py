"""What the table says of scores: metrics over seeds, differences, and sums of two systems."""

import numpy as np

from trl_sdpo.recsys import (
    difference_interval,
    hit_rate,
    mean_reciprocal_rank,
    ndcg,
    ranks,
    sign_flip_test,
    wilson_interval,
)


SEED = 0


def paired_difference(first: np.ndarray, second: np.ndarray, users: np.ndarray) -> dict:
    """
    How much higher the first system is than the second on the same records.

    Args:
        first (`np.ndarray`), second (`np.ndarray`):
            A value per record, shape `(n,)`, such as the share of seeds that put the target first.
        users (`np.ndarray`):
            The user of each record, shape `(n,)`.

    Returns:
        `dict`: `mean`; `ci`, its 95% interval over users; and `p`, two-sided, of a permutation test that swaps the
        systems of a user (10,000 draws are too few to say less than 1e-4).
    """
    difference = np.asarray(first, float) - second
    return {
        "mean": float(difference.mean()),
        "ci": list(difference_interval(difference, users)),
        "p": sign_flip_test(first, second, users, seed=SEED),
    }


def summary(scores: list[list[np.ndarray]], users: np.ndarray | None = None) -> dict:
    """
    Metrics of a system over its seeds.

    Args:
        scores (`list[list[np.ndarray]]`):
            For each seed the scores of the records, the target first.
        users (`np.ndarray`, *optional*):
            The user of each record, shape `(n,)`. If `None`, intervals are over records.

    Returns:
        `dict`: `hr@1` (the mean over seeds), `hr@1_seeds`, `hr@1_ci` (over users, of the mean over seeds), `ndcg@10`,
        `mrr` and `n`.
    """
    positions = [ranks(one) for one in scores]
    hits = np.mean([one == 1 for one in positions], axis=0)
    return {
        "hr@1": float(hits.mean()),
        "hr@1_seeds": [hit_rate(one) for one in positions],
        "hr@1_ci": list(wilson_interval(hits, users)),
        "ndcg@10": float(np.mean([ndcg(one) for one in positions])),
        "mrr": float(np.mean([mean_reciprocal_rank(one) for one in positions])),
        "n": len(hits),
    }


def hits(scores: list[list[np.ndarray]]) -> np.ndarray:
    """Of each record the share of seeds that put its target first."""
    return np.mean([ranks(one) == 1 for one in scores], axis=0)


def minus(scores: list[np.ndarray], reference: list[np.ndarray]) -> list[np.ndarray]:
    """The implicit reward over β: log-probabilities minus those of the reference."""
    return [one - other for one, other in zip(scores, reference, strict=True)]


def z_scored(scores: list[np.ndarray]) -> list[np.ndarray]:
    """Scores of each record with mean 0 and standard deviation 1 over its candidates."""
    return [(row - row.mean()) / (row.std() or 1.0) for row in map(np.asarray, scores)]


def weighted_sum(first: list[np.ndarray], second: list[np.ndarray], weight: float) -> list[np.ndarray]:
    """`weight` times the first plus `1 - weight` times the second, both z-scored within each record."""
    pairs = zip(z_scored(first), z_scored(second), strict=True)
    return [weight * one + (1 - weight) * other for one, other in pairs]


def best_weight(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """The weight, of 0, 0.1, …, 1, with the highest mrr, for validation records."""
    weights = [step / 10 for step in range(11)]
    return max(weights, key=lambda weight: mean_reciprocal_rank(ranks(weighted_sum(first, second, weight))))
