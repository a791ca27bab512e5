from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_sdpo.recsys import Interactions, build_preference_dataset, build_sequences, temporal_split
from trl_sdpo.recsys.records.sequences import build_sequences_with_report, keep_core_of_training
from trl_sdpo.recsys.records.splits import user_split


def make(rows, has_time=True, ratings=True):
    schema = {"user_id": pl.Int64, "item_id": pl.Int64, "timestamp": pl.Int64, "rating": pl.Float64}
    events = pl.DataFrame(rows, schema=schema, orient="row")
    ids = sorted(events["item_id"].unique())
    items = pl.DataFrame({"item_id": ids, "title": [f"Title {number}" for number in ids]})
    return Interactions(events if ratings else events.drop("rating"), items, "tiny", has_time=has_time)


ROWS = [(2, 5, 40, 1.0), (1, 9, 20, 5.0), (1, 7, 20, 3.0), (1, 8, 10, 2.0), (2, 7, 30, 4.0), (1, 8, 50, 5.0)]


def test_order_is_user_and_time_and_tied_events_are_a_set():
    columns = ["user_id", "item_id", "timestamp", "position", "num_earlier"]
    orders = set()
    for seed in range(20):
        sequences = build_sequences(make(ROWS), seed=seed)
        first, second = sequences["item_id"][1:3]
        orders.add((first, second))
        expected = [(1, 8, 10, 0, 0), (1, first, 20, 1, 1), (1, second, 20, 2, 1), (2, 7, 30, 0, 0), (2, 5, 40, 1, 1)]
        assert sequences.select(columns).rows() == expected
    # neither way round by the ids
    assert orders == {(7, 9), (9, 7)}
    assert sequences.schema["position"] == sequences.schema["num_earlier"] == pl.Int64


def test_ties_by_item_id_are_for_comparison_only():
    sequences = build_sequences(make(ROWS), order="time-then-item")
    assert sequences["item_id"].to_list() == [8, 7, 9, 7, 5]
    assert sequences["num_earlier"].to_list() == [0, 1, 2, 0, 1]


def test_the_order_of_rows_does_not_matter():
    assert build_sequences(make(ROWS)).equals(build_sequences(make(ROWS[::-1])))


def test_repeats_can_stay():
    sequences = build_sequences(make(ROWS), merge_repeats=False)
    items = sequences.filter(pl.col("user_id") == 1)["item_id"].to_list()
    assert items in ([8, 7, 9, 8], [8, 9, 7, 8])


def test_min_rating_goes_before_the_merging_of_repeats():
    sequences, report = build_sequences_with_report(make(ROWS), min_rating=3)
    # The first event with item 8 is rated 2, so the second one, rated 5, is the one that counts.
    assert sorted(sequences.select("user_id", "item_id").rows()[:2]) == [(1, 7), (1, 9)]
    assert sequences.select("user_id", "item_id").rows()[2:] == [(1, 8), (2, 7)]
    assert report == {
        "events": 6,
        "events_below_min_rating": 2,
        "events_repeated": 0,
        "events_below_min_interactions": 0,
        "events_below_min_length": 0,
        "users": 2,
        "items": 3,
        "events_tied_in_time": 2,
    }


def test_k_core_is_repeated_until_all_have_enough():
    # Item 3 has one user; without it user 3 has one item; without that user item 2 keeps two users.
    rows = [(1, 1, 1, 5.0), (1, 2, 2, 5.0), (2, 1, 3, 5.0), (2, 2, 4, 5.0), (3, 2, 5, 5.0), (3, 3, 6, 5.0)]
    sequences, report = build_sequences_with_report(make(rows), min_interactions=2)
    assert sequences.select("user_id", "item_id").rows() == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert report["events_below_min_interactions"] == 2


def test_a_source_without_time_has_a_drawn_order_or_that_of_its_file():
    rows = [(2, 5, None, 1.0), *((1, item, None, 5.0) for item in (9, 7, 8, 1, 2, 3))]
    interactions = make(rows, has_time=False)
    sequences = build_sequences(interactions, order="file")
    assert sequences["item_id"].to_list() == [9, 7, 8, 1, 2, 3, 5]
    assert sequences["position"].to_list() == sequences["num_earlier"].to_list() == [0, 1, 2, 3, 4, 5, 0]
    orders = {tuple(build_sequences(interactions, seed=seed)["item_id"]) for seed in range(5)}
    assert len(orders) == 5
    assert build_sequences(make(rows[::-1], has_time=False)).equals(build_sequences(interactions))


def test_errors_say_what_to_change():
    with pytest.raises(ValueError, match=r"tiny: no event is left .* Lower min_rating=6, min_interactions=1"):
        build_sequences(make(ROWS), min_rating=6)
    with pytest.raises(ValueError, match=r"tiny: no event is left .* min_interactions=9"):
        build_sequences(make(ROWS), min_interactions=9)
    with pytest.raises(ValueError, match="min_interactions=0 is below 1"):
        build_sequences(make(ROWS), min_interactions=0)
    with pytest.raises(ValueError, match="min_rating=3, but no column 'rating'"):
        build_sequences(make(ROWS, ratings=False), min_rating=3)


def test_k_core_once_drops_items_and_then_users():
    # Items 1 and 2 have two users; user 3 has one item left and goes, and item 2 stays with one user.
    rows = [(1, 1, 1, 5.0), (1, 2, 2, 5.0), (2, 1, 3, 5.0), (2, 4, 4, 5.0), (3, 2, 5, 5.0), (3, 3, 6, 5.0)]
    once = build_sequences(make(rows), min_interactions=2, k_core="once")
    assert once.select("user_id", "item_id").rows() == [(1, 1), (1, 2)]
    with pytest.raises(ValueError, match="no event is left"):
        build_sequences(make(rows), min_interactions=2)


def test_users_with_too_few_events_go_after_the_other_filters():
    sequences, report = build_sequences_with_report(make(ROWS), min_length=3)
    assert sequences["user_id"].unique().to_list() == [1]
    assert report["events_below_min_length"] == 2
    sequences, report = build_sequences_with_report(make([*ROWS, (3, 5, 1, 5.0)]), min_length=2)
    # a user with one item
    assert 3 not in sequences["user_id"]
    assert report["events_below_min_length"] == 1


def test_order_of_the_file_of_a_source_with_time():
    sequences = build_sequences(make(ROWS), order="file-unchecked")
    assert sequences.filter(pl.col("user_id") == 1)["item_id"].to_list() == [9, 7, 8]
    with pytest.raises(
        ValueError,
        match=r"tiny: order='file', but .* user 1, item 8, column 'timestamp': 10 stands behind 20 \(2 such",
    ):
        build_sequences(make(ROWS), order="file")
    in_time = sorted(ROWS, key=lambda row: row[2])
    sequences = build_sequences(make(in_time), order="file")
    assert sequences.filter(pl.col("user_id") == 1)["item_id"].to_list() == [8, 9, 7]
    assert sequences["num_earlier"].to_list() == [0, 1, 2, 0, 1]


def test_order_is_the_same_however_large_the_ids():
    """Columns that do not fit 64 bits together are sorted in another way."""
    large = [(user * 2**40, item * 2**40, time, rating) for user, item, time, rating in ROWS]
    ours, theirs = build_sequences(make(large)), build_sequences(make(ROWS))
    for column in ("timestamp", "position", "num_earlier"):
        assert ours[column].to_list() == theirs[column].to_list()
    assert {item // 2**40 for item in ours["item_id"]} == set(theirs["item_id"])


def test_repeats_are_found_among_strings_and_large_ids():
    interactions = make(ROWS)
    events = interactions.events.with_columns(pl.col("user_id", "item_id").cast(pl.String))
    items = interactions.items.with_columns(pl.col("item_id").cast(pl.String))
    _, report = build_sequences_with_report(Interactions(events, items, "tiny"))
    large = [(user * 2**40, item * 2**40, time, rating) for user, item, time, rating in ROWS]
    assert report["events_repeated"] == build_sequences_with_report(make(large))[1]["events_repeated"] == 1


@pytest.mark.parametrize("option", [{"k_core": "twice"}, {"order": "random"}, {"min_length": 0}])
def test_options_out_of_range(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        build_sequences(make(ROWS), **option)


# A core of the training events: by hand, and blind to what comes later


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
