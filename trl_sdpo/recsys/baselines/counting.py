"""Recommenders without a language model, as functions that score the candidates of records."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl

from ..interactions.codes import encode
from ..interactions.interactions import ITEM_ID, USER_ID
from ..negatives.cooccurrence import PairTable, joined, pairs_of_users, pairs_within
from ..negatives.strategies import NUM_EARLIER, POSITION
from ..records.splits import SPLIT
from .scores import HISTORY, Scorer


LAST = "last"


def training_sequences(events: pl.DataFrame) -> pl.DataFrame:
    """
    The training events as the baselines read them.

    Args:
        events (`polars.DataFrame`):
            Events with `user_id` and `item_id`, those of a user one after the other and in order, as
            [`build_sequences`] makes them. Where there is a column `split`, only `train` is read, so that nothing of
            validation or test can get into a baseline.

    Returns:
        `polars.DataFrame`: The columns `user_id`, `item_id` as strings, and `last`, which is true at the last event
        of a user.

    Raises:
        ValueError: a column is missing or null, there is no training event, or the events of a user do not stand
            together.
    """
    for column in (USER_ID, ITEM_ID):
        if column not in events.columns:
            raise ValueError(f"events: no column '{column}', only {events.columns}. Rename or add it.")
        if events[column].null_count():
            row = events[column].is_null().arg_true()[0]
            raise ValueError(f"events: row {row}, column '{column}': is null. Fill or remove the row.")
    if SPLIT in events.columns:
        events = events.filter(pl.col(SPLIT) == "train")
    if events.is_empty():
        raise ValueError("events: no training event. Pass those of the training split.")
    if POSITION in events.columns:
        events = events.sort(USER_ID, POSITION)
    last = pl.col(USER_ID).ne_missing(pl.col(USER_ID).shift(-1)).alias(LAST)
    sequences = events.select(USER_ID, pl.col(ITEM_ID).cast(pl.String), last)
    if sequences[LAST].sum() != sequences[USER_ID].n_unique():
        user = sequences.filter(LAST)[USER_ID]
        raise ValueError(
            f"events: column '{USER_ID}': the events of {user.filter(user.is_duplicated())[0]!r} do not stand "
            "together. Pass what `build_sequences` returns."
        )
    return sequences


def events_of_records(records: Any) -> pl.DataFrame:
    """
    The training events that training records hold: their targets, and the histories before them.

    A prepared data set does not carry the events it was made of. Where every event with enough history became a
    record, this gives back all of them but those of users who have no record. Events between two windows, where
    records were drawn, are not known.

    Args:
        records (`Dataset` or `dict[str, Sequence]`):
            Training records with `user_id`, `item_id`, `history_item_ids` and `position`. Histories of training
            records lie before their targets, so in the training period.

    Returns:
        `polars.DataFrame`: `user_id`, `item_id` (as strings) and `position`, sorted, each event once.

    Raises:
        ValueError: there are no records.

    Example:
        ```python
        >>> records = {"user_id": [5], "item_id": [30], "history_item_ids": [[10, 20]], "position": [2]}
        >>> events_of_records(records)["item_id"].to_list()
        ['10', '20', '30']

        ```
    """
    names = [USER_ID, ITEM_ID, HISTORY, POSITION]
    # What was at the target's own time is not in the history, which then ends before the place of the target.
    there = records.column_names if hasattr(records, "column_names") else records
    end = NUM_EARLIER if NUM_EARLIER in there else POSITION
    frame = pl.DataFrame({name: list(records[name]) for name in dict.fromkeys([*names, end])})
    if frame.is_empty():
        raise ValueError("records: no rows. Pass training records.")
    items = pl.concat_list(pl.col(HISTORY), pl.col(ITEM_ID))
    places = pl.concat_list(pl.int_ranges(pl.col(end) - pl.col(HISTORY).list.len(), pl.col(end)), pl.col(POSITION))
    events = frame.select(USER_ID, items.alias(ITEM_ID), places.alias(POSITION)).explode(ITEM_ID, POSITION)
    return events.unique().sort(USER_ID, POSITION).with_columns(pl.col(ITEM_ID).cast(pl.String))


def popularity_scorer(events: pl.DataFrame) -> Scorer:
    """
    Score a candidate by its number of training events, whatever the history, as [`popularity_scores`].

    Args:
        events (`polars.DataFrame`):
            See [`training_sequences`].

    Returns:
        `Callable`: A scorer. Equal counts tie, which counts against the target.

    Example:
        ```python
        >>> events = pl.DataFrame({"user_id": [1, 2, 2], "item_id": [7, 7, 8]})
        >>> popularity_scorer(events)([["7"]], [["8", "7", "9"]])[0].tolist()
        [1, 2, 0]

        ```
    """
    count = _counter(training_sequences(events)[ITEM_ID])  # counted once, not in every call
    return lambda histories, candidates: count(candidates)


def _counter(items: pl.Series) -> Callable[[Sequence[Sequence]], list[np.ndarray]]:
    """What looks up how often each id of some rows occurs among items."""
    known, counts = items.cast(pl.String).value_counts(name="count").sort(items.name)

    def count(rows: Sequence[Sequence]) -> list[np.ndarray]:
        places = encode(pl.Series([str(item) for row in rows for item in row], dtype=pl.String), known)
        found = np.where(places < 0, 0, counts.to_numpy().astype(np.int64)[places])
        return np.split(found, np.cumsum([len(row) for row in rows])[:-1])

    return count


def popularity_scores(train_events: pl.DataFrame, records: Any) -> np.ndarray | list[np.ndarray]:
    """
    The popularity baseline: score a candidate by its number of training events.

    Args:
        train_events (`polars.DataFrame`):
            The events to count, with `item_id`: those of the training split alone.
        records (`Dataset`, or `dict[str, Sequence]`):
            Records with `item_id` and `rejected_item_ids`, as [`build_preference_dataset`] makes them.

    Returns:
        `numpy.ndarray` or `list[numpy.ndarray]`: Per record the score of the target, then those of the rejected, for
        [`ranks`]: of shape `(n, 1 + K)`, or a list where K differs.

    Example:
        ```python
        >>> import polars as pl
        >>> train = pl.DataFrame({"item_id": [7, 7, 8]})
        >>> popularity_scores(train, {"item_id": [8], "rejected_item_ids": [[7, 9]]}).tolist()
        [[1, 2, 0]]

        ```
    """
    targets, rejected = records[ITEM_ID], records["rejected_item_ids"]
    rows: Sequence[Sequence] = [[target, *others] for target, others in zip(targets, rejected, strict=True)]
    if not rows:
        raise ValueError("records: no rows. Pass at least one record.")
    scores = _counter(train_events[ITEM_ID])(rows)
    return np.stack(scores) if len({len(row) for row in rows}) == 1 else scores


def cooccurrence_scorer(events: pl.DataFrame, *, window: int = 20) -> Scorer:
    """
    Score a candidate by how often it came soon after the last item of the history in the training sequences.

    Many candidates never did; between equal counts the more popular one goes first: popularity adds less than one to
    the score. What is equal even so ties, which counts against the target.

    Args:
        events (`polars.DataFrame`):
            See [`training_sequences`].
        window (`int`, *optional*, defaults to `20`):
            How many events later is still soon; 1 for the very next. The default is the best of 1, 2, 5, 10, 20 and
            50 on validation records of MovieLens-100k.

    Returns:
        `Callable`: A scorer.

    Raises:
        ValueError: `window` is below 1.

    Example:
        ```python
        >>> events = pl.DataFrame({"user_id": [1, 1, 1, 2, 2], "item_id": [7, 8, 9, 7, 8]})
        >>> scores = cooccurrence_scorer(events, window=1)([["9", "7"]], [["8", "9"]])[0]
        >>> scores.astype(int).tolist()
        [2, 0]

        ```
    """
    if window < 1:
        raise ValueError(f"window={window} is below 1. Pass the number of events.")
    sequences = training_sequences(events)
    users, codes, items = _coded(sequences)
    first, second, counts = joined(pairs_within(users, codes, len(items), window))
    popularity = _popularity(codes, len(items))
    pairs = PairTable(items, first, second, counts.astype(np.float64))

    def score(histories: list[list[str]], candidates: list[list[str]]) -> list[np.ndarray]:
        return pairs.score([history[-1:] for history in histories], candidates, popularity)

    return score


def item_knn_scorer(events: pl.DataFrame, *, k: int = 1000, shrink: float = 10.0, window: int | None = 20) -> Scorer:
    """
    Item-based nearest neighbours: the sum, over the history, of the similarities of its items to the candidate.

    The similarity of items i and j is the cosine of their users with shrinkage,
    $c_{ij} / (\\sqrt{c_i c_j} + \\text{shrink})$, where $c_i$ counts the users of i and $c_{ij}$ those of both
    (Sarwar et al., WWW 2001; Deshpande and Karypis, TOIS 2004). A candidate is compared to its `k` most similar items
    alone. Where no item of the history is among them, popularity decides: it adds less than 1e-6.

    Args:
        events (`polars.DataFrame`):
            See [`training_sequences`].
        k (`int`, *optional*, defaults to `1000`):
            Neighbours of an item.
        shrink (`float`, *optional*, defaults to `10.0`):
            Users to add to the denominator, so that two items that share one user by chance are not close.
        window (`int`, *optional*, defaults to `20`):
            Count in $c_{ij}$ only users who took both at most so many events apart, in either order, so that items
            are close that are taken in the same sitting. `None` for the whole sequence, as in the papers. Without
            the window, `k=200` did best on validation records of MovieLens-100k, and with it the defaults.

    Returns:
        `Callable`: A scorer.

    Raises:
        ValueError: a number is out of range.

    Example:
        ```python
        >>> events = pl.DataFrame({"user_id": [1, 1, 2, 2, 3], "item_id": [7, 8, 7, 8, 9]})
        >>> scorer = item_knn_scorer(events, shrink=0)
        >>> scorer([["7"]], [["8", "9"]])[0].round(3).tolist()
        [1.0, 0.0]

        ```
    """
    if k < 1 or shrink < 0 or (window is not None and window < 1):
        raise ValueError(f"k={k} and window={window} must be at least 1, shrink={shrink} at least 0.")
    sequences = training_sequences(events)
    users, codes, items = _coded(sequences)
    if window is None:
        parts = pairs_of_users(users, codes, len(items))
    else:
        parts = pairs_within(users, codes, len(items), window, both_orders=True)
    takers = np.bincount(np.unique(users * len(items) + codes) % len(items)).astype(np.float64)
    first, second, similarity = joined(_nearest(*part, takers, shrink, k) for part in parts)
    # keyed by (history item, candidate), where the candidate is the one whose neighbours were taken
    pairs = PairTable(items, second, first, similarity)
    popularity = 1e-6 * _popularity(codes, len(items))

    def score(histories: list[list[str]], candidates: list[list[str]]) -> list[np.ndarray]:
        return pairs.score(histories, candidates, popularity)

    return score


def _nearest(
    first: np.ndarray, second: np.ndarray, counts: np.ndarray, takers: np.ndarray, shrink: float, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the pairs of each first item the `k` most similar, equal ones in the order of the second item."""
    similarity = counts / (np.sqrt(takers[first] * takers[second]) + shrink)
    order = np.lexsort((second, -similarity, first))
    place = np.arange(len(order)) - np.searchsorted(first[order], first[order])
    kept = order[place < k]
    return first[kept], second[kept], similarity[kept]


def _coded(sequences: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, pl.Series]:
    """Users and items of the events as whole numbers from 0, and the items."""
    items = sequences[ITEM_ID].unique().sort()
    users = np.cumsum(np.append(0, sequences[LAST].to_numpy()[:-1]))
    return users, encode(sequences[ITEM_ID], items), items


def _popularity(codes: np.ndarray, num_items: int) -> np.ndarray:
    """Counts of events, scaled to lie below 1."""
    counts = np.bincount(codes, minlength=num_items)
    return counts / (counts.max() + 1)
