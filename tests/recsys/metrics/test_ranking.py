import math

import numpy as np
import pytest

from trl_sdpo.recsys import (
    bootstrap_interval,
    chance_level,
    chance_metrics,
    hit_rate,
    mean_reciprocal_rank,
    ndcg,
    ranking_metrics,
    ranks,
    wilson_interval,
)


def test_ranks_by_hand():
    scores = np.array([[3.0, 1.0, 2.0], [1.0, 3.0, 2.0], [2.0, 3.0, 1.0]])
    assert ranks(scores).tolist() == [1, 3, 2]
    assert ranks(scores).dtype == np.int64


def test_ties_count_against_the_target():
    assert ranks([[1.0, 1.0, 1.0], [2.0, 2.0, 1.0], [0.0, -1.0, 0.0]]).tolist() == [3, 2, 2]


def test_ranks_of_ragged_rows_integers_and_infinities():
    scores = [np.array([5, 6]), [1, 0, 0, 2], [-math.inf, -math.inf, 0.0], [math.inf, 1e308, 3.0]]
    assert ranks(scores).tolist() == [2, 2, 3, 1]


def test_large_integers_in_float64_stay_apart():
    assert ranks([[2**40 + 1, 2**40]]).tolist() == [1]


def test_bad_scores_are_named():
    with pytest.raises(ValueError, match=r"scores: record 1, candidate 2 \(0 is the target\): NaN \(2 such records\)"):
        ranks([[1.0, 2.0], [1.0, 2.0, math.nan, math.nan], [math.nan, 1.0]])
    with pytest.raises(ValueError, match="scores: record 1 has 1 scores"):
        ranks([[1.0, 2.0], [1.0]])
    with pytest.raises(ValueError, match="scores: record 0 has 0 scores"):
        ranks([1.0, 2.0])
    with pytest.raises(ValueError, match="scores: no records"):
        ranks([])


RANKS = np.array([1, 2, 3, 20])


def test_metrics_by_hand():
    assert hit_rate(RANKS) == 0.25
    assert hit_rate(RANKS, k=3) == 0.75
    assert ndcg(RANKS, k=10) == pytest.approx((1 + 1 / math.log2(3) + 1 / 2) / 4)
    assert ndcg(RANKS, k=1) == hit_rate(RANKS, k=1)
    assert mean_reciprocal_rank(RANKS) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 20) / 4)


@pytest.mark.parametrize("metric", [hit_rate, ndcg, mean_reciprocal_rank])
def test_metrics_refuse_what_is_no_rank(metric):
    with pytest.raises(ValueError, match="record 1: 0 is below 1"):
        metric([1, 0])
    with pytest.raises(ValueError, match=r"ranks has shape \(0,\)"):
        metric([])
    with pytest.raises(ValueError, match=r"ranks has shape \(1, 2\)"):
        metric([[1, 2]])


def test_k_below_1_is_refused():
    with pytest.raises(ValueError, match="k=0 is below 1"):
        hit_rate([1], k=0)


def test_the_bootstrap_is_deterministic_and_as_wide_as_the_normal_interval():
    values = np.arange(1000) % 4 == 0
    low, high = bootstrap_interval(values, seed=1)
    assert (low, high) == bootstrap_interval(values, seed=1)
    assert (low, high) != bootstrap_interval(values, seed=2)
    half = 1.96 * math.sqrt(0.25 * 0.75 / 1000)
    assert low == pytest.approx(0.25 - half, abs=0.004)
    assert high == pytest.approx(0.25 + half, abs=0.004)
    narrow = bootstrap_interval(values, seed=1, confidence=0.5)
    assert low < narrow[0] < 0.25 < narrow[1] < high


def test_the_bootstrap_in_chunks_covers_all_resamples():
    # 30,000 values are resampled in chunks of 69; 100 resamples make two chunks.
    low, high = bootstrap_interval(np.arange(30_000) % 2, seed=0, num_resamples=100)
    assert 0.49 < low < 0.5 < high < 0.51
    assert bootstrap_interval([3.0, 3.0], seed=0, num_resamples=1) == (3.0, 3.0)


def test_the_bootstrap_refuses_bad_input():
    with pytest.raises(ValueError, match=r"values has shape \(0,\)"):
        bootstrap_interval([], seed=0)
    with pytest.raises(ValueError, match="values: record 1: NaN"):
        bootstrap_interval([1.0, math.nan], seed=0)
    with pytest.raises(ValueError, match=r"confidence=1.0 must be in \(0, 1\)"):
        bootstrap_interval([1.0], seed=0, confidence=1.0)
    with pytest.raises(ValueError, match="num_resamples=0 must be at least 1"):
        bootstrap_interval([1.0], seed=0, num_resamples=0)


def test_ranking_metrics_is_a_row_of_the_table():
    metrics = ranking_metrics(RANKS)
    assert list(metrics) == ["hr@1", "hr@1_ci", "ndcg@1", "hr@10", "hr@10_ci", "ndcg@10", "mrr", "n"]
    assert (metrics["hr@1"], metrics["hr@10"], metrics["n"]) == (0.25, 0.75, 4)
    assert metrics["ndcg@10"] == ndcg(RANKS, 10)
    assert metrics["mrr"] == mean_reciprocal_rank(RANKS)
    assert metrics["hr@1_ci"] == list(wilson_interval(RANKS <= 1))
    with pytest.warns(FutureWarning, match="ranking_metrics draws nothing, so `seed` is without effect"):
        assert metrics == ranking_metrics(RANKS, seed=1)
    assert "hr@5" in ranking_metrics(RANKS, ks=(5,))


def test_users_count_the_same_beside_records():
    users = ["ann", "ann", "ann", "bob"]
    metrics = ranking_metrics(np.array([1, 1, 4, 2]), ks=(1,), groups=users)
    assert list(metrics) == ["hr@1", "hr@1_ci", "hr@1_per_user", "ndcg@1", "mrr", "mrr_per_user", "users", "n"]
    assert metrics["hr@1"] == 0.5
    assert metrics["hr@1_per_user"] == pytest.approx((2 / 3 + 0) / 2)
    assert metrics["mrr_per_user"] == pytest.approx(((1 + 1 + 1 / 4) / 3 + 1 / 2) / 2)
    assert (metrics["users"], metrics["n"]) == (2, 4)
    assert metrics["hr@1_ci"] == list(wilson_interval([1, 1, 0, 0], users))


def test_chance_by_hand_and_by_simulation():
    assert chance_level(20) == 0.05
    assert chance_level(20, k=10) == 0.5
    assert chance_level(5, k=10) == 1.0
    chance = chance_metrics(20)
    assert chance["hr@1"] == 0.05
    assert chance["hr@1_ci"] == [0.05, 0.05]
    assert chance["ndcg@10"] == pytest.approx(sum(1 / math.log2(1 + rank) for rank in range(1, 11)) / 20)
    assert chance["mrr"] == pytest.approx(sum(1 / rank for rank in range(1, 21)) / 20)
    assert set(ranking_metrics(RANKS)) - set(chance) == {"n"}
    drawn = ranking_metrics(ranks(np.random.default_rng(0).random((20_000, 20))))
    for name in ("hr@1", "hr@10", "ndcg@10", "mrr"):
        assert drawn[name] == pytest.approx(chance[name], abs=0.01)


def test_chance_refuses_nonsense():
    with pytest.raises(ValueError, match="num_candidates=0 and k=1"):
        chance_level(0)
    with pytest.raises(ValueError, match="num_candidates=5 and k=0"):
        chance_level(5, k=0)
