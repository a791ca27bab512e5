import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_sdpo.recsys import difference_interval, mean_interval, wilson_interval
from trl_sdpo.recsys.metrics.statistics import (
    compare_scores,
    exact_mcnemar_test,
    holm_correction,
    paired_comparison,
    sampled_label,
    sign_flip_test,
    verdict,
)


def p_of_all_signs(differences):
    """The share of all 2^n signs with a sum as far from 0."""
    seen = abs(sum(differences)) - 1e-9
    signs = list(itertools.product((-1, 1), repeat=len(differences)))
    return sum(abs(np.dot(sign, differences)) >= seen for sign in signs) / len(signs)


class TestExactMcNemarTest:
    @pytest.mark.parametrize(("wins", "losses"), [(4, 1), (1, 4), (3, 3), (0, 0), (9, 0), (5, 4)])
    def test_is_the_share_of_all_outcomes(self, wins, losses):
        hits = [1] * wins + [0] * losses + [1, 0, 1]
        baseline = [0] * wins + [1] * losses + [1, 0, 1]
        p = exact_mcnemar_test(hits, baseline)
        assert p == pytest.approx(p_of_all_signs([1] * wins + [-1] * losses))
        assert p == exact_mcnemar_test(baseline, hits)

    def test_many_records(self):
        # 2,000 records on which they differ: the normal approximation with continuity correction
        hits = np.arange(4000) < 1060
        baseline = (np.arange(4000) >= 1060) & (np.arange(4000) < 2000)
        z = (1060 - 940 - 1) / math.sqrt(2000)
        assert exact_mcnemar_test(hits, baseline) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)

    def test_fifty_thousand_records_take_no_time(self):
        hits = np.arange(50_000) % 100 < 51
        start = time.process_time()
        p = exact_mcnemar_test(hits, ~hits)
        # the normal approximation, with continuity correction
        assert p == pytest.approx(math.erfc((1000 - 1) / math.sqrt(50_000) / math.sqrt(2)), rel=0.01)
        assert exact_mcnemar_test(hits, ~hits, range(50_000)) == pytest.approx(p, rel=1e-6)
        assert time.process_time() - start < 10

    @given(st.lists(st.lists(st.integers(-1, 1), min_size=1, max_size=5), min_size=1, max_size=9))
    @settings(max_examples=60, deadline=None)
    def test_by_user_is_the_share_of_all_signs_of_users(self, users):
        flat = [(difference, user) for user, row in enumerate(users) for difference in row]
        hits, baseline = [int(one > 0) for one, _ in flat], [int(one < 0) for one, _ in flat]
        groups = [user for _, user in flat]
        expected = p_of_all_signs([sum(row) for row in users])
        assert exact_mcnemar_test(hits, baseline, groups) == pytest.approx(expected)
        # the general test says the same of hits
        assert sign_flip_test(hits, baseline, groups, seed=0) == pytest.approx(expected)

    def test_errors(self):
        with pytest.raises(ValueError, match="groups has 1 rows for 2 records"):
            exact_mcnemar_test([1, 0], [0, 1], ["ann"])
        with pytest.raises(ValueError, match="groups: record 1 has none"):
            exact_mcnemar_test([1, 0], [0, 1], ["ann", None])
        with pytest.raises(ValueError, match=r"shape \(2,\) and \(3,\)"):
            exact_mcnemar_test([1, 0], [1, 0, 1])
        with pytest.raises(ValueError, match=r"baseline_hits: record 1: 2.0 is neither 0 nor 1"):
            exact_mcnemar_test([1, 0], [1, 2])


class TestSignFlipTest:
    def test_is_the_share_of_all_signs(self):
        differences = np.random.default_rng(0).normal(0.4, 1, size=9).round(1)
        p = sign_flip_test(differences, np.zeros(9), seed=0, num_resamples=40_000)
        assert p == pytest.approx(p_of_all_signs(differences), abs=0.01)
        assert p == sign_flip_test(differences, np.zeros(9), seed=0, num_resamples=40_000)
        # 2^9 signs are all tried, unless they are too many
        assert p == pytest.approx(p_of_all_signs(differences))
        drawn = sign_flip_test(differences, np.zeros(9), seed=0, num_resamples=500)
        assert drawn == sign_flip_test(differences, np.zeros(9), seed=0, num_resamples=500)
        assert drawn != sign_flip_test(differences, np.zeros(9), seed=1, num_resamples=500)
        assert drawn == pytest.approx(p, abs=0.07)

    def test_false_alarms_are_as_rare_as_they_claim(self):
        generator = np.random.default_rng(0)
        ps = [sign_flip_test(*generator.normal(size=(2, 40)), seed=seed, num_resamples=200) for seed in range(400)]
        # 5% of 400 is 20 +- 9 (two standard deviations)
        assert 11 <= sum(p <= 0.05 for p in ps) <= 29

    def test_equal_systems(self):
        assert sign_flip_test([0.1, 0.2], [0.1, 0.2], seed=0) == 1.0

    def test_in_chunks(self):
        values = np.ones(300_000)
        assert sign_flip_test(values, 1 - values, seed=0, num_resamples=20) == pytest.approx(1 / 21)

    def test_errors(self):
        with pytest.raises(ValueError, match="num_resamples=0"):
            sign_flip_test([1.0], [1.0], seed=0, num_resamples=0)
        with pytest.raises(ValueError, match="Record 1 of the second system: NaN"):
            sign_flip_test([1.0, 1.0], [1.0, math.nan], seed=0)


class TestPairedComparison:
    def test_by_hand(self):
        ranks, baseline = np.array([1, 2, 1, 20, 1]), np.array([2, 1, 3, 20, 2])
        result = paired_comparison(ranks, baseline, ks=(1, 3), seed=0)
        assert list(result) == [
            *("hr@1", "hr@1_ci", "hr@1_p", "hr@3", "hr@3_ci", "hr@3_p", "ndcg@3", "ndcg@3_ci", "ndcg@3_p"),
            *("mrr", "mrr_ci", "mrr_p", "n"),
        ]
        assert result["hr@1"] == pytest.approx((3 - 1) / 5)
        assert result["hr@1_p"] == exact_mcnemar_test([1, 0, 1, 0, 1], [0, 1, 0, 0, 0]) == pytest.approx(0.625)
        assert (result["hr@3"], result["hr@3_p"]) == (0.0, pytest.approx(1.0))
        second = 1 / math.log2(3)
        assert result["ndcg@3"] == pytest.approx(((1 + second + 1 + 1) - (second + 1 + 0.5 + second)) / 5)
        assert result["mrr"] == pytest.approx(((1 + 1 / 2 + 1 + 1) - (1 / 2 + 1 + 1 / 3 + 1 / 2)) / 5)
        assert result["hr@1_ci"] == [mean_interval([1, -1, 1, 0, 1])[0], 1.0]
        assert result["n"] == 5

    def test_the_interval_of_a_difference_is_that_of_pairs(self):
        """Two systems that miss the same records differ by little, however uncertain both are."""
        ranks = np.where(np.arange(400) % 2, 1, 5)
        better = ranks.copy()
        better[:12:2] = 1
        result = paired_comparison(better, ranks, seed=0)
        assert 0 < result["hr@1_ci"][0] < result["hr@1"] == 0.015 < result["hr@1_ci"][1] < 0.03
        assert result["hr@1_p"] == pytest.approx(2 / 2**6)

    def test_lists_without_the_target(self):
        result = paired_comparison(np.array([1.0, np.inf]), np.array([np.inf, np.inf]), ks=(5,), seed=0)
        assert (result["hr@5"], result["ndcg@5"], result["mrr"]) == (0.5, 0.5, 0.5)

    def test_errors(self):
        with pytest.raises(ValueError, match=r"of shape \(0,\) and \(0,\)"):
            paired_comparison([], [], seed=0)
        with pytest.raises(ValueError, match=r"the least rank is 0.0"):
            paired_comparison([0, 1], [1, 1], seed=0)

    def test_users(self):
        """What ten records of one user say is said once."""
        ours, theirs, users = np.ones(20), np.full(20, 3), np.repeat([7, 8], 10)
        result = paired_comparison(ours, theirs, ks=(1, 5), seed=0, groups=users)
        assert (result["users"], result["n"]) == (2, 20)
        assert result["hr@1_p"] == result["mrr_p"] == result["ndcg@5_p"] == 0.5
        assert result["hr@1_ci"] == list(difference_interval(np.ones(20), users))
        assert paired_comparison(ours, theirs, ks=(1,), seed=0)["hr@1_p"] == pytest.approx(2 / 2**20)


class TestDifferenceInterval:
    def test_is_that_of_the_mean_where_something_differs(self):
        differences, users = [1.0, -1.0, 0.0, 1.0, 0.0, 0.0], list("aabbcd")
        low, high = difference_interval(differences, users)
        expected = mean_interval(differences, users)
        assert (low, high) == (max(expected[0], -1), min(expected[1], 1))

    @pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 0.1])
    def test_has_a_width_and_ends(self, value):
        low, high = difference_interval([value] * 30)
        assert -1 <= low <= value <= high <= 1
        assert high - low > 0.1
        # the rule of three: of 30 there may be a tenth that was not seen
        assert difference_interval([0.0] * 30)[1] == wilson_interval([0] * 30)[1] == pytest.approx(0.1135, abs=1e-3)

    def test_one_user_says_nothing(self):
        assert difference_interval([1.0, 0.0], ["ann", "ann"]) == (-1.0, 1.0)


class TestVerdicts:
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    @settings(max_examples=100, deadline=None)
    def test_holm_rejects_what_the_procedure_does(self, p_values):
        """From the smallest on, as long as p <= 5% / the number that is left."""
        order, rejected = np.argsort(p_values, kind="stable"), set()
        for place, index in enumerate(order):
            if p_values[index] * (len(p_values) - place) > 0.05:
                break
            rejected.add(int(index))
        corrected = holm_correction(p_values)
        assert {index for index, p in enumerate(corrected) if p <= 0.05} == rejected
        assert all(one >= other for one, other in zip(corrected, p_values, strict=True))

    def test_the_verdict_is_that_of_the_test(self):
        assert verdict(0.3, 0.05) == "better"
        assert verdict(-0.3, 0.05) == "worse"
        assert verdict(0.3, 0.051) == verdict(0.0, 0.0) == "no measurable difference"
        # 4 wins and no loss: an interval may leave out 0, the exact test does not
        ours = paired_comparison([1, 1, 1, 1], [2, 2, 2, 2], ks=(1,), seed=0)
        assert ours["hr@1_ci"][0] > 0
        assert verdict(ours["hr@1"], ours["hr@1_p"]) == "no measurable difference"
        with pytest.raises(ValueError, match="pass numbers from 0 to 1"):
            holm_correction([0.1, 1.1])


def test_tests_over_users_reject_as_often_as_they_claim():
    """Two systems that are equally good, and differ from user to user: 5% of 600 simulated tables."""
    generator = np.random.default_rng(0)
    over_users, over_records, over_users_mrr = [], [], []
    for _ in range(600):
        users = np.repeat(np.arange(60), np.maximum(1, generator.lognormal(1.5, 1, 60)).astype(int))
        tastes = generator.uniform(0.05, 0.75, size=(2, 60))
        placed = [generator.geometric(taste[users]) for taste in tastes]
        hits = [one == 1 for one in placed]
        over_users.append(exact_mcnemar_test(*hits, users))
        over_records.append(exact_mcnemar_test(*hits))
        over_users_mrr.append(sign_flip_test(1 / placed[0], 1 / placed[1], users, seed=0, num_resamples=400))
    assert 0.03 <= np.mean(np.array(over_users) <= 0.05) <= 0.07
    assert 0.03 <= np.mean(np.array(over_users_mrr) <= 0.05) <= 0.07
    # records as if they were independent: alarms that nobody ordered
    assert np.mean(np.array(over_records) <= 0.05) > 0.12


def test_compare_scores():
    scores = [np.array([2.0, 1.0, 0.0]), np.array([1.0, 3.0])]
    baseline = [np.array([1.0, 1.0, 0.0]), np.array([1.0, 0.5])]
    result = compare_scores(scores, baseline, ks=(1,), seed=0)
    assert (result["hr@1"], result["hr@1_p"], result["n"]) == (0.0, pytest.approx(1.0), 2)
    with pytest.raises(ValueError, match="Record 1: 2 candidates of one system, 3 of the other"):
        compare_scores(scores, [baseline[0], np.zeros(3)], seed=0)
    with pytest.raises(ValueError, match=r"shape \(2,\) and \(1,\)"):
        compare_scores(scores, baseline[:1], seed=0)


def test_labels():
    assert sampled_label(20) == "sampled metrics: the target among 20 candidates, chance hr@1 0.050"
    assert sampled_label(5, 10_000).startswith("sampled metrics: the target among 5 candidates of 10,000 items")
    assert sampled_label(5, 5).startswith("full ranking: ")
    for arguments in ((1,), (5, 4)):
        with pytest.raises(ValueError, match="must be at least 2"):
            sampled_label(*arguments)
