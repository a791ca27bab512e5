"""Where systems are good and where they are not: by the popularity of the target, and by the length of the history."""

from collections.abc import Mapping

import numpy as np
from datasets import Dataset

from ..recsys.metrics.intervals import wilson_interval
from ..recsys.records.recommender_files import Catalogue


NUM_BINS = 10
# Hit rates of fewer records say nothing.
_FEWEST_RECORDS = 20


def breakdowns(
    hits: Mapping[str, np.ndarray], records: Dataset, catalogue: Catalogue | None, seed: int | None = None
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
            Not used: the intervals draw nothing.

    Returns:
        `list[dict]`: In tenths, or in fewer parts where these would hold fewer than 20 records. For each way to part the records its `name` and `unit`, the `bins` (`low`, `high`, `label`, `n`),
        and by system the values (`value`, `ci`: the 95% interval, over users where the records have a `user_id`) in the order of the bins.
    """
    columns = set(records.column_names)
    parts = []
    if "item_id" in columns and catalogue is not None and catalogue.train_counts is not None:
        counts = dict(zip(catalogue.item_ids, catalogue.train_counts, strict=True))
        values = np.array([counts.get(str(item), 0) for item in records["item_id"]])
        parts.append(("popularity of the target", "training events of the target", values))
    if "position" in columns:
        values = np.asarray(records["position"])
        parts.append(("length of the history", "events of the user before the target", values))
    elif "history_item_ids" in columns:
        values = np.array([len(row) for row in records["history_item_ids"]])
        parts.append(("length of the history", "titles before the target", values))
    users = np.array(list(map(str, records["user_id"]))) if "user_id" in columns else None
    return [_breakdown(hits, *part, users) for part in parts]


def _breakdown(
    hits: Mapping[str, np.ndarray], name: str, unit: str, values: np.ndarray, users: np.ndarray | None
) -> dict:
    places, bins = equal_bins(values, min(NUM_BINS, max(1, len(values) // _FEWEST_RECORDS)))
    systems = {}
    for system, found in hits.items():
        systems[system] = []
        for number in range(len(bins)):
            inside = places == number
            interval = wilson_interval(found[inside], None if users is None else users[inside])
            systems[system].append({"value": float(found[inside].mean()), "ci": list(interval)})
    return {"name": name, "unit": unit, "bins": bins, "systems": systems}


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
