"""Options of `DPOConfig` and `DPOTrainer` with several rejected completions, and the table of them in docs/options.md."""

import ast
import dataclasses
import functools
import inspect
import logging
import math
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback, TrainingArguments
from transformers.utils import is_liger_kernel_available
from trl import DPOConfig, DPOTrainer

from trl_sdpo import DataCollatorForMultiPreference, SoftmaxDPOConfig


ROOT = Path(__file__).parents[2]
# A model in a folder with code of its own
REMOTE_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class CustomConfig(LlamaConfig):
    model_type = "custom-llama"

class CustomForCausalLM(LlamaForCausalLM):
    config_class = CustomConfig
"""


@pytest.fixture
def losses_of(llama, records, make_trainer, logged):
    """Trains with options, and gives the logged losses."""

    def train(args=None, rows=None, **kwargs):
        if "peft_config" not in kwargs:
            kwargs.setdefault("ref_model", llama(seed=1))
        kwargs.setdefault("model", llama())
        rows = records(8, 2, 4) if rows is None else rows
        trainer = make_trainer(kwargs.pop("model"), rows, args={"beta": 0.1, **(args or {})}, **kwargs)
        trainer.train()
        return logged(trainer)

    return train


class TestModel:
    def test_model_init_kwargs(self, llama, records, make_trainer, tmp_path):
        llama().save_pretrained(tmp_path / "model")
        options = {"dtype": "bfloat16", "attn_implementation": "eager"}
        args = {"model_init_kwargs": options, "max_steps": 1}
        trainer = make_trainer(str(tmp_path / "model"), records(4), args=args)
        trainer.train()
        for model in (trainer.model, trainer.ref_model):
            assert model.dtype == torch.bfloat16
            assert model.config._attn_implementation == "eager"

    def test_trust_remote_code(self, llama, records, make_trainer, logged, tmp_path):
        llama().save_pretrained(tmp_path / "model")
        config = (tmp_path / "model" / "config.json").read_text()
        auto_map = (
            '"auto_map": {"AutoConfig": "custom.CustomConfig", "AutoModelForCausalLM": "custom.CustomForCausalLM"}'
        )
        config = config.replace("LlamaForCausalLM", "CustomForCausalLM").replace('"llama"', '"custom-llama"')
        (tmp_path / "model" / "config.json").write_text(config.replace("{", f"{{{auto_map},", 1))
        (tmp_path / "model" / "custom.py").write_text(REMOTE_CODE)
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            make_trainer(str(tmp_path / "model"), records(4))
        trainer = make_trainer(str(tmp_path / "model"), records(4), args={"trust_remote_code": True, "max_steps": 2})
        assert type(trainer.model).__name__ == type(trainer.ref_model).__name__ == "CustomForCausalLM"
        trainer.train()
        assert logged(trainer)[0] == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-4)

    def test_dropout_is_disabled_by_default(self, losses_of):
        def lora(dropout):
            return {"peft_config": LoraConfig(task_type="CAUSAL_LM", lora_dropout=dropout, init_lora_weights=False)}

        plain = losses_of(**lora(0.0))
        assert losses_of(**lora(0.5)) == plain
        assert losses_of({"disable_dropout": False}, **lora(0.5)) != plain

    @pytest.mark.filterwarnings("ignore:`use_liger_kernel=True` is deprecated:FutureWarning")
    def test_liger_kernel(self, llama, records, make_trainer):
        """TRL leaves the LM head as it is, and so do we; the kernels of the layers need Triton, and so a GPU."""
        args = {"use_liger_kernel": True, "liger_kernel_config": {"rope": False}}
        trainer = make_trainer(llama(), records(4), args=args)
        assert trainer.args.liger_kernel_config == {"rope": False, "fused_linear_cross_entropy": False}
        if not is_liger_kernel_available():
            with pytest.raises(ImportError, match="pip install liger-kernel"):
                trainer.train()
        args["liger_kernel_config"] = {"fused_linear_cross_entropy": True}
        with pytest.raises(ValueError, match="is not supported: it replaces the model's forward"):
            make_trainer(llama(), records(4), args=args)


class TestData:
    def test_no_max_length(self, records, losses_of):
        rows = records(4)
        rows[1]["prompt"] *= 6  # about 200 tokens
        assert losses_of({"max_length": None}, rows) == losses_of({"max_length": 1000}, rows)
        assert losses_of({"max_length": 100}, rows) != losses_of({"max_length": None}, rows)

    @pytest.mark.parametrize("prefix_sharing", ["true", "false"])
    def test_pad_to_multiple_of(self, llama, records, make_trainer, losses_of, prefix_sharing):
        args = {"pad_to_multiple_of": 64, "prefix_sharing": prefix_sharing}
        trainer = make_trainer(llama(), records(8, 2, 4), args=args)
        batch = next(iter(trainer.get_train_dataloader()))
        assert batch["input_ids"].shape[1] % 64 == 0
        assert batch["attention_mask"].sum(dim=1).max() < batch["input_ids"].shape[1]
        assert losses_of(args) == pytest.approx(losses_of({"prefix_sharing": prefix_sharing}), abs=1e-5)

    def test_padding_free_falls_back(self, losses_of, caplog):
        with caplog.at_level(logging.WARNING):
            losses = losses_of({"padding_free": True})
        assert "`padding_free=True` is temporarily unavailable" in caplog.text
        assert losses == losses_of()

    def test_precompute_ref_batch_size(self, losses_of):
        expected = losses_of()
        for batch_size in (1, 3, 8):
            args = {"precompute_ref_log_probs": True, "precompute_ref_batch_size": batch_size}
            assert losses_of(args) == pytest.approx(expected, abs=1e-5)

    def test_dataset_num_proc(self, losses_of):
        assert losses_of({"dataset_num_proc": 2}) == losses_of()

    def test_columns_that_are_kept(self, records, losses_of):
        rows = [{**row, "user_id": f"u{i}"} for i, row in enumerate(records(8, 2, 4))]
        assert losses_of({"remove_unused_columns": False}, rows) == losses_of(rows=rows)

    @pytest.mark.filterwarnings("ignore:`pad_token` is deprecated:FutureWarning")
    def test_pad_token(self, llama, records, make_trainer, losses_of):
        args = {"pad_token": "<|endoftext|>"}
        assert losses_of(args) == pytest.approx(losses_of(), abs=1e-5)
        trainer = make_trainer(llama(), records(4), args=args)
        assert trainer.data_collator.pad_token_id == trainer.processing_class.convert_tokens_to_ids("<|endoftext|>")
        trainer.processing_class.pad_token = "<pad>"  # of the session's tokenizer


class TestBatches:
    @pytest.mark.parametrize("strategy", ["sequential", "group_by_length", "batch_rebalance"])
    def test_sampling_strategies(self, records, losses_of, strategy):
        losses = losses_of({"train_sampling_strategy": strategy, "num_train_epochs": 2, "max_steps": -1})
        assert len(losses) == 4
        assert losses == losses_of({"train_sampling_strategy": strategy, "num_train_epochs": 2, "max_steps": -1})

    def test_last_batch_dropped(self, records, losses_of):
        rows = records(6)
        assert len(losses_of({"num_train_epochs": 1, "max_steps": -1}, rows)) == 2
        assert len(losses_of({"num_train_epochs": 1, "max_steps": -1, "dataloader_drop_last": True}, rows)) == 1

    def test_optimizer_by_name_and_clipping(self, losses_of):
        plain = losses_of()
        for args in ({"optim": "adafactor"}, {"optim": "sgd", "max_grad_norm": 0.01}, {"weight_decay": 0.5}):
            losses = losses_of(args)
            assert losses[0] == plain[0]
            assert losses[-1] != plain[-1]

    def test_noisy_embeddings(self, losses_of):
        """NEFTune adds noise in training alone, and so does not trip the check of shared rows."""
        losses = losses_of({"neftune_noise_alpha": 5.0, "prefix_sharing": "true"})
        assert losses[0] != pytest.approx(losses_of()[0], abs=1e-3)

    def test_number_of_tokens_seen(self, llama, records, make_trainer):
        trainer = make_trainer(llama(), records(8), args={"include_num_input_tokens_seen": "all", "max_steps": 2})
        trainer.train()
        tokens = [logs["num_input_tokens_seen"] for logs in trainer.state.log_history if "loss" in logs]
        assert 0 < tokens[0] < tokens[1]

    def test_activation_checkpointing(self, losses_of):
        """The new name of `gradient_checkpointing`."""
        args = {"gradient_checkpointing": None, "activation_checkpointing": True}
        args |= {"activation_checkpointing_kwargs": {"use_reentrant": False}}
        assert losses_of(args) == pytest.approx(losses_of(), abs=1e-5)

    @pytest.mark.parametrize(
        "args",
        [
            {"prediction_loss_only": True},
            {"eval_accumulation_steps": 1},
            {"eval_use_gather_object": True},
            {"eval_do_concat_batches": False},
            {"label_names": ["input_ids"]},
            {"accelerator_config": {"split_batches": True, "even_batches": False}},
        ],
        ids=lambda args: next(iter(args)),
    )
    def test_evaluation_options_that_change_no_metric(self, llama, records, make_trainer, args):
        metrics = []
        for options in ({}, args):
            eval_dataset = Dataset.from_list(records(7, 2, 4))
            trainer = make_trainer(
                llama(), records(4), args=options, ref_model=llama(seed=1), eval_dataset=eval_dataset
            )
            metrics.append(trainer.evaluate())
        names = [name for name in metrics[0] if not name.endswith(("runtime", "per_second", "preparation_time"))]
        assert {"eval_loss", "eval_hr@1", "eval_rewards/margins"} <= set(names)
        for name in names:
            assert metrics[1][name] == pytest.approx(metrics[0][name], abs=1e-6), name

    def test_evaluation_before_the_first_step(self, llama, records, make_trainer):
        args = {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 2}
        trainer = make_trainer(llama(), records(8), args=args, eval_dataset=Dataset.from_list(records(5)))
        trainer.train()
        history = trainer.state.log_history
        assert [logs["step"] for logs in history if "eval_hr@1" in logs] == [0, 2, 4]
        assert history[0]["eval_loss"] == pytest.approx(math.log(4), abs=1e-4)  # policy and reference are the same


class TestArguments:
    @pytest.mark.parametrize("prefix_sharing", [True, False])
    def test_data_collator(self, tokenizer, records, losses_of, prefix_sharing):
        class OneNegative(DataCollatorForMultiPreference):
            def torch_call(self, examples):
                return super().torch_call([{**row, "rejected_ids": row["rejected_ids"][:1]} for row in examples])

        collator = OneNegative(tokenizer.pad_token_id, prefix_sharing=prefix_sharing)
        rows = [{**row, "rejected": row["rejected"][:1]} for row in records(8, 2, 4)]
        assert losses_of(data_collator=collator) == pytest.approx(losses_of(rows=rows), abs=1e-5)

    def test_optimizers(self, llama, losses_of):
        model = llama()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        losses = losses_of(model=model, optimizers=(optimizer, None))
        assert losses == losses_of({"optim": "sgd", "weight_decay": 0.0})

    def test_callbacks(self, losses_of):
        class StopAfterTwo(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step == 2

        assert len(losses_of(callbacks=[StopAfterTwo()])) == 2

    def test_predict(self, llama, records, make_trainer):
        trainer = make_trainer(llama(), records(4))
        dataset = trainer.train_dataset
        with pytest.raises(ValueError, match="`predict` wants logits per label"):
            trainer.predict(dataset, ignore_keys=[])


@functools.cache
def names_in(path):
    """Functions of a test file, and methods of its classes as `Class::method`."""
    names = set()
    for node in ast.parse(path.read_text()).body if path.exists() else []:
        names.add(getattr(node, "name", ""))
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
    return names


class TestTable:
    TEXT = (ROOT / "docs" / "options.md").read_text()
    ROWS = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("| `")
    ]

    def named(self):
        return {name for row in self.ROWS for name in re.findall(r"`(\w+)`", row[0])}

    def test_names_every_field(self):
        inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
        ours = {field.name for field in dataclasses.fields(SoftmaxDPOConfig)} - inherited
        assert {field.name for field in dataclasses.fields(DPOConfig)} - inherited < ours
        assert ours - self.named() == set()

    def test_names_every_argument(self):
        arguments = set(inspect.signature(DPOTrainer.__init__).parameters) - {"self"}
        assert arguments - self.named() == set()

    def test_names_nothing_else(self):
        fields = {field.name for field in dataclasses.fields(SoftmaxDPOConfig)}
        assert self.named() - fields - set(inspect.signature(DPOTrainer.__init__).parameters) == set()

    def test_every_row_is_whole(self):
        assert len(self.ROWS) > 40
        for row in self.ROWS:
            assert len(row) == 4, row
            assert set(row[1].split(", ")) <= {"works", "raises", "no effect", "passes through"}, row
            assert re.search(r"`[\w/]*test_\w+\.py(::\w+)+`", row[2]), row
            assert row[3] or "passes through" not in row[1], row

    @pytest.mark.parametrize("name", sorted(set(re.findall(r"`([\w/]*test_\w+\.py(?:::\w+)+)`", TEXT))))
    def test_the_tests_exist(self, name):
        path, _, test = name.partition("::")
        assert test in names_in(ROOT / "tests" / path), f"docs/options.md names {name}, which is not there."
