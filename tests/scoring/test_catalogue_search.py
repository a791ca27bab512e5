import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from helpers.closeness import assert_same_scores
from trl_sdpo.data_utils import tokenize_multi_preference
from trl_sdpo.scoring.catalogue_search import search_catalogue
from trl_sdpo.scoring.title_trie import TitleTrie


WORDS = ("Red", "River", "Blue", "Hotel", "Night", "Train")
# every title is the beginning of others but the longest
TITLES = [
    *WORDS,
    *(f"{one} {two}" for one in WORDS[:3] for two in WORDS),
    *(f"{one} {two} II" for one in WORDS[:2] for two in WORDS),
]
PROMPTS = ["Next:", "Watched: Night Train to Lisbon (1991), A Quiet Place (1965). Next:", "Watched: Red. Next:"]


@pytest.fixture
def ranked(tokenizer, plain_log_probs):
    """All titles by their log-probability, a plain forward pass for each."""

    def rank(model, prompt, titles=TITLES, left=None, ends=True):
        left = range(len(titles)) if left is None else left
        first, *others = [f" {titles[index]}" for index in left]
        record = {"prompt": prompt, "chosen": first, "rejected": others}
        tokenized = tokenize_multi_preference(record, 0, tokenizer, tokenizer.eos_token if ends else "")
        with torch.no_grad():
            (log_probs,) = plain_log_probs(model.eval(), [tokenized])
        pairs = zip(left, log_probs.tolist(), strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])

    return rank


def assert_same(found, expected):
    assert [index for index, _ in found] == [index for index, _ in expected]
    assert_same_scores(np.array([score for _, score in found]), np.array([score for _, score in expected]))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_exact_with_as_many_beams_as_titles(llama, tokenizer, ranked, batch_size):
    model = llama()
    results = search_catalogue(
        model, PROMPTS, tokenizer, TITLES, num_beams=len(TITLES), top_k=len(TITLES), batch_size=batch_size
    )
    for prompt, found in zip(PROMPTS, results, strict=True):
        assert_same(found, ranked(model, prompt))
    assert results[0] != results[1]


def test_few_beams_find_real_titles_with_their_scores(llama, tokenizer, ranked):
    model = llama()
    results = search_catalogue(model, PROMPTS, tokenizer, TITLES, num_beams=4, top_k=3)
    for prompt, found in zip(PROMPTS, results, strict=True):
        scores = dict(ranked(model, prompt))
        assert len({index for index, _ in found}) == 3
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
        for index, score in found:
            assert score == pytest.approx(scores[index], abs=1e-4)


def test_models_that_take_the_prompt_as_it_is(tokenizer, ranked, llama):
    """Models whose prompts are not computed once for all beams, one with an adapter, and one with a sliding window."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
    eager = llama(attn_implementation="eager")
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, init_lora_weights=False)
    stateful = llama()
    stateful._is_stateful = True  # as recurrent models say, whose cache is not that of attention
    torch.manual_seed(0)
    sliding = MistralForCausalLM(
        MistralConfig(**{**llama().config.to_dict(), "sliding_window": 8, "model_type": "mistral"})
    )
    for model in (GPT2LMHeadModel(config), eager, get_peft_model(llama(), lora), stateful, sliding):
        results = search_catalogue(model.eval(), PROMPTS, tokenizer, TITLES, len(TITLES), len(TITLES))
        for prompt, found in zip(PROMPTS, results, strict=True):
            assert_same(found, ranked(model, prompt))


def test_consumed_titles_are_never_returned(llama, tokenizer, ranked):
    model = llama()
    best = [[index for index, _ in ranked(model, prompt)] for prompt in PROMPTS]
    # the likeliest are gone for the first prompt, nothing for the second, all that begin with a word for the third
    exclude = [best[0][:5], [], [index for index, title in enumerate(TITLES) if title.startswith("Red")]]
    results = search_catalogue(model, PROMPTS, tokenizer, TITLES, len(TITLES), len(TITLES), exclude=exclude)
    for prompt, found, gone in zip(PROMPTS, results, exclude, strict=True):
        left = [index for index in range(len(TITLES)) if index not in gone]
        assert_same(found, ranked(model, prompt, left=left))


def test_fewer_titles_than_asked_for(llama, tokenizer, ranked):
    model, few = llama(), TITLES[:4]
    (found,) = search_catalogue(model, PROMPTS[:1], tokenizer, few, num_beams=10, top_k=10)
    assert_same(found, ranked(model, PROMPTS[0], few))
    exclude = [[0, 1, 2], [0, 1, 2, 3], []]
    results = search_catalogue(model, PROMPTS, tokenizer, few, num_beams=10, top_k=10, exclude=exclude)
    assert [len(found) for found in results] == [1, 0, 4]
    assert results[0][0][0] == 3
    (one,) = search_catalogue(model, PROMPTS[:1], tokenizer, few[:1], num_beams=2, top_k=2)
    assert [index for index, _ in one] == [0]


def test_duplicate_titles(llama, tokenizer, ranked):
    model = llama()
    titles = ["Red", "Blue", "Red", "Night"]
    (found,) = search_catalogue(model, PROMPTS[:1], tokenizer, titles, num_beams=5, top_k=5)
    assert_same(found, ranked(model, PROMPTS[0], titles, left=[0, 1, 3]))
    trie = TitleTrie.from_titles(titles, tokenizer, PROMPTS[0])
    assert trie.same_titles(0) == [0, 2]
    for consumed in (0, 2):
        (found,) = search_catalogue(model, PROMPTS[:1], tokenizer, trie, 5, 5, exclude=[[consumed]])
        assert sorted(index for index, _ in found) == [1, 3]


def test_titles_that_end_in_a_suffix(llama, tokenizer, plain_log_probs):
    model, prompt = llama().eval(), "Films:\nRed\n"
    (found,) = search_catalogue(
        model,
        [prompt],
        tokenizer,
        TITLES,
        40,
        40,
        None,
        completion_prefix="",
        completion_suffix="\n",
        append_eos=False,
    )
    ids = tokenizer(prompt)["input_ids"]
    first, *others = [tokenizer(f"{prompt}{title}\n")["input_ids"][len(ids) :] for title in TITLES]
    with torch.no_grad():
        (log_probs,) = plain_log_probs(model, [{"prompt_ids": ids, "chosen_ids": first, "rejected_ids": others}])
    assert_same(found, sorted(enumerate(log_probs.tolist()), key=lambda pair: -pair[1]))


def test_messages(llama, tokenizer, plain_log_probs):
    model = llama().eval()
    prompts = [[{"role": "user", "content": text}] for text in PROMPTS]
    results = search_catalogue(model, prompts, tokenizer, TITLES[:8], 8, 8)
    for prompt, found in zip(prompts, results, strict=True):
        first, *others = [[{"role": "assistant", "content": title}] for title in TITLES[:8]]
        record = {"prompt": prompt, "chosen": first, "rejected": others}
        with torch.no_grad():
            (log_probs,) = plain_log_probs(model, [tokenize_multi_preference(record, 0, tokenizer, "")])
        assert_same(found, sorted(enumerate(log_probs.tolist()), key=lambda pair: -pair[1]))


def test_a_trie_and_prompts_of_tokens_give_the_same(llama, tokenizer):
    model, trie = llama(), TitleTrie.from_titles(TITLES, tokenizer, PROMPTS[0])
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    expected = search_catalogue(model, PROMPTS, tokenizer, TITLES)
    assert search_catalogue(model, ids, tokenizer, trie) == expected
    assert search_catalogue(model, [ids[2][:1]], tokenizer, trie)[0] != expected[2]


def test_the_model_is_left_as_it_was_and_its_published_options_do_not_count(llama, tokenizer):
    model = llama()
    expected = search_catalogue(model, PROMPTS, tokenizer, TITLES)
    config = GenerationConfig(do_sample=True, repetition_penalty=5.0, min_new_tokens=9, eos_token_id=[7, 8])
    model.generation_config = config
    before = torch.get_rng_state()
    assert search_catalogue(model.train(), PROMPTS, tokenizer, TITLES) == expected
    assert torch.equal(torch.get_rng_state(), before)
    assert model.generation_config is config
    assert model.training


def test_errors(llama, tokenizer):
    model = llama()
    with pytest.raises(ValueError, match="There are no prompts"):
        search_catalogue(model, [], tokenizer, TITLES)
    with pytest.raises(ValueError, match="There are no titles"):
        search_catalogue(model, PROMPTS, tokenizer, [])
    for num_beams, top_k in ((1, 1), (4, 5), (4, 0)):
        with pytest.raises(ValueError, match=f"num_beams={num_beams}, top_k={top_k}: pass at least 2 beams"):
            search_catalogue(model, PROMPTS, tokenizer, TITLES, num_beams, top_k)
    with pytest.raises(ValueError, match="exclude has 1 rows for 3 prompts"):
        search_catalogue(model, PROMPTS, tokenizer, TITLES, exclude=[[0]])
    with pytest.raises(ValueError, match="exclude, row 1: There is no title 99 to exclude"):
        search_catalogue(model, PROMPTS, tokenizer, TITLES, exclude=[[0], [99], []])
    with pytest.raises(ValueError, match="batch_size=0 is below 1"):
        search_catalogue(model, PROMPTS, tokenizer, TITLES, batch_size=0)
