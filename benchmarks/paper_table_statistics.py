"""Intervals and tests of the table, over users: records of one user are not independent. Imported as a sibling module."""

import numpy as np

from trl_sdpo.recsys import bootstrap_interval, hit_rate, mean_reciprocal_rank, ndcg, ranks


SEED, RESAMPLES = 0, 4000


def user_sums(values: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each user."""
    _, owner = np.unique(users, return_inverse=True)
    return np.bincount(owner, weights=values), np.bincount(owner)


def paired_difference(first: np.ndarray, second: np.ndarray, users: np.ndarray) -> dict:
    """
    How much higher the first system is than the second on the same records.

    Args:
        first (`np.ndarray`), second (`np.ndarray`):
            A value per record, shape `(n,)`, such as the share of seeds that put the target first.
        users (`np.ndarray`):
            The user of each record, shape `(n,)`.

    Returns:
        `dict`: `mean`; `ci`, its 95% percentile bootstrap interval, drawing users with all of their records; and `p`,
        two-sided, of a permutation test that swaps the systems of a user (10,000 draws are too few to say less than
        1e-4).
    """
    sums, counts = user_sums(np.asarray(first, float) - second, users)
    generator = np.random.default_rng(SEED)
    drawn = generator.integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    signs = generator.choice([-1.0, 1.0], size=(10_000, len(sums)))
    # the order of additions differs, so equal sums may differ in their last digits
    as_far = np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9
    return {
        "mean": float(sums.sum() / counts.sum()),
        "ci": [float(end) for end in np.quantile(means, [0.025, 0.975])],
        "p": float((1 + as_far.sum()) / (1 + len(signs))),
    }


def summary(scores: list[list[np.ndarray]]) -> dict:
    """
    Metrics of a system over its seeds.

    Args:
        scores (`list[list[np.ndarray]]`):
            For each seed the scores of the records, the target first.

    Returns:
        `dict`: `hr@1` (the mean over seeds), `hr@1_seeds`, `hr@1_ci` (bootstrap over records of the mean over seeds),
        `ndcg@10`, `mrr` and `n`.
    """
    positions = [ranks(one) for one in scores]
    hits = np.mean([one == 1 for one in positions], axis=0)
    return {
        "hr@1": float(hits.mean()),
        "hr@1_seeds": [hit_rate(one) for one in positions],
        "hr@1_ci": list(bootstrap_interval(hits, seed=SEED)),
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
