"""Records of items that training has not seen, and of fewer users to learn from, against loops over the events."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.recsys.records.test_promises import QUICK, SPLITS, Plain, build, sources
from trl_sdpo.recsys import Interactions, RecordConfig, build_sequences, item_split, temporal_split
from trl_sdpo.recsys.metrics.probes import leak_probes
from trl_sdpo.recsys.records.splits import held_out_items


RATIOS = (0.6, 0.2, 0.2)
OPTIONS = {"min_history": 1, "history_size": 4, "ratios": RATIOS}


def train_items(plain, held=()):
    """What has a training event."""
    cut = plain.cuts(RATIOS)[0]
    return {item for (_, item), time in plain.liked.items() if time < cut and item not in held}


@QUICK
@given(sources(), st.integers(0, 3), st.booleans(), st.sampled_from(["temporal", "items"]))
def test_cold_candidates(interactions, seed, first_event, split):
    existence = "first-event" if first_event else "off"
    options = {"seed": seed, "num_candidates": 3, "existence": existence, "split": split, "held_out_items": 0.4}
    made = build(interactions, eval_candidates="cold", **OPTIONS, **options)
    if made is None:
        return
    plain = Plain(interactions, None)
    cuts = plain.cuts(RATIOS)
    held = held_out_items(build_sequences(interactions)["item_id"], 0.4, seed).to_list() if split == "items" else []
    cold = plain.catalogue - train_items(plain, held)
    for name, begin, end in zip(SPLITS[1:], cuts, [cuts[1], None], strict=True):
        expected = set()
        for (user, item), time in plain.liked.items():
            own = [other for other, at in plain.earlier(user, time).items() if at >= cuts[0] or other not in held]
            if item not in cold or time < begin or (end is not None and time >= end) or not own:
                continue
            there = {one for one in cold if existence == "off" or plain.there(one, time)}
            allowed = there - plain.touched(user, end) - {item}
            if item in there and len(allowed) >= 2:
                expected.add((user, item, time))
                record = find(made[0][name], user, item)
                assert set(record["rejected_item_ids"]) <= allowed
        assert set(zip(*(made[0][name][key] for key in ("user_id", "item_id", "timestamp")), strict=True)) == expected
        counts = made[1][name]
        dropped = sum(value for key, value in counts.items() if key.startswith("dropped_"))
        assert counts["targets"] == counts["records"] + dropped
        assert counts["records"] == len(expected)


def find(records, user, item):
    (place,) = [
        row
        for row, pair in enumerate(zip(records["user_id"], records["item_id"], strict=True))
        if pair == (user, item)
    ]
    return records[place]


@QUICK
@given(sources(), st.integers(0, 3), st.booleans())
def test_what_is_held_out_is_in_no_training_record(interactions, seed, first_event):
    existence = "first-event" if first_event else "off"
    made = build(interactions, seed=seed, num_candidates=3, existence=existence, split="items", **OPTIONS)
    if made is None:
        return
    sequences = build_sequences(interactions)
    held = set(held_out_items(sequences["item_id"], 0.1, seed).to_list())
    assert len(held) == round(0.1 * sequences["item_id"].n_unique()) > 0
    for record in made[0]["train"]:
        shown = {record["item_id"], *record["rejected_item_ids"], *record["history_item_ids"]}
        assert not shown & held
    whole = temporal_split(sequences, RATIOS)
    left_out = whole.filter((pl.col("split") == "train") & pl.col("item_id").is_in(list(held)))
    assert made[1]["events_of_held_out_items"] == left_out.height
    # as if these events had never been, numbers of places included
    split = item_split(sequences, RATIOS, seed=seed)
    rest = Interactions(
        interactions.events.join(left_out, on=["user_id", "item_id"], how="anti"), interactions.items, "rest"
    )
    columns = ["user_id", "item_id", "timestamp", "position", "num_earlier"]
    assert split.select(columns).equals(build_sequences(rest).select(columns))


@QUICK
@given(sources(), st.integers(0, 3), st.sampled_from(["temporal", "leave-one-out"]))
def test_fewer_users_to_learn_from(interactions, seed, split):
    options = {"seed": seed, "num_candidates": 3, "split": split, "existence": "off", **OPTIONS}
    made = [build(interactions, max_train_users=count, **options) for count in (1, 2, None)]
    if None in made:
        return
    train = [set(records["train"]["user_id"]) for records, _ in made]
    assert train[0] <= train[1] <= train[2]
    assert len(train[0]) == 1
    assert len(train[1]) <= 2
    (fewest, report), (all_of_them, _) = made[0], made[2]
    for name in SPLITS[1:]:
        assert fewest[name].to_dict() == all_of_them[name].to_dict()
    kept = [row for row in all_of_them["train"] if row["user_id"] in train[0]]
    assert fewest["train"].to_list() == kept
    assert report["train"]["dropped_other_user"] == len(all_of_them["train"]) - len(kept)


def test_counts_and_negatives_know_only_the_users_to_learn_from(tmp_path):
    from trl_sdpo.recsys import load_prepared, prepare
    from trl_sdpo.recsys.records.recommender_files import load_recommender_files

    generator = np.random.default_rng(0)
    items = np.concatenate([generator.permutation(12)[:9] for _ in range(8)])
    events = pl.DataFrame({"user_id": np.repeat(np.arange(8), 9), "item_id": items, "timestamp": np.arange(72)})
    titles = pl.DataFrame({"item_id": range(12), "title": [f"Film {number}" for number in range(12)]})
    options = {"num_candidates": 3, "min_history": 1, "split": "leave-one-out", "negatives": "popularity"}
    prepare(Interactions(events, titles, "few"), tmp_path / "few", max_train_users=2, form="text", **options)
    learned = set(load_prepared(tmp_path / "few")["train"]["user_id"])
    assert len(learned) == 2
    counts = load_recommender_files(tmp_path / "few").catalogue.train_counts
    train = pl.concat(one.head(7) for one in events.partition_by("user_id") if one["user_id"][0] in learned)
    expected = dict(train.group_by("item_id").len().rows())
    assert list(counts) == [expected.get(item, 0) for item in range(12)]


def test_rules_find_no_more_than_chance_among_cold_candidates():
    """Of items with one taste for all: where negatives came from elsewhere, some rule would tell the target."""
    generator = np.random.default_rng(0)
    num_users, num_items = 150, 120
    begins = np.sort(generator.integers(0, 600, num_items))
    rows = []
    for user in range(num_users):
        for time in np.sort(generator.choice(1000, 30, replace=False)).tolist():
            there = np.flatnonzero(begins <= time)
            rows.append((user, int(generator.choice(there)) if len(there) else 0, time))
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    items = pl.DataFrame({"item_id": range(num_items), "title": [f"Film {number}" for number in range(num_items)]})
    source = Interactions(events, items, "alike")
    records, _ = build(
        source,
        seed=0,
        num_candidates=5,
        split="items",
        held_out_items=0.3,
        eval_candidates="cold",
    )
    probes = leak_probes(records["test"], records["train"])
    assert {probe.name for probe in probes} >= {"list lookup", "never a training negative", "existed by then"}
    assert [probe.name for probe in probes if probe.leaks] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eval_candidates": "cold", "eval_negatives": "hard"}, "Leave eval_negatives and candidate_seed out"),
        ({"eval_candidates": "cold", "candidate_seed": "target"}, "Leave eval_negatives and candidate_seed out"),
        ({"eval_candidates": "warm"}, "none of"),
        ({"split": "items", "core_period": "train"}, "which core_period='train' would drop"),
        ({"max_train_users": 0}, "max_train_users=0 is below 1"),
    ],
)
def test_options_that_contradict_each_other(options, words):
    with pytest.raises(ValueError, match=words):
        RecordConfig(**options)


@pytest.mark.parametrize("share", [0, 1, -0.1, 0.01])
def test_a_share_that_holds_out_nothing_or_all(share):
    with pytest.raises(ValueError, match=r"held_out_items=.*(between 0 and 1|is none)"):
        held_out_items(pl.Series([1, 2, 3]), share, 0)


def test_shares_of_items_are_nested():
    items = pl.Series([f"i{number}" for number in range(50)])
    few, many = (set(held_out_items(items, share, 3).to_list()) for share in (0.1, 0.5))
    assert (len(few), len(many)) == (5, 25)
    assert few < many
    assert held_out_items(items.reverse(), 0.1, 3).equals(held_out_items(items, 0.1, 3))
