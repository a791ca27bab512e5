"""What holds of records of any table of interactions: checked on random tables and random options, by seed."""

import numpy as np
import polars as pl
import pytest

from trl_sdpo.recsys import Interactions, build_preference_dataset


def random_interactions(generator):
    """Users from one event to many, repeats, ties in time, ids of either type, items that nobody took."""
    num_users, num_items = int(generator.integers(5, 40)), int(generator.integers(30, 120))
    sizes = generator.integers(1, num_items // 2, num_users)
    sizes[0] = 1
    user = np.repeat(np.arange(num_users), sizes)
    popularity = generator.dirichlet(np.full(num_items, 0.7))
    item = np.concatenate([generator.choice(num_items, size, p=popularity) for size in sizes])
    time = generator.integers(0, max(20, len(item) // 3), len(item))
    events = pl.DataFrame(
        {"user_id": user, "item_id": item, "timestamp": time, "rating": generator.integers(1, 6, len(item))}
    )
    events = events.cast({"rating": pl.Float64})
    items = pl.DataFrame(
        {"item_id": np.arange(num_items), "title": [f"T{number}, “{number % 7}”" for number in range(num_items)]}
    )
    if generator.random() < 0.5:
        events = events.with_columns(
            pl.format("u-{}", "user_id").alias("user_id"), pl.format("i-{}", "item_id").alias("item_id")
        )
        items = items.with_columns(pl.format("i-{}", "item_id").alias("item_id"))
    return Interactions(events, items, "random")


def random_options(generator):
    strategies = ("uniform", "popularity", "hard", "uniform:0.5,hard:0.5", "uniform:0.2,popularity:0.5,hard:0.3")
    style = str(generator.choice(["history", "candidates"]))
    return {
        "seed": int(generator.integers(1000)),
        "split": str(generator.choice(["temporal", "leave-one-out", "user"])),
        "negatives": str(generator.choice(strategies)),
        "eval_negatives": str(generator.choice(strategies)),
        "prompt_style": style,
        "template": "random",
        "domain": str(generator.choice(["movies", "books", "music", "items"])),
        "history_size": int(generator.integers(1, 8)),
        "min_history": int(generator.integers(1, 4)),
        "num_candidates": int(generator.integers(2, 7)),
        "pool_size": int(generator.integers(6, 9)),
        "min_rating": [None, 2.0][int(generator.integers(2))],
        "merge_repeats": bool(generator.integers(2)),
        "windows": ["all", "last", 3][int(generator.integers(3))],
        "max_train_records": [None, 40][int(generator.integers(2))],
        "conversational": bool(generator.integers(2)),
    }


def build(seed):
    """The first table that is large enough for its options: for others the error says why it is not."""
    too_small = ("has no record", "gets none", "items to draw", "three events", "that existed by then")
    for attempt in range(20):
        generator = np.random.default_rng([seed, attempt])
        interactions, options = random_interactions(generator), random_options(generator)
        try:
            return interactions, options, *build_preference_dataset(interactions, **options)
        except ValueError as error:
            if not any(words in str(error) for words in too_small):
                raise
    raise AssertionError("none of 20 tables was large enough")


def text_of(completion):
    return completion if isinstance(completion, str) else completion[0]["content"]


@pytest.mark.parametrize("seed", range(24))
def test_records_of_random_tables(seed):
    interactions, options, dataset, report = build(seed)
    titles = dict(interactions.items.rows())
    touched = {user: set(items) for user, items in interactions.events.group_by("user_id").agg("item_id").rows()}
    last_time = -1
    for split, records in dataset.items():
        assert len(records) == report[split]["records"] > 0
        pool_size = options["pool_size"] if split == "train" else options["num_candidates"] - 1
        for record in records:
            # every record is complete, and no negative is the target or comes twice; test_promises says who may be one
            assert len(record["rejected"]) == len(set(map(text_of, record["rejected"]))) == pool_size
            assert record["item_id"] not in record["rejected_item_ids"]
            assert split != "test" or not touched[record["user_id"]] & set(record["rejected_item_ids"])
            assert text_of(record["chosen"]).strip() == titles[record["item_id"]].strip()
            written = [text_of(one).strip() for one in record["rejected"]]
            assert written == [titles[item] for item in record["rejected_item_ids"]]
            listed = [titles[record["item_id"]], *written[: options["num_candidates"] - 1]]
            assert sorted(record["candidates"]) == sorted(listed)
            history = [titles[item] for item in record["history_item_ids"]]
            assert min(options["min_history"], options["history_size"]) <= len(history) <= options["history_size"]
            assert set(record["history_item_ids"]) <= touched[record["user_id"]]
            prompt = text_of(record["prompt"])
            assert all(title in prompt for title in history)
            if options["prompt_style"] == "candidates":
                assert all(title in prompt for title in listed)
        if options["split"] == "temporal":
            assert min(records["timestamp"]) > last_time
            last_time = max(records["timestamp"])
    check_splits(dataset, options)


def check_splits(dataset, options):
    """No target is in two splits, and a split by user has no user in two."""
    events = [{(row["user_id"], row["position"]) for row in records} for records in dataset.values()]
    users = [{row["user_id"] for row in records} for records in dataset.values()]
    for first in range(len(events)):
        for second in range(first):
            assert not events[first] & events[second]
            assert options["split"] != "user" or not users[first] & users[second]


@pytest.mark.parametrize("seed", range(0, 24, 4))
def test_threads_and_the_order_of_the_rows_change_nothing(seed, monkeypatch):
    monkeypatch.setattr("trl_sdpo.recsys.records.dataset.CHUNK_SIZE", 7)
    interactions, options, dataset, _ = build(seed)
    threaded, _ = build_preference_dataset(interactions, **options, num_workers=3)
    monkeypatch.undo()
    turned = Interactions(interactions.events.reverse(), interactions.items.reverse(), "random")
    again, _ = build_preference_dataset(turned, **options)
    for split in dataset:
        assert threaded[split].to_dict() == dataset[split].to_dict() == again[split].to_dict()
