import numpy as np
import polars as pl
import pytest
import torch

from helpers.closeness import assert_same_numbers, assert_same_scores
from trl_sdpo.recsys import hit_rate, popularity_scorer, ranks, score_records
from trl_sdpo.recsys.baselines.sequential import draw_windows, train_gru4rec, train_sasrec


TRAIN = {"SASRec": train_sasrec, "GRU4Rec": train_gru4rec}
SMALL = {"hidden_size": 16, "max_length": 10, "dropout": 0.0, "batch_size": 8, "num_epochs": 8, "learning_rate": 0.01}
NUM_ITEMS = 30


def cycles(num_users, seed):
    """Users who walk through the items in a circle, each from a place of their own and in steps of 1 or of 7."""
    generator = np.random.default_rng(seed)
    return [
        [str((start + step * place) % NUM_ITEMS) for place in range(12)]
        for start, step in zip(
            generator.integers(NUM_ITEMS, size=num_users), generator.choice([1, 7], size=num_users), strict=True
        )
    ]


@pytest.fixture(scope="module")
def events():
    return frame(cycles(150, seed=0))


@pytest.fixture(scope="module")
def records():
    return as_records(cycles(60, seed=1))


def frame(sequences):
    rows = [(user, item) for user, sequence in enumerate(sequences) for item in sequence]
    return pl.DataFrame(rows, schema={"user_id": pl.Int64, "item_id": pl.String}, orient="row")


def as_records(sequences):
    """The next item against all that are not in the history: the step is only in the order of two items."""
    histories = [sequence[:6] for sequence in sequences]
    targets = [sequence[6] for sequence in sequences]
    items = [str(item) for item in range(NUM_ITEMS)]
    rejected = [
        [item for item in items if item != target and item not in history]
        for target, history in zip(targets, histories, strict=True)
    ]
    return {"history_item_ids": histories, "item_id": targets, "rejected_item_ids": rejected}


@pytest.fixture(scope="module", params=TRAIN)
def trained(request, events):
    return TRAIN[request.param](events, seed=0, **SMALL)


def test_the_pattern_is_learned_far_above_popularity(trained, events, records):
    popular = hit_rate(ranks(score_records(popularity_scorer(events), records, desc=None)))
    assert popular < 0.2
    assert hit_rate(ranks(score_records(trained, records, desc=None))) > 0.9
    # the order matters: the same items from the last to the first lead elsewhere
    backwards = records | {"history_item_ids": [history[::-1] for history in records["history_item_ids"]]}
    assert hit_rate(ranks(score_records(trained, backwards, desc=None))) < 0.2


def test_scores_are_log_probabilities(trained):
    log_probs = trained.log_probs([["1", "2", "3"], []])
    assert log_probs.shape == (2, NUM_ITEMS)
    assert_same_scores(np.exp(log_probs).sum(axis=1), np.ones(2))
    scores = trained([["1", "2", "3"], []], [["4", "unknown", "9"], []])[0]
    columns = [trained.item_ids.to_list().index(item) for item in ("4", "9")]
    assert scores[[0, 2]].tolist() == log_probs[0, columns].tolist()
    assert scores[1] == log_probs[0].min()
    assert trained.log_probs([]).shape == (0, NUM_ITEMS)
    assert trained([], []) == []


def test_a_score_is_that_of_the_record_alone(trained):
    """Neither padding nor the others of the batch, nor items that are not known, nor what lies too far back."""
    histories = [["1", "2", "3"], [], ["5"], [str(item) for item in range(15)]]
    together = trained.log_probs(histories)
    for row, history in zip(together, histories, strict=True):
        assert_same_scores(trained.log_probs([history])[0], row)
    same = trained.log_probs([["1", "new", "2", "3"], ["new"], ["5"], ["9", *histories[3][5:]]])
    assert_same_scores(same, together)


def test_a_state_does_not_see_what_comes_after_it(trained):
    model = trained.model.eval()
    inputs = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 9, 8]])
    with torch.no_grad():
        first, second = model.states(inputs)
    assert_same_numbers(first[:3], second[:3])
    assert not torch.allclose(first[3], second[3], atol=1e-3)


def test_top_items(trained):
    best = trained.top_items([["1", "2", "3"], ["1"]], k=3)
    scores = trained.log_probs([["1", "2", "3"]])[0]
    items = trained.item_ids.to_list()
    expected = [items[place] for place in np.argsort(-scores) if items[place] not in ("1", "2", "3")]
    assert best[0] == expected[:3]
    assert best[0][0] == "4"
    excluded = trained.top_items([["1", "2", "3"]], k=NUM_ITEMS, exclude=[["4", "not there"]])[0]
    assert len(excluded) == NUM_ITEMS - 1
    assert "4" not in excluded
    with pytest.raises(ValueError, match="k=0"):
        trained.top_items([["1"]], k=0)


@pytest.mark.parametrize("name", TRAIN)
class TestTraining:
    def test_a_seed_decides_everything(self, name, events, records):
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        short = SMALL | {"num_epochs": 1, "dropout": 0.2}
        first = TRAIN[name](events, seed=0, **short)
        assert torch.equal(before, torch.random.get_rng_state())
        torch.manual_seed(2)
        np.random.seed(2)
        second, other = TRAIN[name](events, seed=0, **short), TRAIN[name](events, seed=1, **short)
        histories = records["history_item_ids"]
        assert np.array_equal(first.log_probs(histories), second.log_probs(histories))
        assert not np.allclose(first.log_probs(histories), other.log_probs(histories), atol=1e-3)

    def test_only_training_events_are_read(self, name, events, records):
        short = SMALL | {"num_epochs": 1}
        split = events.with_columns(
            split=pl.when(pl.col("user_id") < 100).then(pl.lit("train")).otherwise(pl.lit("test"))
        )
        later = pl.col("split") == "test"
        changed = split.with_columns(item_id=pl.when(later).then(pl.lit("x") + pl.col("item_id")).otherwise("item_id"))
        scorers = [TRAIN[name](one, seed=0, **short) for one in (split, changed, split.filter(~later), events)]
        first, second, third, leaking = (scorer.log_probs(records["history_item_ids"]) for scorer in scorers)
        assert np.array_equal(first, second)
        assert np.array_equal(first, third)
        assert not np.array_equal(first, leaking)

    def test_the_best_epoch_is_taken(self, name, events, records):
        """With a learning rate that undoes what was learned, the last epoch is not the best."""
        options = SMALL | {"num_epochs": 30, "patience": 2, "learning_rate": 0.03}
        scorer = TRAIN[name](events, seed=0, validation=records, **options)
        rates = scorer.validation_hit_rates
        assert len(rates) == scorer.num_epochs + 2 < 30
        assert rates[scorer.num_epochs - 1] == max(rates) > max(rates[: scorer.num_epochs - 1], default=0)
        assert hit_rate(ranks(score_records(scorer, records, desc=None))) == max(rates)
        assert scorer.seconds > 0


def test_windows_cover_every_event_as_a_target():
    begins, ends = np.array([0, 7, 8]), np.array([7, 8, 30])
    generator = np.random.default_rng(0)
    drawn = {tuple(map(tuple, draw_windows(begins, ends, 5, generator))) for _ in range(20)}
    assert len(drawn) > 1
    for low, high in drawn:
        assert set(begins) <= set(low)
        covered = np.concatenate([np.arange(a, b) for a, b in zip(low, high, strict=True)])
        assert sorted(set(covered.tolist())) == list(range(30))
        assert all(0 < b - a <= 6 for a, b in zip(low, high, strict=True))
        owners = np.searchsorted(ends, low, side="right")
        assert (owners == np.searchsorted(ends, np.array(high) - 1, side="right")).all()


def test_options_out_of_range(events):
    for options, message in (
        ({"num_epochs": 0}, "num_epochs=0 is below 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
        ({"max_length": 0}, "max_length=0"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"dropout": 1.5}, "dropout=1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            train_gru4rec(events, seed=0, **SMALL | options)
    with pytest.raises(ValueError, match="hidden_size=15 is not a multiple of num_heads=2"):
        train_sasrec(events, seed=0, **SMALL | {"hidden_size": 15})
    with pytest.raises(TypeError, match="batchsize"):
        train_sasrec(events, seed=0, batchsize=3)
    with pytest.raises(ValueError, match=r"loss is (nan|inf).*learning_rate"):
        train_gru4rec(events, seed=0, **SMALL | {"learning_rate": 1e30})


def circle(items):
    """Vectors in which neighbours in the circle are close."""
    angles = {item: 2 * np.pi * int(item) / NUM_ITEMS for item in items}
    return {item: np.array([f(k * angle) for k in (1, 2, 3, 4) for f in (np.cos, np.sin)]) for item, angle in angles.items()}  # fmt: skip


@pytest.mark.parametrize("id_dropout", [0.2, 1.0])
def test_items_without_events_are_scored_by_their_vectors(id_dropout):
    """Four items apart from each other are in no training event: after 1, 2, 3, 4 the vector of 5 is the likely one."""
    cold = ["5", "12", "19", "26"]
    sequences = [[item for item in sequence if item not in cold] for sequence in cycles(150, seed=0)]
    vectors = circle(map(str, range(NUM_ITEMS)))
    scorer = train_sasrec(frame(sequences), seed=0, item_embeddings=vectors, id_dropout=id_dropout, **SMALL)
    assert len(scorer.item_ids) == NUM_ITEMS
    histories = [["1", "2", "3", "4"]]
    (scores,) = scorer(histories, [cold])
    assert np.isfinite(scores).all()
    assert int(np.argmax(scores)) == 0
    # and without vectors nothing tells them apart
    (alike,) = train_sasrec(frame(sequences), seed=0, **SMALL | {"num_epochs": 1})(histories, [cold])
    assert len(set(alike.tolist())) == 1


def test_vectors_in_place_of_ids_are_all_that_is_read():
    """Two items with one vector have one score, as histories and as candidates."""
    vectors = circle(map(str, range(NUM_ITEMS)))
    vectors["7"] = vectors["3"]
    options = SMALL | {"num_epochs": 2}
    scorer = train_sasrec(frame(cycles(40, seed=0)), seed=0, item_embeddings=vectors, id_dropout=1.0, **options)
    (scores,) = scorer([["1", "2"]], [["3", "7"]])
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    first, second = scorer([["3"], ["7"]], [["9"], ["9"]])
    assert first[0] == pytest.approx(second[0], abs=1e-6)
    with_ids = train_sasrec(frame(cycles(40, seed=0)), seed=0, item_embeddings=vectors, **options)
    (scores,) = with_ids([["1", "2"]], [["3", "7"]])
    assert abs(scores[0] - scores[1]) > 1e-4


def test_the_seed_decides_with_vectors_too():
    vectors, events = circle(map(str, range(NUM_ITEMS))), frame(cycles(40, seed=0))
    options = SMALL | {"num_epochs": 1}
    first, again, other = (train_sasrec(events, seed=seed, item_embeddings=vectors, **options) for seed in (0, 0, 1))
    scores = [one([["1", "2"]], [["3", "7"]])[0] for one in (first, again, other)]
    assert scores[0].tolist() == scores[1].tolist() != scores[2].tolist()


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda vectors: vectors.pop("3"), {}, "none of item '3' \\(1 such items\\)"),
        (lambda vectors: vectors.update({"3": vectors["3"] * np.nan}), {}, "not vectors of one length"),
        (lambda vectors: None, {"id_dropout": 1.5}, "id_dropout=1.5 is not between 0 and 1"),
    ],
)
def test_vectors_that_are_none(change, options, words):
    vectors = circle(map(str, range(NUM_ITEMS)))
    change(vectors)
    with pytest.raises(ValueError, match=words):
        train_sasrec(frame(cycles(5, seed=0)), seed=0, item_embeddings=vectors, **SMALL, **options)
