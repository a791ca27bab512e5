"""What makes the host wait for a device, counted on a CPU, where the operations are the same."""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


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


@contextmanager
def waiting(found: Counter | None = None) -> Iterator[Counter]:
    """Count all that waits: for each operation and the function of the package that calls it, how often."""
    found = Counter() if found is None else found
    with Dispatched(found), Read(found):
        yield found
