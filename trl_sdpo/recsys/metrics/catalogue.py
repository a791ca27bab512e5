"""Metrics of lists recommended from a whole catalogue: where the target stands, and which items are shown at all."""

import itertools
import numbers
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .intervals import warn_of_seed, wilson_interval
from .ranking import hit_rate, mean_per_group, mean_reciprocal_rank, ndcg


def check_same_kind(ids: Iterable[Hashable], others: Iterable[Hashable], name: str, other: str) -> None:
    """
    Raise if ids are text on one side and numbers on the other, so that none could ever be equal.

    Example:
        ```python
        >>> check_same_kind([7, 8], ["7"], "recommended", "targets")
        Traceback (most recent call last):
        TypeError: recommended holds numbers such as 7, targets text such as '7', so none can be equal: convert one of them.

        ```
    """
    found = []
    for values in (ids, others):
        kinds: dict[Any, Any] = {}
        for value in values:
            if isinstance(value, (str, numbers.Number)):
                kinds.setdefault("text" if isinstance(value, str) else "numbers", value)
        found.append(kinds)
    if all(found) and not found[0].keys() & found[1].keys():
        (kind, one), (others_kind, another) = (next(iter(kinds.items())) for kinds in found)
        raise TypeError(
            f"{name} holds {kind} such as {one!r}, {other} {others_kind} such as {another!r}, so none can be equal: "
            "convert one of them."
        )


def recommendation_ranks(
    recommended: Sequence[Sequence[Hashable]], targets: Sequence[Hashable], distinct: bool = True
) -> np.ndarray:
    """
    The place of the target in every list, from 1, and infinity where it is not there.

    [`hit_rate`], [`ndcg`] and [`mean_reciprocal_rank`] take these as they take the ranks among candidates. The MRR is
    then that of a list that ends: a target beyond it counts 0.

    Args:
        recommended (`Sequence[Sequence]`):
            For each record the items, the best first. A list may be shorter than the others, or empty.
        targets (`Sequence`):
            For each record the item to find.
        distinct (`bool`, *optional*, defaults to `True`):
            Whether to refuse lists in which an item stands twice, which would push others out.

    Returns:
        `numpy.ndarray`: The ranks as floats, of shape `(n,)`.

    Raises:
        TypeError: one of the two has ids as numbers, and the other as text.
        ValueError: there is no record, the records are not as many as the targets, or an item stands twice.

    Example:
        ```python
        >>> recommendation_ranks([[7, 3], [3, 9], []], [3, 7, 7]).tolist()
        [2.0, inf, inf]

        ```
    """
    if not len(recommended) or len(recommended) != len(targets):
        raise ValueError(
            f"{len(recommended)} lists for {len(targets)} targets. Pass one for each record, and at least one record."
        )
    check_same_kind(itertools.chain.from_iterable(recommended), targets, "recommended", "targets")
    ranks = np.full(len(recommended), np.inf)
    for row, (items, target) in enumerate(zip(recommended, targets, strict=True)):
        items = list(items)
        if distinct and len(set(items)) < len(items):
            twice = next(item for place, item in enumerate(items) if item in items[:place])
            raise ValueError(f"recommended: record {row}: {twice!r} stands twice. Pass lists of distinct items.")
        if target in items:
            ranks[row] = 1 + items.index(target)
    return ranks


def exposure(recommended: Sequence[Sequence[Hashable]], catalogue: Sequence[Hashable], k: int = 10) -> np.ndarray:
    """
    How often each item stands among the first k of a list.

    Args:
        recommended (`Sequence[Sequence]`):
            For each record the items, the best first.
        catalogue (`Sequence`):
            All items.
        k (`int`, *optional*, defaults to `10`):
            The cut-off.

    Returns:
        `numpy.ndarray`: Counts in the order of the catalogue.

    Raises:
        ValueError: k is below 1, the catalogue is empty or holds an item twice, or an item is not in it.

    Example:
        ```python
        >>> exposure([["a", "b"], ["a", "c"]], ["a", "b", "c", "d"], k=2).tolist()
        [2, 1, 1, 0]

        ```
    """
    if k < 1:
        raise ValueError(f"k={k} is below 1. Pass at least 1.")
    places = {item: place for place, item in enumerate(catalogue)}
    if not places or len(places) < len(catalogue):
        raise ValueError(f"catalogue: {len(places)} distinct of {len(catalogue)} items. Pass each item once.")
    counts = np.zeros(len(places), dtype=np.int64)
    for row, items in enumerate(recommended):
        for item in list(items)[:k]:
            if item not in places:
                raise ValueError(
                    f"recommended: record {row}: {item!r} is not in the catalogue. Pass the whole catalogue."
                )
            counts[places[item]] += 1
    return counts


def coverage(exposure: np.ndarray) -> float:
    """
    The share of the catalogue that is recommended to anybody.

    $\\text{coverage} = |\\{i : x_i > 0\\}| / |I|$

    Args:
        exposure (`numpy.ndarray`):
            What [`exposure`] returns.

    Returns:
        `float`: Between 0 and 1.

    Example:
        ```python
        >>> coverage([2, 1, 1, 0])
        0.75

        ```
    """
    return float(np.mean(_counts(exposure) > 0))


def gini(exposure: np.ndarray) -> float:
    """
    The Gini index of exposure: 0 if all items of the catalogue are shown equally often, near 1 if a few take all.

    $G = \\frac{\\sum_{i=1}^{|I|} (2i - |I| - 1) x_{(i)}}{|I| \\sum_i x_i}$ with the exposures $x_{(1)} \\le x_{(2)} \\le
    \\dots$ in ascending order (Fleder and Hosanagar, Management Science 2009). It is $1 - 1/|I|$ if one item takes all.

    Args:
        exposure (`numpy.ndarray`):
            What [`exposure`] returns, with the items that are never shown.

    Returns:
        `float`: The index.

    Raises:
        ValueError: nothing is shown at all.

    Example:
        ```python
        >>> gini([1, 3])  # (-1 * 1 + 1 * 3) / (2 * 4)
        0.25
        >>> gini([2, 2, 2]), gini([0, 0, 0, 8])
        (0.0, 0.75)

        ```
    """
    counts = np.sort(_counts(exposure))
    if counts.sum() == 0:
        raise ValueError("exposure is 0 throughout: nothing was recommended, so that there is nothing to share out.")
    weights = 2 * np.arange(1, len(counts) + 1) - len(counts) - 1
    return float(weights @ counts / (len(counts) * counts.sum()))


def _counts(exposure: np.ndarray) -> np.ndarray:
    counts = np.asarray(exposure, dtype=np.float64)
    if counts.ndim != 1 or not len(counts) or not (counts >= 0).all():
        raise ValueError(
            f"exposure has shape {counts.shape}. Pass a count, at least 0, for each item of the catalogue."
        )
    return counts


def mean_popularity(
    lists: Sequence[Sequence[Hashable]], popularity: Mapping[Any, float], k: int | None = None
) -> float:
    """
    How popular the items of lists are: the mean over the lists of the mean over their items (Average Recommendation
    Popularity; Abdollahpouri et al., 2019).

    Args:
        lists (`Sequence[Sequence]`):
            For each record its items: what is recommended, or what the user had. Empty ones are left out.
        popularity (`dict`):
            For each item its training interactions. Items without an entry have 0.
        k (`int`, *optional*):
            The cut-off, for recommended lists.

    Returns:
        `float`: In interactions per item.

    Raises:
        TypeError: one of the two has ids as numbers, and the other as text.
        ValueError: all lists are empty.

    Example:
        ```python
        >>> mean_popularity([["a", "b"], ["a"]], {"a": 10, "b": 2})  # (6 + 10) / 2
        8.0

        ```
    """
    check_same_kind(itertools.chain.from_iterable(lists), popularity, "lists", "popularity")
    means = [np.mean([popularity.get(item, 0) for item in list(items)[:k]]) for items in lists if len(items)]
    if not means:
        raise ValueError("lists: all are empty. Pass at least one item.")
    return float(np.mean(means))


def catalogue_metrics(
    recommended: Sequence[Sequence[Hashable]],
    targets: Sequence[Hashable],
    catalogue: Sequence[Hashable],
    ks: tuple[int, ...] = (1, 3, 5, 10),
    *,
    seed: int | None = None,
    popularity: Mapping[Any, float] | None = None,
    consumed: Sequence[Sequence[Hashable]] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> dict:
    """
    All metrics of lists that are recommended from a whole catalogue, as one row of a table of results.

    Nothing is sampled here: the target is sought among all items, so figures compare across models and papers with
    the same data, and are far below those among 20 candidates.

    Args:
        recommended (`Sequence[Sequence]`):
            For each record the items, the best first, at least `max(ks)` of them where there are as many.
        targets (`Sequence`):
            For each record the item that came next.
        catalogue (`Sequence`):
            All items that could be recommended.
        ks (`tuple[int, ...]`, *optional*, defaults to `(1, 3, 5, 10)`):
            The cut-offs.
        seed (`int`, *optional*):
            Deprecated: the intervals draw nothing any longer. Passing it warns.
        popularity (`dict`, *optional*):
            For each item its training interactions, for the popularity of what is recommended.
        consumed (`Sequence[Sequence]`, *optional*):
            For each record what the user had, to compare that popularity with.
        groups (`Sequence`, *optional*):
            The user of each record. Intervals are over users then, whose records are not independent.

    Returns:
        `dict`: `hr@k`, `hr@k_ci` (a list of two: the 95% interval, see [`wilson_interval`]), `ndcg@k` and `chance@k`
        (HR@k of lists drawn from the catalogue) for every k; with K the largest k, `mrr@K`, `coverage@K`, `gini@K`,
        and where given `popularity@K` and `consumed_popularity`; `n`. With groups also `hr@k_per_user`, in which every
        user counts the same, and `users`.

    Raises:
        ValueError: as the functions of this module.

    Example:
        ```python
        >>> catalogue = ["a", "b", "c", "d"]
        >>> metrics = catalogue_metrics([["a", "b"], ["a", "c"]], ["b", "d"], catalogue, ks=(1, 2))
        >>> metrics["hr@1"], metrics["hr@2"], metrics["chance@2"], metrics["mrr@2"], metrics["coverage@2"], metrics["n"]
        (0.0, 0.5, 0.5, 0.25, 0.75, 2)

        ```
    """
    warn_of_seed("catalogue_metrics", seed)
    ranks = recommendation_ranks(recommended, targets)
    metrics: dict[str, Any] = {}
    for k in ks:
        metrics[f"hr@{k}"] = hit_rate(ranks, k)
        metrics[f"hr@{k}_ci"] = list(wilson_interval(ranks <= k, groups))
        if groups is not None:
            metrics[f"hr@{k}_per_user"] = mean_per_group(ranks <= k, groups)
        metrics[f"ndcg@{k}"] = ndcg(ranks, k)
        metrics[f"chance@{k}"] = min(k, len(catalogue)) / len(catalogue)
    longest = max(ks)
    shown = exposure(recommended, catalogue, longest)
    metrics[f"mrr@{longest}"] = mean_reciprocal_rank(np.where(ranks <= longest, ranks, np.inf))
    metrics |= {f"coverage@{longest}": coverage(shown), f"gini@{longest}": gini(shown)}
    if popularity is not None:
        metrics[f"popularity@{longest}"] = mean_popularity(recommended, popularity, longest)
        if consumed is not None:
            metrics["consumed_popularity"] = mean_popularity(consumed, popularity)
    if groups is not None:
        metrics["users"] = len(set(map(str, groups)))
    return metrics | {"n": len(ranks)}
