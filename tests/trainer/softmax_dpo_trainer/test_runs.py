"""What a run does beside its loss: precision, memory, the best checkpoint, trackers, and data that come by other ways."""

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback

from trl_sdpo import SoftmaxDPOTrainer


def lora_config(**kwargs):
    return LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, **kwargs)


class TestPrecision:
    @pytest.mark.parametrize("adapter", [None, "new", "continued"])
    def test_model_in_bfloat16(self, llama, records, make_trainer, logged, adapter):
        """The weights of the base stay in bfloat16; losses and metrics are computed in float32."""
        model, kwargs = llama().to(torch.bfloat16), {}
        if adapter == "continued":
            model = get_peft_model(model, lora_config(init_lora_weights=False))
        elif adapter == "new":
            kwargs["peft_config"] = lora_config()
        args = {"max_steps": 20, "learning_rate": 1e-2, "beta": 0.3}
        trainer = make_trainer(model, records(8), args=args, **kwargs)
        trainer.train()
        losses = logged(trainer)
        assert losses[0] == pytest.approx(math.log(4), abs=0.05)
        assert losses[-1] < 0.5 * losses[0]
        assert trainer.model.get_input_embeddings().weight.dtype == torch.bfloat16

    def test_autocast_is_close_to_float32(self, llama, records, make_trainer, logged):
        losses = []
        for bf16 in (False, True):
            args = {"bf16": bf16, "beta": 0.05, "max_steps": 3, "learning_rate": 1e-4}
            trainer = make_trainer(llama(), records(8, 2, 4), args=args, ref_model=llama(seed=1))
            trainer.train()
            losses.append(logged(trainer))
            assert all(param.dtype == torch.float32 for param in trainer.model.parameters())
        assert losses[1] != losses[0]
        assert losses[1] == pytest.approx(losses[0], rel=0.05)

    def test_float16_autocast_with_a_scaler(self, llama, records, make_trainer):
        """What `fp16` does on an accelerator: losses come out in float32, and gradients close to those of float32."""
        trainer = make_trainer(llama(), records(4, 2, 4), args={"beta": 0.05}, ref_model=llama(seed=1))
        batch = next(iter(trainer.get_train_dataloader()))
        losses, gradients = [], []
        for dtype, scale in ((torch.float32, 1.0), (torch.float16, 2.0**10)):
            trainer.model.zero_grad()
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                loss = trainer.compute_loss(trainer.model, dict(batch))
            scaler.scale(loss).backward()
            assert loss.dtype == torch.float32
            losses.append(loss.item())
            gradients.append(torch.cat([param.grad.flatten() for param in trainer.model.parameters()]) / scale)
        assert losses[1] != losses[0]
        assert losses[1] == pytest.approx(losses[0], rel=0.01)
        assert torch.cosine_similarity(*gradients, dim=0) > 0.999

    @pytest.mark.parametrize("option", ["fp16_full_eval", "bf16_full_eval"])
    def test_evaluation_in_half_precision(self, llama, records, make_trainer, option):
        metrics = []
        for args in ({}, {option: True}):
            eval_dataset = Dataset.from_list(records(7, 2, 4))
            trainer = make_trainer(
                llama(), records(4), args={"beta": 0.05, **args}, ref_model=llama(seed=1), eval_dataset=eval_dataset
            )
            metrics.append(trainer.evaluate())
        assert trainer.model.dtype == (torch.float16 if option.startswith("fp16") else torch.bfloat16)
        for name in ("eval_loss", "eval_logps/chosen", "eval_logps/rejected"):
            assert metrics[1][name] != metrics[0][name]
            assert metrics[1][name] == pytest.approx(metrics[0][name], rel=0.02), name


class TestMemory:
    def test_emptied_cache(self, llama, records, make_trainer, logged):
        losses = []
        for steps in (None, 1):
            trainer = make_trainer(llama(), records(8), args={"torch_empty_cache_steps": steps})
            trainer.train()
            losses.append(logged(trainer))
        assert losses[1] == losses[0]

    @pytest.mark.parametrize("with_lora", [False, True])
    def test_reentrant_gradient_checkpointing(self, llama, records, make_trainer, logged, with_lora):
        losses = []
        for checkpointing in (False, True):
            kwargs = {"peft_config": lora_config()} if with_lora else {}
            args = {"gradient_checkpointing": checkpointing, "beta": 0.3}
            args |= {"gradient_checkpointing_kwargs": {"use_reentrant": True}} if checkpointing else {}
            trainer = make_trainer(llama(), records(8, 2, 4), args=args, **kwargs)
            trainer.train()
            losses.append(logged(trainer))
        assert losses[1] == pytest.approx(losses[0], abs=1e-4)

    def test_activation_offloading_needs_an_accelerator(self, llama, records, make_trainer):
        with pytest.raises(ValueError, match=r"this machine has no accelerator. Use `gradient_checkpointing=True`"):
            make_trainer(llama(), records(4), args={"activation_offloading": True})


@pytest.fixture
def opposed(records):
    """Evaluation records that prefer what the training records reject: training makes them worse and worse."""
    rows = records(8)
    others = [{**row, "chosen": row["rejected"][0], "rejected": [row["chosen"], *row["rejected"][1:]]} for row in rows]
    return rows, Dataset.from_list(others)


class TestBestModel:
    @pytest.mark.parametrize("adapter", [None, "new", "continued"])
    def test_is_loaded_at_the_end(self, llama, make_trainer, opposed, tmp_path, adapter):
        """The weights of the best evaluation, which is not the last, and the reference as it was."""
        rows, others = opposed
        model, kwargs = llama(), {}
        if adapter == "continued":
            model = get_peft_model(model, lora_config(init_lora_weights=False))
        elif adapter == "new":
            kwargs["peft_config"] = lora_config()
        args = {"max_steps": 24, "learning_rate": 1e-2 if adapter else 3e-3, "beta": 0.3}
        args |= {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4}
        args |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_hr@1", "greater_is_better": True}
        trainer = make_trainer(model, rows, args=args | {"save_total_limit": 2}, eval_dataset=others, **kwargs)
        trainer.train()
        history = {logs["step"]: logs["eval_hr@1"] for logs in trainer.state.log_history if "eval_hr@1" in logs}
        best = max(history, key=history.get)
        assert history[best] > history[24], history
        assert trainer.state.best_model_checkpoint == f"{trainer.args.output_dir}/checkpoint-{best}"
        assert trainer.evaluate()["eval_hr@1"] == history[best]
        trainer.save_model(str(tmp_path / "saved"))
        name = "adapter_model.safetensors" if adapter else "model.safetensors"
        saved = load_file(tmp_path / "saved" / name)
        for folder, same in ((f"checkpoint-{best}", True), ("checkpoint-24", False)):
            weights = load_file(Path(trainer.args.output_dir) / folder / name)
            assert saved.keys() == weights.keys()
            assert all(torch.equal(saved[key], weights[key]) for key in saved) == same, folder

    def test_early_stopping(self, llama, make_trainer, opposed):
        rows, others = opposed
        args = {"max_steps": 40, "learning_rate": 3e-3, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
        args |= {"save_strategy": "steps", "load_best_model_at_end": True}
        args |= {"metric_for_best_model": "eval_rewards/margins", "greater_is_better": True}
        callbacks = [EarlyStoppingCallback(early_stopping_patience=2)]
        trainer = make_trainer(llama(), rows, args=args, eval_dataset=others, callbacks=callbacks)
        trainer.train()
        assert trainer.state.global_step < 40


class Tracker(TrainerCallback):
    """Gets what Weights & Biases, TensorBoard or Trackio get."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append((state.global_step, dict(logs)))


class TestTrackers:
    def test_get_the_metrics_of_every_step_and_evaluation(self, llama, records, make_trainer):
        tracker = Tracker()
        args = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
        datasets = {"valid": Dataset.from_list(records(5)), "test": Dataset.from_list(records(3))}
        trainer = make_trainer(llama(), records(8), args=args, eval_dataset=datasets, callbacks=[tracker])
        trainer.train()
        training = [step for step, logs in tracker.seen if "rewards/margins" in logs]
        assert training == [1, 2, 3, 4]
        for name in ("valid", "test"):
            metrics = ["loss", "hr@1", "hr@5", "ndcg@5", "mrr", "reward_hr@1", "rewards/accuracies", "logps/chosen"]
            keys = {f"eval_{name}_{metric}" for metric in metrics}
            assert [step for step, logs in tracker.seen if keys <= logs.keys()] == [2, 4]
        assert all(isinstance(value, (int, float)) for _, logs in tracker.seen for value in logs.values())


class TestData:
    def test_several_processes_tokenize(self, llama, records, make_trainer):
        datasets = []
        for num_proc in (None, 2):
            args = {"dataset_num_proc": num_proc}
            # another column, or the second would come from the cache of the first
            rows = [{**row, "num_proc": num_proc or 1} for row in records(8, 1, 4)]
            trainer = make_trainer(llama(), rows, args=args, eval_dataset=Dataset.from_list(rows[:3]))
            datasets.append((trainer.train_dataset, trainer.eval_dataset))
        for one, two in zip(*datasets, strict=True):
            assert one.remove_columns("num_proc").to_list() == two.remove_columns("num_proc").to_list()

    @pytest.mark.parametrize("kind", ["DatasetDict", "IterableDatasetDict", "dict of streams"])
    def test_evaluation_datasets(self, llama, records, make_trainer, kind):
        """All of them give the metrics of the plain datasets."""
        datasets = {"valid": Dataset.from_list(records(5, 2, 4)), "test": Dataset.from_list(records(3, 1, 2))}
        expected = make_trainer(llama(), records(4), eval_dataset=datasets).evaluate()
        if kind == "DatasetDict":
            datasets = DatasetDict(datasets)
        else:
            datasets = {name: dataset.to_iterable_dataset() for name, dataset in datasets.items()}
            datasets = IterableDatasetDict(datasets) if kind == "IterableDatasetDict" else datasets
        metrics = make_trainer(llama(), records(4), eval_dataset=datasets).evaluate()
        names = [name for name in expected if not name.endswith(("runtime", "per_second", "preparation_time"))]
        assert {"eval_valid_hr@1", "eval_test_loss"} <= set(names)
        for name in names:
            assert metrics[name] == pytest.approx(expected[name], abs=1e-6), name

    @pytest.mark.parametrize("kind", ["stream", "tokenised", "conversational", "dict"])
    def test_evaluation_on_new_data(self, llama, records, make_trainer, to_conversational, kind):
        """`evaluate` prepares them as `__init__` does its own."""
        rows = records(6, 2, 4)
        rows = to_conversational(rows) if kind == "conversational" else rows
        reference = make_trainer(llama(), records(4), ref_model=llama(seed=1), eval_dataset=Dataset.from_list(rows))
        expected = reference.evaluate()
        trainer = make_trainer(llama(), records(4), ref_model=llama(seed=1))
        data = Dataset.from_list(rows)
        if kind == "stream":
            data = data.to_iterable_dataset()
        elif kind == "tokenised":
            data = reference.eval_dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
        elif kind == "dict":
            data = {"new": data}
        metrics = trainer.evaluate(data, metric_key_prefix="held_out")
        prefix = "held_out_new_" if kind == "dict" else "held_out_"
        for name in ("loss", "hr@1", "mrr", "reward_ndcg@5", "rewards/margins", "logps/rejected"):
            assert metrics[prefix + name] == pytest.approx(expected[f"eval_{name}"], abs=1e-5), name

    def test_evaluation_on_plain_preference_data(self, llama, records, make_trainer):
        """A trainer of records with several rejected completions evaluates TRL's format, too."""
        pairs = [{**row, "rejected": row["rejected"][0]} for row in records(8)]
        lists = [{**row, "rejected": [row["rejected"]]} for row in pairs]
        trainer = make_trainer(llama(), records(4), ref_model=llama(seed=1), args={"beta": 0.3})
        plain, ours = (trainer.evaluate(Dataset.from_list(rows)) for rows in (pairs, lists))
        for name in ("eval_loss", "eval_rewards/margins", "eval_logps/chosen"):
            assert plain[name] == pytest.approx(ours[name], rel=1e-4), name
        assert "eval_hr@1" in ours
        assert "eval_hr@1" not in plain


class TestStreams:
    @pytest.fixture
    def make_stream_trainer(self, llama, records, make_trainer):
        """Ten records are passes of three batches, the last one smaller, each pass in another order."""
        rows = [{**row, "prompt": f"User {i}. {row['prompt']}"} for i, row in enumerate(records(10, 5, 5))]

        def make(**args):
            args = {"num_negatives": 2, "max_steps": 8, "save_strategy": "steps", "save_steps": 1, **args}
            stream = Dataset.from_list(rows).to_iterable_dataset().shuffle(seed=0, buffer_size=10)
            return make_trainer(llama(), stream, args=args, ref_model=llama(seed=1))

        return make

    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_resume_in_any_pass(self, make_stream_trainer, logged, accumulation):
        """In the order of that pass, with its negatives; a pass of three batches is two steps with accumulation."""
        args = {"gradient_accumulation_steps": accumulation}
        whole = make_stream_trainer(**args)
        whole.train()
        # within the first pass, at its end, within the second and the third, after the last step of a pass
        for step in (1, 3, 4, 5, 6, 7):
            trainer = make_stream_trainer(**args)
            trainer.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{step}")
            assert logged(trainer) == logged(whole), step
            for left, right in zip(whole.model.parameters(), trainer.model.parameters(), strict=True):
                assert torch.equal(left, right)

    def test_resume_to_train_longer(self, make_stream_trainer, logged):
        """A run that ended within its first pass, or beyond it, goes on in the same pass."""
        options = {"lr_scheduler_type": "constant"}
        whole = make_stream_trainer(**options)
        whole.train()
        for steps in (2, 5):
            short = make_stream_trainer(**options, max_steps=steps)
            short.train()
            trainer = make_stream_trainer(**options)
            trainer.train(resume_from_checkpoint=f"{short.args.output_dir}/checkpoint-{steps}")
            assert logged(trainer) == logged(whole), steps


class TestAutomaticBatchSize:
    def test_batch_that_fits(self, llama, records, make_trainer, logged):
        losses = []
        for auto_find_batch_size in (False, True):
            args = {"auto_find_batch_size": auto_find_batch_size}
            trainer = make_trainer(llama(), records(8), args=args, ref_model=llama(seed=1))
            trainer.train()
            losses.append(logged(trainer))
        assert losses[1] == pytest.approx(losses[0], abs=1e-6)

    def test_batch_that_does_not(self, llama, records, make_trainer):
        """The run begins anew with a smaller batch, and nothing of the batch that failed is left in its metrics."""

        class LittleMemory(SoftmaxDPOTrainer):
            def training_step(self, model, inputs, *args, **kwargs):
                loss = super().training_step(model, inputs, *args, **kwargs)
                if inputs["num_completions"].size(0) > 3:  # as the backward pass does
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                return loss

        logs = []
        for args in ({"per_device_train_batch_size": 3}, {"auto_find_batch_size": True}):
            trainer = make_trainer(
                llama(), records(8, 2, 5), LittleMemory, args={"num_negatives": 2, **args}, ref_model=llama(seed=1)
            )
            trainer.train()
            logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
        assert trainer._train_batch_size == 3
        for left, right in zip(*logs, strict=True):
            assert right == pytest.approx(left, abs=1e-6)


@pytest.mark.parametrize(
    "kind",
    [
        "continued adapter",
        # ten seconds each: the compiler reads the layers anew
        pytest.param("all weights", marks=pytest.mark.thorough),
        pytest.param("new adapter", marks=pytest.mark.thorough),
    ],
)
def test_torch_compile(llama, records, make_trainer, logged, monkeypatch, kind):
    """The same losses and metrics, evaluations in between included, and no graph that breaks."""
    for name in ("BACKEND", "MODE"):  # which transformers leaves to the next trainer
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", {"BACKEND": "no", "MODE": "default"}[name])
    rows, runs = records(8, 2, 2), []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = llama(num_hidden_layers=1)
        kwargs = {"ref_model": None, "eval_dataset": Dataset.from_list(rows[:4])}
        if kind == "new adapter":
            kwargs["peft_config"] = lora_config()
        elif kind == "continued adapter":
            torch.manual_seed(0)
            model = get_peft_model(model, lora_config(init_lora_weights=False))
        args = {"beta": 0.3, "max_steps": 3, "eval_strategy": "steps", "eval_steps": 2, "torch_compile": compiled}
        args |= {"pad_to_multiple_of": 128, "prefix_sharing": "true"}
        args |= {"torch_compile_backend": "eager"} if compiled else {}
        trainer = make_trainer(model, rows, args=args, **kwargs)
        trainer.train()
        runs.append(trainer)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]
    eager, compiled = runs
    timings = ("runtime", "per_second", "time", "loss")
    for left, right in zip(eager.state.log_history, compiled.state.log_history, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            if not name.endswith(timings) or name in ("loss", "eval_loss"):
                assert right[name] == pytest.approx(left[name], rel=1e-4, abs=1e-4), (left["step"], name)
