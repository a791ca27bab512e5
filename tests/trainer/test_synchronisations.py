"""
A training step asks the device for as little as can be: whatever reads a value on the host waits for all that the device
has to do. On a CPU nothing waits, but the operations that would are the same, and are counted here.
"""

import traceback
from collections import Counter

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from trl_sdpo import SoftmaxDPOTrainer


# Their output's size, or their result, is known on the device alone
WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# These read the memory of a CPU without an operation of their own
READING = {"tolist", "numpy", "cpu", "__array__"}


class Dispatched(TorchDispatchMode):
    """Counts operations that wait, in the forward and in the backward pass."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        by_mask = name in INDEXING and any(one is not None and one.dtype == torch.bool for one in args[1])
        repeats = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in WAITING or by_mask or repeats:
            self.found[f"{name} in {caller()}"] += 1
        return func(*args, **kwargs)


class Read(TorchFunctionMode):
    """Counts tensors that become values of Python."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in READING:
            self.found[f"{func.__name__} in {caller()}"] += 1
        return func(*args, **(kwargs or {}))


def caller():
    """The innermost function of the package, or of what it stands on."""
    frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
    return next((frame.name for frame in reversed(frames) if "trl_sdpo" in frame.filename), frames[-1].name)


class Counting(SoftmaxDPOTrainer):
    """Counts the waiting of all steps but the first, which checks what is checked once."""

    def training_step(self, *args, **kwargs):
        if self.state.global_step == 0:
            return super().training_step(*args, **kwargs)
        self.found = getattr(self, "found", Counter())
        with Dispatched(self.found), Read(self.found):
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
    found, values = Counter(), torch.arange(4.0)
    with Dispatched(found), Read(found):
        values.sum().item()
        values[values > 1]
        values.tolist()
        values.nonzero()
    assert sum(found.values()) == 4
