"""Ranking metrics over the candidates of a record, with their uncertainty and what chance gives."""

from collections.abc import Sequence

import numpy as np


_RESAMPLED_PER_CHUNK = 1 << 21


def ranks(scores: np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
    """
    The rank of the target among the candidates of every record, from 1.

    $\\text{rank} = 1 + |\\{j \\ge 1 : s_j \\ge s_0\\}|$: ties count against the target.

    Args:
        scores (`numpy.ndarray` or `Sequence[Sequence[float]]`):
            A row per record: the score of the target, then those of the others. Rows may differ in length.

    Returns:
        `numpy.ndarray`: The ranks, of shape `(n,)`.

    Raises:
        ValueError: there is no record, a record has no other candidate than the target, or a score is NaN.

    Example:
        ```python
        >>> ranks([[0.5, 0.1, 0.7], [0.5, 0.5]]).tolist()
        [2, 2]

        ```
    """
    lengths = np.array([np.ndim(row) and len(row) for row in scores])
    if not len(lengths):
        raise ValueError("scores: no records. Pass at least one.")
    if lengths.min() < 2:
        record = int(lengths.argmin())
        raise ValueError(
            f"scores: record {record} has {lengths[record]} scores. Pass the target's and at least one other."
        )
    flat = np.concatenate([np.asarray(row, dtype=np.float64) for row in scores])
    owner = np.repeat(np.arange(len(lengths)), lengths)
    missing = np.flatnonzero(np.isnan(flat))
    begins = np.cumsum(lengths) - lengths
    if len(missing):
        record = owner[missing[0]]
        raise ValueError(
            f"scores: record {record}, candidate {missing[0] - begins[record]} (0 is the target): NaN "
            f"({len(set(owner[missing].tolist()))} such records). Check the model for overflow."
        )
    # The target is never below itself, so it is counted once: that is the 1 of the formula.
    return np.bincount(owner, weights=flat >= flat[begins][owner]).astype(np.int64)


def hit_rate(ranks: np.ndarray, k: int = 1) -> float:
    """
    HR@k: the share of records with the target among the first k.

    $\\text{HR@}k = \\frac{1}{n} \\sum_i [\\text{rank}_i \\le k]$

    Args:
        ranks (`numpy.ndarray`):
            What [`ranks`] returns.
        k (`int`, *optional*, defaults to `1`):
            The cut-off.

    Returns:
        `float`: The hit rate.

    Example:
        ```python
        >>> hit_rate([1, 2, 4], k=2)
        0.6666666666666666

        ```
    """
    return float(np.mean(_hits(ranks, k)))


def ndcg(ranks: np.ndarray, k: int = 10) -> float:
    """
    NDCG@k with one relevant item per record.

    $\\text{NDCG@}k = \\frac{1}{n} \\sum_i [\\text{rank}_i \\le k] / \\log_2(1 + \\text{rank}_i)$

    Args:
        ranks (`numpy.ndarray`):
            What [`ranks`] returns.
        k (`int`, *optional*, defaults to `10`):
            The cut-off.

    Returns:
        `float`: The normalised discounted cumulative gain.

    Example:
        ```python
        >>> ndcg([1, 3, 4], k=3)
        0.5

        ```
    """
    return float(np.mean(_hits(ranks, k) / np.log2(1 + np.asarray(ranks))))


def mean_reciprocal_rank(ranks: np.ndarray) -> float:
    """
    MRR: the mean of 1 / rank, without a cut-off.

    $\\text{MRR} = \\frac{1}{n} \\sum_i 1 / \\text{rank}_i$

    Args:
        ranks (`numpy.ndarray`):
            What [`ranks`] returns.

    Returns:
        `float`: The mean reciprocal rank.

    Example:
        ```python
        >>> mean_reciprocal_rank([1, 2, 4, 4])
        0.5

        ```
    """
    _hits(ranks, 1)
    return float(np.mean(1 / np.asarray(ranks)))


def _hits(ranks: np.ndarray, k: int) -> np.ndarray:
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or not len(ranks):
        raise ValueError(f"ranks has shape {ranks.shape}. Pass one rank per record, and at least one record.")
    if ranks.min() < 1:
        row = int(ranks.argmin())
        raise ValueError(f"ranks: record {row}: {ranks[row]} is below 1. Ranks count from 1.")
    if k < 1:
        raise ValueError(f"k={k} is below 1. Pass at least 1.")
    return ranks <= k


def bootstrap_interval(
    values: np.ndarray, *, seed: int, confidence: float = 0.95, num_resamples: int = 2000
) -> tuple[float, float]:
    """
    The percentile bootstrap interval of a mean over records (Efron, 1979).

    Args:
        values (`numpy.ndarray`):
            One value per record, such as hit or miss.
        seed (`int`):
            The seed.
        confidence (`float`, *optional*, defaults to `0.95`):
            The share of resampled means inside.
        num_resamples (`int`, *optional*, defaults to `2000`):
            How often to draw n records with replacement.

    Returns:
        `tuple[float, float]`: Lower and upper end.

    Raises:
        ValueError: there is no value, a value is NaN, or a number is out of range.

    Example:
        ```python
        >>> low, high = bootstrap_interval([0, 1] * 50, seed=0)
        >>> 0.35 < low < 0.45 < 0.55 < high < 0.65
        True

        ```
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values has shape {values.shape}. Pass one value per record, and at least one record.")
    if np.isnan(values).any():
        raise ValueError(f"values: record {int(np.isnan(values).argmax())}: NaN. Remove or correct it.")
    if not 0 < confidence < 1 or num_resamples < 1:
        raise ValueError(f"confidence={confidence} must be in (0, 1), num_resamples={num_resamples} at least 1.")
    generator = np.random.default_rng(seed)
    step = max(1, _RESAMPLED_PER_CHUNK // len(values))
    means = [
        values[generator.integers(len(values), size=(min(step, num_resamples - begin), len(values)))].mean(axis=1)
        for begin in range(0, num_resamples, step)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def ranking_metrics(ranks: np.ndarray, ks: tuple[int, ...] = (1, 10), *, seed: int) -> dict:
    """
    All metrics of a set of records, as one row of a table of results.

    Over sampled candidates these are *sampled* metrics, which need not order models as a ranking of all items does
    (Krichene and Rendle, KDD 2020): print [`chance_metrics`] beside them. The interval is over records: that several
    records are of one user, so not independent, it does not know.

    Args:
        ranks (`numpy.ndarray`):
            What [`ranks`] returns.
        ks (`tuple[int, ...]`, *optional*, defaults to `(1, 10)`):
            The cut-offs.
        seed (`int`):
            The seed of the bootstrap.

    Returns:
        `dict`: `hr@k`, `hr@k_ci` (a list of two: the 95% interval) and `ndcg@k` for every k, `mrr` and `n`.

    Example:
        ```python
        >>> metrics = ranking_metrics([1, 2, 1, 4], seed=0)
        >>> metrics["hr@1"], metrics["hr@10"], metrics["mrr"], metrics["n"]
        (0.5, 1.0, 0.6875, 4)

        ```
    """
    metrics = {}
    for k in ks:
        metrics[f"hr@{k}"] = hit_rate(ranks, k)
        metrics[f"hr@{k}_ci"] = list(bootstrap_interval(_hits(ranks, k), seed=seed))
        metrics[f"ndcg@{k}"] = ndcg(ranks, k)
    return metrics | {"mrr": mean_reciprocal_rank(ranks), "n": len(ranks)}


def chance_level(num_candidates: int, k: int = 1) -> float:
    """
    HR@k of a ranking drawn at random.

    Args:
        num_candidates (`int`):
            How many candidates are ranked, with the target.
        k (`int`, *optional*, defaults to `1`):
            The cut-off.

    Returns:
        `float`: $\\min(k, \\text{num\\_candidates}) / \\text{num\\_candidates}$

    Example:
        ```python
        >>> chance_level(20, k=1)
        0.05

        ```
    """
    if num_candidates < 1 or k < 1:
        raise ValueError(f"num_candidates={num_candidates} and k={k}: both must be at least 1.")
    return min(k, num_candidates) / num_candidates


def chance_metrics(num_candidates: int, ks: tuple[int, ...] = (1, 10)) -> dict:
    """
    What [`ranking_metrics`] expects of a ranking drawn at random: exact, over all orders of the candidates.

    Args:
        num_candidates (`int`):
            How many candidates are ranked, with the target.
        ks (`tuple[int, ...]`, *optional*, defaults to `(1, 10)`):
            The cut-offs.

    Returns:
        `dict`: The keys of [`ranking_metrics`] but `n`. An exact value has an interval of no width.

    Example:
        ```python
        >>> chance = chance_metrics(4, ks=(1, 2))
        >>> chance["hr@2"], round(chance["mrr"], 4)  # mrr = (1 + 1/2 + 1/3 + 1/4) / 4
        (0.5, 0.5208)

        ```
    """
    every_rank = np.arange(1, num_candidates + 1)
    metrics = {}
    for k in ks:
        level = chance_level(num_candidates, k)
        metrics |= {f"hr@{k}": level, f"hr@{k}_ci": [level, level], f"ndcg@{k}": ndcg(every_rank, k)}
    return metrics | {"mrr": mean_reciprocal_rank(every_rank)}
