"""What is saved gives what was trained, or a warning says what else it needs."""

import logging

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trl_sdpo.recommender.loading import load_model_and_tokenizer
from trl_sdpo.trainer.saving import why_not_reloaded


def lora(**kwargs):
    return LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2, init_lora_weights=False, **kwargs)


def trainable(model):
    return {name: param.detach().clone() for name, param in model.named_parameters() if param.requires_grad}


@pytest.fixture
def several(llama):
    """Makes a model with adapters of these names, the last one active."""

    def make(*names):
        torch.manual_seed(0)
        model = get_peft_model(llama(), lora(), adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, lora())
        model.set_adapter(names[-1])
        return model

    return make


@pytest.mark.parametrize("names", [("policy",), ("default", "genre"), ("genre", "default")])
def test_checkpoints_hold_the_trained_adapter(several, records, make_trainer, tmp_path, names):
    args = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    whole = make_trainer(several(*names), records(8), args=args)
    whole.train()
    files = {
        str(path.relative_to(tmp_path / "output" / "checkpoint-2"))
        for path in tmp_path.rglob("checkpoint-2/**/adapter_*")
    }
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    resumed = make_trainer(several(*names), records(8), args={**args, "output_dir": str(tmp_path / "other")})
    resumed.train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-2"))
    expected = trainable(whole.model)
    assert all(torch.equal(value, expected[name]) for name, value in trainable(resumed.model).items())


def test_best_model_of_another_adapter(several, records, make_trainer):
    """transformers loads the adapter that it finds in the folder of the checkpoint into the active one."""
    args = {
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "learning_rate": 1e-1,
    }
    args |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = make_trainer(
        several("default", "genre"), records(8), args=args, eval_dataset=Dataset.from_list(records(8))
    )
    trainer.train()
    best = PeftModel.from_pretrained(several("default", "genre").unload(), trainer.state.best_model_checkpoint)
    expected = {
        name.replace(".default.", ".genre."): param for name, param in best.named_parameters() if "lora" in name
    }
    found = trainable(trainer.model)
    assert found
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_several_active_adapters(several, records, make_trainer):
    model = several("default", "genre")
    model.base_model.set_adapter(["default", "genre"])
    with pytest.raises(ValueError, match=r"\['default', 'genre'\] are active at once"):
        make_trainer(model, records(4))


def merge(model):
    return get_peft_model(model, lora()).merge_and_unload()


@pytest.fixture
def on_disk(llama, tmp_path):
    model = llama(hidden_size=64, intermediate_size=64)
    model.save_pretrained(tmp_path / "base", max_shard_size="100KB")
    return lambda **kwargs: AutoModelForCausalLM.from_pretrained(tmp_path / "base", **kwargs)


BITS = {4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 8: {"load_in_8bit": True}}
LOADED = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    **{f"{bits} bits": {"quantization_config": BitsAndBytesConfig(**options)} for bits, options in BITS.items()},
}


@pytest.mark.parametrize("loaded", LOADED)
def test_base_on_the_disk(on_disk, loaded):
    model = on_disk(**LOADED[loaded])
    assert why_not_reloaded(model) is None
    assert why_not_reloaded(get_peft_model(model, lora(modules_to_save=["embed_tokens"]))) is None
    assert "is not the one on the disk" in why_not_reloaded(merge(on_disk(**LOADED[loaded])))


def test_rows_of_the_embeddings(on_disk):
    model = on_disk()
    model.get_input_embeddings().weight.data[100, 3] += 1e-3
    assert "`model.embed_tokens.weight` has other values" in why_not_reloaded(model)
    model.resize_token_embeddings(model.config.vocab_size + 2)
    assert why_not_reloaded(model) is None  # PEFT saves embeddings of another number of tokens with the adapter


def test_base_that_was_never_saved(llama):
    assert "was made in this process and is on no disk" in why_not_reloaded(llama())


@pytest.mark.parametrize("init", ["pissa_niter_4", "corda", "lora_ga"])
def test_initialisations_that_loading_does_not_repeat(on_disk, tmp_path, init):
    assert "does not repeat" in why_not_reloaded(str(tmp_path / "base"), init)
    assert "does not repeat" in why_not_reloaded(on_disk(), init)


def test_trainer_says_so(on_disk, records, make_trainer, caplog, tmp_path):
    """Before training, when it can be helped, and when the model is saved."""
    with caplog.at_level(logging.WARNING, "trl_sdpo.trainer"):
        trainer = make_trainer(merge(on_disk()), records(4), peft_config=lora())
        assert caplog.text.count("Save the base before training") == 1
        trainer.save_model(str(tmp_path / "saved"))
        assert caplog.text.count("Save the base before training") == 2
        caplog.clear()
        make_trainer(on_disk(), records(4), peft_config=lora()).save_model(str(tmp_path / "saved"))
        assert "on the disk" not in caplog.text


@pytest.mark.parametrize("tied", [False, True])
def test_added_tokens(llama, tokenizer, tmp_path, tied):
    """The larger embeddings lie with the adapter, and the base is resized to them."""
    llama(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(model.config.vocab_size + 2)
    saved = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=saved, ensure_weight_tying=tied
    )
    model = get_peft_model(model, config)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    loaded, _ = load_model_and_tokenizer(tmp_path / "adapter", device="cpu")
    inputs = torch.tensor([[3, model.config.vocab_size - 1, 5]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(inputs).logits, model.eval()(inputs).logits)
