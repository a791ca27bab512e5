import numpy as np
import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from helpers.closeness import assert_same_scores
from trl_sdpo.recsys import completion_log_probs, rank_catalogue, search_catalogue
from trl_sdpo.scoring import catalogue_ranking
from trl_sdpo.scoring.title_trie import TitleTrie


WORDS = ("Red", "River", "Blue", "Hotel")
TITLES = [*WORDS, *(f"{one} {two}" for one in WORDS for two in WORDS), "Red River II"]
PROMPTS = ["Next:", "Watched: Night Train to Lisbon (1991), A Quiet Place (1965). Next:", "Watched: Red. Next:"]


@pytest.fixture(params=[4, 128])
def titles_per_row(request, monkeypatch):
    monkeypatch.setattr(catalogue_ranking, "TITLES_PER_ROW", request.param)


def assert_same(found, expected):
    assert [index for index, _ in found] == [index for index, _ in expected]
    assert_same_scores([score for _, score in found], [score for _, score in expected])


@pytest.mark.usefixtures("titles_per_row")
@pytest.mark.parametrize("batch_size", [1, 2])
def test_is_the_order_of_all_titles(llama, tokenizer, batch_size):
    """As a beam search with as many beams as titles, and as the scores of records with all titles."""
    model = llama()
    found = rank_catalogue(model, PROMPTS, tokenizer, TITLES, top_k=len(TITLES), batch_size=batch_size)
    searched = search_catalogue(model, PROMPTS, tokenizer, TITLES, num_beams=len(TITLES), top_k=len(TITLES))
    first, *others = [f" {title}" for title in TITLES]
    records = Dataset.from_dict({"prompt": PROMPTS, "chosen": [first] * 3, "rejected": [others] * 3})
    for row, expected, scores in zip(found, searched, completion_log_probs(model, records, tokenizer), strict=True):
        assert_same(row, expected)
        best = np.argsort(-scores, kind="stable")
        assert_same(row, list(zip(best.tolist(), scores[best], strict=True)))
    assert [row[:3] for row in found] == rank_catalogue(
        model, PROMPTS, tokenizer, TITLES, top_k=3, batch_size=batch_size
    )


@pytest.mark.usefixtures("titles_per_row")
def test_what_is_excluded_and_what_is_twice(llama, tokenizer):
    model, twice = llama(), [*TITLES, "Red River"]
    same = [index for index, title in enumerate(twice) if title == "Red River"]
    exclude = [[], [0, 1, 2], [same[1]]]
    found = rank_catalogue(model, PROMPTS, tokenizer, twice, top_k=99, exclude=exclude)
    expected = search_catalogue(
        model, PROMPTS, tokenizer, twice, num_beams=len(twice), top_k=len(twice), exclude=exclude
    )
    for row, other in zip(found, expected, strict=True):
        assert_same(row, other)
    assert [len(row) for row in found] == [len(TITLES), len(TITLES) - 3, len(TITLES) - 1]
    assert not {index for index, _ in found[2]} & set(same)


def test_messages_adapters_and_a_single_title(llama, tokenizer):
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, init_lora_weights=False)
    model = get_peft_model(llama(), lora)
    trie = TitleTrie.from_titles(TITLES, tokenizer, PROMPTS[0])
    (found,) = rank_catalogue(model, PROMPTS[:1], tokenizer, trie, top_k=5)
    (expected,) = search_catalogue(model, PROMPTS[:1], tokenizer, trie, num_beams=len(TITLES), top_k=5)
    assert_same(found, expected)
    (alone,) = rank_catalogue(model, PROMPTS[:1], tokenizer, TITLES[:1])
    assert [index for index, _ in alone] == [0]
    assert alone[0][1] == pytest.approx(
        dict(rank_catalogue(model, PROMPTS[:1], tokenizer, trie, top_k=99)[0])[0], abs=1e-4
    )


def test_errors(llama, tokenizer):
    model = llama()
    for words, message in (
        ({"top_k": 0}, "top_k=0 is below 1"),
        ({"exclude": [[]]}, "exclude has 1 rows for 3 prompts"),
        ({"exclude": [[], [], [99]]}, "There is no title 99 to exclude"),
    ):
        with pytest.raises(ValueError, match=message):
            rank_catalogue(model, PROMPTS, tokenizer, TITLES, **words)
    with pytest.raises(ValueError, match="There are no prompts"):
        rank_catalogue(model, [], tokenizer, TITLES)
