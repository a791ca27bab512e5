"""What a stage trains is what the stage before has saved."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from trl_sdpo import SoftmaxDPOConfig
from trl_sdpo.pipeline.models import load_model, load_policy


ADAPTERS = {
    "untied": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "trainable tokens": {"trainable_token_indices": [-2, -1]},
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapter_with_added_tokens_is_trained_further(llama, tokenizer, tmp_path, adapter):
    """Its embeddings are larger than those of the base that it names."""
    tied = adapter != "untied"
    llama(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 2)
    options = dict(ADAPTERS[adapter])
    if "trainable_token_indices" in options:
        options["trainable_token_indices"] = [size, size + 1]
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **options))
    for param in model.parameters():
        if param.requires_grad:
            param.data += 0.1
    model.save_pretrained(tmp_path / "sft")
    tokenizer.save_pretrained(tmp_path / "sft")
    args = SoftmaxDPOConfig(str(tmp_path / "out"), use_cpu=True, bf16=False)
    policy, _, kwargs = load_policy(ModelConfig(str(tmp_path / "sft"), dtype="float32"), args)
    assert isinstance(policy, PeftModel)
    assert kwargs == {}
    inputs = torch.tensor([[3, size + 1, 5, size]])
    with torch.no_grad():
        expected = model.eval()(inputs).logits
        for loaded in (policy, load_model(tmp_path / "sft"), load_model(tmp_path / "sft", trainable=True)):
            torch.testing.assert_close(loaded.eval()(inputs).logits, expected)
    assert any(param.requires_grad for param in policy.parameters())
