"""Ratings in the records, against a plain look-up of the events."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_sdpo.recsys import Interactions, build_preference_dataset
from trl_sdpo.recsys.records.config import RecordConfig


ITEMS = pl.DataFrame({"item_id": range(60), "title": [f"Title {number}" for number in range(60)]})


def rated(seed=0, users=14, events=24):
    """Users that take items in a random order, one a day, and rate them from 1 to 5."""
    rng = np.random.default_rng(seed)
    items = np.concatenate([rng.permutation(60)[:events] for _ in range(users)])
    ratings = rng.integers(1, 6, len(items)).astype(float)
    table = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), events),
            "item_id": items,
            "rating": ratings,
            "timestamp": np.tile(np.arange(events), users) * 86_400 + np.repeat(np.arange(users), events),
        }
    )
    return Interactions(table, ITEMS, "rated")


def build(interactions, **options):
    options = {"seed": 0, "num_candidates": 6, "existence": "off", "scores": True} | options
    return build_preference_dataset(interactions, **options)


OPTIONS = {
    "temporal": {},
    "leave-one-out": {"split": "leave-one-out"},
    "by user": {"split": "user"},
    "filtered": {"min_rating": 3.0},
    "the future too": {"exclude_seen": "ever"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_of_the_target_and_of_what_was_not_taken(name):
    source = rated()
    ratings = {(user, item): rating for user, item, rating, _ in source.events.rows()}
    dataset, _ = build(source, **OPTIONS[name])
    for split in dataset:
        for row in dataset[split]:
            assert row["chosen_score"] == ratings[row["user_id"], row["item_id"]]
            # none of them was taken by the end of the phase, so that a rating would be one of the future
            assert row["rejected_scores"] == [None] * len(row["rejected"])


@settings(deadline=None, max_examples=6)
@given(
    seed=st.integers(0, 100),
    low=st.sampled_from([1.0, 2.0, 3.0]),
    share=st.sampled_from([0.25, 0.5, 1.0]),
    style=st.sampled_from(["history", "candidates"]),
)
def test_low_rated_negatives(seed, low, share, style):
    source = rated(seed)
    ratings = {(user, item): rating for user, item, rating, _ in source.events.rows()}
    negatives = {"low-rated": share, "uniform": 1 - share} if share < 1 else "low-rated"
    options = {"negatives": negatives, "low_rating": low, "prompt_style": style, "history_size": 5}
    dataset, _ = build(source, **options)
    first_test = min(dataset["test"]["timestamp"])
    times = {(user, item): time for user, item, _, time in source.events.rows()}
    drawn = 0
    for row in dataset["train"]:
        user, negatives = row["user_id"], row["rejected_item_ids"]
        assert len(set(negatives)) == len(negatives) == 5
        assert row["item_id"] not in negatives
        for item, score in zip(negatives, row["rejected_scores"], strict=True):
            if score is None:
                taken = times.get((user, item))
                assert taken is None or taken > max(dataset["train"]["timestamp"])
            else:
                assert score == ratings[user, item] <= low
                assert score < row["chosen_score"]
                assert times[user, item] < first_test
                assert item not in row["history_item_ids"]
                drawn += 1
    assert drawn > 0


def test_all_low_rated_items_are_drawn_alike():
    """Each record takes two of what is left to it; over all of a user's records each such item comes about as often."""
    source = rated(users=30, events=40)
    dataset, _ = build(source, negatives="low-rated", low_rating=1.0, num_candidates=3, history_size=1)
    counts = {}
    for row in dataset["train"]:
        for item, score in zip(row["rejected_item_ids"], row["rejected_scores"], strict=True):
            if score is not None:
                counts.setdefault(row["user_id"], {}).setdefault(item, 0)
                counts[row["user_id"]][item] += 1
    spread = []
    for items in counts.values():
        mean = sum(items.values()) / len(items)
        spread += [(count - mean) ** 2 / mean for count in items.values()]
    # as often as chance lets them: near 1 were they drawn one by one
    assert np.mean(spread) < 1.5


def test_workers_seeds_and_other_splits():
    source = rated()
    options = {"negatives": "low-rated:0.5,uniform:0.5", "low_rating": 2.0}
    one, _ = build(source, **options)
    uniform, _ = build(source)
    for split in ("validation", "test"):
        assert one[split].to_list() == uniform[split].to_list()
    two, _ = build(source, **options, num_workers=3)
    other, _ = build(source, **options, seed=1)
    assert one["train"].to_list() == two["train"].to_list()
    assert one["train"]["rejected_item_ids"] != other["train"]["rejected_item_ids"]


def test_no_columns_without_the_option():
    dataset, _ = build(rated(), scores=False)
    assert not {"chosen_score", "rejected_scores"} & set(dataset["train"].column_names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_negatives": "low-rated"}, "eval_negatives='low-rated': candidates would be items"),
        ({"negatives": "low-rated"}, "negatives='low-rated' and low_rating=None: .* Pass both, or neither"),
        ({"low_rating": 2.0}, "negatives='uniform' and low_rating=2.0"),
        (
            {"negatives": "low-rated", "low_rating": 2.0, "exclude_seen": "ever"},
            "need exclude_seen='phase', not 'ever'",
        ),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RecordConfig(**options)


def test_a_source_without_ratings():
    source = rated()
    bare = Interactions(source.events.drop("rating"), source.items, "bare")
    for options in ({"scores": True}, {"scores": False, "negatives": "low-rated", "low_rating": 2.0}):
        with pytest.raises(ValueError, match="bare: scores and low_rating need a column 'rating'"):
            build(bare, **options)
