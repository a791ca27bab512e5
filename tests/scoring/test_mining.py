import numpy as np
import pytest
from datasets import Dataset

from trl_sdpo.data_utils import tokenize_multi_preference
from trl_sdpo.scoring.log_probs import completion_log_probs
from trl_sdpo.scoring.mining import mine_negatives


@pytest.fixture
def pools(records):
    dataset = Dataset.from_list(records(num=6, smallest=5, largest=5))
    dataset = dataset.add_column("rejected_item_ids", [[10 * row + place for place in range(5)] for row in range(6)])
    return dataset.add_column("rejected_scores", [[float(place) for place in range(5)] for _ in range(6)])


def mine(pools, llama, tokenizer, **options):
    return mine_negatives(pools, llama(), tokenizer, **{"num_negatives": 3} | options)


def test_the_most_likely_wrong_answers_are_kept_in_their_order(pools, llama, tokenizer):
    mined = mine(pools, llama, tokenizer)
    scores = completion_log_probs(llama(), pools, tokenizer)
    for before, after, row in zip(pools, mined, scores, strict=True):
        best = np.argsort(-row[1:])[:3]
        assert after["rejected"] == [before["rejected"][place] for place in best]
        assert after["rejected_item_ids"] == [before["rejected_item_ids"][place] for place in best]
        assert after["rejected_scores"] == best.tolist()
        assert (after["prompt"], after["chosen"]) == (before["prompt"], before["chosen"])
        assert after["chosen"] not in after["rejected"]
    # another model finds others likely
    assert mined["rejected"] != mine_negatives(pools, llama(seed=5), tokenizer, num_negatives=3)["rejected"]


def test_a_share_is_mined_and_the_rest_is_the_beginning_of_the_pool(pools, llama, tokenizer):
    everything, mixed = mine(pools, llama, tokenizer), mine(pools, llama, tokenizer, share=1 / 3)
    for before, best, after in zip(pools, everything, mixed, strict=True):
        first = best["rejected"][0]
        others = [one for one in before["rejected"] if one != first]
        assert after["rejected"] == [first, *others[:2]]
    assert mine(pools, llama, tokenizer, share=0)["rejected"] == [row[:3] for row in pools["rejected"]]


def test_tokenized_records(pools, llama, tokenizer):
    """The same are kept as of the texts, with the ids of items beside them."""
    fn_kwargs = {"processing_class": tokenizer, "eos_token": tokenizer.eos_token}
    tokenized = pools.map(tokenize_multi_preference, with_indices=True, fn_kwargs=fn_kwargs)
    tokenized = tokenized.select_columns(["prompt_ids", "chosen_ids", "rejected_ids", "rejected_item_ids"])
    mined = mine(tokenized, llama, tokenizer)
    assert mined["rejected_item_ids"] == mine(pools, llama, tokenizer)["rejected_item_ids"]
    for before, after in zip(tokenized, mined, strict=True):
        places = [place % 10 for place in after["rejected_item_ids"]]
        assert after["rejected_ids"] == [before["rejected_ids"][place] for place in places]
    with pytest.raises(ValueError, match="row 0, column 'rejected_ids': 5 completions are fewer"):
        mine(tokenized, llama, tokenizer, num_negatives=6)


def test_errors(pools, llama, tokenizer):
    with pytest.raises(
        ValueError, match=r"row 0, column 'rejected': 5 completions are fewer than num_negatives=6 \(6"
    ):
        mine(pools, llama, tokenizer, num_negatives=6)
    with pytest.raises(ValueError, match="share=2 from 0 to 1"):
        mine(pools, llama, tokenizer, share=2)
