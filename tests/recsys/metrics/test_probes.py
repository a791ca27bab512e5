"""Each rule on made-up records that have its leak, and on records that have none."""

import logging

import numpy as np
import pytest

from trl_sdpo.recsys.metrics.probes import leak_probes


def make(count, leak=None, seed=0):
    """Records of 30 users on 400 items; `leak(row, generator)` changes one."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        drawn = generator.permutation(400)[:30].tolist()
        row = {"user_id": number % 30, "timestamp": 1000 + number, "position": number // 30}
        row |= {"item_id": drawn[0], "rejected_item_ids": drawn[1:20], "history_item_ids": drawn[20:]}
        if leak is not None:
            leak(row, generator)
        row |= {"chosen": str(row["item_id"]), "rejected": list(map(str, row["rejected_item_ids"]))}
        rows.append(row)
    return {name: [row[name] for row in rows] for name in rows[0]}


def probe(records, reference=None):
    return {one.name: one for one in leak_probes(records, reference)}


def next_id(row, generator):
    row["history_item_ids"][-1] = row["item_id"] - 1


def cold_negatives(row, generator):
    row["rejected_item_ids"] = [item + 1000 for item in row["rejected_item_ids"]]


def own_negatives(row, generator):
    """A user never takes the items whose number is not that of its own modulo 2, which are its negatives."""
    mine = row["user_id"] % 2
    row["item_id"] = row["item_id"] // 2 * 2 + mine
    row["rejected_item_ids"] = (2 * generator.permutation(200)[:19] + 1 - mine).tolist()


def repeated(row, generator):
    row["history_item_ids"][3] = row["item_id"]


def test_records_without_a_leak_are_at_chance(caplog):
    with caplog.at_level(logging.WARNING):
        found = probe(make(1500), make(1500, seed=1))
    assert len(found) == 10
    assert not caplog.text
    for one in found.values():
        # the lookup misses where its answer is no candidate, so it stays below chance
        assert one.hr_at_1 < 0.07, one.name
        assert (one.n, one.users, one.chance) == (1500, 30, pytest.approx(0.05))
        assert one.ci[0] <= one.hr_at_1 <= one.ci[1]
        assert not one.leaks


@pytest.mark.parametrize(
    ("leak", "name", "words"),
    [
        (next_id, "id above the last", "order='time'"),
        (own_negatives, "never a training negative", "exclude_seen='phase'"),
        (cold_negatives, "existed by then", "existence='first-event'"),
        (repeated, "in the history", "merge_repeats=True"),
    ],
)
def test_each_rule_finds_its_leak_and_says_what_to_change(leak, name, words, caplog):
    with caplog.at_level(logging.WARNING):
        found = probe(make(400, leak), make(3000, leak, seed=1))
    assert found[name].leaks
    assert found[name].hr_at_1 > 0.5
    assert f"the rule '{name}' finds" in caplog.text
    assert words in caplog.text


def test_neighbours_as_negatives_leave_the_target_alone():
    """Negatives from the block of the history, the target from the other one."""

    def blocks(row, generator):
        row["history_item_ids"] = generator.permutation(60)[:10].tolist()
        row["item_id"] = int(generator.integers(60))

    def hard(row, generator):
        drawn = generator.permutation(60).tolist()
        row["history_item_ids"], row["rejected_item_ids"] = drawn[:10], drawn[10:29]
        row["item_id"] = 60 + int(generator.integers(340))

    assert probe(make(300, hard), make(3000, blocks, seed=1))["not a neighbour"].leaks


def test_records_without_ids_have_the_list_lookup_alone():
    texts = {"chosen": ["A", "B"], "rejected": [["C", "D"], ["E", "F"]]}
    (one,) = leak_probes(texts)
    assert (one.name, one.users, one.n) == ("list lookup", None, 2)


def test_rules_are_left_out_where_the_records_cannot_tell():
    records = make(50)
    records["timestamp"] = [None] * 50
    assert "existed by then" not in probe(records)
    assert "never a training negative" not in probe(records)


def near_ids(row, generator):
    """The target is the next id, above or below alike: as ids of one year are."""
    row["history_item_ids"][-1] = row["item_id"] + (1 if row["timestamp"] % 2 else -1)


def test_ids_that_tell_in_both_directions_are_no_order_of_events(caplog):
    with caplog.at_level(logging.WARNING):
        found = probe(make(1000, near_ids), make(500, seed=1))
    for name in ("id above the last", "id below the last"):
        assert found[name].hr_at_1 > 0.4
        assert not found[name].leaks
        assert "ids themselves" in found[name].note
        assert f"Above chance: the rule '{name}' finds" in caplog.text
    assert probe(make(300, next_id), make(500, seed=1))["id above the last"].note == ""


def test_popularity_and_what_it_explains_stand_beside_each_rule():
    """Targets are among ten ids that are popular; a rule that picks small ids finds as much as their popularity says."""

    def popular(row, generator):
        row["item_id"] = -1 - int(generator.integers(10))

    reference = make(2000, popular, seed=1)
    counts = {item: reference["item_id"].count(item) for item in set(reference["item_id"])}
    found = probe(make(1000, popular), reference)
    for one in found.values():
        assert one.popularity == 1
        assert one.popularity_ci[0] > 0.8
    by_hand = []
    records = make(1000, popular)
    for target, others in zip(records["item_id"], records["rejected_item_ids"], strict=True):
        weights = np.array([1 + counts.get(item, 0) for item in (target, *others)])
        by_hand.append(weights[0] / weights.sum())  # below the last stands the target, or another one
    matched = found["in the history"].matched
    assert matched == pytest.approx(0.05)  # picks all alike
    assert found["id below the last"].matched < np.mean(by_hand)
    given = {one.name: one for one in leak_probes(records, counts={str(key): value for key, value in counts.items()})}
    assert given["id above the last"].matched == pytest.approx(found["id above the last"].matched)


def test_among_cold_candidates_what_records_show_is_popularity():
    """Items without training events: those that were targets before are found by that, and nothing leaked."""
    generator = np.random.default_rng(0)
    rows = {"item_id": [], "rejected_item_ids": [], "history_item_ids": [], "timestamp": [], "user_id": []}
    for time in range(300):
        # three of thirty are taken most of the time, and all of them were there from the first
        target = int(generator.integers(3) if generator.random() < 0.8 else generator.integers(30))
        others = generator.choice([item for item in range(30) if item != target], 4, replace=False)
        rows["item_id"].append(target)
        rows["rejected_item_ids"].append(others.tolist())
        rows["history_item_ids"].append([100])
        rows["timestamp"].append(time)
        rows["user_id"].append(time % 60)
    rows["chosen"] = [f"I{item}" for item in rows["item_id"]]
    rows["rejected"] = [[f"I{item}" for item in row] for row in rows["rejected_item_ids"]]
    by_name = lambda **options: {probe.name: probe for probe in leak_probes(rows, counts={100: 5}, **options)}  # noqa: E731
    read_off = by_name()["existed by then"]
    assert read_off.hr_at_1 > read_off.chance + 0.02
    assert not read_off.leaks
    assert "are the popular ones" in read_off.note
    # by the times of all events nothing is found; and by those of targets that come out of nowhere, a leak is one
    exact = by_name(met=dict.fromkeys([*range(30), 100], -1))["existed by then"]
    assert exact.hr_at_1 == pytest.approx(exact.chance)
    popular = by_name(met={**dict.fromkeys(range(30), 1000), 0: -1, 1: -1, 2: -1})["existed by then"]
    assert popular.leaks
    assert popular.remedy == "draw negatives from what existed by then: existence='first-event'"


def test_what_a_sample_of_records_shows_of_time_is_popularity():
    """Few of many items are taken often, and all were there from the first: those that a sample shows are the popular ones."""
    generator = np.random.default_rng(0)
    share = 1 / np.arange(1, 3001)
    items = generator.choice(3000, size=4000, p=share / share.sum())
    rows = {
        "item_id": items.tolist(),
        "rejected_item_ids": [generator.choice(3000, 4, replace=False).tolist() for _ in items],
        "history_item_ids": [[5000]] * len(items),
        "timestamp": list(range(len(items))),
        "user_id": (np.arange(len(items)) % 60).tolist(),
    }
    keep = [row for row, target in enumerate(items) if target not in rows["rejected_item_ids"][row]]
    rows = {name: [values[row] for row in keep] for name, values in rows.items()}
    rows |= {"chosen": [f"I{item}" for item in rows["item_id"]]}
    rows |= {"rejected": [[f"I{item}" for item in row] for row in rows["rejected_item_ids"]]}
    counts = {item: 20 * share for item, share in enumerate(share * 1000)}
    found = {one.name: one for one in leak_probes(rows, counts=counts)}["existed by then"]
    assert found.hr_at_1 > found.chance + 0.02
    assert found.hr_at_1 < found.matched + 0.02
    assert not found.leaks
    assert "when popular items were first met" in found.note
    exact = {one.name: one for one in leak_probes(rows, counts=counts, met=dict.fromkeys(range(5001), -1))}
    assert exact["existed by then"].hr_at_1 == pytest.approx(found.chance)
