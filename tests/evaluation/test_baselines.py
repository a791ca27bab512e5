import numpy as np
import pytest
from datasets import Dataset

from trl_sdpo import Catalogue, RecommenderConfig
from trl_sdpo.evaluation.baselines import (
    BASELINES,
    answers_of_scores,
    consumed_items,
    lists_of_scorer,
    train_baseline,
)
from trl_sdpo.evaluation.comparison import evaluate_catalogue
from trl_sdpo.evaluation.systems import Task, ask_baselines
from trl_sdpo.recsys import PromptTemplate, score_records


NUM_ITEMS = 20


@pytest.fixture(scope="module")
def sequences():
    """Eight users who walk through the items in a circle, each from another place and by steps of 1 or 3."""
    return {user: [(7 * user + place * (1 + 2 * (user % 2))) % NUM_ITEMS for place in range(14)] for user in range(8)}


def records_of(sequences, places, history_size=4):
    rows = [
        {
            "user_id": user,
            "item_id": items[place],
            "position": place,
            "history_item_ids": items[max(0, place - history_size) : place],
            "rejected_item_ids": [item for item in range(NUM_ITEMS) if item not in items[: place + 1]][:3],
        }
        for user, items in sequences.items()
        for place in places
    ]
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def splits(sequences):
    return {"train": records_of(sequences, range(4, 12)), "validation": records_of(sequences, [12]), "test": records_of(sequences, [13])}  # fmt: skip


@pytest.fixture(scope="module")
def catalogue(sequences):
    counts = np.bincount([item for items in sequences.values() for item in items[:12]], minlength=NUM_ITEMS)
    attributes = {"genres": [["even", "odd"][item % 2 :][:1] for item in range(NUM_ITEMS)]}
    return Catalogue(range(NUM_ITEMS), [f"Item {item}" for item in range(NUM_ITEMS)], counts.tolist(), attributes)


@pytest.fixture(scope="module")
def vectors():
    generator = np.random.default_rng(0)
    return {str(item): generator.normal(size=8) for item in range(NUM_ITEMS)}


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_scores_and_lists(name, splits, catalogue, vectors):
    test = splits["test"]
    scorer = train_baseline(name, splits["train"], splits["validation"], catalogue, seed=0, vectors=vectors)
    scores = score_records(scorer, test, desc=None)
    assert [len(row) for row in scores] == [4] * len(test)
    exclude = [[str(item) for item in row["history_item_ids"]] for row in test]
    lists = lists_of_scorer(scorer, test, catalogue, 5, exclude)
    for record, found, gone in zip(test, lists, exclude, strict=True):
        history = [str(item) for item in record["history_item_ids"]]
        (all_scores,) = scorer([history], [list(catalogue.item_ids)])
        left = {item: score for item, score in zip(catalogue.item_ids, all_scores, strict=True) if item not in gone}
        assert len(found) == 5
        assert not set(found) & set(gone)
        # none of what was left out is better than what is there
        assert min(left[item] for item in found) >= max(value for item, value in left.items() if item not in found)
        assert [left[item] for item in found] == sorted((left[item] for item in found), reverse=True)


def test_ties_count_against_the_target_in_lists(splits, catalogue):
    lists = lists_of_scorer(
        lambda histories, rows: [np.zeros(len(row)) for row in rows], splits["test"], catalogue, 99
    )
    assert [row[-1] for row in lists] == [str(item) for item in splits["test"]["item_id"]]


def test_answers_are_the_best_titles():
    titles = [["A", "B", "C"]] * 3
    assert answers_of_scores([np.array([3.0, 1, 2]), np.array([2.0, 1, 2]), np.array([0.0, 1, 0])], titles) == list(
        "ACB"
    )


def test_unknown_baselines_are_refused(splits):
    with pytest.raises(ValueError, match="'sasrek' is none of the baselines"):
        train_baseline("sasrek", splits["train"], seed=0)


def test_what_a_baseline_needs_to_know_of_items(splits, catalogue):
    with pytest.raises(ValueError, match="'content' needs a catalogue"):
        train_baseline("content", splits["train"], seed=0)
    for name in ("text", "sasrec-text"):
        with pytest.raises(ValueError, match=f"'{name}' needs vectors of items.*--text_model"):
            train_baseline(name, splits["train"], None, catalogue, seed=0)


class TestConsumed:
    def test_the_column_has_it_all(self, splits):
        rows = splits["test"].add_column("consumed_item_ids", [[number] for number in range(8)])
        assert consumed_items(rows) == ([[str(number)] for number in range(8)], True)

    def test_other_records_show_what_a_history_does_not(self, splits, sequences):
        found, complete = consumed_items(splits["test"], list(splits.values()))
        assert not complete
        for record, items in zip(splits["test"], found, strict=True):
            assert len(items) == len(set(items))
            assert set(items) == {str(item) for item in sequences[record["user_id"]][: record["position"]]}

    def test_nothing_of_later(self, sequences):
        early = records_of(sequences, [5])
        found, _ = consumed_items(early, [records_of(sequences, [5, 6, 13])])
        for record, items in zip(early, found, strict=True):
            before = sequences[record["user_id"]][:5]
            assert set(items) <= {str(item) for item in before}

    def test_what_has_the_time_of_the_target_is_not_before_it(self, sequences):
        """Events in pairs of one time: the second of a pair has one event less before it."""
        rows = records_of(sequences, range(4, 14))
        rows = rows.add_column("num_earlier", [place - place % 2 for place in rows["position"]])
        # a history ends where the events of the target's time begin
        rows = rows.map(lambda row: {"history_item_ids": sequences[row["user_id"]][: row["num_earlier"]][-4:]})
        found, _ = consumed_items(rows, [rows])
        for record, items in zip(rows, found, strict=True):
            assert set(items) == {str(item) for item in sequences[record["user_id"]][: record["num_earlier"]]}

    def test_without_positions_there_is_the_history(self, splits):
        bare = splits["test"].remove_columns(["position"])
        found, complete = consumed_items(bare, list(splits.values()))
        assert (found, complete) == ([[str(item) for item in row] for row in bare["history_item_ids"]], False)


class TestCatalogueSection:
    def test_what_is_excluded_leaves_lists_and_chance(self, splits, catalogue):
        test = splits["test"]
        target = [str(item) for item in test["item_id"]]
        others = [[str(item) for item in range(NUM_ITEMS) if str(item) != one] for one in target]
        # of a list of all items with the target as the sixth, the five before it are excluded
        lists = [[*row[:5], one, *row[5:]] for one, row in zip(target, others, strict=True)]
        exclude = [row[:5] for row in others]
        section = evaluate_catalogue({"mine": lists}, test, catalogue, seed=0, ks=(1, 3), exclude=exclude)
        assert section["systems"]["mine"]["hr@1"] == 1
        assert section["systems"]["chance"]["hr@3"] == pytest.approx(3 / 15)
        assert (section["excluded"], section["repeats"]) == ({"mine": 5 * len(test)}, 0)
        assert section["label"] == "full ranking: lists from all 20 items, without what a user had before"

    def test_repeats_are_said(self, splits, catalogue):
        test = splits["test"]
        target = [[str(item)] for item in test["item_id"]]
        exclude = [*target[:6], [], []]
        section = evaluate_catalogue(
            {"mine": target},
            test,
            catalogue,
            seed=0,
            ks=(1,),
            exclude=exclude,
            searches={"mine": "beam search, 10 beams"},
        )
        assert section["systems"]["mine"]["hr@1"] == 2 / 8
        assert section["systems"]["chance"]["hr@1"] == pytest.approx(2 / 8 / 20)
        assert section["repeats"] == 6
        assert "6 of 8 targets are repeats of what the user had before, which no list holds" in section["label"]
        assert "a search sees a part (beam search, 10 beams: mine)" in section["label"]
        free = evaluate_catalogue({"mine": target}, test, catalogue, seed=0, ks=(1,))
        assert free["systems"]["mine"]["hr@1"] == 1
        assert free["systems"]["chance"]["hr@1"] == 1 / 20


def test_answers_of_baselines_are_titles_without_what_ends_them(splits):
    """Of a wording with a suffix: a title, and the full stop behind it, are what a model is trained to write."""
    template = PromptTemplate(
        name="mine", style="history", text="Seen {history}. Next:", completion_prefix=" ", completion_suffix="."
    )
    wordings = {
        "prompt": ["Seen x. Next:"] * len(splits["test"]),
        "chosen": [f" Mr. {item}." for item in splits["test"]["item_id"]],
        "rejected": [[f" Mr. {item}." for item in row] for row in splits["test"]["rejected_item_ids"]],
    }
    records = Dataset.from_dict({**splits["test"].to_dict(), **wordings})
    task = Task("tiny", {"test": records}, "test", config=RecommenderConfig([template]), protocols=["generation"])

    def prefers_the_target(histories, candidates):
        return [np.arange(len(row), 0, -1, dtype=float) for row in candidates]

    found = ask_baselines(task, {"mine": prefers_the_target}, None)["generation"]["mine"]
    assert found == [f"Mr. {item}" for item in records["item_id"]]
