import logging

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from trl_sdpo.recsys import (
    Interactions,
    PromptTemplate,
    build_preference_dataset,
    get_template,
    popularity_scores,
    ranking_metrics,
    ranks,
)
from trl_sdpo.recsys.records.config import RecordConfig
from trl_sdpo.recsys.records.dataset import plan_records


USERS, EVENTS, ITEMS = 12, 20, 80


def title_of(item):
    return f"Film {item} (19{item % 100:02d})"


def make_interactions(string_ids=False, has_time=True):
    """Every user takes 20 of 80 items; times of users overlap, so that users have events in all splits."""
    generator = np.random.default_rng(0)
    item = np.concatenate([generator.permutation(ITEMS)[:EVENTS] for _ in range(USERS)])
    user = np.repeat(np.arange(USERS), EVENTS)
    time = np.tile(np.arange(EVENTS) * 100, USERS) + user
    events = pl.DataFrame({"user_id": user, "item_id": item, "timestamp": time, "rating": (item + user) % 5 + 1.0})
    items = pl.DataFrame({"item_id": range(ITEMS), "title": [title_of(number) for number in range(ITEMS)]})
    if string_ids:
        events = events.with_columns(pl.format("u{}", "user_id").alias("user_id"), pl.col("item_id").cast(pl.String))
        items = items.with_columns(pl.col("item_id").cast(pl.String))
    if not has_time:
        events = events.with_columns(pl.lit(None, dtype=pl.Int64).alias("timestamp"))
    return Interactions(events.sample(fraction=1, shuffle=True, seed=1), items, "tiny", has_time=has_time)


# Who may be a negative and which targets there are by then is the business of test_promises.
SIMPLE = {"seed": 0, "num_candidates": 6, "existence": "off", "exclude_seen": "ever"}


def build(**options):
    return build_preference_dataset(make_interactions(), **SIMPLE | options)


def own_events(user):
    events = make_interactions().events.filter(pl.col("user_id") == user).sort("timestamp")
    return events["item_id"].to_list(), events["timestamp"].to_list()


def all_records(dataset):
    return [record for split in dataset for record in dataset[split]]


def test_records_hold_what_the_sequences_say():
    dataset, report = build(history_size=4)
    assert list(dataset) == ["train", "validation", "test"]
    names = ["prompt", "chosen", "rejected", "user_id", "item_id", "rejected_item_ids", "history_item_ids"]
    assert dataset["train"].column_names == [
        *names,
        "candidates",
        "timestamp",
        "position",
        "num_earlier",
        "consumed_item_ids",
    ]
    template = get_template("lines")
    for record in all_records(dataset):
        items, times = own_events(record["user_id"])
        position = record["position"]
        assert record["item_id"] == items[position]
        assert record["timestamp"] == times[position]
        assert record["history_item_ids"] == items[max(0, position - 4) : position]
        assert record["prompt"] == template.render([title_of(item) for item in record["history_item_ids"]])
        assert record["chosen"] == template.complete(title_of(record["item_id"]))
        assert record["rejected"] == [template.complete(title_of(item)) for item in record["rejected_item_ids"]]
        assert not set(items) & set(record["rejected_item_ids"])
        shown = [title_of(item) for item in (record["item_id"], *record["rejected_item_ids"])]
        assert sorted(record["candidates"]) == sorted(shown)
    # 240 events; 16 of 20 rounds are for training, the first three of every user have too short a history.
    assert report["train"].pop("record_facts")["targets_without_train_event"] == 0
    assert report["train"] == {
        "targets": 192,
        "dropped_short_history": 36,
        "dropped_by_stride": 0,
        "dropped_by_windows": 0,
        "dropped_by_subsampling": 0,
        "records": 156,
        "users": 12,
        "items": len(set(dataset["train"]["item_id"])),
    }
    assert (report["validation"]["records"], report["test"]["records"]) == (24, 24)
    assert (report["source"], report["events"], report["users"], report["seed"]) == ("tiny", 240, 12, 0)


def test_training_ends_before_validation_and_that_before_the_test():
    dataset, _ = build()
    assert max(dataset["train"]["timestamp"]) < min(dataset["validation"]["timestamp"])
    assert max(dataset["validation"]["timestamp"]) < min(dataset["test"]["timestamp"])


def test_candidates_are_shown_in_their_order_with_their_number():
    dataset, _ = build(prompt_style="candidates")
    template = get_template("choose")
    for record in all_records(dataset):
        history = [title_of(item) for item in record["history_item_ids"]]
        assert record["prompt"] == template.render(history, record["candidates"])
        assert "from these 6:" in record["prompt"]


def test_the_style_of_the_prompt_changes_nothing_but_the_text():
    ours, _ = build()
    theirs, _ = build(prompt_style="candidates", template="random")
    for split in ours:
        texts = ["prompt", "chosen", "rejected"]
        assert ours[split].remove_columns(texts).to_dict() == theirs[split].remove_columns(texts).to_dict()


def test_random_templates_are_all_used_and_completions_go_with_their_prompt():
    dataset, _ = build(template="random")
    lines = 0
    for record in all_records(dataset):
        at_line_start = record["prompt"].endswith("\n")
        lines += at_line_start
        assert {text.startswith(" ") for text in (record["chosen"], *record["rejected"])} == {not at_line_start}
    total = len(all_records(dataset))
    assert 0.2 * total < lines < 0.47 * total
    assert sum("Which movie" in record["prompt"] for record in all_records(dataset)) > 0.2 * total
    assert build(template="random")[0]["test"].to_dict() == dataset["test"].to_dict()


def test_a_template_of_ones_own():
    mine = PromptTemplate("mine", "history", "{num_history} seen: {history}. Next:")
    dataset, _ = build(template=mine, history_size=3)
    assert dataset["test"][0]["prompt"].startswith("3 seen: Film")


def test_the_pool_is_for_training_only_and_the_list_is_its_beginning():
    small, _ = build()
    large, _ = build(pool_size=40)
    assert {len(record["rejected"]) for record in large["train"]} == {40}
    assert {len(record["rejected"]) for record in large["test"]} == {5}
    assert large["train"]["candidates"] == small["train"]["candidates"]
    assert [row[:5] for row in large["train"]["rejected"]] == list(small["train"]["rejected"])
    assert large["test"].to_dict() == small["test"].to_dict()


def test_subsamples_are_nested_uniform_over_the_split_and_leave_records_as_they_are():
    full, _ = build()
    large, _ = build(max_train_records=60, max_validation_records=20, max_test_records=10)
    small, report = build(max_train_records=30, max_test_records=1000)

    def rows(dataset):
        return {(record["user_id"], record["position"]): record for record in dataset["train"]}

    assert (len(large["train"]), len(large["validation"]), len(large["test"])) == (60, 20, 10)
    assert (len(small["train"]), len(small["test"])) == (30, 24)
    assert report["train"]["dropped_by_subsampling"] == 126
    assert rows(small).items() <= rows(large).items() <= rows(full).items()
    assert len(set(small["train"]["user_id"])) > 8
    other, _ = build(seed=1, max_train_records=30)
    assert rows(other).keys() != rows(small).keys()


def test_stride_counts_back_from_the_last_training_target():
    dataset, report = build(train_stride=5)
    for user in range(USERS):
        assert [one["position"] for one in dataset["train"] if one["user_id"] == user] == [5, 10, 15]
    assert report["train"]["dropped_by_stride"] == 120
    assert len(dataset["test"]) == 24


def test_ratings_below_the_bar_are_no_targets_and_no_history_and_no_negatives_of_their_user():
    dataset, report = build(min_rating=4, min_history=1)
    assert report["events_below_min_rating"] > 0
    for record in all_records(dataset):
        user = record["user_id"]
        items, _ = own_events(user)
        liked = [item for item in items if (item + user) % 5 + 1 >= 4]
        assert record["item_id"] == liked[record["position"]]
        assert set(record["history_item_ids"]) <= set(liked)
        assert not set(items) & set(record["rejected_item_ids"])


def test_negatives_come_from_the_items_that_are_left():
    dataset, report = build(min_interactions=4, min_history=1)
    counts = make_interactions().events["item_id"].value_counts()
    rare = set(counts.filter(pl.col("count") < 4)["item_id"])
    assert 0 < len(rare) <= ITEMS - report["items"]
    for record in all_records(dataset):
        assert not rare & {record["item_id"], *record["rejected_item_ids"]}


def test_conversational():
    plain, _ = build(template="watched")
    chat, _ = build(template="watched", conversational=True)
    ours, theirs = plain["test"][0], chat["test"][0]
    assert theirs["prompt"] == [{"role": "user", "content": ours["prompt"]}]
    assert theirs["chosen"] == [{"role": "assistant", "content": ours["chosen"].strip()}]
    assert theirs["rejected"] == [[{"role": "assistant", "content": text.strip()}] for text in ours["rejected"]]


def test_string_ids():
    dataset, _ = build_preference_dataset(make_interactions(string_ids=True), seed=0, num_candidates=6)
    record = dataset["test"][0]
    assert record["user_id"].startswith("u")
    assert record["chosen"] == title_of(int(record["item_id"])) + "\n"


def test_the_same_seed_gives_the_same_records_whatever_the_order_of_the_source():
    interactions = make_interactions()
    turned = Interactions(interactions.events.reverse(), interactions.items.reverse(), "tiny")
    ours, _ = build_preference_dataset(interactions, seed=0, num_candidates=6)
    theirs, _ = build_preference_dataset(turned, seed=0, num_candidates=6)
    assert all(ours[split].to_dict() == theirs[split].to_dict() for split in ours)
    other, _ = build(seed=1)
    assert other["test"]["rejected"] != ours["test"]["rejected"]


def test_a_share_of_0_leaves_the_split_out():
    dataset, report = build(ratios=(0.8, 0.0, 0.2))
    assert list(dataset) == ["train", "test"]
    assert "validation" not in report


def test_counts_are_logged(caplog):
    with caplog.at_level(logging.INFO, logger="trl_sdpo.recsys"):
        build()
    assert "tiny, train: 156 records of 192 targets (36 dropped short history)." in caplog.text
    assert (
        "Split by time: 192 train, 24 validation, 24 test events; validation from 1970-01-01 00:26:40" in caplog.text
    )


def test_errors_say_what_to_change():
    with pytest.raises(ValueError, match="the source has no time"):
        build_preference_dataset(make_interactions(has_time=False), seed=0)
    with pytest.raises(
        ValueError, match=r"split 'train' has no record of .*\(192 dropped short history\).*min_history=30"
    ):
        build(min_history=30)
    with pytest.raises(ValueError, match=r"user \d+ leaves 58 of 78 items to draw 63 negatives"):
        build(pool_size=63)
    with pytest.raises(
        ValueError, match=r"split 'train': none of \d+ targets has 63 items that existed by then .* existence='off'"
    ):
        build(pool_size=63, existence=None)
    with pytest.raises(ValueError, match=r"existence='always' is none of \('first-event', 'release-year', 'off'\)"):
        build(existence="always")
    with pytest.raises(ValueError, match=r"tiny: existence='first-event' needs times, which the source does not have"):
        build_preference_dataset(make_interactions(has_time=False), seed=0, split="user", existence="first-event")
    with pytest.raises(ValueError, match=r"candidate_seed='target' draws from all items, existence='first-event'"):
        build(candidate_seed="target", existence="first-event")
    with pytest.raises(ValueError, match="max_test_records=0 is below 1"):
        build(max_test_records=0)
    with pytest.raises(ValueError, match="pool_size=4 is below the 5 negatives of the list"):
        build(pool_size=4)
    with pytest.raises(ValueError, match="template 'choose' has style 'candidates'"):
        build(template="choose")


@pytest.mark.parametrize(
    ("name", "value", "lowest"),
    [("history_size", 0, 1), ("min_history", 0, 1), ("num_candidates", 1, 2), ("train_stride", 0, 1)],
)
def test_numbers_out_of_range_are_named(name, value, lowest):
    with pytest.raises(ValueError, match=f"{name}={value} is below {lowest}"):
        build(**{name: value})


def test_popularity_counts_training_events_only():
    train = pl.DataFrame({"item_id": [7, 7, 8, 7]})
    records = {"item_id": [8, 7], "rejected_item_ids": [[7, 9], [8, 9]]}
    scores = popularity_scores(train, records)
    assert scores.tolist() == [[1, 3, 0], [3, 1, 0]]
    assert ranks(scores).tolist() == [2, 1]


def test_popularity_of_ragged_and_string_records():
    train = pl.DataFrame({"item_id": ["a", "b", "a"]})
    scores = popularity_scores(train, {"item_id": ["a", "c"], "rejected_item_ids": [["b"], ["a", "b"]]})
    assert [row.tolist() for row in scores] == [[2, 1], [0, 2, 1]]
    with pytest.raises(ValueError, match="records: no rows"):
        popularity_scores(train, {"item_id": [], "rejected_item_ids": []})


def test_popularity_of_a_data_set_goes_into_the_table():
    dataset, _ = build()
    # all events that stand before the first one of validation are for training
    train = make_interactions().events.filter(pl.col("timestamp") < min(dataset["validation"]["timestamp"]))
    metrics = ranking_metrics(ranks(popularity_scores(train, dataset["test"])))
    counts = dict(train.group_by("item_id").len().iter_rows())
    hits = 0
    for record in dataset["test"]:
        others = [counts.get(item, 0) for item in record["rejected_item_ids"]]
        hits += counts.get(record["item_id"], 0) > max(others)
    assert (metrics["n"], metrics["hr@1"]) == (24, pytest.approx(hits / 24))
    assert 0 < hits < 24


@pytest.mark.parametrize("style", ["history", "candidates"])
def test_chunks_are_small_enough_for_strings_of_arrow(monkeypatch, style):
    """An array of strings holds 2 GiB: with a lower limit, the same records come in more chunks, all of them below it."""
    config = RecordConfig(**SIMPLE, prompt_style=style)
    plan = plan_records(make_interactions(), config)
    (whole,) = plan.chunks("train")
    monkeypatch.setattr("trl_sdpo.recsys.records.rows._LARGEST_TEXT", 20_000)
    parts = list(plan_records(make_interactions(), config).chunks("train"))
    assert len(parts) > 3
    assert pa.concat_tables([part.table for part in parts]).to_pylist() == whole.table.to_pylist()
    for part in parts:
        for column in ("prompt", "chosen"):
            assert sum(len(text.encode()) for text in part.table[column].to_pylist()) <= 20_000
        assert sum(len(text.encode()) for row in part.table["rejected"].to_pylist() for text in row) <= 20_000


def test_the_wordings_are_drawn_by_the_seed():
    """The same histories before the same items, in other words."""
    first, second = (build(**SIMPLE | {"seed": seed, "template": "random"})[0]["test"] for seed in (0, 1))
    assert first["history_item_ids"] == second["history_item_ids"]
    differ = sum(one != other for one, other in zip(first["prompt"], second["prompt"], strict=True))
    assert 0 < differ < len(first)
