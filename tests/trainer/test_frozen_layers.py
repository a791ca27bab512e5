"""Layers that policy and reference have in common: which they are, and that running them once changes nothing."""

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model

from trl_sdpo.trainer.frozen_layers import FrozenTrunk, frozen_layers


NUM_LAYERS = 4


def lora_config(layers=(2, 3), **more):
    config = {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4, "init_lora_weights": False, **more}
    return LoraConfig(task_type="CAUSAL_LM", layers_to_transform=None if layers is None else list(layers), **config)


@pytest.fixture
def model(llama):
    return llama(num_hidden_layers=NUM_LAYERS)


def numbers(model, layers):
    stack = list(model.get_base_model().model.layers)
    return [stack.index(layer) for layer in layers]


class TestFrozenLayers:
    @pytest.mark.parametrize(
        ("adapted", "expected"), [((2, 3), [0, 1]), ((3,), [0, 1, 2]), ((1,), [0]), ((0, 3), []), (None, [])]
    )
    def test_below_the_lowest_adapter(self, model, adapted, expected):
        peft_model = get_peft_model(model, lora_config(adapted))
        assert numbers(peft_model, frozen_layers(peft_model)) == expected

    def test_none_without_adapters(self, model):
        assert frozen_layers(model) == []
        assert frozen_layers(model.requires_grad_(False)) == []

    def test_none_with_trained_embeddings(self, model):
        assert frozen_layers(get_peft_model(model, lora_config(modules_to_save=["embed_tokens"]))) == []

    def test_none_with_a_trained_norm(self, model):
        peft_model = get_peft_model(model, lora_config())
        peft_model.get_base_model().model.norm.weight.requires_grad_(True)
        assert frozen_layers(peft_model) == []

    def test_a_layer_that_is_trained_itself(self, model):
        peft_model = get_peft_model(model, lora_config())
        peft_model.get_base_model().model.layers[1].input_layernorm.weight.requires_grad_(True)
        assert numbers(peft_model, frozen_layers(peft_model)) == [0]

    def test_none_with_dropout(self, llama):
        peft_model = get_peft_model(llama(num_hidden_layers=NUM_LAYERS, attention_dropout=0.1), lora_config())
        assert frozen_layers(peft_model) == []


def count_passes(trainer):
    """Counts how often each decoder layer computes."""
    passes = [0] * NUM_LAYERS

    def counting(number):
        def count(module, args):
            passes[number] += 1

        return count

    for number, layer in enumerate(trainer.model.get_base_model().model.layers):
        layer.mlp.register_forward_pre_hook(counting(number))
    return passes


def separately(trainer):
    trainer._trunk = FrozenTrunk([])
    return trainer


def trained(trainer):
    trainer.train()
    losses = [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
    return losses, [param.detach() for param in trainer.model.parameters() if param.requires_grad]


class TestTraining:
    @pytest.mark.parametrize(
        "args",
        [{}, {"gradient_checkpointing": True}, {"prefix_sharing": "false"}],
        ids=["shared", "checkpointing", "padded"],
    )
    @pytest.mark.parametrize("continued", [False, True], ids=["new-adapter", "ref-adapter"])
    def test_same_as_separately(self, llama, records, make_trainer, args, continued):
        results = []
        for change in (separately, lambda trainer: trainer):
            model = llama(num_hidden_layers=NUM_LAYERS)
            if continued:
                torch.manual_seed(1)
                trainer = make_trainer(
                    get_peft_model(model, lora_config()), records(8, 2, 4), args={**args, "beta": 0.3}
                )
            else:
                trainer = make_trainer(model, records(8, 2, 4), args={**args, "beta": 0.3}, peft_config=lora_config())
            results.append(trained(change(trainer)))
        assert trainer._trunk.layers
        (expected_losses, expected_weights), (losses, weights) = results
        assert len(losses) == 4
        assert losses == pytest.approx(expected_losses, abs=1e-6)
        for weight, expected in zip(weights, expected_weights, strict=True):
            torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)

    def test_frozen_layers_run_once(self, model, records, make_trainer):
        trainer = make_trainer(model, records(8), args={"prefix_sharing": "true"}, peft_config=lora_config())
        trainer.train()
        forward = [layer.__dict__.get("forward") for layer in model.model.layers]
        assert forward == [None] * NUM_LAYERS
        passes = count_passes(trainer)
        trainer.evaluate(trainer.train_dataset)
        assert passes == [2, 2, 4, 4]  # two batches, policy and reference

    def test_layers_with_another_way_to_each_other(self, llama, records, make_trainer, caplog):
        """The lowest layer hands something to the highest, past the hidden states."""
        results = []
        for change in (separately, lambda trainer: trainer):
            model = llama(num_hidden_layers=NUM_LAYERS)
            parcel = []

            class Sender(type(model.model.layers[0])):
                def forward(self, hidden_states, **kwargs):
                    parcel.append(hidden_states)  # noqa: B023
                    return super().forward(hidden_states, **kwargs)

            class Receiver(type(model.model.layers[0])):
                def forward(self, hidden_states, **kwargs):
                    hidden_states = hidden_states + (parcel.pop() if parcel else 0)  # noqa: B023
                    return super().forward(hidden_states, **kwargs)

            model.model.layers[0].__class__, model.model.layers[3].__class__ = Sender, Receiver
            with caplog.at_level(logging.WARNING):
                trainer = change(make_trainer(model, records(8), peft_config=lora_config()))
                results.append(trained(trainer))
        assert caplog.text.count("sharing them changes the reference") == 1
        assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)

    @pytest.mark.parametrize("args", [{"disable_dropout": False}, {"precompute_ref_log_probs": True}])
    def test_not_where_it_would_not_be_exact_or_of_use(self, model, records, make_trainer, args):
        trainer = make_trainer(model, records(8), args=args, peft_config=lora_config())
        trainer.train()
        assert trainer._trunk.layers == []
