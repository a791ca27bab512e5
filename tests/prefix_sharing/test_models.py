"""Which architectures may share a prefix, and that the answer is right: tiny random instances of each."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from peft import PromptTuningConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from helpers.closeness import assert_same_scores
from trl_sdpo import DataCollatorForMultiPreference, softmax_dpo_loss
from trl_sdpo.prefix_sharing.masks import base_model, why_prefix_sharing_is_unsound
from trl_sdpo.prefix_sharing.rows import completion_exists, expand_shared_rows, score_completions


# A prompt with a completion has 10 to 20 tokens here: one window is shorter, one is longer than all of them
SHORT_WINDOW, WIDE_WINDOW = 6, 20
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
    assert_same_scores(log_probs, expected)
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


SLIDING_THEN_FULL = ["sliding_attention", "full_attention"]
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
SOUND = {
    "Llama": {},
    "Llama-grouped-queries": {"num_key_value_heads": 2},
    "Mistral": {"sliding_window": None},
    "Mistral-wide-window": {"sliding_window": WIDE_WINDOW},
    "Mistral-short-window": {"sliding_window": SHORT_WINDOW},
    "Qwen2": {},
    "Qwen2-short-window": {"use_sliding_window": True, "sliding_window": SHORT_WINDOW, "max_window_layers": 1},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "GPT2": {},
    "Olmo": {},
    "Olmo2": {},
    "Olmo3-short-window": {"layer_types": SLIDING_THEN_FULL, "sliding_window": SHORT_WINDOW},
    "Phi3": {},
    "Phi3-short-window": {"sliding_window": SHORT_WINDOW},
    "Gemma": {"head_dim": 8},
    "Gemma3-wide-window": {"head_dim": 8, "sliding_window": WIDE_WINDOW, "layer_types": SLIDING_THEN_FULL},
    "Gemma3-short-window": {"head_dim": 8, "sliding_window": SHORT_WINDOW, "layer_types": SLIDING_THEN_FULL},
    "GPTNeoX": {},
    "Starcoder2-short-window": {"sliding_window": SHORT_WINDOW},
    "Mixtral": {"num_local_experts": 4},
    "Mixtral-short-window": {"num_local_experts": 4, "sliding_window": SHORT_WINDOW},
    "Qwen3Moe": {"num_experts": 4, "head_dim": 8, **MOE},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", SOUND)
def test_sound_models(token_records, plain_log_probs, name, attn_implementation):
    model = random_model(name.split("-")[0], attn_implementation, **SOUND[name])
    add_fused_lm_head(model)
    assert why_prefix_sharing_is_unsound(model) is None
    records = token_records()
    batch = DataCollatorForMultiPreference(pad_token_id=0)(records)
    assert_equal_to_plain(model, batch, records, plain_log_probs, with_gradients=True)


EAGER_ONLY = {
    "Gemma2-wide-window": {"head_dim": 8, "sliding_window": WIDE_WINDOW, "attn_logit_softcapping": 5.0},
    "Gemma2-short-window": {"head_dim": 8, "sliding_window": SHORT_WINDOW, "attn_logit_softcapping": 5.0},
    "GptOss": {"head_dim": 8, "sliding_window": SHORT_WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("name", EAGER_ONLY)
def test_sound_models_whose_attention_is_eager(token_records, plain_log_probs, name):
    """A soft cap on the scores, and sinks beside them: neither is known to sdpa."""
    model = random_model(name.split("-")[0], "eager", **EAGER_ONLY[name])
    add_fused_lm_head(model)
    assert why_prefix_sharing_is_unsound(model) is None
    records = token_records()
    batch = DataCollatorForMultiPreference(pad_token_id=0)(records)
    assert_equal_to_plain(model, batch, records, plain_log_probs, with_gradients=True)


@pytest.mark.parametrize("name", ["Mistral", "Gemma3"])
def test_a_short_window_hides_something(token_records, name):
    """Else the tests of short windows would show nothing."""
    config = {"head_dim": 8, "layer_types": SLIDING_THEN_FULL} if name == "Gemma3" else {}
    batch = DataCollatorForMultiPreference(pad_token_id=0)(token_records())
    log_probs = []
    for window in (SHORT_WINDOW, WIDE_WINDOW, 2 * WIDE_WINDOW):
        model = random_model(name, **config, sliding_window=window)
        add_fused_lm_head(model)
        log_probs.append(score_completions(model, batch).log_probs)
    assert (log_probs[0] - log_probs[1]).abs().max() > 0.1
    torch.testing.assert_close(log_probs[1], log_probs[2])


@pytest.mark.parametrize("name", [name for name in SOUND if "oe" in name or "Mixtral" in name])
def test_load_balancing_loss(token_records, name):
    """That of padded rows, in which a prompt counts once per completion, with its gradients."""
    model = random_model(name.split("-")[0], **SOUND[name])
    add_fused_lm_head(model)
    batch = DataCollatorForMultiPreference(pad_token_id=0)(token_records(pools=(3, 1, 5)))
    routers = {name: param for name, param in model.named_parameters() if "gate.weight" in name}
    assert len(routers) == 2
    results = []
    for layout in (batch, expand_shared_rows(batch, 0)):
        aux_loss = score_completions(model, layout, output_router_logits=True).aux_loss
        results.append((aux_loss, *torch.autograd.grad(aux_loss, list(routers.values()))))
    for shared, padded in zip(*results, strict=True):
        assert padded.abs().max() > 0
        torch.testing.assert_close(shared, padded, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["Llama", "Gemma3-short-window"])
def test_flex_attention(token_records, plain_log_probs, name):
    """Its forward; there is no backward of flex attention on a CPU."""
    records = token_records()
    batch = DataCollatorForMultiPreference(pad_token_id=0)(records)
    reference, model = (
        random_model(name.split("-")[0], attention, **SOUND[name]) for attention in ("sdpa", "flex_attention")
    )
    add_fused_lm_head(model)
    assert why_prefix_sharing_is_unsound(model) is None
    with torch.no_grad():
        log_probs = score_completions(model, batch).log_probs
        expected = torch.nn.utils.rnn.pad_sequence(plain_log_probs(reference, records), batch_first=True)
    assert_same_scores(log_probs, expected)


def test_documented_models_are_those_of_these_tests():
    text = (Path(__file__).parents[2] / "docs" / "prefix_sharing.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in text.splitlines() if re.match(r"\| [A-Z]\w+(,| \()", line)]
    documented = {
        attention.strip(): set(re.findall(r"\b[A-Z]\w+", models.split(" (")[0])) for models, attention in rows
    }
    tested = {name.split("-")[0] for name in SOUND}
    experts = {name for name in tested if "oe" in name or name == "Mixtral"}
    assert documented["sdpa, eager"] in (tested - experts, experts)
    assert documented["eager"] == {name.split("-")[0] for name in EAGER_ONLY}
    assert len(rows) == 4


UNSOUND = {
    "GPTNeo": (
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
        "attention interface",
    ),
    "OpenAIGPT": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}, "attention interface"),
    "Mamba": ({"state_size": 8}, "recurrent"),
    "Bloom": ({"n_layer": 2, "n_head": 4}, "no position ids"),
    "Mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2}, "no position ids"),
    "Falcon": ({"alibi": True}, "no position ids"),
    "Lfm2": ({"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}, "another kind.*: conv"),
    "MiniMax": ({"num_local_experts": 2, "head_dim": 8}, "another kind.*: linear_attention"),
    "Gemma3": ({"head_dim": 8, "use_bidirectional_attention": True}, "not causal"),
    "Jamba": ({"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1}, "recurrent"),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_unsound_models(token_records, plain_log_probs, name):
    """They are found out, and their padded rows are right."""
    config, reason = UNSOUND[name]
    model = random_model(name, "eager", **config)
    add_fused_lm_head(model)
    answer = why_prefix_sharing_is_unsound(model)
    assert answer is not None
    assert re.search(reason, answer)
    records = token_records()
    batch = expand_shared_rows(DataCollatorForMultiPreference(pad_token_id=0)(records), 0)
    assert_equal_to_plain(model, batch, records, plain_log_probs)


def test_prompt_tuning(token_records, plain_log_probs):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(random_model("Llama"), config)
    add_fused_lm_head(base_model(model))
    assert "prompt-learning" in why_prefix_sharing_is_unsound(model)
    records = token_records()
    batch = expand_shared_rows(DataCollatorForMultiPreference(pad_token_id=0)(records), 0)
    assert_equal_to_plain(model, batch, records, plain_log_probs)


@pytest.mark.parametrize("attn_implementation", ["flash_attention_2", "flash_attention_3", "paged|sdpa"])
def test_attention_without_masks(attn_implementation):
    model = random_model("Llama")
    model.config._attn_implementation = attn_implementation  # as a machine with the kernels would set it
    answer = why_prefix_sharing_is_unsound(model)
    assert f"{attn_implementation!r} takes no mask" in answer
    assert "attn_implementation='sdpa'" in answer
