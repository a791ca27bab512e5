import numpy as np
import polars as pl
import pytest

from trl_sdpo.recsys import (
    Interactions,
    build_preference_dataset,
    build_sequences,
    cooccurrence_scorer,
    events_of_records,
    item_knn_scorer,
    popularity_scorer,
    temporal_split,
)
from trl_sdpo.recsys.baselines.counting import training_sequences


SCORERS = {
    "popularity": popularity_scorer,
    "co-occurrence": cooccurrence_scorer,
    "item-kNN": item_knn_scorer,
    "item-kNN without a window": lambda events: item_knn_scorer(events, window=None),
}


def frame(*sequences):
    """Events of users 0, 1, ..."""
    rows = [(user, item) for user, sequence in enumerate(sequences) for item in sequence]
    return pl.DataFrame(rows, schema={"user_id": pl.Int64, "item_id": pl.Int64}, orient="row")


@pytest.fixture
def random_events():
    generator = np.random.default_rng(0)
    return frame(*(generator.permutation(12)[: generator.integers(1, 9)].tolist() for _ in range(30)))


def strings(rows):
    return [[str(item) for item in row] for row in rows]


def test_popularity_counts_training_events():
    scores = popularity_scorer(frame([1, 2], [2, 3], [2]))(strings([[1], []]), strings([[2, 3, 9], [1, 2]]))
    assert [list(row) for row in scores] == [[3, 1, 0], [1, 3]]


class TestCooccurrence:
    @pytest.mark.parametrize("window", [1, 2, 20])
    def test_against_a_count_by_hand(self, random_events, window):
        sequences = random_events.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list()
        histories, candidates = strings([[3, item] for item in range(12)]), strings([range(12)] * 12)
        popularity = np.bincount(random_events["item_id"], minlength=12)
        for item, row in enumerate(cooccurrence_scorer(random_events, window=window)(histories, candidates)):
            for candidate in range(12):
                expected = sum(
                    candidate in sequence[place + 1 : place + 1 + window]
                    for sequence in sequences
                    for place, one in enumerate(sequence)
                    if one == item and candidate != item
                )
                assert row[candidate] == pytest.approx(expected + popularity[candidate] / (popularity.max() + 1))

    def test_only_the_last_item_counts_and_the_order(self):
        scorer = cooccurrence_scorer(frame([1, 2], [3, 4]), window=1)
        assert np.floor(scorer([["1", "3"]], [["4", "2"]])[0]).tolist() == [1, 0]
        assert np.floor(scorer([["2"]], [["1"]])[0]).tolist() == [0]

    def test_popularity_decides_where_nothing_followed(self):
        first, second, unknown = cooccurrence_scorer(frame([1, 2], [2], [3]))([["9"]], [["2", "3", "8"]])[0]
        assert 1 > first > second > unknown == 0


class TestItemKNN:
    @pytest.mark.parametrize("shrink", [0, 5])
    @pytest.mark.parametrize("k", [2, 100])
    def test_against_dense_matrices(self, random_events, k, shrink):
        taken = np.zeros((30, 12))
        taken[random_events["user_id"], random_events["item_id"]] = 1
        counts, takers = taken.T @ taken, taken.sum(axis=0)
        np.fill_diagonal(counts, 0)
        similarity = counts / (np.sqrt(np.outer(takers, takers)) + shrink)
        for row in similarity:
            row[np.argsort(-row, kind="stable")[k:]] = 0
        scores = item_knn_scorer(random_events, k=k, shrink=shrink, window=None)(
            strings([[1, 2, 3]] * 2), strings([range(12)] * 2)
        )
        expected = similarity[:, [1, 2, 3]].sum(axis=1)
        np.testing.assert_allclose(scores[1], expected, rtol=0, atol=1.1e-6)
        assert (np.diff(scores[1][np.argsort(takers)][expected[np.argsort(takers)] == 0]) >= 0).all()

    def test_a_window_counts_neighbours_in_the_sequence_alone(self):
        scorer = item_knn_scorer(frame([1, 2, 3], [1, 2]), shrink=0, window=1)
        after_one, after_three = scorer([["1"], ["3"]], [["2", "3"], ["2", "1"]])
        assert after_one.round(4).tolist() == [1, 0]
        assert after_three.round(4).tolist() == [round(1 / np.sqrt(2), 4), 0]


@pytest.mark.parametrize("name", SCORERS)
class TestAll:
    def test_only_training_events_are_read(self, name):
        times = pl.int_range(pl.len(), dtype=pl.Int64).alias("timestamp")
        generator = np.random.default_rng(0)
        sequences = [generator.permutation(12)[:8].tolist() for _ in range(30)]
        events = frame(*sequences).sort(pl.int_range(pl.len()).over("user_id"), "user_id").with_columns(times)
        items = pl.DataFrame({"item_id": range(100), "title": [f"Item {item}" for item in range(100)]})
        split = temporal_split(build_sequences(Interactions(events, items, "made up")))
        later = pl.col("split") != "train"
        changed = split.with_columns(item_id=pl.when(later).then(pl.col("item_id") + 50).otherwise("item_id"))
        assert split.filter(later).height > 10
        histories, candidates = strings([[3, 4], [60]]), strings([range(12), [1, 61, 2]])
        before, after = (SCORERS[name](one)(histories, candidates) for one in (split, changed))
        only = SCORERS[name](split.filter(~later))(histories, candidates)
        for one, two, three in zip(before, after, only, strict=True):
            assert list(one) == list(two) == list(three)
        # and a change of the training events does change them
        other = split.with_columns(item_id=pl.when(later).then("item_id").otherwise(pl.col("item_id") // 2))
        assert list(SCORERS[name](other)(histories, candidates)[0]) != list(before[0])

    def test_ids_that_are_strings(self, name, random_events):
        histories, candidates = strings([[3, 4], []]), strings([[5, 6, 70], [1, 2]])
        as_strings = random_events.with_columns(pl.col("item_id", "user_id").cast(pl.String))
        for one, two in zip(
            SCORERS[name](random_events)(histories, candidates),
            SCORERS[name](as_strings)(histories, candidates),
            strict=True,
        ):
            assert list(one) == list(two)

    def test_one_event(self, name):
        scores = SCORERS[name](frame([1]))([["1"], []], [["1", "2"], ["1", "2"]])
        assert [len(row) for row in scores] == [2, 2]
        assert np.isfinite(np.concatenate(scores)).all()

    def test_bad_events(self, name):
        with pytest.raises(ValueError, match="no column 'item_id'"):
            SCORERS[name](pl.DataFrame({"user_id": [1]}))
        with pytest.raises(ValueError, match="row 1, column 'item_id': is null"):
            SCORERS[name](pl.DataFrame({"user_id": [1, 1], "item_id": [1, None]}))
        with pytest.raises(ValueError, match="no training event"):
            SCORERS[name](frame([1]).with_columns(split=pl.lit("test")))
        with pytest.raises(ValueError, match="events of 1 do not stand together"):
            SCORERS[name](pl.DataFrame({"user_id": [1, 2, 1], "item_id": [1, 2, 3]}))


def test_numbers_out_of_range():
    with pytest.raises(ValueError, match="window=0 is below 1"):
        cooccurrence_scorer(frame([1, 2]), window=0)
    for options in ({"k": 0}, {"shrink": -1}, {"window": 0}):
        with pytest.raises(ValueError, match="must be at least 1, shrink"):
            item_knn_scorer(frame([1, 2]), **options)


def test_training_records_give_their_events_back():
    generator = np.random.default_rng(0)
    times = pl.int_range(pl.len(), dtype=pl.Int64).alias("timestamp")
    events = frame(*(generator.permutation(40)[:12].tolist() for _ in range(20)))
    events = events.sort(pl.int_range(pl.len()).over("user_id"), "user_id").with_columns(times)
    items = pl.DataFrame({"item_id": range(40), "title": [f"Item {item}" for item in range(40)]})
    interactions = Interactions(events, items, "made up")
    dataset, _ = build_preference_dataset(interactions, seed=0, num_candidates=4, history_size=5)
    back = events_of_records(dataset["train"])
    train = temporal_split(build_sequences(interactions)).filter(pl.col("split") == "train")
    expected = training_sequences(train)
    assert training_sequences(back).equals(expected)
    with pytest.raises(ValueError, match="no rows"):
        events_of_records(dataset["train"].select([]))
