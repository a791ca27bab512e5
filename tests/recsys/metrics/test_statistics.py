import itertools
import math

import numpy as np
import pytest

from trl_sdpo.recsys import bootstrap_interval
from trl_sdpo.recsys.metrics.statistics import (
    compare_scores,
    exact_mcnemar_test,
    paired_comparison,
    sampled_label,
    sign_flip_test,
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

    def test_errors(self):
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
        assert p != sign_flip_test(differences, np.zeros(9), seed=1, num_resamples=40_000)

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
        assert result["hr@1_p"] == exact_mcnemar_test([1, 0, 1, 0, 1], [0, 1, 0, 0, 0]) == 0.625
        assert (result["hr@3"], result["hr@3_p"]) == (0.0, 1.0)
        second = 1 / math.log2(3)
        assert result["ndcg@3"] == pytest.approx(((1 + second + 1 + 1) - (second + 1 + 0.5 + second)) / 5)
        assert result["mrr"] == pytest.approx(((1 + 1 / 2 + 1 + 1) - (1 / 2 + 1 + 1 / 3 + 1 / 2)) / 5)
        assert result["hr@1_ci"] == list(bootstrap_interval([1, -1, 1, 0, 1], seed=0))
        assert result["n"] == 5

    def test_the_interval_of_a_difference_is_that_of_pairs(self):
        """Two systems that miss the same records differ by little, however uncertain both are."""
        ranks = np.where(np.arange(400) % 2, 1, 5)
        better = ranks.copy()
        better[:12:2] = 1
        result = paired_comparison(better, ranks, seed=0)
        assert 0 < result["hr@1_ci"][0] < result["hr@1"] == 0.015 < result["hr@1_ci"][1] < 0.03
        assert result["hr@1_p"] == 2 / 2**6

    def test_lists_without_the_target(self):
        result = paired_comparison(np.array([1.0, np.inf]), np.array([np.inf, np.inf]), ks=(5,), seed=0)
        assert (result["hr@5"], result["ndcg@5"], result["mrr"]) == (0.5, 0.5, 0.5)

    def test_errors(self):
        with pytest.raises(ValueError, match=r"of shape \(0,\) and \(0,\)"):
            paired_comparison([], [], seed=0)
        with pytest.raises(ValueError, match=r"the least rank is 0.0"):
            paired_comparison([0, 1], [1, 1], seed=0)


def test_compare_scores():
    scores = [np.array([2.0, 1.0, 0.0]), np.array([1.0, 3.0])]
    baseline = [np.array([1.0, 1.0, 0.0]), np.array([1.0, 0.5])]
    result = compare_scores(scores, baseline, ks=(1,), seed=0)
    assert (result["hr@1"], result["hr@1_p"], result["n"]) == (0.0, 1.0, 2)
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
