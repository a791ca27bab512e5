import numpy as np
import polars as pl
import pytest

from trl_sdpo.recsys import sample_negatives
from trl_sdpo.recsys.negatives import cooccurrence
from trl_sdpo.recsys.negatives.cooccurrence import nearest_by_co_occurrence
from trl_sdpo.recsys.negatives.strategies import parse_negatives, schedule


ITEMS = pl.DataFrame({"item_id": range(100), "title": [f"Title {number}" for number in range(100)]})


@pytest.fixture
def sequences():
    """50 users walk up the items from somewhere, so that neighbours by id are neighbours in sequences."""
    begin = np.random.default_rng(0).integers(0, 80, 50)
    rows = {"user_id": np.repeat(np.arange(50), 12), "position": np.tile(np.arange(12), 50)}
    return pl.DataFrame(rows | {"item_id": np.repeat(begin, 12) + rows["position"]})


def draw(sequences, **options):
    targets = sequences.filter(pl.col("position") >= 3)
    return sample_negatives(
        targets, sequences, ITEMS, **{"seed": 0, "num_negatives": 10, "train_events": sequences} | options
    )


def negatives_of(drawn):
    return drawn["negatives"].explode().to_numpy()


@pytest.mark.parametrize("negatives", ["popularity", "hard", "uniform:0.3,popularity:0.4,hard:0.3"])
def test_no_strategy_gives_what_a_user_took_or_anything_twice(sequences, negatives):
    drawn = draw(sequences, negatives=negatives, pool_size=30)
    seen = {user: set(own) for user, own in sequences.group_by("user_id").agg("item_id").rows()}
    for row in drawn.rows(named=True):
        assert len(set(row["negatives"])) == 30
        assert not seen[row["user_id"]] & set(row["negatives"])
        assert set(row["candidates"]) == {row["item_id"], *row["negatives"][:10]}


def test_popularity_is_drawn_in_proportion(sequences):
    """Of two items, one with 8 training events and one with none, by (1 + 8) to 1, when the power is 1."""
    items = ITEMS.head(3)
    train = pl.DataFrame({"user_id": [9] * 8, "item_id": [1] * 8})
    targets = pl.DataFrame({"user_id": range(4000), "position": [0] * 4000, "item_id": [0] * 4000})
    for alpha, share in ((1.0, 9 / 10), (0.5, 3 / 4), (0.0, 1 / 2)):
        drawn = sample_negatives(
            targets,
            train.with_columns(user_id=pl.lit(-1, dtype=pl.Int64)),
            items,
            num_negatives=1,
            seed=0,
            negatives="popularity",
            popularity_alpha=alpha,
            train_events=train,
        )
        # four standard errors
        assert np.mean(negatives_of(drawn) == 1) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 4000))


def test_hard_negatives_stand_beside_the_history(sequences):
    last = {(user, position): item for user, position, item in sequences.rows()}
    distances = {}
    for negatives in ("uniform", "hard"):
        drawn = draw(sequences, negatives=negatives, num_negatives=5)
        distances[negatives] = np.mean(
            [
                abs(item - last[row["user_id"], row["position"] - 1])
                for row in drawn.rows(named=True)
                for item in row["negatives"]
            ]
        )
    assert distances["hard"] < 0.5 * distances["uniform"]


def test_hard_negatives_do_not_depend_on_the_target(sequences):
    """Another target changes only what it excludes: its neighbours would give it away."""
    drawn = draw(sequences, negatives="hard")
    targets = sequences.filter(pl.col("position") >= 3).with_columns(item_id=pl.lit(99, dtype=pl.Int64))
    other = sample_negatives(
        targets, sequences, ITEMS, seed=0, num_negatives=10, negatives="hard", train_events=sequences
    )
    same = [
        set(one) - {99} <= set(two) | {99} for one, two in zip(drawn["negatives"], other["negatives"], strict=True)
    ]
    assert np.mean(same) > 0.9


def test_co_occurrence_by_hand():
    """A stands beside B in two sequences and beside C in one; the numbers of events are 3, 2 and 1."""
    events = pl.DataFrame({"user_id": [1, 1, 2, 2, 3, 3], "item_id": [0, 1, 1, 0, 0, 2]})
    nearest = nearest_by_co_occurrence(events, ITEMS["item_id"], window=1, num_neighbours=3)
    # 2 / sqrt(3 * 2) = 0.82 against 1 / sqrt(3 * 1) = 0.58
    assert nearest[0].tolist() == [1, 2, -1]
    assert nearest[1].tolist() == [0, -1, -1]
    # items 0 of user 2 and 0 of user 3 are neighbours in the table, not in a sequence
    assert nearest[2].tolist() == [0, -1, -1]


@pytest.mark.parametrize("at_once", [1, 40, 1 << 20])
def test_co_occurrence_is_that_of_pairs_counted_one_by_one(monkeypatch, at_once):
    """Whatever number of pairs is counted at once: scores by hand, ties to the lower id."""
    monkeypatch.setattr(cooccurrence, "_PAIRS_AT_ONCE", at_once)
    generator = np.random.default_rng(0)
    users, items = np.sort(generator.integers(0, 12, 200)), generator.integers(0, 15, 200)
    nearest = nearest_by_co_occurrence(
        pl.DataFrame({"user_id": users, "item_id": items}), ITEMS["item_id"], window=3, num_neighbours=4
    )
    together = np.zeros((len(ITEMS), len(ITEMS)))
    for first in range(200):
        for second in range(first + 1, min(first + 4, 200)):
            if users[first] == users[second] and items[first] != items[second]:
                together[items[first], items[second]] += 1
                together[items[second], items[first]] += 1
    counts = np.bincount(items, minlength=len(ITEMS))
    for item in range(len(ITEMS)):
        others = np.flatnonzero(together[item])
        score = together[item, others] / np.sqrt(counts[item] * counts[others])
        best = others[np.lexsort((others, -score))][:4].tolist()
        assert nearest[item].tolist() == best + [-1] * (4 - len(best))


def test_what_a_strategy_cannot_give_is_drawn_uniformly():
    events = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [0, 1, 2], "position": [0, 1, 2]})
    drawn = sample_negatives(
        events.tail(1), events, ITEMS, seed=0, num_negatives=19, negatives="hard", train_events=events
    )
    uniform = sample_negatives(events.tail(1), events, ITEMS, seed=0, num_negatives=19)
    assert drawn["negatives"].to_list() == uniform["negatives"].to_list()


@pytest.mark.parametrize("negatives", ["popularity", "hard", "uniform:0.5,hard:0.5"])
def test_the_list_is_the_same_whatever_the_size_of_the_pool(sequences, negatives):
    small, large = draw(sequences, negatives=negatives), draw(sequences, negatives=negatives, pool_size=40)
    assert small["candidates"].equals(large["candidates"])
    assert small["negatives"].equals(large["negatives"].list.head(10))


def test_a_draw_does_not_depend_on_the_other_targets(sequences):
    everything = draw(sequences, negatives="uniform:0.5,hard:0.5")
    some = sequences.filter((pl.col("position") == 7) & (pl.col("user_id") % 3 == 0))
    alone = sample_negatives(
        some, sequences, ITEMS, seed=0, num_negatives=10, negatives="uniform:0.5,hard:0.5", train_events=sequences
    )
    assert alone.equals(everything.join(some, on=["user_id", "position"], how="semi", maintain_order="left"))


def test_shares():
    slots = schedule({"uniform": 0.5, "popularity": 0.25, "hard": 0.25}, 20)
    assert [slots.count(name) for name in ("uniform", "popularity", "hard")] == [10, 5, 5]
    for length in range(1, 21):
        assert abs(slots[:length].count("uniform") - length / 2) <= 1
    assert parse_negatives({"uniform": 0.5, "hard": 0.5}) == parse_negatives(" uniform:0.5, hard:0.5")


@pytest.mark.parametrize("negatives", ["random", "uniform:0.5", "uniform:1.5,hard:-0.5", "uniform:x", {}, ""])
def test_what_is_no_strategy_is_an_error(negatives):
    with pytest.raises(ValueError, match="negatives="):
        parse_negatives(negatives)


def test_training_events_are_needed(sequences):
    with pytest.raises(ValueError, match="'popularity' need train_events"):
        draw(sequences, negatives="popularity", train_events=None)
