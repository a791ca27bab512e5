"""A core of the training events: by hand, and blind to what comes later."""

from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_sdpo.recsys import Interactions, build_preference_dataset, build_sequences, temporal_split
from trl_sdpo.recsys.records.sequences import keep_core_of_training
from trl_sdpo.recsys.records.splits import user_split


def drawn(seed, rows=300):
    generator = np.random.default_rng(seed)
    columns = {"user_id": generator.integers(0, 20, rows), "item_id": generator.integers(0, 40, rows)}
    events = pl.DataFrame(columns | {"timestamp": np.sort(generator.integers(0, 200, rows))})
    items = pl.DataFrame({"item_id": range(60), "title": [f"Film {number}" for number in range(60)]})
    return Interactions(events, items, "drawn")


def by_hand(events, k, once):
    """Pairs of user and item that stay."""
    pairs = events.select("user_id", "item_id", "split").rows()
    core = [(user, item) for user, item, split in pairs if split == "train"]
    while True:
        items = Counter(item for _, item in core)
        if once:
            core = [(user, item) for user, item in core if items[item] >= k]
        users = Counter(user for user, _ in core)
        smaller = [(user, item) for user, item in core if users[user] >= k and (once or items[item] >= k)]
        if once or smaller == core:
            core = smaller
            break
        core = smaller
    trained = {user for user, _, split in pairs if split == "train"}
    users, items = {user for user, _ in core}, {item for _, item in core}
    return [(user, item) for user, item, _ in pairs if item in items and (user in users or user not in trained)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4), st.booleans(), st.booleans())
def test_the_core_is_that_of_the_training_events(seed, k, once, by_user):
    sequences = build_sequences(drawn(seed))
    events = user_split(sequences, seed=0) if by_user else temporal_split(sequences)
    expected = by_hand(events, k, once)
    options = {"min_interactions": k, "k_core": "once" if once else "fixed-point", "ties_are_sets": True}
    if not expected:
        with pytest.raises(ValueError, match="core_period='train'"):
            keep_core_of_training(events, min_length=1, **options)
        return
    kept, report = keep_core_of_training(events, min_length=1, **options)
    assert kept.select("user_id", "item_id").rows() == expected
    assert report["events_below_min_interactions"] == events.height - kept.height
    for _, own in kept.group_by("user_id", maintain_order=True):
        times = own["timestamp"].to_list()
        assert own["position"].to_list() == list(range(len(times)))
        assert own["num_earlier"].to_list() == [sum(one < time for one in times) for time in times]
    longest = max(Counter(user for user, _ in expected).values())
    few = keep_core_of_training(events, min_length=longest, **options)[0]
    assert set(few["user_id"].to_list()) == {
        user for user, count in Counter(user for user, _ in expected).items() if count >= longest
    }


def test_what_comes_later_does_not_decide_what_is_trained_on():
    """Other items in the test: the training records of the whole core change, those of the training core do not."""
    source = drawn(1, rows=600)
    last = source.events["timestamp"].quantile(0.9)
    other = source.events.with_columns(
        item_id=pl.when(pl.col("timestamp") > last).then(40 + pl.col("item_id") % 20).otherwise("item_id")
    )
    changed = Interactions(other, source.items, "drawn")
    options = {"seed": 0, "min_interactions": 9, "num_candidates": 4, "existence": "off", "merge_repeats": False}
    options |= {"exclude_seen": "phase", "min_history": 1}
    for period, same in (("train", True), ("all", False)):
        first, report = build_preference_dataset(source, core_period=period, **options)
        second, _ = build_preference_dataset(changed, core_period=period, **options)
        columns = ["user_id", "item_id", "history_item_ids", "timestamp"]
        assert (first["train"].select_columns(columns)[:] == second["train"].select_columns(columns)[:]) is same
    assert report["events_below_min_interactions"] > 0
