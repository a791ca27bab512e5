"""
Each way to pass a model, by the rows of the table in docs/training.md: the loss begins at ln(1 + K), the reference
stands still, and what is saved gives the log-probabilities of what was trained, loaded with transformers or PEFT alone.
"""

import logging
import math

import pytest
import torch
from peft import AdaptionPromptConfig, AutoPeftModelForCausalLM, PeftModel, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from helpers.closeness import assert_same_scores
from helpers.tiny_models import NEW_ADAPTERS, lora, moved
from trl_sdpo.data_utils import tokenize_multi_preference
from trl_sdpo.trainer.adapters import keep_4bit_layers_differentiable
from trl_sdpo.trainer.reference import InitialPolicy


def merged(llama, tmp_path):
    return moved(get_peft_model(llama(), lora())).merge_and_unload().requires_grad_(True)


def other_weights(llama, tmp_path):
    """A model whose weights are not those of the folder that it names."""
    llama().save_pretrained(tmp_path / "base")
    return moved(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))


def path(llama, tmp_path):
    llama().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


FULL = {
    "path": path,
    "instance": lambda llama, tmp_path: llama(),
    "instance_with_dropout": lambda llama, tmp_path: llama(attention_dropout=0.02),
    "merged": merged,
    "other_weights": other_weights,
    "tied": lambda llama, tmp_path: llama(tie_word_embeddings=True),
}


@pytest.fixture
def trains(records, make_trainer, logged, caplog):
    """Trains some steps, and checks the first loss, and that policy and only policy moves."""

    def train(model, tolerance=1e-3, **kwargs):
        args = {"learning_rate": 3e-2, "max_steps": 5, **kwargs.pop("args", {})}
        with caplog.at_level(logging.INFO, "trl_sdpo.trainer"):
            trainer = make_trainer(model, records(8), args=args, **{"ref_model": None, **kwargs})
        assert "The reference is " in caplog.text
        batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
        reference = trainer.ref_model
        before = torch.cat([part.flatten() for part in trainer.compute_ref_log_probs(reference, dict(batch))])
        trainer.train()
        assert logged(trainer)[0] == pytest.approx(math.log(4), abs=tolerance)
        after = torch.cat([part.flatten() for part in trainer.compute_ref_log_probs(reference, dict(batch))])
        assert_same_scores(before, after)
        assert logged(trainer)[-1] != pytest.approx(math.log(4), abs=1e-6), "the policy did not move"
        return trainer

    return train


@pytest.fixture
def assert_reloads(plain_log_probs):
    def check(trainer, load, tmp_path, times=10):
        trainer.save_model(str(tmp_path / "saved"))
        rows = trainer.train_dataset.select(range(3)).to_list()
        with torch.no_grad():
            expected = plain_log_probs(trainer.model.eval(), rows)
            found = plain_log_probs(load(tmp_path / "saved").eval(), rows)
        for left, right in zip(expected, found, strict=True):
            assert_same_scores(right, left, times)

    return check


@pytest.mark.parametrize("way", FULL)
def test_all_weights(llama, trains, assert_reloads, tmp_path, way):
    dropout = {"disable_dropout": False} if way == "instance_with_dropout" else {}
    trainer = trains(
        FULL[way](llama, tmp_path), args={"learning_rate": 1e-3, **dropout}, tolerance=1 if dropout else 1e-3
    )
    assert not isinstance(trainer.ref_model, InitialPolicy)
    assert_reloads(trainer, AutoModelForCausalLM.from_pretrained, tmp_path)


def dropout_of(config):
    return {"disable_dropout": False} if getattr(config, "lora_dropout", 0) else {}


@pytest.mark.parametrize("adapter", NEW_ADAPTERS)
def test_new_adapter(llama, trains, assert_reloads, tmp_path, adapter):
    config = NEW_ADAPTERS[adapter]()
    dropout = dropout_of(config)
    trainer = trains(llama(attention_bias=True), peft_config=config, args=dropout, tolerance=1 if dropout else 5e-3)
    assert isinstance(trainer.ref_model, InitialPolicy)
    assert_reloads(trainer, lambda folder: PeftModel.from_pretrained(llama(attention_bias=True), folder), tmp_path)


@pytest.mark.parametrize("init", ["lora_ga", "eva", "corda"])
def test_initialisation_from_data(llama, trains, tmp_path, plain_log_probs, tokenizer, init):
    """PEFT looks at data first, and changes the base; what is saved as a whole is what was trained."""
    options = {"lora_ga": {"lora_ga_config": LoraGAConfig()}}.get(init, {})
    if init == "corda":
        pytest.importorskip("attr", reason="CorDA of PEFT needs attrs")
        options = {"corda_config": CordaConfig(prune_temporary_fields=True)}
    model, config = llama(attention_bias=True), lora(init_lora_weights=init, **options)
    inputs = tokenizer(["Watched: Red River (1948)", "Watched: Winter Light"], return_tensors="pt", padding=True)
    if init == "lora_ga":
        preprocess_loraga(model, config, lambda: model(**inputs, labels=inputs.input_ids).loss.backward())
    elif init == "corda":
        from peft.tuners.lora.corda import preprocess_corda

        preprocess_corda(model, config, run_model=lambda: [model(row[None]) for row in inputs.input_ids] * 8)
    else:
        model = get_peft_model(model, config)
        initialize_lora_eva_weights(model, dataloader=[dict(inputs)] * 8)
    trainer = trains(model, tolerance=5e-3, **({} if init == "eva" else {"peft_config": config}))
    rows = trainer.train_dataset.select(range(3)).to_list()
    with torch.no_grad():
        expected = plain_log_probs(trainer.model.eval(), rows)
        trainer.model.merge_and_unload().save_pretrained(tmp_path / "whole")
        found = plain_log_probs(AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval(), rows)
    for left, right in zip(expected, found, strict=True):
        assert_same_scores(right, left, times=10)


@pytest.mark.parametrize("adapter", NEW_ADAPTERS)
def test_continued_adapter(llama, trains, assert_reloads, tmp_path, plain_log_probs, records, tokenizer, adapter):
    """The adapter of an earlier stage, from a folder: the policy begins as what was passed, and saving gives all of it."""
    config = NEW_ADAPTERS[adapter]()
    dropout = dropout_of(config)
    model = moved(get_peft_model(llama(attention_bias=True), config))
    if not config.is_prompt_learning:  # which PEFT does not load for training
        model.save_pretrained(tmp_path / "sft")
        model = PeftModel.from_pretrained(llama(attention_bias=True), tmp_path / "sft", is_trainable=True)
    # evaluate what is passed, before a trainer has touched it
    rows = [
        tokenize_multi_preference(row, index, tokenizer, tokenizer.eos_token) for index, row in enumerate(records(3))
    ]
    with torch.no_grad():
        passed = plain_log_probs(model.eval(), rows)
    trainer = trains(model, args=dropout, tolerance=1 if dropout else 5e-3)
    with torch.no_grad(), trainer.ref_model.active() as reference:
        for left, right in zip(passed, plain_log_probs(reference, rows), strict=True):
            assert_same_scores(right, left, times=10)
    assert_reloads(trainer, lambda folder: PeftModel.from_pretrained(llama(attention_bias=True), folder), tmp_path)


@pytest.mark.parametrize("names", [["policy"], ["default", "genre"], ["genre", "ref"]])
def test_names_and_number_of_adapters(llama, trains, assert_reloads, tmp_path, names):
    """The last one is active and trained; names that TRL keeps for its own use are names like others."""
    model = get_peft_model(llama(), lora(init_lora_weights=False), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, lora(init_lora_weights=False))
    model.set_adapter(names[-1])
    trainer = trains(model)
    assert list(trainer.model.peft_config) == names
    assert all(f".{names[-1]}." in name for name in trainer.ref_model.values())
    assert_reloads(trainer, lambda folder: PeftModel.from_pretrained(llama(), folder), tmp_path)


@pytest.mark.parametrize("adapter", ["lora", "random", "pissa", "bias_all", "prompt_tuning", None])
def test_second_round_on_the_trained_model(llama, trains, assert_reloads, tmp_path, adapter):
    """Self-play: the model of one round, as it comes out of the trainer, is the reference of the next."""
    kwargs = {} if adapter is None else {"peft_config": NEW_ADAPTERS[adapter]()}
    args = {"learning_rate": 1e-3 if adapter is None else 3e-2}
    first = trains(llama(attention_bias=True), args=args, **kwargs)
    second = trains(first.model, args=args)
    third = trains(second.model, args=args)
    load = AutoModelForCausalLM.from_pretrained
    if adapter is not None:
        load = lambda folder: PeftModel.from_pretrained(llama(attention_bias=True), folder)  # noqa: E731
    assert_reloads(third, load, tmp_path)


def differentiable(model):
    """On a CPU the layers of bitsandbytes compute in another way once they are in evaluation mode."""
    keep_4bit_layers_differentiable(model)
    return model


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised(llama, trains, assert_reloads, tmp_path, bits):
    """The adapter keeps the precision that it is passed in, a step of which bfloat16 would round away."""
    llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)

    def base():
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config)

    moved(get_peft_model(base(), lora())).save_pretrained(tmp_path / "sft")
    model = PeftModel.from_pretrained(base(), tmp_path / "sft", is_trainable=True)
    start = {name: param.detach().clone() for name, param in model.named_parameters() if param.requires_grad}
    trainer = trains(model, args={"learning_rate": 1e-2}, tolerance=5e-3)
    assert all(torch.equal(value, start[name]) for name, value in trainer.ref_model.values().items())
    assert all(param.dtype == torch.float32 for param in trainer.model.parameters() if param.requires_grad)
    assert_reloads(trainer, lambda folder: differentiable(PeftModel.from_pretrained(base(), folder)), tmp_path)
    # a merge in 4 or 8 bits, and a new adapter on what came of it
    merged = PeftModel.from_pretrained(base(), tmp_path / "sft").merge_and_unload()
    trains(merged, args={"learning_rate": 1e-2}, tolerance=5e-3, peft_config=lora())


def test_reference_as_a_path(llama, make_trainer, records, assert_reloads, tmp_path):
    llama(seed=1).save_pretrained(tmp_path / "base")
    trainer = make_trainer(llama(), records(4), ref_model=str(tmp_path / "base"))
    assert all(
        torch.equal(*pair) for pair in zip(trainer.ref_model.parameters(), llama(seed=1).parameters(), strict=True)
    )
    trainer.train()
    assert_reloads(trainer, AutoModelForCausalLM.from_pretrained, tmp_path)
    with pytest.raises(ValueError, match=r"`ref_model='nowhere/at-all'` is not a model that can be loaded"):
        make_trainer(llama(), records(4), ref_model="nowhere/at-all")


def test_adapter_as_a_path(llama, trains, tmp_path):
    """As the reference it is loaded on its base; as the policy, which is to be trained, the script loads it."""
    llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    moved(get_peft_model(base, lora())).save_pretrained(tmp_path / "sft")
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "sft", is_trainable=True)
    trains(model, ref_model=str(tmp_path / "sft"))  # the same as the policy
    with pytest.raises(ValueError, match=r"is an adapter.*`AutoPeftModelForCausalLM\.from_pretrained"):
        trains(str(tmp_path / "sft"))


@pytest.mark.parametrize("continued", [False, True])
def test_reference_with_an_adapter(llama, make_trainer, records, plain_log_probs, assert_reloads, tmp_path, continued):
    """A PEFT model as `ref_model`, with a policy of all weights or one of adapters."""
    ref_model = moved(get_peft_model(llama(), lora()))
    model = get_peft_model(llama(), lora()) if continued else llama()
    trainer = make_trainer(model, records(4), ref_model=ref_model)
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    found = trainer.compute_ref_log_probs(trainer.ref_model, dict(batch))[0]
    with torch.no_grad():
        expected = plain_log_probs(ref_model.eval(), trainer.train_dataset.to_list())
    assert_same_scores(found, torch.stack([row[0] for row in expected]), times=10)
    trainer.train()
    load = AutoModelForCausalLM.from_pretrained
    if continued:
        load = lambda folder: PeftModel.from_pretrained(llama(), folder)  # noqa: E731
    assert_reloads(trainer, load, tmp_path)


def test_precomputed(llama, make_trainer, records, logged, assert_reloads, tmp_path):
    """No reference is kept: what the policy was is in the data."""
    trainer = make_trainer(llama(), records(8), args={"precompute_ref_log_probs": True}, ref_model=None)
    assert trainer.ref_model is None
    trainer.train()
    assert logged(trainer)[0] == pytest.approx(math.log(4), abs=1e-3)
    assert_reloads(trainer, AutoModelForCausalLM.from_pretrained, tmp_path)


def test_adapters_that_do_not_reach_the_head(llama, trains):
    """PEFT's adaption prompts hold on to the forward pass from before TRL's LM head was put on it."""
    config = AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=1, target_modules="self_attn")
    with pytest.raises(ValueError, match=r"AdaptionPromptModel.*does not reach TRL's LM head"):
        trains(llama(), peft_config=config)


def test_loftq_without_a_gpu(llama, trains, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = lora()
    config.init_lora_weights = "loftq"  # of which PEFT asks for scipy first
    with pytest.raises(ValueError, match="`init_lora_weights='loftq'` is computed by PEFT on a CUDA device"):
        trains(llama(), peft_config=config)


def test_reference_that_would_be_trained(llama, make_trainer, records):
    model = llama()
    ref_model = llama(seed=1)
    ref_model.lm_head = model.lm_head
    with pytest.raises(ValueError, match=r"`ref_model` and `model` have `lm_head\.weight` in common"):
        make_trainer(model, records(4), ref_model=ref_model)


def test_several_kinds_of_adapters_at_once(llama, make_trainer, records):
    with pytest.raises(ValueError, match="PeftMixedModel"):
        make_trainer(get_peft_model(llama(), lora(), mixed=True), records(4), ref_model=None)
