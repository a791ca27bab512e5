"""Kinds of models and adapters with several rejected completions: what is trained, and what the reference is."""

import math

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from helpers.closeness import assert_same_scores
from trl_sdpo import SoftmaxDPOTrainer


def lora_config(**kwargs):
    return LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 4, **kwargs})


def ia3_config():
    modules = ["k_proj", "v_proj", "down_proj"]
    return IA3Config(task_type="CAUSAL_LM", target_modules=modules, feedforward_modules=["down_proj"])


def weights(model, name=""):
    return {key: param.detach().clone() for key, param in model.named_parameters() if name in key}


def quantization(bits):
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


@pytest.fixture
def trains(records, make_trainer, logged):
    """Trains on ragged records and checks what holds for every kind of model."""

    def train(model, steps=12, learning_rate=1e-2, tolerance=1e-3, **kwargs):
        args = {"max_steps": steps, "learning_rate": learning_rate, "per_device_train_batch_size": 8, "beta": 0.3}
        trainer = make_trainer(model, records(8, smallest=1, largest=4), args=args | kwargs.pop("args", {}), **kwargs)
        before = weights(trainer.model)
        trainer.train()
        losses = logged(trainer)
        # against its own start as the reference, the loss is the mean of ln(1 + K)
        assert losses[0] == pytest.approx(math.log(2 * 3 * 4 * 5) / 4, abs=tolerance)
        assert losses[-1] < 0.7 * losses[0]
        for name, param in trainer.model.named_parameters():
            assert torch.equal(param, before[name]) != param.requires_grad, name
        return trainer

    return train


ADAPTERS = {
    "lora": lora_config,
    "dora": lambda: lora_config(use_dora=True),
    "ia3": ia3_config,
    "lora_on_embeddings": lambda: lora_config(target_modules=["q_proj", "embed_tokens"]),
    "trainable_tokens": lambda: lora_config(trainable_token_indices=list(range(100))),
}


class TestAdapters:
    @pytest.mark.parametrize("adapter", ADAPTERS)
    def test_new_adapter(self, llama, trains, adapter):
        """The base model is the reference: with the adapter switched off the model is what it was."""
        trainer = trains(llama(), peft_config=ADAPTERS[adapter](), learning_rate=3e-2)
        assert set(trainer.model.peft_config) == {"default"}

    @pytest.mark.parametrize("adapter", ADAPTERS)
    def test_continued_adapter(self, llama, trains, tmp_path, adapter):
        """The adapter of an earlier stage, loaded from a folder: a frozen copy of it is the reference."""
        model = get_peft_model(llama(), ADAPTERS[adapter]())
        torch.manual_seed(1)
        for param in model.parameters():
            if param.requires_grad:
                param.data += 0.1 * torch.randn_like(param)
        model.save_pretrained(tmp_path / "sft")
        model = PeftModel.from_pretrained(llama(), tmp_path / "sft", is_trainable=True)
        before = {name: param.detach().clone() for name, param in model.named_parameters() if param.requires_grad}
        trainer = trains(model, learning_rate=3e-2)
        assert set(trainer.model.peft_config) == {"default"}
        reference = trainer.ref_model.values()
        assert reference.keys() == before.keys()
        assert all(torch.equal(param, before[name]) for name, param in reference.items())

    def test_reference_of_a_continued_adapter_computed_ahead(self, llama, trains):
        """Within the `__init__` of the parent, where the copy of the adapter must be whole already."""
        model = get_peft_model(llama(), ia3_config())
        for param in model.parameters():
            if param.requires_grad:
                param.data *= 1.3
        trains(model, learning_rate=3e-2, args={"precompute_ref_log_probs": True})

    def test_adapter_on_the_lm_head_is_refused(self, llama, records, make_trainer):
        """As TRL does: the fused head would never see it."""
        with pytest.raises(ValueError, match="Applying a PEFT adapter to `lm_head` is not supported"):
            make_trainer(llama(), records(4), peft_config=lora_config(target_modules=["q_proj", "lm_head"]))

    def test_tokens_added_to_a_base_model(self, llama, trains):
        """`modules_to_save` trains a copy of the embeddings beside the adapter, the original is the reference."""
        trainer = trains(llama(), peft_config=lora_config(modules_to_save=["embed_tokens"]))
        assert any(
            "modules_to_save" in name and param.requires_grad for name, param in trainer.model.named_parameters()
        )

    @pytest.mark.parametrize("continued", [False, True])
    def test_merging_into_a_standalone_model(
        self, llama, trains, tmp_path, tokenizer, records, plain_log_probs, continued
    ):
        """The call that docs/training.md shows: the merged model gives the log-probabilities of the trained one."""
        llama().save_pretrained(tmp_path / "base")
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        if continued:
            trainer = trains(get_peft_model(base, lora_config(init_lora_weights=False)))
        else:
            trainer = trains(base, peft_config=lora_config())
        trainer.save_model(str(tmp_path / "adapter"))
        merged = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        assert not any("lora" in name for name, _ in loaded.named_parameters())
        rows = trainer.train_dataset.select(range(3)).to_list()
        with torch.no_grad():
            theirs = plain_log_probs(loaded, rows)
            ours = plain_log_probs(trainer.model.eval(), rows)
            at_start = plain_log_probs(llama().eval(), rows)
        for left, right, start in zip(ours, theirs, at_start, strict=True):
            assert_same_scores(left, right, times=10)
            assert (right - start).abs().max() > 0.1


class TestQuantizedBases:
    """bitsandbytes on the CPU: the base is frozen in 4 or 8 bits, the adapter trains."""

    @pytest.mark.parametrize("bits", [4, 8])
    def test_new_adapter(self, llama, trains, tmp_path, bits):
        llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")
        trainer = trains(
            str(tmp_path / "base"), peft_config=lora_config(), quantization_config=quantization(bits), tolerance=0.02
        )
        model = trainer.model
        assert getattr(model, f"is_loaded_in_{bits}bit")
        layer = model.base_model.model.model.layers[0].mlp.down_proj.base_layer
        assert layer.weight.dtype == (torch.uint8 if bits == 4 else torch.int8)
        assert trainer.evaluate(trainer.train_dataset)["eval_reward_hr@1"] > 0.7

    @pytest.mark.parametrize("bits", [4, 8])
    def test_continued_adapter(self, llama, trains, tmp_path, bits):
        llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=quantization(bits))
        get_peft_model(base, lora_config(init_lora_weights=False)).save_pretrained(tmp_path / "sft")
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=quantization(bits))
        model = PeftModel.from_pretrained(base, tmp_path / "sft", is_trainable=True)
        trains(model, tolerance=0.02)

    def test_evaluation_leaves_the_gradients_alone(self, llama, records, make_trainer, logged, tmp_path):
        """bitsandbytes repacks 4-bit weights in evaluation mode on some CPUs, and loses their gradients."""
        llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")
        trainers = []
        for strategy in ("no", "steps"):
            # padded rows are not checked against shared ones in evaluation mode on the first batch
            args = {"prefix_sharing": "false" if strategy == "no" else "true", "learning_rate": 1e-2, "beta": 0.3}
            args |= {"eval_strategy": strategy, "eval_steps": 1}
            trainer = make_trainer(
                str(tmp_path / "base"),
                records(8),
                args=args,
                peft_config=lora_config(),
                quantization_config=quantization(4),
                eval_dataset=Dataset.from_list(records(2)),
            )
            trainer.train()
            trainers.append(trainer)
        assert logged(trainers[1]) == pytest.approx(logged(trainers[0]), abs=0.02)
        assert logged(trainers[1], "grad_norm") == pytest.approx(logged(trainers[0], "grad_norm"), rel=0.05)

    def test_base_that_was_repacked_before_training(self, llama, records, make_trainer, tmp_path):
        llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=quantization(4))
        layer = base.model.layers[1].mlp.down_proj
        # as its first forward pass in evaluation mode does on a CPU with AVX512-BF16
        layer.weight.quant_state.packing_format_for_cpu = True
        with pytest.raises(ValueError, match=r"4-bit layer `.*layers.1.mlp.down_proj.*Load the model anew"):
            make_trainer(base, records(4), peft_config=lora_config())


class TestFullFineTuning:
    def test_reference_from_the_folder_of_the_model(self, llama, trains, tmp_path):
        llama().save_pretrained(tmp_path / "model")
        trainer = trains(str(tmp_path / "model"), learning_rate=1e-3, ref_model=None)
        assert all(
            torch.equal(a, b) for a, b in zip(trainer.ref_model.parameters(), llama().parameters(), strict=True)
        )

    def test_tied_embeddings(self, llama, trains):
        trains(llama(tie_word_embeddings=True), learning_rate=1e-3)

    def test_explicit_reference(self, llama, records, make_trainer, tokenizer, plain_log_probs):
        """The loss is the cross-entropy over β times the log-ratios to that model."""
        trainer = make_trainer(
            llama(),
            records(4, 2, 4),
            args={"max_steps": 1, "beta": 0.05, "train_sampling_strategy": "sequential"},
            ref_model=llama(seed=1),
        )
        rows = trainer.train_dataset.to_list()
        with torch.no_grad():
            ours, theirs = plain_log_probs(llama(), rows), plain_log_probs(llama(seed=1), rows)
        rewards = [0.05 * (left - right) for left, right in zip(ours, theirs, strict=True)]
        expected = torch.stack([reward.logsumexp(0) - reward[0] for reward in rewards]).mean().item()
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, abs=1e-4)

    def test_wrapped_reference(self, llama, records, make_trainer, logged):
        """DeepSpeed hands the reference back in an engine, whose `config` is not that of the model."""
        losses = []
        for wrapped in (False, True):
            eval_dataset = Dataset.from_list(records(4))
            trainer = make_trainer(llama(), records(8, 2, 4), ref_model=llama(seed=1), eval_dataset=eval_dataset)
            if wrapped:
                trainer.ref_model = torch.nn.DataParallel(trainer.ref_model)
            trainer.train()
            losses.append([*logged(trainer), trainer.evaluate()["eval_loss"]])
        assert losses[1] == losses[0]

    def test_synchronised_reference(self, llama, records, make_trainer):
        """TR-DPO: every 2 steps the reference moves to the mean of itself and the policy."""
        policies = []

        class Recorder(SoftmaxDPOTrainer):
            def training_step(self, model, *args, **kwargs):
                policies.append(weights(self.model))
                return super().training_step(model, *args, **kwargs)

        args = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5, "max_steps": 3}
        trainer = make_trainer(llama(), records(8), Recorder, args=args)
        start = weights(trainer.ref_model)
        trainer.train()
        # the callback runs at the end of step 2, before step 3
        for name, param in trainer.ref_model.named_parameters():
            torch.testing.assert_close(param, 0.5 * start[name] + 0.5 * policies[2][name])
        assert any(not torch.equal(param, start[name]) for name, param in trainer.ref_model.named_parameters())

    def test_synchronised_reference_of_an_adapter_is_refused(self, llama, records, make_trainer):
        with pytest.raises(NotImplementedError, match="`sync_ref_model=True` while using a PEFT model"):
            make_trainer(llama(), records(4), args={"sync_ref_model": True}, peft_config=lora_config())

    def test_the_model_as_its_own_reference_is_refused(self, llama, records, make_trainer):
        model = llama()
        with pytest.raises(ValueError, match="`model` and `ref_model` cannot be the same object"):
            make_trainer(model, records(4), ref_model=model)
