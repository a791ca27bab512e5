"""Likelihood, pointwise mutual information and implicit reward, against one forward pass for each sequence."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.closeness import assert_same_scores
from helpers.prepared_data import Prepared
from trl_sdpo import Recommender, load_recommender_files
from trl_sdpo.recommender.scores import _tokens_within
from trl_sdpo.recsys import PromptTemplate


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return Prepared(tmp_path_factory)


@pytest.fixture
def adapter(llama):
    """A tiny model with an adapter that does something."""
    model = get_peft_model(llama(seed=1), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


@pytest.fixture
def served(prepared, adapter, tokenizer):
    def make(template="lines", style="history", model=None, **options):
        folder, dataset = prepared(template, style)
        files = load_recommender_files(folder)
        found = Recommender(adapter if model is None else model, tokenizer, files.config, files.catalogue, **options)
        return found, dataset["test"].select(range(4))

    return make


def ids_of(records):
    candidates = [
        [str(t), *map(str, r)] for t, r in zip(records["item_id"], records["rejected_item_ids"], strict=True)
    ]
    return [list(map(str, row)) for row in records["history_item_ids"]], candidates


def log_probs(model, tokenizer, prompt, completions):
    """Knows nothing of the package: tokens of the prompt, tokens of both together."""
    scores = []
    for completion in completions:
        prompt_ids, ids = tokenizer(prompt)["input_ids"], tokenizer(prompt + completion)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        scores.append(sum(logits[place - 1, ids[place]].item() for place in range(len(prompt_ids), len(ids))))
    return np.array(scores)


def completions_of(record):
    return [record["chosen"], *record["rejected"]]


def test_mutual_information(served, tokenizer):
    recommender, records = served()
    histories, candidates = ids_of(records)
    found = recommender.score(histories, candidates, score="pmi")
    nothing = "Movies in the order in which one user watched them:\n"
    for record, values in zip(records, found, strict=True):
        assert record["prompt"].startswith(nothing)
        ours = log_probs(recommender.model, tokenizer, record["prompt"], completions_of(record))
        theirs = log_probs(recommender.model, tokenizer, nothing, completions_of(record))
        assert_same_scores(values, ours - theirs)
    assert found[0].tolist() != recommender.score(histories, candidates)[0].tolist()


def test_mutual_information_keeps_the_list(served):
    recommender, records = served("choose", "candidates")
    histories, candidates = ids_of(records)
    asked = []
    tokenize = recommender._ranker.tokenize
    recommender._ranker.tokenize = lambda prompts, answers: asked.append(prompts) or tokenize(prompts, answers)
    recommender.score(histories, candidates, score="pmi")
    with_history, without = asked
    titles = dict(zip(recommender.catalogue.item_ids, recommender.catalogue.titles, strict=True))
    for row, history, before, after in zip(candidates, histories, with_history, without, strict=True):
        assert all(titles[item] in after for item in row)
        shown = [titles[item] for item in history[-4:]]
        assert before == after.replace("oldest first:\n", "oldest first:\n" + "\n".join(shown) + "\n")


@pytest.mark.parametrize("given", [False, True])
def test_implicit_reward(served, adapter, llama, tokenizer, given):
    """Against the base under the adapter, or against the model that is given."""
    reference = llama(seed=2) if given else None
    recommender, records = served(ref_model=reference)
    histories, candidates = ids_of(records)
    found = recommender.score(histories, candidates, score="reward")
    for record, values in zip(records, found, strict=True):
        ours = log_probs(adapter, tokenizer, record["prompt"], completions_of(record))
        if given:
            theirs = log_probs(reference, tokenizer, record["prompt"], completions_of(record))
        else:
            with adapter.disable_adapter():
                theirs = log_probs(adapter, tokenizer, record["prompt"], completions_of(record))
        assert_same_scores(values, ours - theirs)
    # the adapter works as before
    whole = log_probs(adapter, tokenizer, records[0]["prompt"], completions_of(records[0]))
    assert_same_scores(recommender.score(histories, candidates)[0], whole)


@pytest.mark.parametrize("score", ["pmi", "reward"])
def test_the_whole_catalogue_and_candidates_agree(served, score):
    recommender, records = served()
    histories, _ = ids_of(records)
    every = recommender.recommend_ids(histories, top_k=len(recommender.catalogue), score=score)
    for history, found in zip(histories, every, strict=True):
        ids = [item.item_id for item in found]
        assert {*ids} == {*recommender.catalogue.item_ids} - {*history}
        scores = recommender.score([history], [ids], score=score)[0]
        assert [item.score for item in found] == pytest.approx(scores.tolist(), abs=1e-4)
        ranked = recommender.recommend_ids([history], [ids], top_k=5, score=score)[0]
        assert [item.item_id for item in ranked] == ids[:5]
    by_title = recommender.recommend(records["history_item_ids"][0], top_k=3, score=score)
    assert [item.item_id for item in by_title] == [item.item_id for item in every[0][:3]]


def test_what_cannot_be_scored_is_named(served, llama):
    recommender, records = served(model=llama())
    histories, candidates = ids_of(records)
    with pytest.raises(ValueError, match="score='npmi' is none of likelihood, pmi, reward"):
        recommender.score(histories, candidates, score="npmi")
    with pytest.raises(ValueError, match="score='reward' needs the model before the training"):
        recommender.recommend_ids(histories, candidates, score="reward")
    with pytest.raises(ValueError, match="score='pmi' scores the whole catalogue, without beams"):
        recommender.recommend_ids(histories, score="pmi", num_beams=5)


def test_a_template_without_words_before_the_history():
    template = PromptTemplate("bare", "history", "{history}\n", "\n", completion_prefix="", completion_suffix="\n")
    with pytest.raises(ValueError, match="template 'bare': nothing is left without the history"):
        template.render_without_history()
    template = PromptTemplate("mine", "history", "{num_history} seen:\n{history}\nof {{x}}. Next:")
    assert template.render_without_history() == "0 seen:\nof {x}. Next:"


@pytest.mark.parametrize(("template", "style"), [("lines", "history"), ("choose", "candidates")])
def test_records_without_their_histories(served, template, style):
    """What is taken off the records is what is taken off histories and candidates."""
    recommender, records = served(template, style)
    by_title = dict(zip(recommender.catalogue.titles, recommender.catalogue.item_ids, strict=True))
    lost = [ours - theirs for ours, theirs in zip(
        recommender.log_probs(records), recommender.log_probs(records, history=False), strict=True)]  # fmt: skip
    histories, ids = ids_of(records)
    # the list in the order in which the records show it
    lists = [[by_title[title] for title in row] for row in records["candidates"]]
    found = recommender.score(histories, lists, score="pmi")
    for row, values in enumerate(found):
        by_id = dict(zip(lists[row], values, strict=True))
        assert_same_scores(lost[row], [by_id[item] for item in ids[row]])


def test_histories_that_cannot_be_left_out_are_named(served):
    recommender, records = served()
    others = records.remove_columns("prompt").add_column("prompt", ["Seen: A. Next:\n"] * len(records))
    with pytest.raises(ValueError, match="record 0, column 'prompt': does not begin with 'Movies in the order"):
        recommender.log_probs(others, history=False)
    recommender, records = served("random")
    with pytest.raises(ValueError, match=r"several wordings \(lines, watched, question\)"):
        recommender.log_probs(records, history=False)


def test_tokens_within_the_beginning_of_a_completion(tokenizer):
    """Special tokens, which no text has, are passed over; what is not wholly within is not counted."""
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    red, river = (tokenizer(text)["input_ids"] for text in (" Red", " River (1948)"))
    assert tokenizer.decode(red + river) == " Red River (1948)"
    for begin in ([], [start]):
        ids = [*begin, *red, *river]
        assert _tokens_within(ids, " Red", tokenizer) == len(begin) + len(red)
        assert _tokens_within(ids, "Blue", tokenizer) == len(begin)
        assert _tokens_within(ids, " ", tokenizer) == 0
