"""
Where systems are good and where they are not: by the popularity of the target, by what training has seen of it, of the
step to it and of its user, and by the length of the history.
"""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl
from datasets import Dataset

from ..recsys.metrics.columns import read_columns
from ..recsys.metrics.intervals import group_codes, warn_of_seed, wilson_interval
from ..recsys.records.recommender_files import Catalogue


NUM_BINS = 10
# Hit rates of fewer records say nothing.
_FEWEST_RECORDS = 20
# Training events of a target: never seen, hardly, some, enough for a model of ids.
_EVENT_CUTS = (0, 5, 20)


class Parts(NamedTuple):
    """
    A way to part records.

    Args:
        name (`str`), unit (`str`):
            What they are parted by, and what the labels of the parts count or say.
        places (`numpy.ndarray`):
            The part of every record, of shape `(n,)`.
        bins (`list[dict]`):
            Of every part that has records `label` and `n`, and `low` and `high` where it is a range of numbers.
    """

    name: str
    unit: str
    places: np.ndarray
    bins: list[dict]


def breakdowns(
    hits: Mapping[str, np.ndarray],
    records: Dataset,
    catalogue: Catalogue | None,
    seed: int | None = None,
    train: Dataset | None = None,
) -> list[dict]:
    """
    Hit rates over parts of the records.

    Args:
        hits (`Mapping[str, np.ndarray]`):
            For each system whether it hits, of shape `(n,)`.
        records (`Dataset`):
            The records. Those without item ids have no popularity, those without positions or histories no lengths.
        catalogue ([`Catalogue`], *optional*):
            With training counts, for the popularity.
        seed (`int`, *optional*):
            Deprecated: the intervals draw nothing any longer. Passing it warns.
        train (`Dataset`, *optional*):
            The training records, which say which steps from item to item and which users training has seen.

    Returns:
        `list[dict]`: For each way to part the records its `name` and `unit`, the `bins` (`label`, `n`, and `low` and
        `high` where a part is a range of numbers), and by system the values (`value`, `ci`: the 95% interval, over
        users where the records have a `user_id`) in the order of the bins. In order: the popularity of the target and
        the length of the history in tenths, or in fewer parts where these would hold fewer than 20 records; the
        training events of the target (0, 1 to 5, 6 to 20, more); whether the step from the last item of the history to
        the target occurs in training; whether the user does.
    """
    warn_of_seed("breakdowns", seed)
    users = group_codes(records["user_id"], len(records)) if "user_id" in records.column_names else None
    parts = [*_by_number(records, catalogue), *_by_training(records, train)]
    return [_breakdown(hits, one, users) for one in parts]


def _by_number(records: Dataset, catalogue: Catalogue | None) -> list[Parts]:
    columns, parts = set(records.column_names), []
    num_bins = min(NUM_BINS, max(1, len(records) // _FEWEST_RECORDS))
    counts = None
    if "item_id" in columns and catalogue is not None and catalogue.train_counts is not None:
        known = dict(zip(catalogue.item_ids, catalogue.train_counts, strict=True))
        counts = np.array([known.get(str(item), 0) for item in records["item_id"]])
        unit = "training events of the target"
        parts.append(Parts("popularity of the target", unit, *equal_bins(counts, num_bins)))
    if "position" in columns:
        lengths, unit = np.asarray(records["position"]), "events of the user before the target"
    elif "history_item_ids" in columns:
        lengths, unit = np.array([len(row) for row in records["history_item_ids"]]), "titles before the target"
    else:
        lengths = None
    if lengths is not None:
        parts.append(Parts("length of the history", unit, *equal_bins(lengths, num_bins)))
    if counts is not None:
        labels = ["0", *(f"{low + 1}–{high}" for low, high in itertools.pairwise(_EVENT_CUTS))]
        places = np.searchsorted(_EVENT_CUTS, counts)
        parts.append(_labelled("training events of the target", "training events", places, [*labels, "above 20"]))
    return parts


def _by_training(records: Dataset, train: Dataset | None) -> list[Parts]:
    needed = {"user_id", "item_id", "history_item_ids"}
    if train is None or not needed <= set(records.column_names) or not needed <= set(train.column_names):
        return []
    steps = training_steps(train)
    histories = records["history_item_ids"]
    taken = [
        (str(row[-1]) if len(row) else None, str(item))
        for row, item in zip(histories, records["item_id"], strict=True)
    ]
    known = np.array([step in steps for step in taken])
    users = set(map(str, train["user_id"]))
    warm = np.array([str(user) in users for user in records["user_id"]])
    return [
        _labelled("step from the last item to the target", "in training", known.astype(int), ["not seen", "seen"]),
        _labelled("user", "records in training", warm.astype(int), ["cold: none", "warm"]),
    ]


def training_steps(train: Dataset) -> set[tuple[str, str]]:
    """
    Which item came directly after which in the training records: from the last of a history to the target, and from
    each to the next within histories.

    Args:
        train (`Dataset`):
            Training records with `item_id` and `history_item_ids`.

    Returns:
        `set[tuple[str, str]]`: Pairs of item ids, the earlier first.
    """
    frame = read_columns(train, ["history_item_ids", "item_id"])
    items = pl.concat_list(pl.col("history_item_ids").cast(pl.List(pl.String)), pl.col("item_id").cast(pl.String))
    rows = frame.select(items.alias("item")).with_row_index("row").explode("item")
    steps = rows.select("item", pl.col("item").shift(-1).over("row").alias("next")).drop_nulls().unique()
    return set(steps.iter_rows())


def _labelled(name: str, unit: str, places: np.ndarray, labels: list[str]) -> Parts:
    """Parts with a label each, less those that have no records."""
    there, places, counts = np.unique(places, return_inverse=True, return_counts=True)
    bins = [{"label": labels[place], "n": int(count)} for place, count in zip(there, counts, strict=True)]
    return Parts(name, unit, places, bins)


def _breakdown(hits: Mapping[str, np.ndarray], parts: Parts, users: np.ndarray | None) -> dict:
    systems: dict[str, list[dict]] = {}
    for system, found in hits.items():
        systems[system] = []
        for number in range(len(parts.bins)):
            inside = parts.places == number
            interval = wilson_interval(found[inside], None if users is None else users[inside])
            systems[system].append({"value": float(found[inside].mean()), "ci": list(interval)})
    return {"name": parts.name, "unit": parts.unit, "bins": parts.bins, "systems": systems}


def equal_bins(values: np.ndarray, num_bins: int = NUM_BINS) -> tuple[np.ndarray, list[dict]]:
    """
    Parts of records with as many in each as equal values allow, which stay together.

    Args:
        values (`numpy.ndarray`):
            Whole numbers, one per record.
        num_bins (`int`, *optional*, defaults to `10`):
            Parts at most: 10 are deciles.

    Returns:
        `tuple[numpy.ndarray, list[dict]]`: The part of every record, and of every part `low`, `high`, `label` and `n`.

    Example:
        ```python
        >>> places, bins = equal_bins(np.array([1, 1, 1, 5, 9, 9]), num_bins=3)
        >>> places.tolist(), [part["label"] for part in bins], [part["n"] for part in bins]
        ([0, 0, 0, 1, 2, 2], ['1', '5', '9'], [3, 1, 2])

        ```
    """
    values = np.asarray(values)
    # in whole numbers: 0.3 * 80 is more than 24
    ends = [-(-len(values) * number // num_bins) - 1 for number in range(1, num_bins)]
    cuts = np.unique(np.sort(values)[np.maximum(np.array(ends, dtype=np.int64), 0)])
    # a part ends with the value at its cut
    places = np.unique(np.searchsorted(cuts, values), return_inverse=True)[1]
    bins = []
    for number in range(places.max() + 1):
        part = values[places == number]
        low, high = int(part.min()), int(part.max())
        bins.append({"low": low, "high": high, "label": str(low) if low == high else f"{low}–{high}", "n": len(part)})
    return places, bins
