"""The trainer against TRL's `DPOTrainer`, against itself in other layouts, and against arithmetic of its own."""

import logging
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BloomConfig, BloomForCausalLM
from trl import DPOConfig, DPOTrainer

from helpers.closeness import assert_same_scores, assert_same_training
from trl_sdpo import to_preference_pairs
from trl_sdpo.data_utils import tokenize_multi_preference


def lora_config():
    return LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, init_lora_weights=False)


METRICS = [
    *("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    *("logps/chosen", "logps/rejected", "logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy"),
]


@pytest.fixture
def pairs(records):
    return [{**row, "rejected": row["rejected"][0]} for row in records(8)]


class TestAgainstDPOTrainer:
    @pytest.mark.parametrize("with_lora", [False, True])
    @pytest.mark.parametrize("loss_type", [None, ["ipo"], ["sigmoid", "sft"]], ids=["default", "ipo", "mixture"])
    def test_preference_data_of_trl(self, llama, pairs, make_trainer, loss_type, with_lora):
        args = {"beta": 0.3, "max_steps": 5} | ({"loss_type": loss_type} if loss_type else {})
        # An adapter that does not begin at 0 has itself as the reference here, and the base model in TRL
        lora = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 4}
        kwargs = {"peft_config": LoraConfig(**lora)} if with_lora else {"ref_model": llama(seed=1)}
        ours = make_trainer(llama(), pairs, args=args, **kwargs)
        kwargs = {"peft_config": LoraConfig(**lora)} if with_lora else {"ref_model": llama(seed=1)}
        theirs = make_trainer(llama(), pairs, DPOTrainer, DPOConfig, args, **kwargs)
        ours.train()
        theirs.train()
        assert_same_training(ours, theirs, [*METRICS, "num_tokens"])

    def test_f_divergence_with_a_plain_config(self, llama, pairs, make_trainer):
        """The default loss of a `DPOConfig` becomes softmax, which the parent must go on taking for its sigmoid."""
        args = {"f_divergence_type": "js_divergence", "beta": 0.3}
        ours = make_trainer(llama(), pairs, config_cls=DPOConfig, args=args, ref_model=llama(seed=1))
        theirs = make_trainer(llama(), pairs, DPOTrainer, DPOConfig, args, ref_model=llama(seed=1))
        assert ours.args.loss_type == ["softmax"]
        ours.train()
        theirs.train()
        assert_same_training(ours, theirs, METRICS)

    @pytest.mark.parametrize("conversational", [False, True])
    @pytest.mark.parametrize("loss_type", ["softmax", "sigmoid"])
    def test_lists_of_one(self, llama, pairs, make_trainer, to_conversational, loss_type, conversational):
        lists = [{**row, "rejected": [row["rejected"]]} for row in pairs]
        if conversational:
            lists = to_conversational(lists)
            pairs = [{**row, "rejected": row["rejected"][0]} for row in lists]
        args = {"beta": 0.3, "max_steps": 5, "learning_rate": 1e-4}
        ours = make_trainer(llama(), lists, args={**args, "loss_type": [loss_type]}, ref_model=llama(seed=1))
        theirs = make_trainer(llama(), pairs, DPOTrainer, DPOConfig, args, ref_model=llama(seed=1))
        ours.train()
        theirs.train()
        assert_same_training(ours, theirs, METRICS)

    def test_lists_of_one_with_sft(self, llama, pairs, make_trainer):
        lists = [{**row, "rejected": [row["rejected"]]} for row in pairs]
        args = {"beta": 0.3, "max_steps": 3, "loss_weights": [1.0, 0.5]}
        ours_args, theirs_args = ({**args, "loss_type": [name, "sft"]} for name in ("softmax", "sigmoid"))
        ours = make_trainer(llama(), lists, args=ours_args, ref_model=llama(seed=1))
        theirs = make_trainer(llama(), pairs, DPOTrainer, DPOConfig, theirs_args, ref_model=llama(seed=1))
        ours.train()
        theirs.train()
        assert_same_training(ours, theirs, METRICS)

    def test_evaluation_of_preference_data(self, llama, pairs, make_trainer):
        eval_dataset = Dataset.from_list(pairs[:6])
        args = {"beta": 0.3}
        ours = make_trainer(llama(), pairs, args=args, ref_model=llama(seed=1), eval_dataset=eval_dataset)
        theirs = make_trainer(
            llama(), pairs, DPOTrainer, DPOConfig, args, ref_model=llama(seed=1), eval_dataset=eval_dataset
        )
        ours, theirs = ours.evaluate(), theirs.evaluate()
        assert ours.keys() == theirs.keys()
        for name in ["eval_loss", *(f"eval_{name}" for name in METRICS[2:])]:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5), name


@pytest.fixture
def expected_losses(tokenizer, plain_log_probs):
    """Losses by numpy, from a plain forward pass for each sequence."""

    def compute(policy, reference, rows, beta):
        tokenized = [tokenize_multi_preference(row, i, tokenizer, tokenizer.eos_token) for i, row in enumerate(rows)]
        with torch.no_grad():
            scores = [
                [row.double().numpy() for row in plain_log_probs(model, tokenized)] for model in (policy, reference)
            ]
        rewards = [beta * (ours - theirs) for ours, theirs in zip(*scores, strict=True)]
        chosen_tokens = sum(len(record["chosen_ids"]) for record in tokenized)
        return {
            "softmax": np.mean([-r[0] + np.log(np.exp(r).sum()) for r in rewards]),
            "sigmoid": np.mean([np.mean(np.log1p(np.exp(r[1:] - r[0]))) for r in rewards]),
            "sft": -sum(row[0] for row in scores[0]) / chosen_tokens,
        }

    return compute


class TestAgainstArithmetic:
    @pytest.mark.parametrize(
        ("loss_type", "loss_weights"),
        [(["softmax"], None), (["sigmoid"], None), (["softmax", "sft"], [1.0, 0.1]), (["sigmoid", "softmax"], None)],
    )
    @pytest.mark.parametrize("prefix_sharing", ["true", "false"])
    def test_loss(
        self, llama, records, make_trainer, logged, expected_losses, loss_type, loss_weights, prefix_sharing
    ):
        rows = records(8, smallest=2, largest=4)
        args = {"per_device_train_batch_size": 8, "max_steps": 1, "beta": 0.05, "prefix_sharing": prefix_sharing}
        args |= {"loss_type": loss_type, "loss_weights": loss_weights}
        trainer = make_trainer(llama(), rows, args=args, ref_model=llama(seed=1))
        trainer.train()
        expected = expected_losses(llama(), llama(seed=1), rows, 0.05)
        total = sum(expected[name] * weight for name, weight in zip(loss_type, loss_weights or [1, 1], strict=False))
        assert abs(total - math.log(4)) > 0.01  # not the trivial start
        assert logged(trainer)[0] == pytest.approx(total, abs=1e-4)

    def test_sigmoid_is_dpo_over_the_pairs(self, llama, records, make_trainer, logged):
        """Three pairs for each record in one batch: DPOTrainer averages over all of them."""
        rows = records(4)
        pair_rows = to_preference_pairs(Dataset.from_list(rows))
        args = {"beta": 0.3, "max_steps": 3}
        ours = make_trainer(llama(), rows, args={**args, "loss_type": ["sigmoid"]}, ref_model=llama(seed=1))
        theirs_args = {**args, "per_device_train_batch_size": 12}
        theirs = make_trainer(llama(), pair_rows, DPOTrainer, DPOConfig, theirs_args, ref_model=llama(seed=1))
        ours.train()
        theirs.train()
        assert_same_training(ours, theirs, ["loss", "grad_norm", "rewards/chosen", "rewards/rejected"])


class TestLayouts:
    @pytest.mark.parametrize("with_lora", [False, True])
    def test_sharing_changes_nothing(self, llama, records, make_trainer, with_lora):
        trainers = []
        for prefix_sharing in ("true", "false"):
            kwargs = {"peft_config": lora_config()} if with_lora else {"ref_model": llama(seed=1)}
            args = {"max_steps": 10, "prefix_sharing": prefix_sharing, "beta": 0.3, "learning_rate": 1e-4}
            trainers.append(make_trainer(llama(), records(8, smallest=2, largest=4), args=args, **kwargs))
            trainers[-1].train()
        assert_same_training(*trainers, METRICS)

    def test_num_tokens_counts_what_is_computed(self, llama, records, make_trainer, logged, tokenizer):
        """A shared row has the prompt once, and its last token once more for each completion but the first."""
        rows = records(4)
        tokenized = [tokenize_multi_preference(row, i, tokenizer, tokenizer.eos_token) for i, row in enumerate(rows)]
        completions = [[len(ids) for ids in [row["chosen_ids"], *row["rejected_ids"]]] for row in tokenized]
        prompts = [len(row["prompt_ids"]) for row in tokenized]
        expected = {
            "true": sum(prompts) + sum(map(sum, completions)) + 3 * 4,
            "false": 4 * sum(prompts) + sum(map(sum, completions)),
        }
        for prefix_sharing, num_tokens in expected.items():
            trainer = make_trainer(llama(), rows, args={"prefix_sharing": prefix_sharing, "max_steps": 2})
            trainer.train()
            assert logged(trainer, "num_tokens") == [num_tokens, 2 * num_tokens]

    def test_model_that_ignores_the_mask(self, llama, records, make_trainer, mask_ignoring_llama, logged, caplog):
        """`auto` finds out on the first batch, says so, and trains as padded rows do; `true` refuses."""
        losses = []
        for prefix_sharing in ("false", "auto"):
            caplog.clear()
            model = mask_ignoring_llama(llama().config)
            model.load_state_dict(llama().state_dict())
            with caplog.at_level(logging.WARNING):
                trainer = make_trainer(model, records(8), args={"prefix_sharing": prefix_sharing})
                trainer.train()
            losses.append(logged(trainer))
            assert ("does not heed the mask. Falling back to padded rows" in caplog.text) == (prefix_sharing == "auto")
        assert losses[1] == pytest.approx(losses[0], abs=1e-5)
        trainer = make_trainer(model, records(8), args={"prefix_sharing": "true"})
        with pytest.raises(ValueError, match=r"does not heed the mask. Use `prefix_sharing='false'`"):
            trainer.train()

    def test_model_that_cannot_share(self, tokenizer, records, make_trainer, caplog, logged):
        def model():
            torch.manual_seed(0)
            return BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4))

        with caplog.at_level(logging.WARNING):
            trainer = make_trainer(model(), records(8))
        assert caplog.text.count("because BloomForCausalLM takes no position ids") == 1
        trainer.train()
        assert logged(trainer)[0] == pytest.approx(math.log(4), abs=1e-4)
        with pytest.raises(
            ValueError, match="`prefix_sharing='true'` is not possible here: BloomForCausalLM takes no"
        ):
            make_trainer(model(), records(8), args={"prefix_sharing": "true"})

    def test_dropout_does_not_trip_the_check(self, llama, records, make_trainer, caplog, logged):
        args = {"disable_dropout": False}
        with caplog.at_level(logging.WARNING):
            trainer = make_trainer(llama(attention_dropout=0.5), records(8), args=args)
            trainer.train()
        assert "Falling back" not in caplog.text
        assert all(math.isfinite(loss) for loss in logged(trainer))

    def test_gradient_accumulation(self, llama, records, make_trainer):
        trainers = []
        for batch_size, steps in ((8, 1), (4, 2)):
            args = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": steps, "beta": 0.3}
            rows = records(16, smallest=2, largest=4)
            trainers.append(make_trainer(llama(), rows, args=args, ref_model=llama(seed=1)))
            trainers[-1].train()
        names = ["loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen"]
        assert_same_training(*trainers, names)

    def test_metrics_of_a_last_step_with_a_remainder(self, llama, records, make_trainer):
        """Ten records in micro-batches of 4, 4 and 2 make one step: its metrics are means over all ten."""
        trainers = []
        for batch_size, steps in ((10, 1), (4, 3)):
            args = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": steps, "max_steps": 1}
            trainers.append(make_trainer(llama(), records(10, 1, 4), args=args, ref_model=llama(seed=1)))
            trainers[-1].train()
        whole, parts = (trainer.state.log_history[0] for trainer in trainers)
        for name in (*METRICS, "num_tokens"):
            if name not in ("loss", "grad_norm"):  # means over micro-batches, in TRL too
                assert parts[name] == pytest.approx(whole[name], rel=1e-5), name


class TestAccumulationExceptions:
    """Where a step of micro-batches is not one large batch, in TRL too: the loss is the mean of those of its parts."""

    @pytest.fixture
    def first_losses(self, llama, records, make_trainer):
        """Records in their order, with the loss of the first step over all of them and over micro-batches of four."""

        def losses(num, **args):
            rows = records(num, smallest=1, largest=4)
            args = {"max_steps": 1, "train_sampling_strategy": "sequential", "beta": 0.05, **args}
            values = []
            for batch_size in (num, 4):
                sizes = {
                    "per_device_train_batch_size": batch_size,
                    "gradient_accumulation_steps": -(-num // batch_size),
                }
                trainer = make_trainer(llama(), rows, args=args | sizes, ref_model=llama(seed=1))
                trainer.train()
                values.append(trainer.state.log_history[0]["loss"])
            return trainer.train_dataset.to_list(), *values

        return losses

    def test_sft_is_a_mean_over_the_tokens_of_a_micro_batch(self, llama, first_losses, plain_log_probs):
        rows, whole, parts = first_losses(8, loss_type=["sft"])
        chosen = [log_probs[0].item() for log_probs in plain_log_probs(llama(), rows)]
        tokens = [len(row["chosen_ids"]) for row in rows]
        assert whole == pytest.approx(-sum(chosen) / sum(tokens), rel=1e-5)
        means = [-sum(chosen[part]) / sum(tokens[part]) for part in (slice(0, 4), slice(4, 8))]
        assert parts == pytest.approx(sum(means) / 2, rel=1e-5)
        assert parts != pytest.approx(whole, rel=1e-4)

    def test_last_step_of_unequal_micro_batches(self, llama, first_losses, plain_log_probs):
        rows, whole, parts = first_losses(10)
        policy, reference = (plain_log_probs(llama(seed=seed), rows) for seed in (0, 1))
        rewards = [0.05 * (left - right) for left, right in zip(policy, reference, strict=True)]
        losses = [(reward.logsumexp(0) - reward[0]).item() for reward in rewards]
        assert whole == pytest.approx(sum(losses) / 10, rel=1e-5)
        means = [sum(losses[0:4]) / 4, sum(losses[4:8]) / 4, sum(losses[8:10]) / 2]
        assert parts == pytest.approx(sum(means) / 3, rel=1e-5)
        assert parts != pytest.approx(whole, rel=1e-4)


class TestPrecomputedReference:
    @pytest.mark.parametrize("num_negatives", [None, 2])
    @pytest.mark.parametrize("with_lora", [False, True])
    def test_same_training_as_on_the_fly(self, llama, records, make_trainer, num_negatives, with_lora):
        trainers = []
        for precompute in (False, True):
            kwargs = {"peft_config": lora_config()} if with_lora else {"ref_model": llama(seed=1)}
            args = {"precompute_ref_log_probs": precompute, "num_negatives": num_negatives, "beta": 0.3}
            trainers.append(make_trainer(llama(), records(8, smallest=1, largest=4), args=args, **kwargs))
            trainers[-1].train()
        assert_same_training(*trainers, METRICS)

    def test_a_model_that_ignores_the_mask_is_found_out(self, llama, mask_ignoring_llama, records, make_trainer):
        """The reference is computed before the first training batch: what it caches must come from padded rows."""
        datasets = []
        for prefix_sharing in ("auto", "false"):
            models = [mask_ignoring_llama(llama().config) for _ in range(2)]
            for model in models:
                model.load_state_dict(llama().state_dict())
            args = {"precompute_ref_log_probs": True, "prefix_sharing": prefix_sharing}
            # other data for each, since TRL caches by data and weights
            rows = [{**row, "source": prefix_sharing} for row in records(4)]
            datasets.append(make_trainer(models[0], rows, args=args, ref_model=models[1]).train_dataset)
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            assert_same_scores(datasets[0][name][:], datasets[1][name][:])

    def test_evaluation_with_a_larger_pool(self, llama, records, make_trainer):
        """The evaluation data have larger pools than the training data, or smaller ones."""
        eval_dataset = {"large": Dataset.from_list(records(5, 4, 5)), "small": Dataset.from_list(records(3, 1, 2))}
        results = []
        for precompute in (False, True):
            args = {"precompute_ref_log_probs": precompute, "beta": 0.3}
            trainer = make_trainer(
                llama(), records(8, 2, 3), args=args, ref_model=llama(seed=1), eval_dataset=eval_dataset
            )
            results.append(trainer.evaluate())
        names = [name for name in results[0] if name.startswith(("eval_large_", "eval_small_"))]
        names = [name for name in names if not name.endswith(("runtime", "per_second", "preparation_time"))]
        assert len(names) > 20
        for name in names:
            assert results[1][name] == pytest.approx(results[0][name], abs=1e-4), name

    def test_without_a_reference_model(self, llama, records, make_trainer, logged):
        """The policy itself is the reference then, before the first step."""
        trainer = make_trainer(llama(), records(8), args={"precompute_ref_log_probs": True}, ref_model=None)
        trainer.train()
        assert trainer.ref_model is None
        assert logged(trainer)[0] == pytest.approx(math.log(4), abs=1e-4)
