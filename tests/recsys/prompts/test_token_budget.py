import numpy as np
import polars as pl
import pytest
from datasets import Dataset

from trl_sdpo.data_utils import tokenize_multi_preference
from trl_sdpo.recsys import Interactions, PromptTemplate, build_preference_dataset, check_token_boundary, prepare


@pytest.fixture(scope="module")
def interactions():
    generator = np.random.default_rng(0)
    item = np.concatenate([generator.permutation(50)[:12] for _ in range(15)])
    user = np.repeat(np.arange(15), 12)
    events = pl.DataFrame({"user_id": user, "item_id": item, "timestamp": np.tile(np.arange(12) * 100, 15) + user})
    # from short titles to long ones
    titles = [f"The {'very ' * (number % 9)}long Night {number} (19{number + 10})" for number in range(50)]
    genres = [["Drama", "Comedy", "Film-Noir"][: number % 4] for number in range(50)]
    items = pl.DataFrame({"item_id": range(50), "title": titles, "genres": genres})
    return Interactions(events, items, "tiny")


def build(interactions, tokenizer, **options):
    return build_preference_dataset(
        interactions, seed=0, num_candidates=5, processing_class=tokenizer, **{"template": "watched"} | options
    )


def longest(record, tokenizer):
    """What the trainer will count: the prompt with the longest of its completions."""
    ids = tokenize_multi_preference(record, 0, tokenizer, tokenizer.eos_token)
    return len(ids["prompt_ids"]) + max(len(one) for one in (ids["chosen_ids"], *ids["rejected_ids"]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"conversational": True},
        {"prompt_style": "candidates", "template": "random"},
        {"item_format": "{title}[ ({genres})]", "completion_format": "[{genres:1}: ]{title}"},
    ],
)
def test_histories_lose_their_oldest_items_until_they_fit(interactions, tokenizer, options):
    plain, _ = build_preference_dataset(interactions, seed=0, num_candidates=5, **{"template": "watched"} | options)
    lengths = sorted(longest(record, tokenizer) for record in plain["train"])
    limit = lengths[len(lengths) // 4]
    dataset, report = build(interactions, tokenizer, max_length=limit, **options)
    whole = {(row["user_id"], row["position"]): row for row in plain["train"]}
    shortened = 0
    for record in dataset["train"]:
        before = whole[record["user_id"], record["position"]]
        history = record["history_item_ids"]
        assert longest(record, tokenizer) <= limit
        # the latest items stay, and completions are as they were
        assert history == before["history_item_ids"][-len(history) :]
        assert (record["chosen"], record["rejected"]) == (before["chosen"], before["rejected"])
        # an item is there whole, attributes and all, or not at all
        if "item_format" in options:
            items = {item: row for item, *row in interactions.items.select("item_id", "title", "genres").rows()}
            for item in before["history_item_ids"]:
                title, genres = items[item]
                text = f"{title} ({', '.join(genres)})" if genres else f"{title}"
                assert (text in record["prompt"]) == (item in history)
        if len(history) < len(before["history_item_ids"]):
            shortened += 1
            longer = dict(before) if len(history) + 1 == len(before["history_item_ids"]) else None
            # no more was taken than had to be
            assert longer is None or longest(longer, tokenizer) > limit
    assert report["train"]["histories_shortened"] == shortened > 10
    assert report["train"]["dropped_too_long"] == len(plain["train"]) - len(dataset["train"])
    assert report["train"]["records"] == len(dataset["train"])


def test_tokens_in_the_report_are_those_of_the_trainer(interactions, tokenizer, tmp_path):
    options = {"seed": 0, "num_candidates": 5, "template": "watched", "domain": "movies"}
    report = prepare(interactions, tmp_path / "out", processing_class=tokenizer, **options)
    plain, _ = build_preference_dataset(interactions, **options)
    lengths = [longest(record, tokenizer) for record in plain["test"]]
    assert report["test"]["tokens"]["max"] == max(lengths)
    assert report["test"]["tokens"]["mean"] == pytest.approx(np.mean(lengths), abs=0.01)
    assert "| tokens of prompt and longest completion | mean |" in (tmp_path / "out" / "report.md").read_text()


def test_what_does_not_fit_with_one_item_is_dropped_and_nothing_left_is_an_error(interactions, tokenizer):
    plain, _ = build_preference_dataset(interactions, seed=0, num_candidates=5, template="watched", history_size=1)
    lengths = sorted(longest(record, tokenizer) for record in plain["train"])
    _, report = build(interactions, tokenizer, max_length=lengths[len(lengths) // 2], history_size=1)
    assert report["train"]["dropped_too_long"] == sum(length > lengths[len(lengths) // 2] for length in lengths) > 0
    with pytest.raises(ValueError, match=r"split 'train': none of \d+ records fits max_length=5"):
        build(interactions, tokenizer, max_length=5)


def test_max_length_needs_a_tokenizer(interactions):
    with pytest.raises(ValueError, match="max_length=64 needs a tokenizer"):
        build_preference_dataset(interactions, seed=0, max_length=64)


def test_a_prompt_that_ends_inside_a_token_is_an_error(interactions, tokenizer):
    """This tokenizer knows ")" and the letters, and is made to know ": The" as one."""
    good = PromptTemplate("good", "history", "Seen: {history}. Next:")
    titles = interactions.items["title"].to_list()
    check_token_boundary(good, tokenizer, titles)
    check_token_boundary(good, tokenizer, titles, conversational=True)

    class Greedy:
        """A tokenizer of words at which a colon and what follows are one word."""

        def __call__(self, texts):
            return {"input_ids": [[hash(word) for word in text.split(". ")] for text in texts]}

    with pytest.raises(
        ValueError, match=r"template 'good': with the completion ' The long.*does not end where a token ends"
    ):
        check_token_boundary(good, Greedy(), titles)
    with pytest.raises(ValueError, match="template 'good'"):
        build(interactions, Greedy(), template=good)


def test_lines_of_titles_end_where_tokens_end(interactions, tokenizer):
    dataset, _ = build(interactions, tokenizer, template="lines")
    assert isinstance(dataset["train"], Dataset)
