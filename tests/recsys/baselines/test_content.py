import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_sdpo.recsys import fit_fusion, score_records
from trl_sdpo.recsys.baselines.content import content_scorer


EVENTS = pl.DataFrame({"user_id": [1] * 4 + [2] * 3 + [3] * 4, "item_id": [0, 1, 2, 0, 3, 4, 5, 1, 2, 0, 4]})
WORDS = ["drama", "comedy", "war"]


def items_of(values, years):
    titles = [f"Film {number} ({year})" if year else f"Film {number}" for number, year in enumerate(years)]
    return pl.DataFrame({"item_id": range(len(values)), "title": titles, "genres": values})


@st.composite
def catalogues(draw):
    size = draw(st.integers(6, 9))
    values = draw(st.lists(st.lists(st.sampled_from(WORDS), unique=True, max_size=3), min_size=size, max_size=size))
    values[0] = ["drama"]
    years = draw(st.lists(st.one_of(st.none(), st.integers(1950, 2020)), min_size=size, max_size=size))
    return items_of(values, [1990, *years[1:]])


@settings(max_examples=25, deadline=None)
@given(catalogues(), st.lists(st.integers(0, 9), max_size=4), st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_features_by_loops(items, history, candidates):
    """Against the definitions, item by item; item 9 is never known."""
    scorer = content_scorer(EVENTS, items, num_negatives=3)
    parts = scorer.parts([list(map(str, history))], [list(map(str, candidates))])
    values = dict(zip(items["item_id"].to_list(), items["genres"].to_list(), strict=True))
    idf = {word: math.log((1 + len(values)) / (1 + sum(word in row for row in values.values()))) + 1 for word in WORDS}

    def vector(item):
        found = np.array([idf[word] if word in (values.get(item) or ()) else 0.0 for word in WORDS])
        return found / max(np.linalg.norm(found), 1e-12)

    profile = sum((vector(item) for item in history), np.zeros(3))
    cosines = [profile @ vector(item) / max(np.linalg.norm(profile), 1e-12) for item in candidates]
    np.testing.assert_allclose(parts["genres: like the history"][0], cosines, atol=1e-9)

    counts = EVENTS["item_id"].to_list()
    taken = [item for item in values if item in counts]
    mean = sum(item in values for item in counts) / len(taken)
    prior = {}
    for word in WORDS:
        events = sum(word in (values.get(item) or ()) for item in counts)
        holders = sum(word in (values[item] or ()) for item in taken)
        prior[word] = math.log((events + 5 * mean) / (holders + 5) / mean)
    expected = [np.mean([prior[word] for word in values.get(item) or ()] or [0]) for item in candidates]
    np.testing.assert_allclose(parts["genres: popularity of its values"][0], expected, atol=1e-9)

    years = {item: int(title[-5:-1]) if title.endswith(")") else None for item, title in items.select("item_id", "title").rows()}  # fmt: skip
    known = [year for year in years.values() if year is not None]
    middle, spread = np.median(known), max(np.std(known), 1e-12)
    year_of = [years.get(item) or middle for item in history] or [middle]
    own = np.array([years.get(item) or middle for item in candidates])
    np.testing.assert_allclose(parts["year: near the history's mean"][0], -abs(own - np.mean(year_of)) / spread)
    np.testing.assert_allclose(parts["year: near the history's largest"][0], -abs(own - max(year_of)) / spread)


def taste(num_users=40, num_items=60, seed=0):
    """Everybody has one genre, and items 40 to 59 nobody has had."""
    generator = np.random.default_rng(seed)
    genre = np.arange(num_items) % 4
    rows = []
    for user in range(num_users):
        own = np.flatnonzero((genre == user % 4) & (np.arange(num_items) < 40))
        rows += [(user, int(item)) for item in generator.permutation(own)[:6]]
    items = pl.DataFrame({"item_id": range(num_items), "genres": [[f"g{one}"] for one in genre]})
    return pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row"), items, genre


def test_items_without_events_are_told_apart_by_their_attributes():
    events, items, genre = taste()
    scorer = content_scorer(events, items)
    new = [str(item) for item in range(40, 60)]
    for own in range(4):
        history = [str(item) for item in np.flatnonzero(genre[:40] == own)[:3]]
        (scores,) = scorer([history], [new])
        assert genre[40 + int(np.argmax(scores))] == own


def test_vectors_tell_as_well():
    events, items, genre = taste()
    generator = np.random.default_rng(1)
    vectors = {str(item): np.eye(4)[genre[item]] + 5 + 0.1 * generator.normal(size=4) for item in range(60)}
    scorer = content_scorer(events, items.select("item_id"), vectors=vectors)
    history, new = [str(item) for item in np.flatnonzero(genre[:40] == 2)[:3]], [str(item) for item in range(40, 60)]
    parts = scorer.parts([history], [new])
    centred = np.array([vectors[str(item)] for item in range(60)])
    centred = centred - centred.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    rows, others = centred[list(map(int, history))], centred[40:]
    mean = rows.mean(axis=0)
    np.testing.assert_allclose(parts["text: like the history"][0], others @ mean / np.linalg.norm(mean))
    np.testing.assert_allclose(parts["text: like its nearest"][0], (others @ rows.T).max(axis=1))
    assert genre[40 + int(np.argmax(scorer([history], [new])[0]))] == 2


def test_the_weights_are_those_of_the_logit_and_the_seed_decides():
    events, items, _ = taste()
    scorers = [content_scorer(events, items, seed=seed) for seed in (0, 0, 1)]
    assert scorers[0].fusion == scorers[1].fusion != scorers[2].fusion
    records = {"history_item_ids": [[0, 4]], "item_id": [8], "rejected_item_ids": [[1, 2, 44]]}
    (scores,) = score_records(scorers[0], records, desc=None)
    parts = scorers[0].parts([["0", "4"]], [["8", "1", "2", "44"]])
    np.testing.assert_allclose(scores, sum(np.array(w) * parts[f][0] for f, w in zip(scorers[0].fusion.features, scorers[0].fusion.weights, strict=True)))  # fmt: skip
    assert scorers[0]([], []) == []
    # what is computed of many at once is what is computed of one
    many = scorers[0].parts([["0", "4"]] * 130 + [["5"]], [["8", "1", "2", "44"]] * 130 + [["9"]])
    for name, rows in many.items():
        np.testing.assert_allclose(rows[129], parts[name][0])
    assert fit_fusion(many).num_records == 131


@pytest.mark.parametrize(
    ("items", "vectors", "words"),
    [
        ({"item_id": [1, 2], "title": ["A", "B"]}, None, r"no attribute among .*attributes=genres,year"),
        ({"item_id": [1, 1], "genres": [["a"], ["b"]]}, None, "'1' occurs twice"),
        ({"item_id": [1, 2], "genres": [["a"], ["b"]]}, {"1": np.ones(2)}, "none of item '2' \\(1 such items\\)"),
    ],
)
def test_what_cannot_be_fitted(items, vectors, words):
    with pytest.raises(ValueError, match=words):
        content_scorer(EVENTS, pl.DataFrame(items), vectors=vectors)


def test_nothing_to_draw_from():
    alone = pl.DataFrame({"user_id": [1, 1], "item_id": [0, 1]})
    with pytest.raises(ValueError, match="none has a history and items that its user did not take"):
        content_scorer(alone, items_of([["drama"], ["war"]], [1990, 1991]))
