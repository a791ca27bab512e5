"""
A training step asks the device for as little as can be: whatever reads a value on the host waits for all that the device
has to do. On a CPU nothing waits, but the operations that would are the same, and are counted here.
"""

from collections import Counter

import pytest
import torch

from helpers.synchronisations import waiting
from trl_sdpo import SoftmaxDPOTrainer


class Counting(SoftmaxDPOTrainer):
    """Counts the waiting of all steps but the first, which checks what is checked once."""

    def training_step(self, *args, **kwargs):
        if self.state.global_step == 0:
            return super().training_step(*args, **kwargs)
        self.found = getattr(self, "found", Counter())
        with waiting(self.found):
            return super().training_step(*args, **kwargs)


CASES = {
    "softmax": {},
    "drawn negatives": {"num_negatives": 2},
    "padded rows": {"prefix_sharing": "false"},
    "precomputed reference": {"precompute_ref_log_probs": True},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "pairs": {"loss_type": ["sigmoid", "sft"]},
    "several rows": {"max_row_length": 40, "max_length": 40},
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_waits_once(llama, records, make_trainer, name):
    """For `check_finite`, which has to know before the backward pass, behind which DeepSpeed takes the step."""
    trainer = make_trainer(llama(), records(8, 2, 4), trainer_cls=Counting, args={"max_steps": 3, **CASES[name]})
    trainer.train()
    if name == "padded rows":  # transformers asks of a mask of two dimensions whether it masks anything
        assert trainer.found.pop("_local_scalar_dense in forward") <= 2 * 2 * 2
    assert trainer.found == {"_local_scalar_dense in check_finite": 2}


def test_what_waits_is_seen():
    values = torch.arange(4.0)
    with waiting() as found:
        values.sum().item()
        values[values > 1]
        values.tolist()
        values.nonzero()
    assert sum(found.values()) == 4
