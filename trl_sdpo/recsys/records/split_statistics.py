"""What the preparation report says of the records of a split, gathered while they are made."""

import numpy as np

from ..metrics.leaks import CodedLists
from .rows import Chunk


# Enough lists to look up in; more cost time and change little.
_MOST_REFERENCE_LISTS = 200_000


class SplitStatistics:
    """
    Gathers statistics of the chunks of a split.

    Args:
        num_targets (`int`):
            How many targets the split has.
        num_candidates (`int`):
            The length of a list.
        train_counts (`numpy.ndarray`):
            Training events of every item.
    """

    def __init__(self, num_targets: int, num_candidates: int, train_counts: np.ndarray) -> None:
        self.num_candidates, self.train_counts = num_candidates, train_counts
        self.stride = -(-num_targets // _MOST_REFERENCE_LISTS)
        self.target_hits = np.zeros(len(train_counts), dtype=np.int64)
        self.negative_hits = np.zeros(len(train_counts), dtype=np.int64)
        self._lists: list[np.ndarray] = []
        self._tokens: list[np.ndarray] = []
        self._history_lengths: list[np.ndarray] = []

    def add(self, chunk: Chunk) -> None:
        """Count a chunk."""
        size = len(self.train_counts)
        self.target_hits += np.bincount(chunk.rows.items, minlength=size)
        self.negative_hits += np.bincount(chunk.pool.ravel(), minlength=size)
        shown = np.column_stack([chunk.rows.items, chunk.pool[:, : self.num_candidates - 1]])
        self._lists.append(shown[:: self.stride].astype(np.int32))
        self._history_lengths.append((chunk.rows.histories >= 0).sum(axis=1))
        if chunk.tokens is not None:
            self._tokens.append(chunk.tokens)

    @property
    def lists(self) -> CodedLists:
        """Candidate lists, the target first; every so many-th of a large split."""
        lists = np.concatenate(self._lists)
        return CodedLists(lists[:, 0], lists.ravel(), np.full(len(lists), self.num_candidates))

    @property
    def tokens(self) -> np.ndarray | None:
        """Tokens of the records, where they were counted."""
        return np.concatenate(self._tokens) if self._tokens else None

    @property
    def history_lengths(self) -> np.ndarray:
        """Titles in the histories."""
        return np.concatenate(self._history_lengths)

    def summary(self) -> dict:
        """Quantiles of lengths and of popularity, for the report."""
        result = {
            "history_titles": _quantiles(self.history_lengths),
            "train_events_of_targets": _weighted(self.train_counts, self.target_hits),
            "train_events_of_negatives": _weighted(self.train_counts, self.negative_hits),
        }
        cold = int(self.target_hits[self.train_counts == 0].sum())
        result["share_of_targets_without_train_event"] = round(cold / max(1, int(self.target_hits.sum())), 4)
        if self.tokens is not None:
            result["tokens"] = _quantiles(self.tokens)
        return result


def _quantiles(values: np.ndarray) -> dict[str, float]:
    counts = np.bincount(values)
    return _weighted(np.arange(len(counts)), counts)


def _weighted(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Mean, quantiles and largest of values that occur so many times."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    total = int(cumulative[-1])
    quantiles = {
        name: int(values[order[np.searchsorted(cumulative, share * total)]])
        for name, share in (("median", 0.5), ("95%", 0.95))
    }
    mean = float((values * weights).sum() / total)
    return {"mean": round(mean, 2), **quantiles, "max": int(values[weights > 0].max())}
