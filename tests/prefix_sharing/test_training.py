"""Training on shared-prefix rows against training on padded rows, and what a step sees of the pools, end to end."""

import logging
import math

import pytest
import torch
from peft import LoraConfig
from transformers import MixtralConfig, MixtralForCausalLM, set_seed


def lora_config(**more):
    return LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, init_lora_weights=False, **more)


def losses_and_weights(trainer):
    losses = [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
    return losses, {
        name: param.detach().clone() for name, param in trainer.model.named_parameters() if param.requires_grad
    }


BASE = {"max_steps": 50, "learning_rate": 1e-4, "beta": 0.3}


@pytest.mark.parametrize(
    ("args", "with_lora", "conversational"),
    [
        ({}, True, False),
        ({}, False, False),
        ({"gradient_checkpointing": True}, True, False),
        ({"num_negatives": 2}, True, False),
        ({"per_device_train_batch_size": 1}, True, False),
        ({}, True, True),
    ],
    ids=["lora", "full", "checkpointing", "drawn", "batch-of-1", "conversational"],
)
def test_fifty_steps(llama, records, make_trainer, to_conversational, args, with_lora, conversational):
    """The same losses, step by step, and the same weights in the end: all of the base case but what is named."""
    rows = records(8, smallest=2, largest=5)
    rows = to_conversational(rows) if conversational else rows
    results = []
    for prefix_sharing in ("true", "false"):
        kwargs = {"peft_config": lora_config()} if with_lora else {"ref_model": llama(seed=1)}
        trainer = make_trainer(llama(), rows, args={**BASE, **args, "prefix_sharing": prefix_sharing}, **kwargs)
        trainer.train()
        results.append(losses_and_weights(trainer))
    (losses, weights), (expected_losses, expected_weights) = results
    assert len(losses) == 50
    assert losses[-1] < 0.9 * losses[0]
    assert losses == pytest.approx(expected_losses, rel=1e-3, abs=1e-4)
    for name, weight in weights.items():
        # Adam makes steps of the size of the learning rate of gradients that are rounding alone
        assert (weight - expected_weights[name]).norm() <= 2e-3 * expected_weights[name].norm().clamp(min=1e-2), name


def test_mixture_of_experts(tokenizer, records, make_trainer):
    """With its load-balancing loss, a mean over tokens: those of padded rows."""

    def mixtral():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = MixtralConfig(vocab_size=len(tokenizer), num_key_value_heads=2, num_local_experts=4, **sizes)
        return MixtralForCausalLM(config)

    results = []
    for prefix_sharing in ("true", "false"):
        args = {"router_aux_loss_coef": 0.1, "max_steps": 5, "prefix_sharing": prefix_sharing}
        trainer = make_trainer(mixtral(), records(8, smallest=1, largest=4), args=args)
        trainer.train()
        results.append([(logs["loss"], logs["aux_loss"]) for logs in trainer.state.log_history if "loss" in logs])
    for shared, padded in zip(*results, strict=True):
        assert shared == pytest.approx(padded, rel=1e-4)
        assert padded[1] > 1  # experts that share the tokens evenly have a loss of num_experts_per_tok, here 2


def test_model_that_raises_on_shared_rows(llama, records, make_trainer, caplog, logged):
    model = llama()

    def refuse(module, args, kwargs):
        if kwargs["position_ids"].diff(dim=-1).min() < 0:
            raise TypeError("positions that go back")

    model.model.layers[0].register_forward_pre_hook(refuse, with_kwargs=True)
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(model, records(8))
        trainer.train()
    assert "The model raises TypeError on shared-prefix rows: positions that go back" in caplog.text
    assert "Falling back to padded rows" in caplog.text
    assert logged(trainer)[0] == pytest.approx(math.log(4), abs=1e-4)


class TestGroupedByLength:
    @pytest.fixture
    def rows(self, records):
        """Records of different lengths."""
        return [{**row, "prompt": row["prompt"] * (1 + i % 4)} for i, row in enumerate(records(24, 5, 5))]

    def test_another_order_each_epoch_and_the_same_on_resume(self, llama, rows, make_trainer, record_steps):
        args = {"train_sampling_strategy": "group_by_length", "num_negatives": 2, "save_strategy": "steps"}
        args |= {"save_steps": 1, "max_steps": 18}
        whole = make_trainer(llama(), rows, record_steps, args=args, ref_model=llama(seed=1))
        whole.train()
        epochs = [[record for step in whole.steps[i : i + 6] for record in step] for i in (0, 6, 12)]
        assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]
        for step in whole.steps:
            assert len({record % 4 for record in step}) <= 2  # of like length
        resumed = make_trainer(llama(), rows, record_steps, args=args, ref_model=llama(seed=1))
        set_seed(123)  # nothing depends on the global generators
        resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-8")
        assert resumed.steps == whole.steps[8:]

    def test_preference_data_of_trl_follow_the_parent(self, llama, rows, make_trainer):
        pairs = [{**row, "rejected": row["rejected"][0]} for row in rows]
        trainer = make_trainer(llama(), pairs, args={"train_sampling_strategy": "group_by_length"})
        with pytest.raises(ValueError, match="Can only automatically infer lengths"):
            trainer.train()
