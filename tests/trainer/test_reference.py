"""
Each way to pass a model, by the rows of the table in docs/training.md: the loss begins at ln(1 + K), the reference
stands still, and what is saved gives the log-probabilities of what was trained, loaded with transformers or PEFT alone.
"""

import logging
import math

import pytest
import torch
from peft import (
    AdaLoraConfig,
    AdaptionPromptConfig,
    AutoPeftModelForCausalLM,
    BOFTConfig,
    C3AConfig,
    CPTConfig,
    DeloraConfig,
    FourierFTConfig,
    GraloraConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    OSFConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    RandLoraConfig,
    RoadConfig,
    ShiraConfig,
    TrainableTokensConfig,
    VBLoRAConfig,
    VeraConfig,
    WaveFTConfig,
    get_peft_model,
    initialize_lora_eva_weights,
)
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trl_sdpo.data_utils import tokenize_multi_preference
from trl_sdpo.trainer.adapters import keep_4bit_layers_differentiable
from trl_sdpo.trainer.reference import InitialPolicy, check_start


def lora(**kwargs):
    return LoraConfig(
        **{"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "down_proj"], "r": 2, **kwargs}
    )


def moved(model, by=0.1):
    """The model after a stage of training that moved what is trainable."""
    generator = torch.Generator().manual_seed(1)
    for param in model.parameters():
        if param.requires_grad and param.is_floating_point():
            param.data += by * torch.randn(param.shape, generator=generator).to(param)
    return model


def other(config_cls, **kwargs):
    """An adapter of another kind, on the layers of [`lora`]."""
    return lambda: config_cls(
        **{"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "down_proj"], **kwargs}
    )


NEW = {
    "lora": lora,
    "gaussian": lambda: lora(init_lora_weights="gaussian"),
    "random": lambda: lora(init_lora_weights=False),
    "orthogonal": lambda: lora(init_lora_weights="orthogonal"),
    "pissa": lambda: lora(init_lora_weights="pissa"),
    "olora": lambda: lora(init_lora_weights="olora"),
    "mica": lambda: lora(init_lora_weights="mica"),
    "eva": lambda: lora(init_lora_weights="eva"),
    "dora": lambda: lora(use_dora=True),
    "rslora": lambda: lora(use_rslora=True, rank_pattern={"v_proj": 4}, alpha_pattern={"v_proj": 16}),
    "bias_all": lambda: lora(bias="all"),
    "bias_lora_only": lambda: lora(bias="lora_only"),
    "lora_bias": lambda: lora(lora_bias=True),
    "dropout": lambda: lora(lora_dropout=0.02),
    "modules_to_save": lambda: lora(modules_to_save=["embed_tokens"]),
    "trainable_tokens": lambda: lora(trainable_token_indices=list(range(60))),
    "ia3": lambda: IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "vera": lambda: VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "o_proj"], r=4),
    "adalora": lambda: AdaLoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=20, tinit=1, tfinal=2
    ),
    "prompt_tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix_tuning": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "layer_replication": lambda: lora(layer_replication=[[0, 2], [0, 2]]),
    "rslora_dora": lambda: lora(use_dora=True, use_rslora=True, r=4, lora_alpha=8),
    "embeddings": lambda: lora(target_modules=["embed_tokens", "q_proj"]),
    "modules_to_save_norm": lambda: lora(modules_to_save=["norm"]),
    "modules_to_save_head": lambda: lora(modules_to_save=["lm_head"]),
    "target_parameters": lambda: lora(target_modules=[], target_parameters=["q_proj.weight", "down_proj.weight"]),
    "tokens_alone": lambda: TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=list(range(60))),
    "loha": other(LoHaConfig, r=2),
    "lokr": other(LoKrConfig, r=2),
    "oft": other(OFTConfig, oft_block_size=4),
    "boft": other(BOFTConfig, boft_block_size=4),
    "hra": other(HRAConfig, r=2),
    "miss": other(MissConfig, r=2),
    "delora": other(DeloraConfig, r=2),
    "gralora": other(GraloraConfig, r=4),
    "shira": other(ShiraConfig, r=2),
    "road": other(RoadConfig, group_size=8),
    "c3a": other(C3AConfig, block_size=4),
    "fourierft": other(FourierFTConfig, n_frequency=10),
    "waveft": other(WaveFTConfig, n_frequency=10),
    "vblora": other(VBLoRAConfig, r=2, num_vectors=8, vector_length=4, topk=2),
    "randlora": other(RandLoraConfig, target_modules=["q_proj", "v_proj"], r=2),
    "osf": other(OSFConfig),
    "ln_tuning": other(LNTuningConfig, target_modules=["input_layernorm"]),
    "p_tuning": lambda: PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
    "cpt": lambda: CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=[5, 6, 7], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 3]
    ),
}


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
        # CPT projects its tokens anew in every pass, which rounds
        assert torch.allclose(before, after, rtol=0, atol=1e-4), "the reference moved"
        assert logged(trainer)[-1] != pytest.approx(math.log(4), abs=1e-6), "the policy did not move"
        return trainer

    return train


@pytest.fixture
def assert_reloads(plain_log_probs):
    def check(trainer, load, tmp_path, tolerance=1e-3):
        trainer.save_model(str(tmp_path / "saved"))
        rows = trainer.train_dataset.select(range(3)).to_list()
        with torch.no_grad():
            expected = plain_log_probs(trainer.model.eval(), rows)
            found = plain_log_probs(load(tmp_path / "saved").eval(), rows)
        for left, right in zip(expected, found, strict=True):
            torch.testing.assert_close(right, left, rtol=1e-4, atol=tolerance)

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


@pytest.mark.parametrize("adapter", NEW)
def test_new_adapter(llama, trains, assert_reloads, tmp_path, adapter):
    config = NEW[adapter]()
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
        torch.testing.assert_close(right, left, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("adapter", NEW)
def test_continued_adapter(llama, trains, assert_reloads, tmp_path, plain_log_probs, records, tokenizer, adapter):
    """The adapter of an earlier stage, from a folder: the policy begins as what was passed, and saving gives all of it."""
    config = NEW[adapter]()
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
            torch.testing.assert_close(right, left, rtol=1e-4, atol=1e-3)
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
    kwargs = {} if adapter is None else {"peft_config": NEW[adapter]()}
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
    torch.testing.assert_close(found, torch.stack([row[0] for row in expected]), rtol=1e-4, atol=1e-3)
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


class TestStart:
    """At the first step, policy and reference are compared."""

    @pytest.mark.parametrize("kind", ["full", "adapter", "pairs", "precomputed"])
    def test_policy_that_was_changed_after_the_trainer_was_built(self, llama, make_trainer, records, kind):
        rows = records(4) if kind != "pairs" else [{**row, "rejected": row["rejected"][0]} for row in records(4)]
        model = llama() if kind == "full" else get_peft_model(llama(), lora())
        args = {"precompute_ref_log_probs": kind == "precomputed"}
        trainer = make_trainer(model, rows, args=args, ref_model=None)
        moved(trainer.model)
        with pytest.raises(ValueError, match=r"Policy and reference differ by \d.* nats on the first batch"):
            trainer.train()

    def test_only_once(self, llama, make_trainer, records, monkeypatch):
        """A second call of `train`, and a run that goes on, begin with a policy that has moved."""
        trainer = make_trainer(llama(), records(4), args={"save_strategy": "steps", "save_steps": 2}, ref_model=None)
        trainer.train()
        trainer.train()
        resumed = make_trainer(llama(), records(4), args={"max_steps": 6}, ref_model=None)
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == 6

    def test_not_against_another_reference(self, llama, make_trainer, records):
        make_trainer(llama(), records(4), ref_model=llama(seed=1)).train()

    @pytest.mark.parametrize(
        ("difference", "dtype"), [(0.01, torch.float32), (1.0, torch.bfloat16), (math.nan, torch.float32)]
    )
    def test_every_completion_counts(self, difference, dtype):
        policy = torch.full((2, 4), -3.0)
        exists = torch.tensor([[True] * 4, [True, True, False, False]])
        for place in [(0, 0), (0, 3), (1, 1)]:
            other = policy.clone()
            other[place] += difference
            with pytest.raises(ValueError, match="Policy and reference differ"):
                check_start(policy, other, exists, dtype, lambda tensor: tensor, False)
        other = policy.clone()
        other[1, 3] = difference  # no completion is there
        check_start(policy, other, exists, dtype, lambda tensor: tensor, False)


@pytest.mark.parametrize("adapter", ["lora", "random"])
def test_parameters_that_are_unfrozen_later(llama, make_trainer, records, adapter):
    """Between building the trainer and training: they belong to the frozen copy, too."""
    trainer = make_trainer(llama(), records(8), peft_config=NEW[adapter](), args={"learning_rate": 1e-2})
    head = trainer.model.get_base_model().lm_head.requires_grad_(True).weight
    before_training = head.detach().clone()
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    before = trainer.compute_ref_log_probs(trainer.ref_model, dict(batch))
    trainer.train()
    assert not torch.equal(head, before_training)
    for left, right in zip(before, trainer.compute_ref_log_probs(trainer.ref_model, dict(batch)), strict=True):
        torch.testing.assert_close(right, left)
    trainer.model.get_base_model().model.embed_tokens.requires_grad_(True)
    with pytest.raises(ValueError, match=r"embed_tokens.weight` was made trainable after a run"):
        trainer.train()


class TestResuming:
    ARGS = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}

    @pytest.mark.parametrize("way", ["full", "path", "sync", "pissa", "bias_all", "random", "lora", "prompt_tuning"])
    def test_goes_on_against_the_same_reference(self, llama, make_trainer, records, logged, tmp_path, way):
        llama(attention_bias=True).save_pretrained(tmp_path / "base")

        def trainer(**args):
            config = NEW[way]() if way in NEW else None
            model = str(tmp_path / "base") if way == "path" else llama(attention_bias=True)
            args = {**self.ARGS, **args, "sync_ref_model": way == "sync", "ref_model_sync_steps": 1}
            if config is not None:
                return make_trainer(get_peft_model(model, config), records(8), args=args)
            return make_trainer(model, records(8), args=args, ref_model=None)

        whole = trainer()
        whole.train()
        resumed = trainer(output_dir=str(tmp_path / "other"))
        resumed.train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-2"))
        assert logged(resumed)[-2:] == pytest.approx(logged(whole)[-2:], rel=1e-5)

    def test_other_data(self, llama, make_trainer, records, caplog):
        make_trainer(llama(), records(8, 4, 4), args={**self.ARGS, "num_negatives": 3}).train()
        for rows, options, says in (
            (records(8, 4, 4), {}, None),
            (records(8, 4, 4), {"num_negatives": 2}, "num_negatives (3 before, 2 here)."),
            (records(12, 4, 4), {"seed": 7}, "seed (42 before, 7 here), records (8 before, 12 here), tokens."),
            (records(8, 3, 3), {}, "other data: tokens."),
        ):
            args = {**self.ARGS, "num_negatives": 3, "save_strategy": "no", "max_steps": 6, **options}
            trainer = make_trainer(llama(), rows, args=args)
            caplog.clear()
            trainer.train(resume_from_checkpoint=True)
            assert ("began with other data" in caplog.text) == (says is not None)
            assert says is None or says in caplog.text

    @pytest.mark.parametrize("way", ["full", "precomputed", "lora"])
    def test_other_reference(self, llama, make_trainer, records, tmp_path, way):
        args = {**self.ARGS, "precompute_ref_log_probs": way == "precomputed"}
        kwargs = {"ref_model": None} | ({"peft_config": lora()} if way == "lora" else {})
        make_trainer(llama(), records(8), args=args, **kwargs).train()
        with pytest.raises(ValueError, match=r"the reference here \(sha256 .*is not the one that the run began with"):
            make_trainer(llama(seed=1), records(8), args=args, **kwargs).train(resume_from_checkpoint=True)
