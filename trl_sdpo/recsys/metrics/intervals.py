"""Intervals of means over records, of which several may be of one user and so not independent."""

import functools
import math
import warnings
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


_RESAMPLED_PER_CHUNK = 1 << 21
_GRID = 100_001


class GroupSums(NamedTuple):
    """
    Values of records, put together by group.

    Args:
        sums (`numpy.ndarray`):
            Sum of the values of a group, of shape `(num_groups,)`.
        counts (`numpy.ndarray`):
            Its number of records, of shape `(num_groups,)`.
    """

    sums: np.ndarray
    counts: np.ndarray

    @property
    def effective(self) -> float:
        """As many groups of equal size tell as much (Kish, 1965): $(\\sum_g n_g)^2 / \\sum_g n_g^2$."""
        counts = self.counts.astype(np.float64)
        return float(counts.sum() ** 2 / (counts**2).sum())


def warn_of_seed(function: str, seed: int | None) -> None:
    """Say that a seed, which intervals once drew a bootstrap with, is without effect."""
    if seed is not None:
        message = f"{function} draws nothing, so `seed` is without effect. Leave it out."
        warnings.warn(message, FutureWarning, stacklevel=3)


def group_sums(
    values: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | np.ndarray | None = None
) -> GroupSums:
    """
    Sum and number of the values of every group.

    Args:
        values (`Sequence[float]`):
            A value per record.
        groups (`Sequence`, *optional*):
            The group of each record, such as its user, compared as text. If `None`, each record is its own.

    Returns:
        [`GroupSums`]: The groups in the order of their names.

    Raises:
        ValueError: there is no value, a value is NaN, or there is not one group for each record.

    Example:
        ```python
        >>> group_sums([1, 0, 1], groups=["ann", "bob", "ann"]).sums.tolist()
        [2.0, 0.0]

        ```
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values has shape {values.shape}. Pass one value per record, and at least one record.")
    if np.isnan(values).any():
        raise ValueError(f"values: record {int(np.isnan(values).argmax())}: NaN. Remove or correct it.")
    if groups is None:
        return GroupSums(values, np.ones(len(values), dtype=np.int64))
    owner = group_codes(groups, len(values))
    return GroupSums(np.bincount(owner, weights=values), np.bincount(owner))


def group_codes(groups: Sequence[Hashable] | np.ndarray, num_records: int) -> np.ndarray:
    """The groups of records as whole numbers from 0, of shape `(n,)`; a `ValueError` unless each record has one."""
    groups = list(groups)
    if len(groups) != num_records:
        raise ValueError(f"groups has {len(groups)} rows for {num_records} records. Pass one for each.")
    if None in groups:
        raise ValueError(f"groups: record {groups.index(None)} has none. Fill it in, or pass no groups.")
    return np.unique(np.array(list(map(str, groups))), return_inverse=True)[1]


def wilson_interval(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    *,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """
    The interval of a hit rate (Wilson, 1927), which is never of no width: 0 hits of 20 are compatible with .16.

    With groups it is over groups: the variance is that of a jackknife that leaves out a group at a time, and the
    records count as many independent ones as have the same variance (as in Korn and Graubard, 1998); the quantile is
    that of Student's t with one less than the effective number of groups ([`GroupSums`]) degrees of freedom. Where all
    values are equal, so that nothing is known of the variance, each effective group counts as one record.

    Args:
        values (`Sequence[float]`):
            A value per record: hit or miss, or another number from 0 to 1, such as a share of seeds that hit.
        groups (`Sequence`, *optional*):
            The group of each record, such as its user. If `None`, records are independent.
        confidence (`float`, *optional*, defaults to `0.95`):
            How often the interval holds the true value.

    Returns:
        `tuple[float, float]`: Lower and upper end.

    Raises:
        ValueError: there is no value, a value is not from 0 to 1, there is not one group for each record, or
            `confidence` is out of range.

    Example:
        ```python
        >>> low, high = wilson_interval([0] * 20)
        >>> low, round(high, 3)
        (0.0, 0.161)
        >>> low, high = wilson_interval([0] * 20, groups=["ann"] * 10 + ["bob"] * 10)
        >>> round(high, 3)  # two users who never hit say little of others
        0.988

        ```
    """
    _check_confidence(confidence)
    parts = group_sums(values, groups)
    values = np.asarray(values, dtype=np.float64)
    outside = np.flatnonzero((values < 0) | (values > 1))
    if len(outside):
        raise ValueError(f"values: record {outside[0]}: {values[outside[0]]} is not from 0 to 1. Use `mean_interval`.")
    mean, spread = float(values.mean()), float(values.var())
    quantile = NormalDist().inv_cdf((1 + confidence) / 2)
    if spread == 0:
        trials = parts.effective
    else:
        trials = len(values) * mean * (1 - mean) / spread
        if groups is not None:
            error = _jackknife_error(parts)
            trials = min(trials, mean * (1 - mean) / error**2 if error > 0 else trials)
    if groups is not None:
        quantile = student_quantile(confidence, max(parts.effective - 1, 1))
    trials = max(trials, 1.0)
    shrunk = quantile**2 / trials
    middle = (mean + shrunk / 2) / (1 + shrunk)
    half = quantile / (1 + shrunk) * math.sqrt(mean * (1 - mean) / trials + shrunk / (4 * trials))
    # an end that is 0 or 1 may miss it by rounding
    return (0.0 if mean == 0 else max(0.0, middle - half), 1.0 if mean == 1 else min(1.0, middle + half))


def mean_interval(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    *,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """
    The interval of a mean of any values, such as of differences: Student's t, over groups where they are given.

    The variance is that of a jackknife that leaves out a group at a time, which is that of the mean where each record
    is its own group; there is one less than the effective number of groups ([`GroupSums`]) of degrees of freedom. A
    bootstrap over few or unequal groups is too narrow; this one is near to what it promises for 40 users and
    more, and held 89 to 92 times of 100 in simulations with 20 very unequal ones or with rare hits.

    Args:
        values (`Sequence[float]`):
            A value per record.
        groups (`Sequence`, *optional*):
            The group of each record, such as its user. If `None`, records are independent.
        confidence (`float`, *optional*, defaults to `0.95`):
            How often the interval holds the true value.

    Returns:
        `tuple[float, float]`: Lower and upper end. Of one group nothing can be said: minus infinity and infinity.

    Raises:
        ValueError: as [`group_sums`], or `confidence` is out of range.

    Example:
        ```python
        >>> low, high = mean_interval([1.0, 2.0, 3.0])
        >>> round(low, 3), round(high, 3)  # 2 -+ 4.303 * 1 / sqrt(3)
        (-0.484, 4.484)

        ```
    """
    _check_confidence(confidence)
    parts = group_sums(values, groups)
    mean = float(np.mean(values))
    error = _jackknife_error(parts)
    half = error * student_quantile(confidence, max(parts.effective - 1, 1)) if error else 0.0
    return mean - half, mean + half


def difference_interval(
    differences: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    *,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """
    [`mean_interval`] of differences of two values from 0 to 1, which is never of no width nor beyond -1 and 1.

    Where all differences are equal, so that their variance cannot be estimated, other records may yet differ: as many
    as [`wilson_interval`] has for something that was never seen.

    Args:
        differences (`Sequence[float]`):
            One per record, from -1 to 1.
        groups (`Sequence`, *optional*):
            The group of each record, such as its user.
        confidence (`float`, *optional*, defaults to `0.95`):
            How often the interval holds the true value.

    Returns:
        `tuple[float, float]`: Lower and upper end.

    Example:
        ```python
        >>> low, high = difference_interval([0.0] * 20)
        >>> round(low, 3), round(high, 3)
        (-0.161, 0.161)

        ```
    """
    low, high = mean_interval(differences, groups, confidence=confidence)
    if high - low < 1e-9:
        unseen = wilson_interval(np.zeros(len(differences)), groups, confidence=confidence)[1]
        # what differs from a difference of 1 may be as low as -1
        middle = (low + high) / 2
        half = unseen * (1 + abs(middle))
        low, high = middle - half, middle + half
    return max(low, -1.0), min(high, 1.0)


def _jackknife_error(parts: GroupSums) -> float:
    """The standard error of the mean over records, from the means without one group each; infinite for one group."""
    count = len(parts.sums)
    if count == 1:
        return math.inf
    total, records = parts.sums.sum(), parts.counts.sum()
    without = (total - parts.sums) / (records - parts.counts)
    return float(np.sqrt((count - 1) / count * ((without - total / records) ** 2).sum()))


@functools.lru_cache(maxsize=256)
def student_quantile(confidence: float, degrees: float) -> float:
    """
    What the absolute value of Student's t is below with a probability of `confidence`.

    With $t = \\sqrt{\\nu} \\tan \\theta$ its density is $\\cos^{\\nu - 1} \\theta$, which is summed up on a grid.
    """
    if degrees > 10_000:
        return NormalDist().inv_cdf((1 + confidence) / 2)
    angles = np.linspace(0, np.pi / 2, _GRID)
    density = np.cos(angles) ** (degrees - 1)
    below = np.append(0.0, np.cumsum(density[1:] + density[:-1]))
    return float(math.sqrt(degrees) * math.tan(np.interp(confidence * below[-1], below, angles)))


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    *,
    seed: int,
    confidence: float = 0.95,
    num_resamples: int = 2000,
) -> tuple[float, float]:
    """
    The percentile bootstrap interval of a mean over records (Efron, 1979).

    It is of no width where all values are equal, and too narrow for few groups: see [`wilson_interval`] for hit rates
    and [`mean_interval`] for others.

    Args:
        values (`Sequence[float]`):
            One value per record, such as hit or miss.
        groups (`Sequence`, *optional*):
            The group of each record, such as its user. Groups are drawn with all of their records. If `None`, records
            are drawn.
        seed (`int`):
            The seed.
        confidence (`float`, *optional*, defaults to `0.95`):
            The share of resampled means inside.
        num_resamples (`int`, *optional*, defaults to `2000`):
            How often to draw as many records, or groups, as there are, with replacement.

    Returns:
        `tuple[float, float]`: Lower and upper end.

    Raises:
        ValueError: there is no value, a value is NaN, there is not one group for each record, or a number is out of
            range.

    Example:
        ```python
        >>> low, high = bootstrap_interval([0, 1] * 50, seed=0)
        >>> 0.35 < low < 0.45 < 0.55 < high < 0.65
        True
        >>> bootstrap_interval([0, 1] * 50, groups=["ann"] * 100, seed=0)  # one user, drawn again and again
        (0.5, 0.5)

        ```
    """
    sums, counts = group_sums(values, groups)
    _check_confidence(confidence)
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples} must be at least 1.")
    generator = np.random.default_rng(seed)
    step = max(1, _RESAMPLED_PER_CHUNK // len(sums))
    means = []
    for begin in range(0, num_resamples, step):
        drawn = generator.integers(len(sums), size=(min(step, num_resamples - begin), len(sums)))
        means.append(sums[drawn].mean(axis=1) / (1 if groups is None else counts[drawn].mean(axis=1)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must be in (0, 1).")
