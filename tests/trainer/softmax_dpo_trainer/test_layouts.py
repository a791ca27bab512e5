import json
import logging
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from trl import DPOConfig

from trl_sdpo import SoftmaxDPOConfig, SoftmaxDPOTrainer


def lora_config(**kwargs):
    return LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, **kwargs)


def weights(model, name=""):
    return {key: param.detach().clone() for key, param in model.named_parameters() if name in key}


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert left
    for name in left:
        assert torch.equal(left[name], right[name]), name


class TestTraining:
    @pytest.mark.parametrize("with_lora", [False, True])
    def test_starts_at_log_of_one_plus_k_and_falls(self, llama, records, make_trainer, logged, with_lora):
        kwargs = {"peft_config": lora_config()} if with_lora else {}
        trainer = make_trainer(llama(), records(8), args={"max_steps": 20}, **kwargs)
        before = weights(trainer.model)
        reference = None if with_lora else weights(trainer.ref_model)
        trainer.train()
        losses = logged(trainer)
        assert losses[0] == pytest.approx(math.log(4), abs=1e-4)
        assert losses[-1] < 0.5 * losses[0]
        assert logged(trainer, "rewards/margins")[0] == pytest.approx(0, abs=1e-4)
        assert logged(trainer, "rewards/margins")[-1] > 0
        after = weights(trainer.model)
        for name, param in trainer.model.named_parameters():
            # with an adapter, the base model is the reference
            assert torch.equal(after[name], before[name]) != param.requires_grad, name
        if not with_lora:
            assert_same(weights(trainer.ref_model), reference)
            assert all(param.grad is None for param in trainer.ref_model.parameters())

    def test_ragged_records_start_at_the_mean(self, llama, records, make_trainer, logged):
        """Pools of 1, 2, 3, 4 and again: the loss starts at (ln 2 + ln 3 + ln 4 + ln 5) / 4."""
        args = {"per_device_train_batch_size": 8, "max_steps": 1}
        trainer = make_trainer(llama(), records(8, smallest=1, largest=4), args=args)
        trainer.train()
        assert logged(trainer)[0] == pytest.approx(math.log(2 * 3 * 4 * 5) / 4, abs=1e-4)
        # the mean accuracy of chance: nothing beats a tie
        assert logged(trainer, "rewards/accuracies")[0] == pytest.approx(0, abs=1e-6)

    def test_continued_adapter_is_its_own_reference(self, llama, records, make_trainer, logged):
        """The reference is a copy of the adapter at the start, not the base model, and stays so."""
        model = get_peft_model(llama(), lora_config(init_lora_weights=False))
        adapter, base = weights(model, ".default."), weights(model, "base_layer")
        trainer = make_trainer(model, records(8), args={"max_steps": 6})
        trainer.train()
        assert logged(trainer)[0] == pytest.approx(math.log(4), abs=1e-3)
        assert logged(trainer)[-1] < logged(trainer)[0]
        assert_same(trainer.ref_model.values(), adapter)
        assert_same(weights(model, "base_layer"), base)
        for name, weight in weights(model, ".default.").items():
            assert not torch.equal(weight, adapter[name]), name

    def test_explicit_reference(self, llama, records, make_trainer, tokenizer):
        """Against another model as the reference the loss does not start at ln(1 + K)."""
        trainer = make_trainer(llama(), records(8), ref_model=llama(seed=1))
        reference = weights(trainer.ref_model)
        trainer.train()
        assert trainer.state.log_history[0]["loss"] != pytest.approx(math.log(4), abs=0.05)
        assert_same(weights(trainer.ref_model), reference)

    def test_model_from_a_folder(self, llama, records, make_trainer, logged, tokenizer, tmp_path):
        llama().save_pretrained(tmp_path / "model")
        trainer = make_trainer(str(tmp_path / "model"), records(4), args={"max_steps": 2})
        trainer.train()
        assert logged(trainer)[0] == pytest.approx(math.log(4), abs=1e-4)
        assert_same(weights(trainer.ref_model), weights(llama()))

    @pytest.mark.parametrize("with_lora", [False, True])
    def test_gradient_checkpointing_changes_nothing(self, llama, records, make_trainer, logged, with_lora):
        losses = []
        for checkpointing in (False, True):
            kwargs = {"peft_config": lora_config()} if with_lora else {}
            trainer = make_trainer(llama(), records(8), args={"gradient_checkpointing": checkpointing}, **kwargs)
            trainer.train()
            losses.append(logged(trainer))
        assert losses[1] == pytest.approx(losses[0], abs=1e-4)

    def test_bfloat16(self, llama, records, make_trainer, logged):
        trainer = make_trainer(llama(), records(8), args={"bf16": True, "max_steps": 20})
        trainer.train()
        losses = logged(trainer)
        assert losses[0] == pytest.approx(math.log(4), abs=0.05)
        assert losses[-1] < 0.5 * losses[0]

    def test_dpo_script_with_one_line_changed(self, llama, records, make_trainer, logged, caplog):
        with caplog.at_level(logging.WARNING):
            trainer = make_trainer(llama(), records(8), config_cls=DPOConfig)
        assert isinstance(trainer.args, SoftmaxDPOConfig)
        assert trainer.args.loss_type == ["softmax"]
        assert trainer.beta == 0.1
        assert len([record for record in caplog.records if "`DPOConfig` was passed" in record.getMessage()]) == 1
        trainer.train()
        assert logged(trainer)[0] == pytest.approx(math.log(4), abs=1e-4)

    def test_default_arguments(self, llama, records, tokenizer, tmp_path, monkeypatch):
        """TRL's defaults train in bfloat16, for which a machine without a GPU must be asked twice."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
        model = llama()
        model.config._name_or_path = "someone/tiny"
        trainer = SoftmaxDPOTrainer(
            model, llama(), train_dataset=Dataset.from_list(records(2)), processing_class=tokenizer
        )
        assert trainer.args.output_dir == "tiny-S-DPO"
        assert trainer.beta == 1.0


class TestErrors:
    def test_no_trainable_parameter(self, llama, records, make_trainer):
        with pytest.raises(ValueError, match=r"no trainable parameter.*is_trainable=True"):
            make_trainer(llama().requires_grad_(False), records(4))

    def test_adapter_loaded_for_inference(self, llama, records, make_trainer, tmp_path):
        get_peft_model(llama(), lora_config()).save_pretrained(tmp_path / "adapter")
        model = PeftModel.from_pretrained(llama(), tmp_path / "adapter")
        with pytest.raises(ValueError, match=r"no trainable parameter.*is_trainable=True"):
            make_trainer(model, records(4))

    def test_loss_that_is_not_finite(self, llama, records, make_trainer):
        model = llama()
        model.lm_head.weight.data.fill_(torch.nan)
        trainer = make_trainer(model, records(4), ref_model=llama())
        with pytest.raises(ValueError, match=r"loss is \[nan.*`record_id` \[.*\] at step 0.*learning rate") as error:
            trainer.train()
        listed = json.loads(str(error.value).split("`record_id` ")[1].split(" at step")[0])
        assert sorted(listed) == [0, 1, 2, 3]

    def test_only_the_bad_record_is_named(self, llama, records, make_trainer, tokenizer):
        """A token that only record 2 has gets an embedding of NaN."""
        rows = records(4)
        rows[2]["rejected"][1] = " zzz"
        model = llama()
        token = tokenizer(" zzz")["input_ids"][-1]
        assert not any(
            token in tokenizer(row["prompt"] + text)["input_ids"] for row in records(4) for text in row["rejected"]
        )
        model.model.embed_tokens.weight.data[token] = torch.nan
        trainer = make_trainer(model, rows, ref_model=llama())
        with pytest.raises(ValueError, match=r"`record_id` \[2\]"):
            trainer.train()

    @pytest.mark.parametrize(
        ("column", "value", "message"),
        [
            ("rejected", [], "Row 3, column `rejected`: no rejected completion"),
            ("chosen", "  ", "Row 3, column `chosen`: empty completion, got '  '"),
            ("rejected", [" x", " Seven Doors (1999)"], r"Row 3, column `rejected\[1\]`: .*equal to the chosen"),
        ],
    )
    def test_bad_record(self, llama, records, make_trainer, column, value, message):
        rows = records(5)
        rows[3]["chosen"] = " Seven Doors (1999)"
        rows[3]["rejected"] = [" x"]
        rows[3][column] = value
        with pytest.raises(ValueError, match=message):
            make_trainer(llama(), rows)

    def test_a_first_row_without_a_value(self, llama, records, make_trainer):
        rows = records(4)
        rows[0]["rejected"] = None
        with pytest.raises(ValueError, match="Row 0, column `rejected`: missing value"):
            make_trainer(llama(), rows)

    def test_a_dataset_with_a_format(self, llama, records, make_trainer, logged):
        trainers = [make_trainer(llama(), Dataset.from_list(records(4)).with_format(name)) for name in (None, "numpy")]
        for trainer in trainers:
            trainer.train()
        assert logged(trainers[0]) == logged(trainers[1])

    def test_all_records_too_long(self, llama, records, make_trainer):
        with pytest.raises(ValueError, match=r"4 of 4 records of the train dataset .*`max_length=5`.*none is left"):
            make_trainer(llama(), records(4), args={"max_length": 5})

    def test_some_records_too_long(self, llama, records, make_trainer, caplog):
        rows = records(4)
        rows[1]["prompt"] *= 20
        with caplog.at_level(logging.WARNING):
            trainer = make_trainer(llama(), rows)
        assert "1 of 4 records of the train dataset" in caplog.text
        assert trainer.train_dataset["record_id"] == [0, 2, 3]

    def test_empty_dataset(self, llama, records, make_trainer):
        with pytest.raises(ValueError, match="The eval dataset is empty"):
            make_trainer(llama(), records(4), eval_dataset=Dataset.from_list(records(1)).select([]))

    def test_loss_type_that_sorts_pairs(self, llama, records, make_trainer):
        with pytest.raises(ValueError, match=r"'aot'.*several rejected completions"):
            make_trainer(llama(), records(4), args={"loss_type": ["aot"]})

    def test_compute_metrics(self, llama, records, make_trainer):
        message = r"`compute_metrics` is not supported with several rejected completions: it wants logits.*log_probs"
        with pytest.raises(ValueError, match=message):
            make_trainer(llama(), records(4), compute_metrics=lambda prediction: {})


class TestSaving:
    def test_model_card(self, llama, records, make_trainer):
        trainer = make_trainer(llama(), records(4), args={"save_strategy": "steps", "save_steps": 2, "max_steps": 2})
        trainer.train()
        card = (Path(trainer.args.output_dir) / "README.md").read_text()
        header, body = card.split("---\n")[1:3]
        assert "- trl\n" in header
        assert "- softmax-dpo\n" in header
        assert "S-DPO" in body
        assert "https://huggingface.co/papers/2406.09215" in body
        assert "@inproceedings{chen2024softmax" in body

    def test_adapter_can_be_loaded_again(self, llama, records, make_trainer, tokenizer, tmp_path):
        trainer = make_trainer(llama(), records(4), peft_config=lora_config())
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
        loaded = PeftModel.from_pretrained(llama(), tmp_path / "saved").eval()
        inputs = tokenizer("Watched: Red River (1948)", return_tensors="pt").input_ids
        with torch.no_grad():
            expected, base = trainer.model.eval()(inputs).logits, llama()(inputs).logits
            logits = loaded(inputs).logits
        torch.testing.assert_close(logits, expected)
        assert (logits - base).abs().max() > 1e-3

    def test_generation_after_training(self, llama, records, make_trainer, tokenizer):
        """The fused LM head and its hooks leave the model able to generate."""
        trainer = make_trainer(llama(), records(4))
        trainer.train()
        inputs = tokenizer("Watched:", return_tensors="pt").input_ids
        output = trainer.model.eval().generate(inputs, max_new_tokens=3, do_sample=False)
        assert output.shape[1] > inputs.shape[1]
