"""Scores are those of the model's own forward pass, whatever its architecture, head, adapter and precision."""

import inspect
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from trl_sdpo.data_utils import tokenize_multi_preference
from trl_sdpo.prefix_sharing.masks import why_prefix_sharing_is_unsound
from trl_sdpo.scoring.log_probs import completion_log_probs, own_log_probs, score_tokenized, sharing_agrees


# Sizes by the names that configurations have for them
SMALL = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **{"vocab_size": 61, "num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 8, "d_kv": 8},
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 16, "sliding_window": 64},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    # scaling and soft-capping of the logits, where a model has it
    **{"final_logit_softcapping": 3.0, "logit_scale": 0.5, "logits_scaling": 2.0, "lm_head_multiplier": 0.7},
    # weights of the usual 0.02 give a model that is all but uniform
    **{"initializer_range": 0.2, "init_std": 0.2},
}
# Sizes that are not changed by these names (seconds and gigabytes), or forward passes that take more than text
LEFT_OUT = {
    "blt",
    "emu3",
    "phi4_multimodal",
    "git",
    "roc_bert",
    "falcon_h1",
    "kimi_linear",
    "reformer",
    "xmod",
    "fuyu",
}
ARCHITECTURES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - LEFT_OUT)


def build(model_type):
    """A tiny model with random weights, or `None` where a configuration takes none of the sizes."""
    try:
        text = CONFIG_MAPPING[model_type]().get_text_config()
        sizes = {name: value for name, value in SMALL.items() if getattr(text, name, None) is not None}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(type(text)(**sizes)).eval()
        with torch.no_grad():
            model(input_ids=torch.arange(3, 9)[None])
    except Exception:
        return None
    return model if sum(param.numel() for param in model.parameters()) < 1e7 else None


def agree(model, records, allow_refusal=False):
    """Every score of every layout that is accepted is the model's own."""
    expected = [own_log_probs(model, record) for record in records]
    sound = why_prefix_sharing_is_unsound(model) is None
    try:
        layouts = {False, sharing_agrees(model, records, 0, prefix_sharing=sound)}
    except ValueError as error:
        if allow_refusal and "Padded rows are" in str(error):
            return None
        raise
    for shared in layouts:
        found = score_tokenized(model, records, 0, prefix_sharing=shared)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, abs=2e-3, rel=1e-3), shared
    return True in layouts


def test_every_architecture(token_records):
    """Of all causal models of transformers that can be made tiny. One that pads otherwise is refused, not ranked with."""
    records = [{**record, "length": 30} for record in token_records(num=3, pools=(2, 1, 3))]
    results = {}
    for model_type in ARCHITECTURES:
        model = build(model_type)
        if model is not None:
            results[model_type] = agree(model, records, allow_refusal=True)
    shared = {name for name, result in results.items() if result}
    assert len(results) > 100
    assert len(shared) > 60
    assert {
        "llama",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3_text",
        "mistral",
        "phi3",
        "granite",
        "cohere",
        "olmo2",
    } <= shared
    assert {name for name, result in results.items() if result is None} <= {"cpmant"}
    # they have no position ids, states, or layers of another kind, and are ranked in padded rows
    assert {"bloom", "mamba", "opt", "llama4_text"} <= results.keys() - shared


ADAPTERS = {
    "on the head": {"target_modules": ["q_proj", "lm_head"]},
    "on tied embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "head saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "embeddings saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "trainable tokens": {"target_modules": ["q_proj"], "trainable_token_indices": list(range(40))},
    "DoRA on the head": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters(llama, records, tokenizer, adapter, tied):
    config = LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **ADAPTERS[adapter])
    model = get_peft_model(llama(tie_word_embeddings=tied), config)
    torch.manual_seed(1)
    for param in model.parameters():
        if param.requires_grad:
            param.data += 0.1 * torch.randn_like(param)
    data = Dataset.from_list(records(6))
    found = completion_log_probs(model, data, tokenizer)
    for index, row in enumerate(data):
        record = tokenize_multi_preference(row, index, tokenizer, tokenizer.eos_token)
        for number, completion in enumerate([record["chosen_ids"], *record["rejected_ids"]]):
            tokens = torch.tensor([record["prompt_ids"] + completion])
            with torch.no_grad():
                log_probs = model(input_ids=tokens).logits[0, :-1].float().log_softmax(-1)
            expected = log_probs.gather(1, tokens[0, 1:, None])[-len(completion) :].sum().item()
            assert found[index][number] == pytest.approx(expected, abs=1e-3)


def test_modules_keep_their_mode(llama, records, tokenizer):
    """What was frozen in evaluation mode below a model in training stays so."""
    model = llama().train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    completion_log_probs(model, Dataset.from_list(records(2)), tokenizer)
    assert [module.training for module in model.modules()] == modes


def test_a_head_that_trl_multiplies_otherwise_is_not_trained(llama, records, make_trainer):
    """The head is found out whatever makes it more than a weight: here a bias that the fused head does not see."""

    class Shifted(torch.nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden) + torch.linspace(-2, 2, self.out_features)

    for sharing in ("auto", "false"):
        model = llama()
        head = Shifted(model.lm_head.in_features, model.lm_head.out_features, bias=False)
        head.weight = model.lm_head.weight
        model.lm_head = head
        trainer = make_trainer(model, records(4), ref_model=llama(), args={"prefix_sharing": sharing})
        with pytest.raises(ValueError, match=r"TRL's fused LM head.*LlamaForCausalLM itself"):
            trainer.train()


def test_masks_reach_the_layers_or_rows_are_padded(token_records):
    """OPT calls the decoder inside its backbone, so that a mask of ours would be lost on the way."""
    records = [{**record, "length": 30} for record in token_records()]
    model = build("opt")
    assert "position_ids" in inspect.signature(model.base_model.forward).parameters
    assert not sharing_agrees(model, records, 0)
    assert all(
        math.isfinite(value) for row in score_tokenized(model, records, 0, prefix_sharing=False) for value in row
    )


@pytest.mark.parametrize("tied", [False, True])
def test_trainable_tokens_are_trained(llama, records, make_trainer, logged, tied):
    """With tied embeddings the head is one that TRL's fused head does not take, and the model's own multiplies."""
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], trainable_token_indices=list(range(40)))
    args = {"max_steps": 12, "learning_rate": 1e-2}
    trainer = make_trainer(llama(tie_word_embeddings=tied), records(8), peft_config=config, args=args)
    tokens = {name: param for name, param in trainer.model.named_parameters() if "trainable_tokens_delta" in name}
    before = {name: param.detach().clone() for name, param in tokens.items()}
    trainer.train()
    assert logged(trainer)[0] == pytest.approx(math.log(4), abs=1e-4)
    assert logged(trainer)[-1] < 0.9 * logged(trainer)[0]
    assert any((param != before[name]).any() for name, param in tokens.items())
    pairs = [{**row, "rejected": row["rejected"][0]} for row in records(4)]
    if tied:
        trainer = make_trainer(llama(tie_word_embeddings=True), pairs, peft_config=config)
        with pytest.raises(ValueError, match=r"trainable_token_indices.*Make `rejected` a list"):
            trainer.train()
