import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, EarlyStoppingCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from trl_sdpo import RankingCallback, to_prompt_completion
from trl_sdpo.pipeline import make_sft_trainer
from trl_sdpo.recsys import hit_rate, mean_reciprocal_rank, ranks
from trl_sdpo.scoring.generation import generate_answers, generation_metrics
from trl_sdpo.scoring.log_probs import completion_log_probs


RANKING_KEYS = {"hr@1", "hr@10", "ndcg@10", "mrr", "n", "hr@1_low", "hr@1_high"}


def measured(trainer, name="sample"):
    """What the callback logged, with its step."""
    prefix = f"eval_{name}_"
    logs = [entry for entry in trainer.state.log_history if f"{prefix}hr@1" in entry]
    assert all(entry.keys() - {"step", "epoch"} == {key for key in entry if key.startswith(prefix)} for entry in logs)
    return [{key.removeprefix(prefix): value for key, value in entry.items() if key != "epoch"} for entry in logs]


def others(trainer):
    """What else was logged."""
    timings = ("runtime", "per_second", "time")
    logs = [entry for entry in trainer.state.log_history if not any("_sample_" in key for key in entry)]
    return [{key: value for key, value in entry.items() if not key.endswith(timings)} for entry in logs]


class Randomness(TrainerCallback):
    """Draws from every generator after each step."""

    def __init__(self):
        self.drawn = []

    def on_step_end(self, args, state, control, **kwargs):
        self.drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))


class DrawingCallback(RankingCallback):
    """Uses up random numbers in a measurement, as a model with a random layer may."""

    def _metrics(self):
        random.random(), np.random.rand(), torch.rand(1)
        return super()._metrics()


@pytest.fixture
def train(make_trainer, llama, records):
    def run(callback=None, args=None, **kwargs):
        # dropout draws a random number for every activation of every step
        trainer = make_trainer(
            llama(attention_dropout=0.2),
            records(8),
            args={"num_negatives": 2, "disable_dropout": False, "logging_steps": 2, **(args or {})},
            **kwargs,
        )
        if callback is not None:
            trainer.add_callback(callback(trainer))
        randomness = Randomness()
        trainer.add_callback(randomness)
        trainer.train()
        return trainer, randomness.drawn

    return run


@pytest.mark.parametrize("protocol", ["ranking", "generation"])
def test_training_is_the_same_to_the_bit(train, records, protocol):
    evaluation = {"eval_strategy": "steps", "eval_steps": 2}
    eval_dataset = Dataset.from_list(records(5))
    plain, plain_draws = train(args=evaluation, eval_dataset=eval_dataset)

    def callback(trainer):
        return DrawingCallback(trainer, Dataset.from_list(records(6)), every_n_steps=1, protocol=protocol)

    trainer, draws = train(callback, evaluation, eval_dataset=eval_dataset)
    assert [entry["step"] for entry in measured(trainer)] == [0, 1, 2, 3, 4]
    assert draws == plain_draws
    assert others(trainer) == others(plain)
    assert sum("loss" in entry for entry in others(plain)) == 2
    for left, right in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_ranking_is_that_of_the_model(train, records, tokenizer):
    dataset = Dataset.from_list(records(40, 3, 5))
    trainer, _ = train(lambda trainer: RankingCallback(trainer, dataset, 3, num_records=15, seed=4))
    assert [entry["step"] for entry in measured(trainer)] == [0, 3, 4]
    last = measured(trainer)[-1]
    assert last.keys() == RANKING_KEYS | {"step"}
    (callback,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, RankingCallback)]
    assert len(callback.dataset) == last["n"] == 15
    places = ranks(completion_log_probs(trainer.model, callback.dataset, tokenizer))
    assert last["hr@1"] == hit_rate(places)
    assert last["mrr"] == pytest.approx(mean_reciprocal_rank(places))
    assert last["hr@1_low"] <= last["hr@1"] <= last["hr@1_high"]
    assert measured(trainer)[0]["mrr"] != last["mrr"]


def test_the_answers_are_those_of_the_model(train, records, tokenizer):
    dataset = Dataset.from_list(records(6))
    trainer, _ = train(lambda trainer: RankingCallback(trainer, dataset, 2, None, protocol="generation", name="asked"))
    last = measured(trainer, "asked")[-1]
    assert last.keys() == {"hr@1", "valid_ratio", "n", "hr@1_low", "hr@1_high", "step"}
    expected = generation_metrics(generate_answers(trainer.model, dataset, tokenizer), dataset)
    assert {name: last[name] for name in ("hr@1", "valid_ratio", "n")} == {
        name: expected[name] for name in ("hr@1", "valid_ratio", "n")
    }


def test_the_sample_is_that_of_the_seed(train, records):
    dataset = Dataset.from_list([{**row, "number": number} for number, row in enumerate(records(40))])
    trainer, _ = train()
    samples = [RankingCallback(trainer, dataset, num_records=9, seed=seed).dataset["number"][:] for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]
    assert len(set(samples[0])) == 9
    assert samples[0] == sorted(samples[0])


def test_the_evaluation_dataset_is_the_default(train, records):
    args = {"eval_steps": 2}
    trainer, _ = train(RankingCallback, args, eval_dataset=Dataset.from_list(records(5)))
    assert [(entry["step"], entry["n"]) for entry in measured(trainer)] == [(0, 5), (2, 5), (4, 5)]


def test_a_resumed_run_goes_on_measuring(train, make_trainer, llama, records):
    args = {"save_strategy": "steps", "save_steps": 2}
    dataset = Dataset.from_list(records(5))
    whole, _ = train(lambda trainer: RankingCallback(trainer, dataset, 1), args)
    again = make_trainer(
        llama(attention_dropout=0.2),
        records(8),
        args={"num_negatives": 2, "disable_dropout": False, "logging_steps": 2, **args},
    )
    again.add_callback(RankingCallback(again, dataset, 1))
    again.train(resume_from_checkpoint=f"{again.args.output_dir}/checkpoint-2")
    assert measured(again) == measured(whole)


def test_supervised_fine_tuning_with_an_adapter(llama, tokenizer, records, tmp_path):
    dataset = Dataset.from_list(records(6))
    trainer = SFTTrainer(
        llama(),
        SFTConfig(
            output_dir=str(tmp_path),
            max_steps=4,
            learning_rate=1e-2,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=True,
            gradient_checkpointing=True,
        ),
        train_dataset=to_prompt_completion(dataset),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4),
    )
    for protocol in ("ranking", "generation"):
        trainer.add_callback(RankingCallback(trainer, dataset, 2, protocol=protocol, name=protocol))
    trainer.train()
    assert [entry["step"] for entry in measured(trainer, "ranking")] == [0, 2, 4]
    assert [entry["step"] for entry in measured(trainer, "generation")] == [0, 2, 4]


def test_a_card_of_supervised_fine_tuning_counts_the_records_of_the_sample(llama, tokenizer, records, tmp_path):
    """Not those of the evaluation data set, which TRL's trainer measures the loss on."""
    args = SFTConfig(str(tmp_path), max_steps=1, report_to="none", disable_tqdm=True, use_cpu=True, bf16=False)
    train, evaluation, ranked = (Dataset.from_list(records(count)) for count in (4, 2, 6))
    trainer = make_sft_trainer(llama(), args, train, tokenizer, evaluation)
    trainer.add_callback(RankingCallback(trainer, ranked, 1))
    trainer.train()
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert "`sample`. After step 1, over the completions of each record, n = 6." in text


def test_4bit_layers_stay_in_the_format_that_trains(llama, tokenizer, records, tmp_path):
    """On some CPUs bitsandbytes repacks them in an evaluation, after which gradients are wrong."""
    llama().save_pretrained(tmp_path / "base")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=quantization),
        SFTConfig(str(tmp_path / "output"), report_to="none", use_cpu=True, bf16=False),
        train_dataset=to_prompt_completion(Dataset.from_list(records(2))),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4),
    )
    layers = [module for module in trainer.model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    layers[0].support_avx512bf16_for_cpu = True  # as on a CPU that has it
    RankingCallback(trainer, Dataset.from_list(records(2)))
    assert len(layers) > 1
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_errors(train, records, monkeypatch):
    trainer, _ = train()
    dataset = Dataset.from_list(records(3))
    with pytest.raises(ValueError, match="needs a dataset with records, got NoneType"):
        RankingCallback(trainer)
    with pytest.raises(ValueError, match="needs a dataset with records, got Dataset"):
        RankingCallback(trainer, dataset.select([]))
    with pytest.raises(ValueError, match="needs a dataset with records, got dict"):
        RankingCallback(trainer, {"validation": dataset})
    with pytest.raises(ValueError, match="no list of rejected completions"):
        RankingCallback(trainer, to_prompt_completion(dataset))
    for options in ({"every_n_steps": 0}, {"num_records": 0}):
        with pytest.raises(ValueError, match="=0 is below 1"):
            RankingCallback(trainer, dataset, **options)
    with pytest.raises(ValueError, match="protocol='all' is none of"):
        RankingCallback(trainer, dataset, protocol="all")
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(ValueError, match="weights are spread over processes"):
        RankingCallback(trainer, dataset)


class TestBestModel:
    ARGS = {
        "max_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_sample_mrr",
    }

    @pytest.mark.parametrize("every", [1, 3, None])
    def test_chooses_the_best_model(self, make_trainer, llama, records, every):
        """By the metric of the evaluated steps, wherever else the sample is measured."""
        data = Dataset.from_list(records(5))
        eval_datasets = {"a": data, "b": data} if every is None else data
        trainer = make_trainer(
            llama(), records(8), args=self.ARGS, ref_model=llama(seed=1), eval_dataset=eval_datasets
        )
        trainer.add_callback(RankingCallback(trainer, data, every_n_steps=every))
        trainer.train()
        by_step = {entry["step"]: entry["mrr"] for entry in measured(trainer)}
        assert trainer.state.best_metric == max(by_step[2], by_step[4])
        assert trainer.state.best_model_checkpoint.endswith(
            "checkpoint-2" if by_step[2] >= by_step[4] else "checkpoint-4"
        )

    def test_refused_before_the_first_step(self, make_trainer, llama, records):
        data = Dataset.from_list(records(5))
        for change, callbacks, message in (
            (
                {"metric_for_best_model": "sample_ndcg@5"},
                [],
                r"none of what RankingCallback logs.*eval_sample_ndcg@10",
            ),
            ({}, [EarlyStoppingCallback(1)], "EarlyStoppingCallback stands before RankingCallback"),
        ):
            trainer = make_trainer(
                llama(), records(8), args={**self.ARGS, **change}, eval_dataset=data, callbacks=callbacks
            )
            trainer.add_callback(RankingCallback(trainer, data))
            with pytest.raises(ValueError, match=message):
                trainer.train()
            assert trainer.state.global_step == 0

    def test_stops_early(self, make_trainer, llama, records):
        data = Dataset.from_list(records(5))
        args = {**self.ARGS, "max_steps": 20, "learning_rate": 0.0}
        trainer = make_trainer(llama(), records(8), args=args, eval_dataset=data)
        trainer.add_callback(RankingCallback(trainer, data))
        trainer.add_callback(EarlyStoppingCallback(2))
        trainer.train()
        assert trainer.state.global_step == 6
