"""What a step keeps of its masks, and that they are made once."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from trl_sdpo import DataCollatorForMultiPreference
from trl_sdpo.prefix_sharing.masks import BatchMasks, shared_prefix_mask
from trl_sdpo.prefix_sharing.rows import score_completions


def model_of(num_hidden_layers):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    add_fused_lm_head(model)
    return model


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("num_layers", [1, 4])
def test_one_mask_is_kept_for_the_backward_pass(token_records, num_layers, autocast):
    """Whatever the number of layers: a boolean mask would be converted, and kept, by each."""
    batch = DataCollatorForMultiPreference(pad_token_id=0)(
        token_records(2, (7,), prompt_length=(200, 210), completion_length=(3, 5))
    )
    size, kept = batch["input_ids"].size(0) * batch["input_ids"].size(1) ** 2, {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() / tensor.element_size()
        return tensor

    model = model_of(num_layers)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        loss = score_completions(model, batch).log_probs.sum()
    assert sum(elements >= size for elements in kept.values()) == 1
    loss.backward()


class LargestInteger(TorchDispatchMode):
    """Notes the most elements of an integer tensor that an operation makes."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output.dtype == torch.long:
            self.most = max(self.most, output.numel())
        return output


@pytest.mark.parametrize("window", [None, 5])
def test_no_square_of_integers(token_records, window):
    """Of 8 bytes an entry, beside a mask of 1, 2 or 4."""
    batch = DataCollatorForMultiPreference(pad_token_id=0)(token_records())
    with LargestInteger() as seen:
        shared_prefix_mask(batch["segment_ids"], batch["position_ids"], "sdpa", torch.float32, window)
    assert seen.most <= batch["input_ids"].numel()


class TestBatchMasks:
    @pytest.fixture
    def batch(self, token_records):
        return DataCollatorForMultiPreference(pad_token_id=0)(token_records())

    def test_made_once_for_models_that_take_the_same(self, batch):
        masks = BatchMasks(batch)
        assert masks.of(model_of(1)) is masks.of(model_of(2))
        assert masks.of(model_of(1)).dtype == torch.float32
        assert masks.of(model_of(1).to(torch.bfloat16)).dtype == torch.bfloat16

    def test_of_the_type_of_autocast(self, batch):
        with torch.autocast("cpu", torch.bfloat16):
            masks = BatchMasks(batch)
        assert masks.of(model_of(1)).dtype == torch.bfloat16

    def test_quantised_models_take_what_fits_any_type(self, batch):
        model = model_of(1)
        model.hf_quantizer = BitsAndBytesConfig(load_in_4bit=True)
        assert BatchMasks(batch).of(model).dtype == torch.bool

    def test_a_step_makes_one(self, llama, records, make_trainer, monkeypatch):
        made = []

        def counted(*args):
            made[-1] += 1
            return shared_prefix_mask(*args)

        monkeypatch.setattr("trl_sdpo.prefix_sharing.masks.shared_prefix_mask", counted)
        for max_steps in (2, 5):
            made.append(0)
            make_trainer(llama(), records(8), ref_model=llama(), args={"max_steps": max_steps}).train()
        assert made[1] - made[0] == 3
