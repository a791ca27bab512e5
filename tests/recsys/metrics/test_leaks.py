import numpy as np
import pytest
from datasets import Dataset

from trl_sdpo.recsys import leak_probe, wilson_interval


ITEMS = [f"Title {number}" for number in range(300)]


def make_records(count, leaking, seed=0):
    """Random targets; the list is drawn by the target, or by the record."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        target = int(generator.integers(30 if leaking else 300))
        draw = np.random.default_rng(target if leaking else 10_000 * (seed + 1) + number)
        others = [item for item in draw.permutation(300).tolist() if item != target][:19]
        shown = draw.permutation([target, *others]).tolist()
        rows.append(
            {
                "chosen": f" {ITEMS[target]}",
                "rejected": [f" {ITEMS[item]}" for item in others],
                "candidates": [ITEMS[item] for item in shown],
            }
        )
    return Dataset.from_list(rows)


def test_lists_drawn_by_the_target_give_it_away():
    probe = leak_probe(make_records(200, leaking=True), make_records(300, leaking=True, seed=1))
    assert probe.hr_at_1 > 0.95
    assert probe.n == 200
    assert probe.chance == pytest.approx(0.05)
    assert probe.ci[0] <= probe.hr_at_1 <= probe.ci[1]


def test_lists_drawn_by_the_record_do_not():
    probe = leak_probe(make_records(200, leaking=False), make_records(300, leaking=False, seed=1))
    assert probe.hr_at_1 < 0.1


def test_without_a_reference_only_earlier_records_are_looked_up():
    probe = leak_probe(make_records(400, leaking=True))
    # 30 targets: the first record of each has nothing to be found in
    assert 0.8 < probe.hr_at_1 <= 1 - 30 / 400
    # the first of all has no earlier record, whatever the later ones say
    twice = {"chosen": ["A", "A"], "rejected": [["B"], ["B"]]}
    assert leak_probe(twice).hr_at_1 == 0.5


def test_the_most_similar_list_answers_even_if_its_target_is_no_candidate():
    seen = {"chosen": ["Z", "A"], "rejected": [["B", "C", "D"], ["X", "Y", "V"]]}
    records = {"chosen": ["A"], "rejected": [["B", "C", "D"]]}
    assert leak_probe(records, seen).hr_at_1 == 0
    # of two lists that are as similar, the later one
    seen = {"chosen": ["B", "A"], "rejected": [["C", "V"], ["C", "W"]]}
    assert leak_probe({"chosen": ["A"], "rejected": [["B", "C"]]}, seen).hr_at_1 == 1


def test_popularity_is_of_targets_and_ties_count_against_it():
    seen = {"chosen": ["A", "A", "B"], "rejected": [["C"], ["D"], ["C"]]}
    records = {"chosen": ["A", "B", "C"], "rejected": [["B"], ["C"], ["D"]]}
    # A beats B, B beats C, and C and D were never a target
    assert leak_probe(records, seen).popularity == pytest.approx(2 / 3)


def test_ragged_and_conversational_records():
    def say(title):
        return [{"role": "assistant", "content": title}]

    records = {"chosen": [say("A"), say("B")], "rejected": [[say("C")], [say("C"), say("D"), say("E")]]}
    assert leak_probe(records, records).hr_at_1 == 1
    assert leak_probe(records).chance == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_a_sample_is_spread_over_the_records():
    records = make_records(100, leaking=True)
    assert leak_probe(records, records, max_records=10).n == 10


def test_a_seed_is_without_effect_and_says_so():
    records = make_records(20, leaking=True)
    with pytest.warns(FutureWarning, match="draws nothing, so `seed` is without effect"):
        assert leak_probe(records, seed=1) == leak_probe(records)


def test_bad_records_are_named():
    with pytest.raises(ValueError, match="records: no rows"):
        leak_probe({"chosen": [], "rejected": []})
    wrong = {"chosen": ["A"], "rejected": [["B"]], "candidates": [["B", "C"]]}
    with pytest.raises(ValueError, match=r"reference: row 0, column 'candidates': the target 'A' is not among them"):
        leak_probe({"chosen": ["A"], "rejected": [["B"]]}, wrong)


def test_the_interval_is_over_users():
    """Of ten users with ten records each, all alike within a user, nothing more is known than of ten records."""
    hit = [user % 2 == 0 for user in range(10) for _ in range(10)]
    records = {
        "chosen": ["A" if one else "B" for one in hit],
        "rejected": [["B"] if one else ["A"] for one in hit],
        "user_id": [user for user in range(10) for _ in range(10)],
    }
    reference = {"chosen": ["A"], "rejected": [["B"]]}
    probe = leak_probe(records, reference)
    alone = leak_probe({name: records[name] for name in ("chosen", "rejected")}, reference)
    assert probe.hr_at_1 == alone.hr_at_1 == 0.5
    assert probe.ci == wilson_interval([float(one) for one in hit], groups=records["user_id"])
    assert probe.ci[1] - probe.ci[0] > 2 * (alone.ci[1] - alone.ci[0])
    assert leak_probe({"chosen": ["B"] * 20, "rejected": [["A"]] * 20}, reference).ci[1] > 0.1  # 0 of 20 is not [0, 0]
