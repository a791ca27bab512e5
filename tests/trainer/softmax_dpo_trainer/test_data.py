"""What reaches a training step: formats, streams, drawn negatives, resuming, and what evaluation reports."""

import logging
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from trl_sdpo import draw_negatives
from trl_sdpo.data_utils import tokenize_multi_preference


def tokenized(rows, tokenizer):
    return [tokenize_multi_preference(row, i, tokenizer, tokenizer.eos_token) for i, row in enumerate(rows)]


class TestFormats:
    def test_conversational(self, llama, records, make_trainer, to_conversational, logged):
        trainer = make_trainer(llama(), to_conversational(records(8)), args={"max_steps": 15})
        trainer.train()
        assert logged(trainer)[0] == pytest.approx(math.log(4), abs=1e-4)
        assert logged(trainer)[-1] < 0.7 * logged(trainer)[0]

    def test_tokenized_records_train_like_text(self, llama, records, make_trainer, tokenizer, logged):
        rows = records(8, smallest=2, largest=4)
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        tokens = [{name: row[name] for name in names} for row in tokenized(rows, tokenizer)]
        losses = []
        for data in (rows, tokens):
            trainer = make_trainer(llama(), data, ref_model=llama(seed=1))
            trainer.train()
            losses.append(logged(trainer))
        assert losses[0] == losses[1]

    def test_stream(self, llama, records, make_trainer, logged):
        """In the order of the stream: the same batches as a dataset that is not shuffled."""
        rows = records(8, smallest=2, largest=4)
        losses = []
        for data in (Dataset.from_list(rows), Dataset.from_list(rows).to_iterable_dataset()):
            args = {"train_sampling_strategy": "sequential"} if isinstance(data, Dataset) else {}
            trainer = make_trainer(llama(), data, ref_model=llama(seed=1), args={**args, "max_steps": 4})
            trainer.train()
            losses.append(logged(trainer))
        assert len(losses[1]) == 4
        assert losses[1] == pytest.approx(losses[0], abs=1e-6)

    def test_stream_with_drawn_negatives(self, llama, records, make_trainer, record_steps):
        stream = Dataset.from_list(records(8, 5, 5)).to_iterable_dataset()
        trainer = make_trainer(llama(), stream, record_steps, args={"num_negatives": 2, "max_steps": 4})
        trainer.train()
        drawn = [{record: set(completions[1:]) for record, completions in step.items()} for step in trainer.steps]
        # two epochs of two batches
        first, second = {**drawn[0], **drawn[1]}, {**drawn[2], **drawn[3]}
        assert len(first) == 8
        assert first.keys() == second.keys()
        assert any(first[record] != second[record] for record in first)

    def test_columns_beside_the_record(self, llama, records, make_trainer, logged):
        rows = [{**row, "user_id": i, "item_ids": [1, 2]} for i, row in enumerate(records(8))]
        trainer = make_trainer(llama(), rows)
        trainer.train()
        assert logged(trainer)[0] == pytest.approx(math.log(4), abs=1e-4)


class TestDrawnNegatives:
    def epochs(self, trainer):
        steps = [{record: c[1:] for record, c in step.items()} for step in trainer.steps]
        return [{**steps[i], **steps[i + 1]} for i in range(0, len(steps), 2)]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_new_ones_each_epoch(self, llama, records, make_trainer, record_steps, tokenizer, workers):
        """As draw_negatives says for the record and the epoch, in workers that outlive an epoch, too."""
        rows = records(8, 5, 5)
        args = {"num_negatives": 2, "max_steps": 6, "seed": 7}
        args |= {"dataloader_num_workers": workers, "dataloader_persistent_workers": workers > 0}
        args |= {"dataloader_prefetch_factor": 1} if workers else {}
        trainer = make_trainer(llama(), rows, record_steps, args=args)
        trainer.train()
        pools = [row["rejected_ids"] for row in tokenized(rows, tokenizer)]
        epochs = self.epochs(trainer)
        assert len(epochs) == 3
        for epoch, drawn in enumerate(epochs):
            assert drawn.keys() == set(range(8))
            for record, completions in drawn.items():
                expected = draw_negatives(5, 2, 7, epoch, record)
                assert completions == [tuple(pools[record][i]) for i in expected], (epoch, record)

    def test_data_seed_draws_other_ones(self, llama, records, make_trainer, record_steps):
        draws = []
        for data_seed in (None, 1):
            args = {"num_negatives": 2, "data_seed": data_seed, "max_steps": 2}
            trainer = make_trainer(llama(), records(8, 5, 5), record_steps, args=args)
            trainer.train()
            draws.append(self.epochs(trainer)[0])
        assert draws[0] != draws[1]

    def test_evaluation_takes_the_whole_pool(self, llama, records, make_trainer):
        """hr@5 of records with 5 negatives is not certain; with 2 drawn ones it would be."""
        eval_dataset = Dataset.from_list(records(8, 5, 5))
        results = []
        for num_negatives in (None, 2):
            trainer = make_trainer(
                llama(), records(8, 5, 5), args={"num_negatives": num_negatives}, eval_dataset=eval_dataset
            )
            results.append(trainer.evaluate())
        assert results[0]["eval_loss"] == pytest.approx(math.log(6), abs=1e-4)
        for name in ("eval_loss", "eval_hr@1", "eval_mrr", "eval_logps/rejected"):
            assert results[1][name] == pytest.approx(results[0][name], abs=1e-6)

    @pytest.mark.parametrize("prefix_sharing", ["true", "false"])
    @pytest.mark.parametrize("stream", [False, True])
    def test_evaluation_takes_the_whole_pool_whatever_it_is_called(
        self, llama, records, make_trainer, stream, prefix_sharing
    ):
        """Evaluation data may be named as those of training are; streams give the metrics of datasets."""
        dataset = Dataset.from_list(records(7, 2, 5))
        eval_dataset = {"train": dataset.to_iterable_dataset() if stream else dataset}
        args = {"num_negatives": 2, "prefix_sharing": prefix_sharing}
        trainer = make_trainer(
            llama(), records(8, 5, 5), args=args, eval_dataset=eval_dataset, ref_model=llama(seed=1)
        )
        expected = make_trainer(llama(), records(4), ref_model=llama(seed=1), eval_dataset=dataset).evaluate()
        metrics = trainer.evaluate()
        for name in ("loss", "hr@5", "mrr", "logps/rejected", "rewards/margins"):
            assert metrics[f"eval_train_{name}"] == pytest.approx(expected[f"eval_{name}"], abs=1e-5), name

    def test_more_than_there_are(self, llama, records, make_trainer, logged, caplog):
        args = {"num_negatives": 3, "max_steps": 1, "per_device_train_batch_size": 8}
        with caplog.at_level(logging.WARNING):
            trainer = make_trainer(llama(), records(8, 1, 4), args=args)
        assert "smallest pool of the train dataset is 1" in caplog.text
        trainer.train()
        assert logged(trainer)[0] == pytest.approx(math.log(2 * 3 * 4 * 4) / 4, abs=1e-4)


class TestResume:
    @pytest.mark.parametrize("with_lora", [False, True])
    @pytest.mark.parametrize("checkpoint", [2, 3])  # the end of the first epoch, and the middle of the second
    def test_continues_bit_by_bit(self, llama, records, make_trainer, record_steps, with_lora, checkpoint):
        def trainer():
            lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4)
            kwargs = {"peft_config": lora} if with_lora else {"ref_model": llama(seed=1)}
            args = {"num_negatives": 2, "max_steps": 6, "save_strategy": "steps", "save_steps": 1}
            return make_trainer(llama(), records(8, 5, 5), record_steps, args=args, **kwargs)

        whole, resumed = trainer(), trainer()
        whole.train()
        resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{checkpoint}")
        assert len(whole.steps) == 6
        assert resumed.steps == whole.steps[checkpoint:]
        losses = [[logs["loss"] for logs in t.state.log_history if "loss" in logs] for t in (whole, resumed)]
        assert losses[1][-3:] == losses[0][-3:]
        for (name, left), right in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(left, right), name


def expected_metrics(policy, reference, rows, beta, tokenizer, plain_log_probs):
    """The metrics of an evaluation by numpy, record by record."""
    with torch.no_grad():
        ours, theirs = ([row.double().numpy() for row in plain_log_probs(model, tokenized(rows, tokenizer))]
                        for model in (policy, reference))  # fmt: skip
    records = []
    for policy_scores, reference_scores in zip(ours, theirs, strict=True):
        rewards = beta * (policy_scores - reference_scores)
        record = {"loss": np.log(np.exp(rewards).sum()) - rewards[0]}
        for prefix, scores in (("", policy_scores), ("reward_", rewards)):
            rank = 1 + sum(scores[1:] >= scores[0])
            record |= {f"{prefix}hr@{k}": float(rank <= k) for k in (1, 5, 10)}
            record |= {f"{prefix}ndcg@{k}": (rank <= k) / np.log2(rank + 1) for k in (5, 10)}
            record[f"{prefix}mrr"] = 1 / rank
        record |= {"rewards/chosen": rewards[0], "rewards/rejected": rewards[1:].mean()}
        record["rewards/margins"] = rewards[0] - rewards[1:].mean()
        record["rewards/accuracies"] = float(all(rewards[0] > rewards[1:]))
        record |= {"logps/chosen": policy_scores[0], "logps/rejected": policy_scores[1:].mean()}
        records.append(record)
    return {name: np.mean([record[name] for record in records]) for name in records[0]}


class TestEvaluation:
    def test_metrics_over_unequal_batches(self, llama, records, make_trainer, tokenizer, plain_log_probs):
        """7 ragged records in batches of 4 and 3: every record counts the same."""
        rows = records(7, 1, 5)
        trainer = make_trainer(
            llama(), records(4), args={"beta": 0.05}, ref_model=llama(seed=1), eval_dataset=Dataset.from_list(rows)
        )
        metrics = trainer.evaluate()
        expected = expected_metrics(llama(), llama(seed=1), rows, 0.05, tokenizer, plain_log_probs)
        assert 0 < expected["hr@1"] < 1
        for name, value in expected.items():
            assert metrics[f"eval_{name}"] == pytest.approx(value, abs=1e-4), name

    def test_names_of_several_datasets(self, llama, records, make_trainer, tokenizer, plain_log_probs):
        datasets = {"valid": records(5, 2, 5), "test": records(6, 1, 3)[1:]}
        trainer = make_trainer(
            llama(),
            records(4),
            args={"beta": 0.05},
            ref_model=llama(seed=1),
            eval_dataset={name: Dataset.from_list(rows) for name, rows in datasets.items()},
        )
        metrics = trainer.evaluate()
        for dataset_name, rows in datasets.items():
            expected = expected_metrics(llama(), llama(seed=1), rows, 0.05, tokenizer, plain_log_probs)
            for name, value in expected.items():
                assert metrics[f"eval_{dataset_name}_{name}"] == pytest.approx(value, abs=1e-4), (dataset_name, name)
        assert "eval_hr@1" not in metrics

    def test_during_training(self, llama, records, make_trainer):
        """Evaluation amid training leaves the metrics of training alone, and names the best checkpoint."""
        args = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
        args |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_hr@1", "greater_is_better": True}
        trainer = make_trainer(llama(), records(8), args=args, eval_dataset=Dataset.from_list(records(5)))
        trainer.train()
        train_logs = [logs for logs in trainer.state.log_history if "loss" in logs]
        eval_logs = [logs for logs in trainer.state.log_history if "eval_loss" in logs]
        assert len(train_logs) == 4
        assert len(eval_logs) == 2
        assert all("hr@1" not in logs and "eval_hr@1" not in logs for logs in train_logs)
        assert all("rewards/margins" not in logs and "eval_rewards/margins" in logs for logs in eval_logs)
        assert trainer.state.best_metric == max(logs["eval_hr@1"] for logs in eval_logs)

    def test_other_data_than_at_the_start(self, llama, records, make_trainer, tokenizer, plain_log_probs):
        trainer = make_trainer(llama(), records(4), args={"beta": 0.05}, ref_model=llama(seed=1))
        rows = records(3, 4, 5)
        metrics = trainer.evaluate(Dataset.from_list(rows), metric_key_prefix="test")
        expected = expected_metrics(llama(), llama(seed=1), rows, 0.05, tokenizer, plain_log_probs)
        for name, value in expected.items():
            assert metrics[f"test_{name}"] == pytest.approx(value, abs=1e-4), name

    def test_ties_count_against_the_model(self, llama, records, make_trainer):
        """A model of zeros gives all titles of one length the same likelihood; rewards are all 0."""
        model = llama()
        model.lm_head.weight.data.zero_()
        trainer = make_trainer(model, records(4), eval_dataset=Dataset.from_list(records(4)))
        metrics = trainer.evaluate()
        assert metrics["eval_reward_hr@1"] == 0
        assert metrics["eval_reward_mrr"] == pytest.approx(1 / 4)
        assert metrics["eval_rewards/accuracies"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_flat_columns_train_as_lists_do(make_trainer, llama, records, logged, stream):
    """The columns of published S-DPO data, `rejected1..K`, of which a record may have fewer."""
    rows = records(8, 2, 3)
    flat = [
        {"prompt": row["prompt"], "chosen": row["chosen"]}
        | {f"rejected{number}": (row["rejected"] + [None])[number - 1] for number in (1, 2, 3)}
        for row in rows
    ]
    datasets = [Dataset.from_list(each) for each in (rows, flat)]
    if stream:
        datasets = [dataset.to_iterable_dataset() for dataset in datasets]
    losses = []
    for dataset in datasets:
        trainer = make_trainer(llama(), dataset, eval_dataset=dataset, args={"max_steps": 2})
        trainer.train()
        losses.append([*logged(trainer), trainer.evaluate()["eval_loss"]])
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]
