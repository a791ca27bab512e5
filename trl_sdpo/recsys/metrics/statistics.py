"""Two systems on the same records: how far apart, and whether chance could have done it."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from .intervals import difference_interval, group_sums
from .ranking import ranks


_DRAWN_PER_CHUNK = 1 << 21


def exact_mcnemar_test(
    hits: Sequence[bool] | np.ndarray,
    baseline_hits: Sequence[bool] | np.ndarray,
    groups: Sequence[Hashable] | np.ndarray | None = None,
) -> float:
    """
    The exact McNemar test (McNemar, 1947): whether one of two systems hits more often than the other on the same
    records.

    Of the m records on which they differ, each is as likely to be a hit of one as of the other if the systems are
    equally good. So with b hits of the rarer one, $p = \\min(1, 2 \\sum_{i=0}^{b} \\binom{m}{i} / 2^m)$.

    With groups the systems are exchanged in all records of a group at once, since records of one user are not
    independent: with $d_g$ hits more of the one system in group g, p is the share of all signs with $|\\sum_g \\pm
    d_g|$ at least as large as it is, exactly. Where each group has one record this is the same test.

    Args:
        hits (`Sequence[bool]`), baseline_hits (`Sequence[bool]`):
            For each record whether the system hits.
        groups (`Sequence`, *optional*):
            The group of each record, such as its user. If `None`, records are independent.

    Returns:
        `float`: The two-sided p-value.

    Raises:
        ValueError: the records are not as many, there are none, a value is neither 0 nor 1, or there is not one group
            for each record.

    Example:
        ```python
        >>> round(exact_mcnemar_test([1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 1, 1]), 6)  # 2 * (1 + 5) / 2**5
        0.375
        >>> users = ["ann", "ann", "ann", "ann", "bob", "bob"]  # +4 and -1: all four signs have a sum of 3 or more
        >>> exact_mcnemar_test([1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 1, 1], users)
        1.0

        ```
    """
    ours, theirs = _paired(hits, baseline_hits)
    for name, values in (("hits", ours), ("baseline_hits", theirs)):
        other = np.flatnonzero((values != 0) & (values != 1))
        if len(other):
            raise ValueError(f"{name}: record {other[0]}: {values[other[0]]} is neither 0 nor 1.")
    if groups is not None:
        return _exact_sign_flips(group_sums(ours - theirs, groups).sums.round().astype(np.int64))
    wins, losses = int((ours > theirs).sum()), int((ours < theirs).sum())
    differing, fewer = wins + losses, min(wins, losses)
    # as logarithms: the coefficients themselves have thousands of digits
    logs = [_log_binomial(differing, count) - differing * math.log(2) for count in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _exact_sign_flips(differences: np.ndarray) -> float:
    """
    The share of all signs of whole numbers with a sum at least as far from 0 as the one seen.

    The sum of $\\pm d_g$ has the characteristic function $\\prod_g \\cos(t d_g)$, so that a Fourier transform of it
    gives the probability of every sum.
    """
    seen = abs(int(differences.sum()))
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    if seen == 0 or not len(sizes):
        return 1.0
    furthest = int(sizes @ counts)
    length = 2 * furthest + 1
    angles = 2 * np.pi * np.arange(furthest + 1) / length
    characteristic = np.ones(furthest + 1)
    for size, count in zip(sizes, counts, strict=True):
        characteristic *= np.cos(angles * size) ** count
    probabilities = np.fft.irfft(characteristic, n=length)
    # the transform is exact to about 1e-16, below which no p-value is told from another; 2 signs reach the furthest sum
    as_far = 2 * math.fsum(probabilities[seen : furthest + 1])
    return float(min(1.0, max(as_far, 2.0 ** (1 - counts.sum()))))


def sign_flip_test(
    values: Sequence[float] | np.ndarray,
    baseline_values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    *,
    seed: int,
    num_resamples: int = 10_000,
) -> float:
    """
    The paired permutation test (Fisher, 1935): whether the mean of one of two systems is above that of the other on the
    same records, for values of any kind, such as NDCG or reciprocal ranks.

    If the systems are equally good, each difference could as well have the other sign. The p-value is the share of
    signs with a mean at least as far from 0 as the one seen: of all signs where these are no more than
    `num_resamples`, and otherwise of drawn ones, the one seen counted among them.

    Args:
        values (`Sequence[float]`), baseline_values (`Sequence[float]`):
            A value per record.
        groups (`Sequence`, *optional*):
            The group of each record, such as its user, which has one sign. If `None`, each record has its own.
        seed (`int`):
            The seed.
        num_resamples (`int`, *optional*, defaults to `10_000`):
            How often to draw signs, which bounds the p-value from below by `1 / (num_resamples + 1)`.

    Returns:
        `float`: The two-sided p-value.

    Raises:
        ValueError: the records are not as many, there are none, a value is NaN, there is not one group for each
            record, or `num_resamples` is below 1.

    Example:
        ```python
        >>> sign_flip_test([1.0, 0.5, 1.0], [0.5, 0.5, 0.0], seed=0)  # 2 of the 4 signs of what differs
        0.5
        >>> sign_flip_test([1.0] * 20, [0.5] * 20, seed=0) < 0.001
        True

        ```
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples} is below 1. Pass at least 1.")
    ours, theirs = _paired(values, baseline_values)
    differences = group_sums(ours - theirs, groups).sums
    differences = differences[differences != 0]
    # sums that are equal but for rounding are equal
    seen = abs(differences.sum()) * (1 - 1e-12) - 1e-12 * np.abs(differences).sum()
    if 2 ** len(differences) <= num_resamples:
        every = np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences)) & 1
        return float(np.mean(np.abs((2.0 * every - 1) @ differences) >= seen))
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWN_PER_CHUNK // max(1, len(differences)))
    as_far = 0
    for begin in range(0, num_resamples, step):
        size = (min(step, num_resamples - begin), len(differences))
        signs = 2.0 * generator.integers(2, size=size) - 1
        as_far += int((np.abs(signs @ differences) >= seen).sum())
    return (1 + as_far) / (1 + num_resamples)


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """
    P-values of several tests, corrected so that the chance of any false alarm among them is what one p-value claims
    (Holm, Scandinavian Journal of Statistics 1979).

    With $p_{(1)} \\le \\dots \\le p_{(m)}$, the corrected one is $\\max_{j \\le i} \\min(1, (m - j + 1) p_{(j)})$.

    Args:
        p_values (`Sequence[float]`):
            One for each test of a table.

    Returns:
        `list[float]`: As many, in the same order.

    Raises:
        ValueError: a p-value is not from 0 to 1.

    Example:
        ```python
        >>> holm_correction([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

        ```
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p_values={list(p_values)}: pass numbers from 0 to 1.")
    order = np.argsort(values, kind="stable")
    steps = np.minimum(1.0, values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty(len(values))
    corrected[order] = np.maximum.accumulate(steps)
    return corrected.tolist()


def verdict(difference: float, p_value: float, level: float = 0.05) -> str:
    """
    What a test says: `"better"`, `"worse"`, or `"no measurable difference"`. There is no other rule: what an interval
    seems to say is not a verdict.

    Args:
        difference (`float`):
            Of the means.
        p_value (`float`):
            Of the test of this difference, corrected where there are several, see [`holm_correction`].
        level (`float`, *optional*, defaults to `0.05`):
            Of the test.

    Returns:
        `str`: The verdict.

    Example:
        ```python
        >>> verdict(0.2, 0.125), verdict(0.2, 0.01)
        ('no measurable difference', 'better')

        ```
    """
    if p_value > level or difference == 0:
        return "no measurable difference"
    return "better" if difference > 0 else "worse"


def paired_comparison(
    ranks: np.ndarray,
    baseline_ranks: np.ndarray,
    ks: tuple[int, ...] = (1, 10),
    *,
    seed: int,
    groups: Sequence[Hashable] | np.ndarray | None = None,
) -> dict:
    """
    How much better one system ranks than another, over the same records.

    The difference is taken record by record, so that what makes a record hard for both cancels: the interval is
    narrower than the two of the systems suggest. P-values are of this comparison alone: with several, correct them
    ([`holm_correction`]).

    Args:
        ranks (`numpy.ndarray`), baseline_ranks (`numpy.ndarray`):
            Of the two systems, as [`ranks`] or [`recommendation_ranks`] returns them, record by record.
        ks (`tuple[int, ...]`, *optional*, defaults to `(1, 10)`):
            The cut-offs.
        seed (`int`):
            Seed of the test.
        groups (`Sequence`, *optional*):
            The user of each record. Intervals and tests are over users then, whose records are not independent.

    Returns:
        `dict`: For `hr@k` and `ndcg@k` of every k, and for `mrr`: the mean difference under that name, its 95%
        interval under `{name}_ci` (a list of two, see [`difference_interval`]), and the p-value under `{name}_p`, for hits
        from [`exact_mcnemar_test`], for the others from [`sign_flip_test`]; `n`, and with groups `users`.

    Raises:
        ValueError: the records are not as many, there are none, or there is not one group for each record.

    Example:
        ```python
        >>> comparison = paired_comparison([1, 1, 2, 1], [2, 1, 3, 4], ks=(1,), seed=0)
        >>> comparison["hr@1"], round(comparison["hr@1_p"], 6), comparison["n"]
        (0.5, 0.5, 4)

        ```
    """
    ours, theirs = _paired(ranks, baseline_ranks)
    if min(ours.min(), theirs.min()) < 1 or not ks or min(ks) < 1:
        raise ValueError(
            f"Ranks count from 1, and so do cut-offs: the least rank is {min(ours.min(), theirs.min())}, ks={ks}."
        )
    gains: dict[str, Any] = {f"hr@{k}": (lambda ranks, k=k: (ranks <= k).astype(np.float64)) for k in ks}
    gains |= {f"ndcg@{k}": (lambda ranks, k=k: (ranks <= k) / np.log2(1 + ranks)) for k in ks if k > 1}
    gains["mrr"] = lambda ranks: 1 / ranks
    comparison: dict[str, Any] = {}
    for name, gain in gains.items():
        values, baseline_values = gain(ours), gain(theirs)
        comparison[name] = float(np.mean(values - baseline_values))
        comparison[f"{name}_ci"] = list(difference_interval(values - baseline_values, groups))
        if name.startswith("hr@"):
            comparison[f"{name}_p"] = exact_mcnemar_test(values, baseline_values, groups)
        else:
            comparison[f"{name}_p"] = sign_flip_test(values, baseline_values, groups, seed=seed)
    if groups is not None:
        comparison["users"] = len(set(map(str, groups)))
    return comparison | {"n": len(ours)}


def compare_scores(
    scores: Sequence[np.ndarray],
    baseline_scores: Sequence[np.ndarray],
    ks: tuple[int, ...] = (1, 10),
    *,
    seed: int,
    groups: Sequence[Hashable] | np.ndarray | None = None,
) -> dict:
    """
    [`paired_comparison`] of two systems by their scores of the candidates of the same records.

    Args:
        scores (`Sequence[np.ndarray]`), baseline_scores (`Sequence[np.ndarray]`):
            For each record the scores of its candidates, the target first.
        ks (`tuple[int, ...]`, *optional*, defaults to `(1, 10)`):
            The cut-offs.
        seed (`int`):
            Seed of the test.
        groups (`Sequence`, *optional*):
            The user of each record, see [`paired_comparison`].

    Returns:
        `dict`: See [`paired_comparison`].

    Raises:
        ValueError: the records or their candidates are not as many, or scores are missing.

    Example:
        ```python
        >>> compare_scores([[2.0, 1.0], [3.0, 1.0]], [[1.0, 1.0], [3.0, 1.0]], ks=(1,), seed=0)["hr@1"]
        0.5

        ```
    """
    if len(scores) == len(baseline_scores):
        for row, (ours, theirs) in enumerate(zip(scores, baseline_scores, strict=True)):
            if len(ours) != len(theirs):
                raise ValueError(
                    f"Record {row}: {len(ours)} candidates of one system, {len(theirs)} of the other. Score the same ones."
                )
    return paired_comparison(ranks(scores), ranks(baseline_scores), ks, seed=seed, groups=groups)


def _paired(
    values: Sequence[float] | np.ndarray, baseline_values: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(baseline_values, dtype=np.float64)
    if ours.ndim != 1 or ours.shape != theirs.shape or not len(ours):
        raise ValueError(
            f"The systems have values of shape {ours.shape} and {theirs.shape}. Pass one per record, of the same records "
            "in the same order, and at least one."
        )
    for name, one in (("first", ours), ("second", theirs)):
        if np.isnan(one).any():
            raise ValueError(f"Record {int(np.isnan(one).argmax())} of the {name} system: NaN. Remove or correct it.")
    return ours, theirs


def sampled_label(num_candidates: int, catalogue_size: int | None = None) -> str:
    """
    What to print above metrics over sampled candidates.

    Such metrics need not order systems as a ranking of the whole catalogue does (Krichene and Rendle, KDD 2020,
    https://dl.acm.org/doi/10.1145/3394486.3403226), so a table of them has to say so.

    Args:
        num_candidates (`int`):
            How many candidates are ranked, with the target.
        catalogue_size (`int`, *optional*):
            The number of items that they were drawn from.

    Returns:
        `str`: The label.

    Raises:
        ValueError: there are fewer than 2 candidates, or fewer items than candidates.

    Example:
        ```python
        >>> sampled_label(20, 1682)
        'sampled metrics: the target among 20 candidates of 1,682 items, chance hr@1 0.050'
        >>> sampled_label(20, 20)
        'full ranking: the target among all 20 items, chance hr@1 0.050'

        ```
    """
    if num_candidates < 2 or (catalogue_size is not None and catalogue_size < num_candidates):
        raise ValueError(
            f"num_candidates={num_candidates} must be at least 2, and catalogue_size={catalogue_size} not below it."
        )
    chance = f"chance hr@1 {1 / num_candidates:.3f}"
    if catalogue_size == num_candidates:
        return f"full ranking: the target among all {catalogue_size:,} items, {chance}"
    drawn_from = "" if catalogue_size is None else f" of {catalogue_size:,} items"
    return f"sampled metrics: the target among {num_candidates} candidates{drawn_from}, {chance}"
