import copy
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import MistralConfig, MistralForCausalLM
from trl.trainer.utils import add_fused_lm_head

from helpers.closeness import assert_same_scores
from trl_sdpo.data_utils import tokenize_multi_preference
from trl_sdpo.scoring.log_probs import completion_log_probs, implicit_rewards


@pytest.fixture
def expected(tokenizer, plain_log_probs):
    """One plain forward pass for each sequence."""

    def compute(model, rows):
        tokenized = [tokenize_multi_preference(row, i, tokenizer, tokenizer.eos_token) for i, row in enumerate(rows)]
        with torch.no_grad():
            return [row.numpy() for row in plain_log_probs(model, tokenized)]

    return compute


def assert_same(scores, expected):
    assert all(isinstance(row, np.ndarray) for row in scores)
    assert_same_scores(scores, expected)


def mixed_rows(records):
    """Ragged, and of lengths that go up and down."""
    rows = records(7, smallest=1, largest=5)
    for i, row in enumerate(rows):
        row["prompt"] = " ".join([row["prompt"]] * (1 + (3 * i) % 4))
    return rows


class TestCompletionLogProbs:
    @pytest.mark.parametrize("prefix_sharing", [None, True, False])
    @pytest.mark.parametrize("batch_size", [1, 3, 32])
    def test_values_and_order(self, llama, tokenizer, records, expected, batch_size, prefix_sharing):
        rows, model = mixed_rows(records), llama()
        scores = completion_log_probs(model, Dataset.from_list(rows), tokenizer, batch_size, prefix_sharing)
        assert_same(scores, expected(model, rows))

    @pytest.mark.parametrize("prefix_sharing", [True, False])
    def test_per_token(self, llama, tokenizer, records, expected, prefix_sharing):
        rows, model = mixed_rows(records), llama()
        dataset = Dataset.from_list(rows)
        means = completion_log_probs(model, dataset, tokenizer, 3, prefix_sharing, per_token=True)
        tokenized = [tokenize_multi_preference(row, i, tokenizer, tokenizer.eos_token) for i, row in enumerate(rows)]
        lengths = [np.array([len(ids) for ids in [row["chosen_ids"], *row["rejected_ids"]]]) for row in tokenized]
        assert len(set(lengths[4].tolist())) > 1
        assert_same(means, [row / length for row, length in zip(expected(model, rows), lengths, strict=True)])

    def test_conversational(self, llama, tokenizer, records, to_conversational, expected):
        rows, model = to_conversational(records(4, 2, 3)), llama()
        assert_same(completion_log_probs(model, Dataset.from_list(rows), tokenizer), expected(model, rows))

    def test_tokenized(self, llama, tokenizer, records, expected):
        rows, model = records(4, 2, 3), llama()
        tokenized = [tokenize_multi_preference(row, i, tokenizer, tokenizer.eos_token) for i, row in enumerate(rows)]
        assert_same(completion_log_probs(model, Dataset.from_list(tokenized), tokenizer), expected(model, rows))

    def test_peft_model(self, llama, tokenizer, records, expected):
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, init_lora_weights=False)
        model = get_peft_model(llama(), lora).eval()
        rows = records(4, 2, 3)
        scores = completion_log_probs(model, Dataset.from_list(rows), tokenizer)
        assert_same(scores, expected(model, rows))
        assert np.abs(scores[0] - expected(llama(), rows)[0]).max() > 0.1
        with model.disable_adapter():
            assert_same(completion_log_probs(model, Dataset.from_list(rows), tokenizer), expected(llama(), rows))

    def test_model_that_cannot_share(self, llama, tokenizer, records, expected):
        config = llama().config.to_dict() | {"sliding_window": 8, "model_type": "mistral"}
        torch.manual_seed(0)
        model = MistralForCausalLM(MistralConfig(**config)).eval()
        rows = mixed_rows(records)
        assert_same(completion_log_probs(model, Dataset.from_list(rows), tokenizer, 3), expected(model, rows))

    def test_model_that_ignores_the_mask(self, llama, mask_ignoring_llama, tokenizer, records, expected, caplog):
        model = mask_ignoring_llama(llama().config).eval()
        rows = mixed_rows(records)
        with caplog.at_level(logging.WARNING):
            scores = completion_log_probs(model, Dataset.from_list(rows), tokenizer, 3)
        assert caplog.text.count("MaskIgnoringLlama does not heed the mask. Ranking with padded rows") == 1
        assert_same(scores, expected(model, rows))

    def test_dropout_is_off(self, llama, tokenizer, records, expected):
        model = llama(attention_dropout=0.5).train()
        scores = completion_log_probs(model, Dataset.from_list(records(4)), tokenizer)
        assert model.training
        assert_same(scores, expected(model.eval(), records(4)))


class TestModelIsLeftAsItWas:
    @pytest.mark.parametrize("training", [False, True])
    def test_plain_model(self, llama, tokenizer, records, training):
        model = llama().train(training)
        before = copy.deepcopy(model.state_dict())
        attributes = set(vars(model))
        completion_log_probs(model, Dataset.from_list(records(2)), tokenizer)
        assert set(vars(model)) == attributes
        assert "forward" not in vars(model)
        assert model.training == training
        assert not model.base_model._forward_hooks
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.is_grad_enabled()
        assert all(param.requires_grad for param in model.parameters())

    def test_model_of_a_trainer(self, llama, tokenizer, records):
        """Its own fused LM head has more outputs, and must come back."""
        model = llama()
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        forward = model.forward
        completion_log_probs(model, Dataset.from_list(records(2)), tokenizer)
        assert model.forward == forward
        inputs = torch.tensor([[5, 6, 7]])
        assert model(inputs, labels=inputs, fused_lm_head=True).entropy is not None

    def test_after_an_error(self, llama, tokenizer, records):
        model = llama()
        model.lm_head.weight.data = model.lm_head.weight.data[:, :-1]
        with pytest.raises(RuntimeError):
            completion_log_probs(model, Dataset.from_list(records(2)), tokenizer)
        assert "forward" not in vars(model)
        assert not model.base_model._forward_hooks


class TestErrors:
    def test_empty_dataset(self, llama, tokenizer, records):
        with pytest.raises(ValueError, match="no records to rank"):
            completion_log_probs(llama(), Dataset.from_list(records(1)).select([]), tokenizer)

    def test_no_pad_token(self, llama, tokenizer, records):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = None
        with pytest.raises(ValueError, match=r"no pad token. Set `tokenizer.pad_token`"):
            completion_log_probs(llama(), Dataset.from_list(records(1)), tokenizer)

    def test_bad_record(self, llama, tokenizer, records):
        rows = records(3)
        rows[1]["rejected"][0] = rows[1]["chosen"]
        with pytest.raises(ValueError, match=r"Row 1, column `rejected\[0\]`: .*equal to the chosen"):
            completion_log_probs(llama(), Dataset.from_list(rows), tokenizer)


class TestImplicitRewards:
    def test_order_by_what_training_changed(self):
        policy, reference = [np.array([-9.0, -2.0, -5.0]), np.array([-1.0, -2.0])], [np.array([-12.0, -1.0, -6.0])] * 2
        reference[1] = np.array([-1.0, -4.0])
        rewards = implicit_rewards(policy, reference, beta=0.1)
        np.testing.assert_allclose(rewards[0], [0.3, -0.1, 0.1])
        np.testing.assert_allclose(rewards[1], [0.0, 0.2])

    def test_other_records(self):
        with pytest.raises(ValueError, match="1 records of the policy, 2 of the reference"):
            implicit_rewards([np.zeros(2)], [np.zeros(2)] * 2)
        with pytest.raises(ValueError, match="Row 1: 2 completions of the policy, 3 of the reference"):
            implicit_rewards([np.zeros(2), np.zeros(2)], [np.zeros(2), np.zeros(3)])
