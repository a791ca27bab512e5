import math

import numpy as np
import pytest

from trl_sdpo.recsys import hit_rate, mean_reciprocal_rank, ndcg
from trl_sdpo.recsys.metrics.catalogue import (
    catalogue_metrics,
    coverage,
    exposure,
    gini,
    mean_popularity,
    recommendation_ranks,
)


CATALOGUE = list("abcdef")
LISTS, TARGETS = [["a", "b", "c"], ["a", "c", "b"], [], ["f"]], ["c", "a", "a", "b"]


def test_ranks():
    ranks = recommendation_ranks(LISTS, TARGETS)
    assert ranks.tolist() == [3, 1, math.inf, math.inf]
    assert [hit_rate(ranks, k) for k in (1, 2, 3)] == [0.25, 0.25, 0.5]
    assert ndcg(ranks, 10) == pytest.approx((1 / 2 + 1) / 4)
    assert mean_reciprocal_rank(ranks) == pytest.approx((1 / 3 + 1) / 4)


def test_errors_of_ranks():
    with pytest.raises(ValueError, match="0 lists for 0 targets"):
        recommendation_ranks([], [])
    with pytest.raises(ValueError, match="4 lists for 3 targets"):
        recommendation_ranks(LISTS, TARGETS[:3])
    with pytest.raises(ValueError, match="record 1: 'b' stands twice"):
        recommendation_ranks([["a"], ["a", "b", "b"]], ["a", "b"])
    assert recommendation_ranks([["a", "b", "b"]], ["b"], distinct=False).tolist() == [2]


def test_exposure():
    assert exposure(LISTS, CATALOGUE, k=2).tolist() == [2, 1, 1, 0, 0, 1]
    assert exposure(LISTS, CATALOGUE).sum() == 7
    with pytest.raises(ValueError, match="record 3: 'f' is not in the catalogue"):
        exposure(LISTS, CATALOGUE[:5])
    with pytest.raises(ValueError, match="5 distinct of 6 items"):
        exposure(LISTS, list("abcdaf"))
    with pytest.raises(ValueError, match="k=0 is below 1"):
        exposure(LISTS, CATALOGUE, k=0)


def test_coverage():
    assert coverage(exposure(LISTS, CATALOGUE, k=1)) == pytest.approx(2 / 6)
    assert coverage(exposure(LISTS, CATALOGUE)) == pytest.approx(4 / 6)
    with pytest.raises(ValueError, match=r"exposure has shape \(0,\)"):
        coverage([])


def test_gini_is_half_the_relative_mean_difference():
    """The definition of the index: the mean distance of two items, over twice the mean."""
    counts = np.random.default_rng(0).integers(0, 50, size=30)
    distance = np.abs(counts[:, None] - counts).mean()
    assert gini(counts) == pytest.approx(distance / (2 * counts.mean()))
    assert gini(counts) == pytest.approx(gini(7 * counts))
    assert gini(np.ones(9)) == 0
    assert gini(np.eye(10)[3]) == pytest.approx(0.9)
    with pytest.raises(ValueError, match="nothing was recommended"):
        gini([0, 0])
    with pytest.raises(ValueError, match="a count, at least 0"):
        gini([-1, 2])


def test_mean_popularity():
    popularity = {"a": 9, "b": 3, "c": 0.0}
    assert mean_popularity(LISTS, popularity) == pytest.approx((4 + 4 + 0) / 3)
    assert mean_popularity(LISTS, popularity, k=1) == pytest.approx((9 + 9 + 0) / 3)
    with pytest.raises(ValueError, match="all are empty"):
        mean_popularity([[], []], popularity)


def test_catalogue_metrics_is_a_row_of_the_table():
    popularity, consumed = {"a": 9, "b": 3}, [["b"], ["b", "c"], ["a"], ["f"]]
    row = catalogue_metrics(LISTS, TARGETS, CATALOGUE, ks=(1, 2), popularity=popularity, consumed=consumed)
    assert list(row) == [
        *("hr@1", "hr@1_ci", "ndcg@1", "chance@1", "hr@2", "hr@2_ci", "ndcg@2", "chance@2"),
        *("mrr@2", "coverage@2", "gini@2", "popularity@2", "consumed_popularity", "n"),
    ]
    assert (row["hr@1"], row["hr@2"], row["mrr@2"], row["n"]) == (0.25, 0.25, 0.25, 4)
    assert row["chance@2"] == pytest.approx(2 / 6)
    assert row["gini@2"] == gini([2, 1, 1, 0, 0, 1])
    assert row["popularity@2"] == pytest.approx((6 + 4.5 + 0) / 3)
    assert row["consumed_popularity"] == pytest.approx((3 + 1.5 + 9 + 0) / 4)
    plain = catalogue_metrics(LISTS, TARGETS, CATALOGUE)
    assert {f"{name}@{k}" for name in ("hr", "ndcg", "chance") for k in (1, 3, 5, 10)} < set(plain)
    assert "mrr@10" in plain
    assert "popularity@10" not in plain
    assert plain["chance@10"] == 1.0


def test_random_lists_are_at_the_chance_level():
    generator = np.random.default_rng(0)
    lists = [generator.permutation(50)[:10].tolist() for _ in range(4000)]
    row = catalogue_metrics(lists, generator.integers(50, size=4000).tolist(), range(50))
    for k in (1, 3, 5, 10):
        assert row[f"hr@{k}"] == pytest.approx(row[f"chance@{k}"], abs=0.02)


@pytest.mark.parametrize(("left", "right"), [([["7"]], [7]), ([[7]], ["7"]), ([[7.0], []], ["7", "8"])])
def test_ids_as_numbers_on_one_side_and_text_on_the_other_are_refused(left, right):
    with pytest.raises(TypeError, match=r"recommended holds .* such as .*7.*, targets .* such as .*7"):
        recommendation_ranks(left, right)
    with pytest.raises(TypeError, match="recommended holds"):
        catalogue_metrics(left, right, right)
    with pytest.raises(TypeError, match=r"lists holds .*, popularity"):
        mean_popularity(left, dict.fromkeys(right, 1))


def test_numbers_of_numpy_and_of_python_are_the_same():
    assert recommendation_ranks([np.array([7, 8])], [8]).tolist() == [2]
    assert recommendation_ranks([[], []], ["7", "8"]).tolist() == [np.inf, np.inf]
