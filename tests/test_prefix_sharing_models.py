"""Which architectures may share a prefix, and that the answer is right: tiny random instances of each."""

import re

import pytest
import torch
import transformers
from peft import PromptTuningConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from trl_sdpo import DataCollatorForMultiPreference, softmax_dpo_loss
from trl_sdpo.prefix_sharing import (
    base_model,
    completion_exists,
    expand_shared_rows,
    score_completions,
    why_prefix_sharing_is_unsound,
)


# The longest prompt with a completion of these tests has 20 tokens
MAX_LENGTH = 20
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_SIZES = {**SIZES, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


def random_model(name, attn_implementation="sdpa", **config):
    torch.manual_seed(0)
    cls = getattr(transformers, f"{name}LMHeadModel" if name in ("GPT2", "OpenAIGPT") else f"{name}ForCausalLM")
    config = cls.config_class(**{**(GPT2_SIZES if name in ("GPT2", "OpenAIGPT") else SIZES), **config})
    return cls._from_config(config, attn_implementation=attn_implementation).eval()


def assert_equal_to_plain(model, batch, records, plain_log_probs, with_gradients=False):
    """Log-probabilities within 1e-4 nats of a plain forward for each sequence, gradients within 1e-4 of their norm."""
    with torch.set_grad_enabled(with_gradients):
        expected = torch.nn.utils.rnn.pad_sequence(plain_log_probs(model, records), batch_first=True)
        log_probs = score_completions(model, batch).log_probs
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-4)
    if not with_gradients:
        return
    exists = completion_exists(batch["num_completions"])[:, 1:]
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours, theirs = (
        torch.autograd.grad(softmax_dpo_loss(table[:, 0], table[:, 1:], 0.1, exists).mean(), parameters)
        for table in (log_probs, expected)
    )
    floor = 1e-4 * max(gradient.norm() for gradient in theirs)
    for name, gradient, expected_gradient in zip(names, ours, theirs, strict=True):
        assert (gradient - expected_gradient).norm() <= 1e-4 * torch.maximum(expected_gradient.norm(), floor), name


SOUND = {
    "Llama": {},
    "Llama-grouped-queries": {"num_key_value_heads": 2},
    "Mistral": {"sliding_window": None},
    "Mistral-wide-window": {"sliding_window": MAX_LENGTH},
    "Qwen2": {},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "GPT2": {},
    "Olmo": {},
    "Olmo2": {},
    "Phi3": {},
    "Gemma": {"head_dim": 8},
    "GPTNeoX": {},
}


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", SOUND)
def test_sound_models(token_records, plain_log_probs, name, attn_implementation):
    model = random_model(name.split("-")[0], attn_implementation, **SOUND[name])
    add_fused_lm_head(model)
    assert why_prefix_sharing_is_unsound(model, MAX_LENGTH) is None
    records = token_records()
    batch = DataCollatorForMultiPreference(pad_token_id=0)(records)
    assert_equal_to_plain(model, batch, records, plain_log_probs, with_gradients=True)


def test_gemma_2_with_a_wide_window(token_records, plain_log_probs):
    """Its attention has a soft cap, which only the eager implementation knows."""
    model = random_model("Gemma2", "eager", head_dim=8, sliding_window=MAX_LENGTH)
    add_fused_lm_head(model)
    assert why_prefix_sharing_is_unsound(model, MAX_LENGTH) is None
    records = token_records()
    batch = DataCollatorForMultiPreference(pad_token_id=0)(records)
    assert_equal_to_plain(model, batch, records, plain_log_probs, with_gradients=True)


UNSOUND = {
    "Mistral": ({"sliding_window": 8}, "sliding window of 8 tokens .*`max_length` is 20"),
    "Gemma2": ({"sliding_window": 8, "head_dim": 8}, "sliding window of 8 tokens"),
    "GPTNeo": (
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
        "attention interface",
    ),
    "OpenAIGPT": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}, "attention interface"),
    "Mamba": ({"state_size": 8}, "recurrent"),
    "Bloom": ({"n_layer": 2, "n_head": 4}, "no position ids"),
    "Mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2}, "no position ids"),
    "Falcon": ({"alibi": True}, "no position ids"),
    "Mixtral": ({"num_local_experts": 4}, "load-balancing loss"),
    "Qwen3Moe": ({"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}, "load-balancing loss"),
    "Lfm2": ({"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}, "another kind.*: conv"),
    "MiniMax": ({"num_local_experts": 2, "head_dim": 8}, "another kind.*: linear_attention"),
    "Jamba": ({"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1}, "recurrent"),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_unsound_models(token_records, plain_log_probs, name):
    """They are found out, and their padded rows are right."""
    config, reason = UNSOUND[name]
    model = random_model(name, "eager", **config)
    add_fused_lm_head(model)
    answer = why_prefix_sharing_is_unsound(model, MAX_LENGTH)
    assert answer is not None
    assert re.search(reason, answer)
    records = token_records()
    batch = expand_shared_rows(DataCollatorForMultiPreference(pad_token_id=0)(records), 0)
    assert_equal_to_plain(model, batch, records, plain_log_probs)


def test_prompt_tuning(token_records, plain_log_probs):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(random_model("Llama"), config)
    add_fused_lm_head(base_model(model))
    assert "prompt-learning" in why_prefix_sharing_is_unsound(model, MAX_LENGTH)
    records = token_records()
    batch = expand_shared_rows(DataCollatorForMultiPreference(pad_token_id=0)(records), 0)
    assert_equal_to_plain(model, batch, records, plain_log_probs)


def test_flex_attention():
    model = random_model("Llama", "flex_attention")
    assert "'flex_attention' takes no mask" in why_prefix_sharing_is_unsound(model, MAX_LENGTH)


class TestSlidingWindow:
    def test_any_window_is_too_short_without_max_length(self):
        assert "no `max_length` is set" in why_prefix_sharing_is_unsound(random_model("Mistral", sliding_window=4096))

    def test_one_token_too_short(self):
        model = random_model("Mistral", sliding_window=MAX_LENGTH)
        assert why_prefix_sharing_is_unsound(model, MAX_LENGTH) is None
        assert "window of 20" in why_prefix_sharing_is_unsound(model, MAX_LENGTH + 1)

    def test_window_that_is_switched_off(self):
        model = random_model("Qwen2", use_sliding_window=False, sliding_window=8)
        assert why_prefix_sharing_is_unsound(model, MAX_LENGTH) is None

    def test_window_that_is_switched_on(self):
        model = random_model("Qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
        assert "window of 8" in why_prefix_sharing_is_unsound(model, MAX_LENGTH)
