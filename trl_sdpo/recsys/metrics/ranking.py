"""Ranking metrics over the candidates of a record, with their uncertainty and what chance gives."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from .intervals import bootstrap_interval as bootstrap_interval
from .intervals import group_sums, warn_of_seed, wilson_interval


def ranks(scores: np.ndarray | Sequence[Sequence[float] | np.ndarray]) -> np.ndarray:
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


def ranking_metrics(
    ranks: np.ndarray,
    ks: tuple[int, ...] = (1, 10),
    *,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    seed: int | None = None,
) -> dict:
    """
    All metrics of a set of records, as one row of a table of results.

    Over sampled candidates these are *sampled* metrics, which need not order models as a ranking of all items does
    (Krichene and Rendle, KDD 2020): print [`chance_metrics`] beside them.

    Args:
        ranks (`numpy.ndarray`):
            What [`ranks`] returns.
        ks (`tuple[int, ...]`, *optional*, defaults to `(1, 10)`):
            The cut-offs.
        groups (`Sequence`, *optional*):
            The user of each record. Intervals are over users then, whose records are not independent.
        seed (`int`, *optional*):
            Deprecated: the intervals draw nothing any longer. Passing it warns.

    Returns:
        `dict`: `hr@k`, `hr@k_ci` (a list of two: the 95% interval, see [`wilson_interval`]) and `ndcg@k` for every k,
        `mrr` and `n`. With groups also `hr@k_per_user` and `mrr_per_user`, in which every user counts the same, and
        `users`, their number.

    Example:
        ```python
        >>> metrics = ranking_metrics([1, 2, 1, 4])
        >>> metrics["hr@1"], metrics["hr@10"], metrics["mrr"], metrics["n"]
        (0.5, 1.0, 0.6875, 4)
        >>> metrics = ranking_metrics([1, 2, 1, 4], groups=["ann", "bob", "ann", "ann"])
        >>> metrics["hr@1"], round(metrics["hr@1_per_user"], 3), metrics["users"]
        (0.5, 0.333, 2)

        ```
    """
    warn_of_seed("ranking_metrics", seed)
    metrics: dict[str, Any] = {}
    for k in ks:
        hits = _hits(ranks, k)
        metrics |= {f"hr@{k}": hit_rate(ranks, k), f"hr@{k}_ci": list(wilson_interval(hits, groups))}
        if groups is not None:
            metrics[f"hr@{k}_per_user"] = mean_per_group(hits, groups)
        metrics[f"ndcg@{k}"] = ndcg(ranks, k)
    metrics["mrr"] = mean_reciprocal_rank(ranks)
    if groups is not None:
        metrics["mrr_per_user"] = mean_per_group(1 / np.asarray(ranks), groups)
        metrics["users"] = len(set(map(str, groups)))
    return metrics | {"n": len(ranks)}


def mean_per_group(values: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | np.ndarray) -> float:
    """
    The mean over groups of the mean over their records: every user counts the same, however many records there are.

    Args:
        values (`Sequence[float]`):
            A value per record.
        groups (`Sequence`):
            The group of each record, such as its user.

    Returns:
        `float`: The mean.

    Example:
        ```python
        >>> mean_per_group([1, 1, 1, 0], ["ann", "ann", "ann", "bob"])
        0.5

        ```
    """
    sums, counts = group_sums(values, groups)
    return float(np.mean(sums / counts))


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
    metrics: dict[str, Any] = {}
    for k in ks:
        level = chance_level(num_candidates, k)
        metrics |= {f"hr@{k}": level, f"hr@{k}_ci": [level, level], f"ndcg@{k}": ndcg(every_rank, k)}
    return metrics | {"mrr": mean_reciprocal_rank(every_rank)}
