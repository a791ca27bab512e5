import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from trl_sdpo.data_utils import tokenize_multi_preference
from trl_sdpo.evaluation.comparison import evaluate_answers
from trl_sdpo.recommender.recommender import Recommender
from trl_sdpo.recsys import PromptTemplate, wilson_interval
from trl_sdpo.recsys.records.recommender_files import RecommenderConfig
from trl_sdpo.scoring.generation import (
    candidate_titles,
    generate_answers,
    generation_metrics,
    stop_strings_of,
    title_of,
    title_of_completion,
)


@pytest.fixture
def memorized(llama, tokenizer):
    """Makes a tiny Llama that has learnt the chosen completions of tokenized records by heart."""

    def make(tokenized):
        model = llama(initializer_range=0.1).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        rows = [(torch.tensor([row["prompt_ids"] + row["chosen_ids"]]), len(row["prompt_ids"])) for row in tokenized]
        for _ in range(25):
            for input_ids, start in rows:
                labels = input_ids.clone()
                labels[:, :start] = -100
                model(input_ids, labels=labels).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return model

    return make


@pytest.fixture
def tokenized(tokenizer):
    def convert(rows):
        return [tokenize_multi_preference(row, i, tokenizer, tokenizer.eos_token) for i, row in enumerate(rows)]

    return convert


def plain_greedy(model, prompt_ids, num_tokens):
    """One prompt, one token at a time, without a cache."""
    ids = list(prompt_ids)
    with torch.no_grad():
        for _ in range(num_tokens):
            ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
    return ids[len(prompt_ids) :]


def of_many_lengths(records):
    rows = records(7, smallest=1, largest=5)
    for i, row in enumerate(rows):
        row["prompt"] = " ".join([row["prompt"]] * (1 + (3 * i) % 4))
    return rows


class TestGenerateAnswers:
    @pytest.mark.parametrize("batch_size", [1, 3, 32])
    def test_equal_to_one_by_one(self, llama, tokenizer, records, tokenized, batch_size):
        model, rows = llama().eval(), of_many_lengths(records)
        answers = generate_answers(model, Dataset.from_list(rows), tokenizer, batch_size, 6, stop_strings=None)
        for answer, row in zip(answers, tokenized(rows), strict=True):
            ids = plain_greedy(model, row["prompt_ids"], 6)
            if tokenizer.eos_token_id in ids:
                ids = ids[: ids.index(tokenizer.eos_token_id)]
            assert answer == tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert len(set(answers)) > 1

    def test_learnt_titles(self, memorized, tokenizer, records, tokenized):
        """The prompts are those of training, or a model would not know them; answers end with their title."""
        rows = records(4)
        model, dataset = memorized(tokenized(rows)), Dataset.from_list(rows)
        answers = generate_answers(model, dataset, tokenizer)
        assert answers == [row["chosen"].strip() for row in rows]
        metrics = generation_metrics(answers, dataset)
        assert (metrics["hr@1"], metrics["valid_ratio"], metrics["n"]) == (1.0, 1.0, 4)
        assert generate_answers(model, dataset, tokenizer, max_new_tokens=50) == answers

    def test_conversational(self, memorized, tokenizer, records, to_conversational, tokenized):
        rows = to_conversational(records(3))
        model, dataset = memorized(tokenized(rows)), Dataset.from_list(rows)
        answers = generate_answers(model, dataset, tokenizer, max_new_tokens=50)
        assert answers == [row["chosen"][0]["content"] for row in rows]
        assert generation_metrics(answers, dataset)["hr@1"] == 1.0

    def test_tokenized_records_that_end_in_a_line_break(self, memorized, tokenizer, records, tokenized):
        line_break = tokenizer.encode("\n")
        rows = [
            {
                "prompt_ids": row["prompt_ids"],
                "chosen_ids": row["chosen_ids"][:-1] + line_break,
                "rejected_ids": [ids[:-1] + line_break for ids in row["rejected_ids"]],
            }
            for row in tokenized(records(3))
        ]
        model, dataset = memorized(rows), Dataset.from_list(rows)
        answers = generate_answers(model, dataset, tokenizer, max_new_tokens=50)
        assert answers == [row["chosen"].strip() for row in records(3)]
        assert generation_metrics(answers, dataset, processing_class=tokenizer)["hr@1"] == 1.0
        # without the stop string nothing ends the answer
        longer = generate_answers(model, dataset, tokenizer, max_new_tokens=50, stop_strings=None)
        assert all(text.startswith(f"{answer}\n") for text, answer in zip(longer, answers, strict=True))

    def test_no_more_tokens_than_the_longest_completion(self, llama, tokenizer, records, tokenized):
        rows, model = records(3), llama().eval()
        longest = max(len(ids) for row in tokenized(rows) for ids in [row["chosen_ids"], *row["rejected_ids"]])
        dataset = Dataset.from_list(rows)
        answers = generate_answers(model, dataset, tokenizer, stop_strings=None)
        assert answers == generate_answers(model, dataset, tokenizer, max_new_tokens=longest, stop_strings=None)
        assert answers != generate_answers(model, dataset, tokenizer, max_new_tokens=longest + 1, stop_strings=None)

    def test_peft_model(self, llama, tokenizer, records, tokenized):
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, init_lora_weights=False)
        model, rows = get_peft_model(llama(), lora).eval(), records(3)
        (answer, *_) = generate_answers(model, Dataset.from_list(rows), tokenizer, 3, 6, stop_strings=None)
        ids = plain_greedy(model, tokenized(rows)[0]["prompt_ids"], 6)
        assert answer == tokenizer.decode(ids, skip_special_tokens=True).strip()


class TestModelIsLeftAsItWas:
    def test_published_options_do_not_count(self, llama, tokenizer, records):
        rows, model = Dataset.from_list(records(3)), llama()
        expected = generate_answers(model, rows, tokenizer, max_new_tokens=8)
        config = GenerationConfig(do_sample=True, repetition_penalty=5.0, no_repeat_ngram_size=1, temperature=9.0)
        model.generation_config = config
        before = torch.get_rng_state()
        assert generate_answers(model.train(), rows, tokenizer, max_new_tokens=8) == expected
        assert torch.equal(torch.get_rng_state(), before)
        assert model.generation_config is config
        assert model.training

    def test_published_end_tokens_count(self, memorized, tokenizer, records, tokenized):
        rows = records(2)
        model = memorized(tokenized(rows))
        first = tokenized(rows)[0]["chosen_ids"][1]
        model.generation_config.eos_token_id = [first]
        (answer, _) = generate_answers(model, Dataset.from_list(rows), tokenizer)
        assert rows[0]["chosen"].strip().startswith(answer)
        assert len(answer) < len(rows[0]["chosen"].strip())


class TestErrors:
    def test_bad_input(self, llama, tokenizer, records):
        model, rows = llama(), Dataset.from_list(records(2))
        with pytest.raises(ValueError, match="no prompts to answer: the dataset is empty"):
            generate_answers(model, rows.select([]), tokenizer)
        with pytest.raises(ValueError, match="batch_size=0 is below 1"):
            generate_answers(model, rows, tokenizer, batch_size=0)
        with pytest.raises(ValueError, match="max_new_tokens=0 is below 1"):
            generate_answers(model, rows, tokenizer, max_new_tokens=0)
        without = copy.deepcopy(tokenizer)
        without.pad_token = None
        with pytest.raises(ValueError, match="no pad token"):
            generate_answers(model, rows, without)
        empty = Dataset.from_list([{"prompt_ids": [], "chosen_ids": [5], "rejected_ids": [[6]]}])
        with pytest.raises(ValueError, match="Row 0, column `prompt_ids`: the prompt has no token"):
            generate_answers(model, empty, tokenizer)

    def test_answers_that_do_not_fit(self, records, tokenizer, tokenized):
        with pytest.raises(ValueError, match="There are 1 answers to 2 records"):
            generation_metrics(["a"], Dataset.from_list(records(2)))
        with pytest.raises(ValueError, match="There are 0 answers to 0 records"):
            generation_metrics([], Dataset.from_list(records(2)).select([]))
        with pytest.raises(ValueError, match=r"the records are tokenized. Pass `processing_class`"):
            generation_metrics(["a"], Dataset.from_list(tokenized(records(1))))


def test_metrics_by_hand():
    rows = Dataset.from_list(
        [
            {"prompt": "Next:", "chosen": " Rocky II\n", "rejected": [" Rocky\n", " Jaws\n", " Heat\n"]},
            {"prompt": "Next:", "chosen": " Jaws\n", "rejected": [" Rocky\n"]},
            {"prompt": "Next:", "chosen": " Jaws\n", "rejected": [" Rocky\n"]},
            {"prompt": "Next:", "chosen": " Jaws\n", "rejected": [" Rocky\n"]},
        ]
    )
    answers = ["Rocky II", "Rocky", "It is Jaws", "none"]
    whole, substring = (generation_metrics(answers, rows, rule) for rule in ("whole", "substring"))
    assert (whole["hr@1"], whole["valid_ratio"], whole["rule"]) == (0.25, 0.5, "whole")
    assert (substring["hr@1"], substring["valid_ratio"], substring["rule"]) == (0.25, 0.5, "substring")
    assert whole["chance"] == pytest.approx((1 / 4 + 3 / 2) / 4)
    assert whole["hr@1_ci"][0] <= 0.25 <= whole["hr@1_ci"][1]
    assert whole["valid_ratio_ci"][0] < 0.5 < whole["valid_ratio_ci"][1]
    assert whole == generation_metrics(answers, rows)


def test_titles_in_completions(records, to_conversational, tokenized, tokenizer):
    rows = records(3, smallest=1, largest=2)
    expected = [[text.strip() for text in [row["chosen"], *row["rejected"]]] for row in rows]
    assert candidate_titles(Dataset.from_list(rows)) == expected
    assert candidate_titles(Dataset.from_list(to_conversational(rows))) == expected
    assert candidate_titles(Dataset.from_list(tokenized(rows)), tokenizer) == expected
    assert title_of(" Heat (1995) END. more", (" END.", "\n")) == "Heat (1995)"
    assert title_of("Heat\nRan", None) == "Heat\nRan"


class TestTextSuffix:
    """A template may end a completion in letters, which titles may hold as well."""

    TEMPLATES = (PromptTemplate("dot", "history", "Watched {history}. Next:", completion_suffix="."),)
    ROWS = Dataset.from_dict(
        {
            "prompt": ["Watched Ran. Next:"] * 3,
            "chosen": [" Mr. Holland's Opus.", " Heat.", " Etc.."],
            "rejected": [[" Heat.", " Mr."], [" Mr. Holland's Opus.", " Jaws."], [" Heat.", " Jaws."]],
        }
    )

    def test_titles_lose_it_at_the_end_alone(self):
        ends = stop_strings_of(self.TEMPLATES)
        assert ends == ["\n", "."]
        assert candidate_titles(self.ROWS, stop_strings=ends) == [
            ["Mr. Holland's Opus", "Heat", "Mr"], ["Heat", "Mr. Holland's Opus", "Jaws"], ["Etc.", "Heat", "Jaws"],
        ]  # fmt: skip
        for answers in (["Mr. Holland's Opus", "Heat", "Etc.."], [" Mr. Holland's Opus.\nMore", "Heat.", "Etc.."]):
            metrics = generation_metrics(answers, self.ROWS, stop_strings=ends)
            assert metrics["hr@1"] == metrics["valid_ratio"] == metrics["hr@1_of_valid"] == 1

    def test_completions_that_begin_with_a_line_break(self):
        templates = [PromptTemplate("below", "history", "Watched {history}. Next:", completion_prefix="\n")]
        assert stop_strings_of(templates) == []
        rows = Dataset.from_dict({"prompt": ["Next:"], "chosen": ["\nHeat"], "rejected": [["\nRan"]]})
        assert candidate_titles(rows, stop_strings=[]) == candidate_titles(rows) == [["Heat", "Ran"]]

    def test_answers_go_on_where_a_title_holds_it(self, llama, tokenizer):
        model = llama()
        recommender = Recommender(model, tokenizer, RecommenderConfig(self.TEMPLATES))
        greedy = generate_answers(model, recommender.tokenize(self.ROWS), tokenizer, stop_strings=["\n"])
        expected = [title_of_completion(answer, ["\n", "."]) for answer in greedy]
        assert recommender.answers(self.ROWS) == expected

    def test_a_model_that_knows_the_answers(self, memorized, tokenizer):
        """What a model writes, with the end that its template gives it, names the target."""
        served = Recommender(None, tokenizer, RecommenderConfig(self.TEMPLATES))
        for rows in (self.ROWS.select([0]), self.ROWS.select([1]), self.ROWS.select([2])):
            served.model = memorized(served.tokenize(rows))
            metrics = generation_metrics(served.answers(rows), rows, stop_strings=stop_strings_of(self.TEMPLATES))
            assert metrics["hr@1"] == 1
            section = evaluate_answers({"a": served.answers(rows)}, rows, seed=0, stop_strings=["\n", "."])
            assert section["systems"]["a"]["hr@1"] == 1


def test_hits_over_valid_answers():
    rows = Dataset.from_list(
        [{"prompt": "Next:", "chosen": " A", "rejected": [" B", " C"], "user": user} for user in (1, 1, 2, 3)]
    )
    metrics = generation_metrics(["A", "B", "no film", "A"], rows, groups=rows["user"])
    assert (metrics["hr@1"], metrics["valid_ratio"]) == (0.5, 0.75)
    assert metrics["hr@1_of_valid"] == pytest.approx(2 / 3)
    assert metrics["hr@1_of_valid_ci"] == list(wilson_interval([1, 0, 1], [1, 1, 3]))
    assert metrics["hr@1_per_user"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert (metrics["users"], metrics["n"]) == (3, 4)
    assert "hr@1_of_valid" not in generation_metrics(["no"] * 4, rows)
