"""What is counted is counted on training events, and evaluation is the same whatever training draws."""

import numpy as np
import polars as pl
import pytest

from trl_sdpo.recsys import Interactions, build_preference_dataset
from trl_sdpo.recsys.records.config import RecordConfig
from trl_sdpo.recsys.records.dataset import plan_records


USERS, EVENTS, EARLY_ITEMS, LATE_ITEMS = 20, 20, 60, 20
OPTIONS = {"seed": 0, "num_candidates": 6, "existence": "off"}


def make_interactions(late_items):
    """
    Users step side by side through time, with items of their own in the first 16 steps. In the last 4, which are validation
    and test, all items are others: `late_items` of the 80 events.
    """
    generator = np.random.default_rng(0)
    early = np.concatenate([generator.permutation(EARLY_ITEMS)[:EVENTS] for _ in range(USERS)])
    step, user = np.tile(np.arange(EVENTS), USERS), np.repeat(np.arange(USERS), EVENTS)
    item = early.copy()
    item[step >= 16] = EARLY_ITEMS + late_items
    events = pl.DataFrame({"user_id": user, "item_id": item, "timestamp": 1000 * step + user})
    items = pl.DataFrame({"item_id": range(EARLY_ITEMS + LATE_ITEMS)})
    return Interactions(events, items.with_columns(pl.format("Film {} (1999)", "item_id").alias("title")), "tiny")


# each user has four different items of the twenty, and every item is there in both: evenly, or one in most lists
EVEN = make_interactions((np.arange(4) + 4 * np.arange(USERS)[:, None]).ravel() % LATE_ITEMS)
SKEWED = make_interactions(np.stack([np.full(USERS, 3), *((np.arange(USERS) + n) % 19 + (((np.arange(USERS) + n) % 19) >= 3) for n in range(3))], axis=1).ravel())  # fmt: skip


@pytest.mark.parametrize("negatives", ["popularity", "hard"])
def test_negatives_of_training_do_not_know_the_events_of_evaluation(negatives):
    even, skewed = (
        build_preference_dataset(interactions, negatives=negatives, **OPTIONS)[0]["train"]
        for interactions in (EVEN, SKEWED)
    )
    assert even["item_id"] == skewed["item_id"]
    assert even["rejected_item_ids"] == skewed["rejected_item_ids"]


def test_counts_of_the_catalogue_are_of_training_events():
    plan = plan_records(EVEN, RecordConfig(**OPTIONS))
    events = EVEN.events.filter(pl.col("timestamp") < 16_000)
    counts = dict(events.group_by("item_id").len().rows())
    expected = [counts.get(item, 0) for item in plan.catalogue["item_id"]]
    assert plan.train_counts.tolist() == expected
    assert sum(expected) == 16 * USERS


def test_lists_of_evaluation_are_the_same_whatever_training_draws():
    uniform, popular, hard = (
        build_preference_dataset(EVEN, negatives=negatives, **OPTIONS)[0]
        for negatives in ("uniform", "popularity", "hard")
    )
    assert uniform["train"]["rejected_item_ids"] != popular["train"]["rejected_item_ids"]
    for split in ("validation", "test"):
        for other in (popular, hard):
            assert other[split]["rejected_item_ids"] == uniform[split]["rejected_item_ids"]
