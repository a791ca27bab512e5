import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_sdpo.recsys import bootstrap_interval, mean_interval, wilson_interval
from trl_sdpo.recsys.metrics.intervals import group_sums, student_quantile


Z = 1.959963984540054


class TestWilsonInterval:
    @given(st.integers(1, 200), st.data())
    @settings(max_examples=60, deadline=None)
    def test_ends_are_where_the_test_of_the_rate_ends(self, n, data):
        """Wilson's definition: the rates p with |hits / n - p| = z * sqrt(p * (1 - p) / n)."""
        hits = data.draw(st.integers(0, n))
        low, high = wilson_interval([1] * hits + [0] * (n - hits))
        assert 0 <= low <= hits / n <= high <= 1
        assert high - low > 0
        for end in (low, high):
            assert abs(hits / n - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / n), abs=1e-7)

    def test_published_values(self):
        """Newcombe, Statistics in Medicine 1998, table I, method 3."""
        for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)):  # fmt: skip
            assert wilson_interval([1] * hits + [0] * (n - hits)) == pytest.approx((low, high), abs=6e-5)

    def test_as_many_records_as_have_the_variance(self):
        """30 users, of whom each hits always or never: 300 records say what 30 do."""
        users = np.repeat(np.arange(30), 10)
        hits = users % 3 == 0
        low, high = wilson_interval(hits, users)
        assert high - low == pytest.approx(np.ptp(wilson_interval(hits[::10])), rel=0.08)
        # and one record of each user is what 30 records are, but for the quantile
        once = wilson_interval(hits[::10], users[::10])
        assert np.ptp(once) == pytest.approx(np.ptp(wilson_interval(hits[::10])), rel=0.08)

    def test_at_the_borders(self):
        assert wilson_interval([0] * 20) == (0.0, pytest.approx(Z**2 / (20 + Z**2)))
        assert wilson_interval([1] * 20) == (pytest.approx(20 / (20 + Z**2)), 1.0)
        few = wilson_interval([0] * 200, np.repeat(np.arange(10), 20))
        assert few[0] == 0
        quantile = student_quantile(0.95, 9)
        assert few[1] == pytest.approx(quantile**2 / (10 + quantile**2))
        assert np.ptp(wilson_interval([1, 0], ["ann", "ann"])) > 0.9

    def test_shares_of_seeds(self):
        """Not only 0 and 1: means over seeds vary less, and so does their mean."""
        generator = np.random.default_rng(0)
        seeds = generator.random((4, 500)) < 0.3
        assert np.ptp(wilson_interval(seeds.mean(axis=0))) < 0.6 * np.ptp(wilson_interval(seeds[0]))

    def test_errors(self):
        with pytest.raises(ValueError, match=r"values: record 1: 1.5 is not from 0 to 1. Use `mean_interval`"):
            wilson_interval([0, 1.5])
        with pytest.raises(ValueError, match=r"values has shape \(0,\)"):
            wilson_interval([])
        with pytest.raises(ValueError, match="groups has 1 rows for 2 records"):
            wilson_interval([0, 1], ["ann"])
        with pytest.raises(ValueError, match="groups: record 1 has none"):
            wilson_interval([0, 1], ["ann", None])
        with pytest.raises(ValueError, match="confidence=95 must be in"):
            wilson_interval([0, 1], confidence=95)


class TestMeanInterval:
    def test_is_that_of_student_where_records_are_independent(self):
        values = np.random.default_rng(0).normal(size=11)
        half = 2.228139 * values.std(ddof=1) / math.sqrt(11)
        assert mean_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-4)

    def test_over_groups_by_leaving_out_each(self):
        values, groups = np.array([1.0, 0, 2, 5, 3, 3, 1]), list("aaabbbc")
        means = [values[[group != one for group in groups]].mean() for one in "abc"]
        error = math.sqrt(2 / 3 * sum((mean - values.mean()) ** 2 for mean in means))
        quantile = student_quantile(0.95, 49 / (9 + 9 + 1) - 1)
        low, high = mean_interval(values, groups)
        assert (low + high) / 2 == pytest.approx(values.mean())
        assert (high - low) / 2 == pytest.approx(quantile * error)
        # groups are what they are called, in whatever order
        order = np.random.default_rng(1).permutation(7)
        renamed = [{"a": 9, "b": 4, "c": 11}[group] for group in groups]
        assert mean_interval(values[order], [renamed[place] for place in order]) == pytest.approx((low, high))

    def test_one_group_says_nothing(self):
        assert mean_interval([1.0, 2.0], ["ann", "ann"]) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("degrees", "confidence", "expected"),
    [(1, 0.95, 12.7062), (2, 0.95, 4.30265), (4, 0.99, 4.60409), (10, 0.95, 2.22814), (120, 0.95, 1.97993), (1e6, 0.95, 1.95997)],
)  # fmt: skip
def test_quantiles_of_published_tables(degrees, confidence, expected):
    assert student_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-4)


def test_the_bootstrap_draws_users_with_all_of_their_records():
    """Against means of groups that are drawn one by one."""
    generator = np.random.default_rng(0)
    users = generator.integers(25, size=400)
    values = (generator.random(400) < users / 25).astype(float)
    parts = [values[users == user] for user in range(25)]
    means = [np.concatenate([parts[one] for one in generator.integers(25, size=25)]).mean() for _ in range(4000)]
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(values, users, seed=0, num_resamples=4000) == pytest.approx(expected, abs=0.015)
    assert np.ptp(bootstrap_interval(values, users, seed=0)) > 1.5 * np.ptp(bootstrap_interval(values, seed=0))


def test_sums_of_groups():
    sums, counts = group_sums([1, 2, 4, 8], ["b", "a", "b", "c"])
    assert (sums.tolist(), counts.tolist()) == ([2, 5, 8], [1, 2, 1])
    assert group_sums([1, 2], None).counts.tolist() == [1, 1]
    assert group_sums([1] * 6, list("aabbcc")).effective == pytest.approx(3)
    assert group_sums([1] * 10, [0] * 8 + [1, 2]).effective == pytest.approx(100 / 66)


@pytest.mark.parametrize(("num_users", "rate"), [(40, 0.3), (140, 0.05)])
def test_intervals_over_users_cover_as_often_as_they_claim(num_users, rate):
    """Records of users who differ in their rates, and in how many they have: a tenth of them have a third, and more."""
    generator = np.random.default_rng(num_users)
    over_users, over_records, of_differences = [], [], []
    for _ in range(600):
        users = np.repeat(np.arange(num_users), np.maximum(1, generator.lognormal(1.5, 1, num_users)).astype(int))
        rates = generator.beta(9 * rate, 9 * (1 - rate), size=(2, num_users))
        ours, theirs = (generator.random(len(users)) < one[users] for one in rates)
        low, high = wilson_interval(ours, users)
        over_users.append(low <= rate <= high)
        low, high = wilson_interval(ours)
        over_records.append(low <= rate <= high)
        low, high = mean_interval(ours.astype(float) - theirs, users)
        of_differences.append(low <= 0 <= high)
    assert 0.93 <= np.mean(over_users) <= 0.97
    assert 0.93 <= np.mean(of_differences) <= 0.97
    assert np.mean(over_records) < 0.93
