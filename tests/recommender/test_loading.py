"""Adapters whose tokenizer is larger than their base."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from helpers.closeness import assert_same_scores
from trl_sdpo.recommender.loading import load_model_and_tokenizer


@pytest.fixture
def saved(llama, tokenizer, tmp_path):
    """An adapter on a base to which two tokens were added, saved with its tokenizer, and what it gives."""

    def make(tied, added=2, **config):
        larger = copy.deepcopy(tokenizer)
        larger.add_tokens([f"<item_{number}>" for number in range(added)])
        llama(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
        model = llama(tie_word_embeddings=tied)
        model.config._name_or_path = str(tmp_path / "base")
        model.resize_token_embeddings(len(larger))
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **config)).eval()
        model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
        model.save_pretrained(tmp_path / "adapter")
        larger.save_pretrained(tmp_path / "adapter")
        ids = torch.tensor([larger(" Red River<item_0><item_1> (1948)")["input_ids"]])
        with torch.no_grad():
            return tmp_path / "adapter", ids, model(input_ids=ids).logits

    return make


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("config", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}])
def test_added_tokens(saved, tied, config):
    folder, ids, expected = saved(tied, **config)
    model, tokenizer = load_model_and_tokenizer(folder, device="cpu")
    assert tokenizer.convert_tokens_to_ids("<item_1>") in ids.tolist()[0]
    with torch.no_grad():
        assert_same_scores(model(input_ids=ids).logits, expected)


def test_trainable_tokens_beyond_the_base(saved, tokenizer):
    added = [len(tokenizer), len(tokenizer) + 1]
    folder, ids, expected = saved(True, target_modules=["q_proj"], trainable_token_indices=added)
    model, _ = load_model_and_tokenizer(folder, device="cpu")
    with torch.no_grad():
        assert_same_scores(model(input_ids=ids).logits, expected)


def test_rows_that_are_not_saved(saved):
    folder, _, _ = saved(False)
    weights = {
        name: value for name, value in load_file(folder / "adapter_model.safetensors").items() if "lm_head" not in name
    }
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"2 tokens more than its base has.*lm_head.*`base_model`"):
        load_model_and_tokenizer(folder, device="cpu")
