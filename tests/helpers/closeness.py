"""How near two results must be, on any processor. The tolerances of all tests of numbers stand here."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch


# Of the way that a weight may have gone: the rounding of another order of sums moves weights whose gradient is nearly 0 by
# some hundredths of a step under Adam, and a wrong gradient by a whole one
SHARE_OF_THE_WAY = 0.05
# With the kernels of another processor a single weight of thousands goes further, for the same reason; never by a whole step
STRAYS, SHARE_OF_STRAYS = 1 / 500, 0.5
# What one formula gives of the same numbers, by the type that it is computed in: relative, and of numbers near 0
FORMULA = {np.float64: (1e-10, 1e-12), np.float32: (1e-5, 1e-6)}
# What layers of a model in float32 give, and sums of it: another order of sums, of rows and of batches changes some 1e-6
# of each token. A wrong mask, position or token shows in tenths.
RELATIVE, NATS = 1e-5, 1e-4


def assert_same_numbers(ours, theirs):
    """What a formula gives, computed in two ways, as the type of the first allows."""
    ours, theirs = np.asarray(_plain(ours)), np.asarray(_plain(theirs))
    relative, absolute = FORMULA[np.float64 if ours.dtype == theirs.dtype == np.float64 else np.float32]
    np.testing.assert_allclose(ours, theirs, rtol=relative, atol=absolute)


def assert_same_scores(ours, theirs, times=1):
    """
    What a model gives (log-probabilities, logits), computed in two ways: arrays or tensors, or lists of them for records
    with different numbers of candidates. `times` is for weights that were themselves computed anew: merged, quantised.
    """
    if isinstance(ours, list | tuple) and len(ours) and np.ndim(_plain(ours[0])):
        assert len(ours) == len(theirs)
        for left, right in zip(ours, theirs, strict=True):
            assert_same_scores(left, right, times)
        return
    ours, theirs = np.asarray(_plain(ours)), np.asarray(_plain(theirs))
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=times * RELATIVE, atol=times * NATS)


def _plain(values):
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def assert_same_training(ours, theirs, names=("loss", "grad_norm"), share=SHARE_OF_THE_WAY):
    """Step by step the same logged values, and in the end the same weights, up to a share of what the steps moved."""
    logs = [[entry for entry in trainer.state.log_history if "loss" in entry] for trainer in (ours, theirs)]
    assert len(logs[0]) == len(logs[1]) > 1
    for left, right in zip(*logs, strict=True):
        for name in names:
            assert left[name] == pytest.approx(right[name], rel=2e-4, abs=2e-4), name
    way = theirs.args.learning_rate * theirs.state.global_step
    assert_same_weights(*(dict(trainer.model.named_parameters()) for trainer in (ours, theirs)), way, share)


def assert_same_weights(ours: Mapping, theirs: Mapping, way, share=SHARE_OF_THE_WAY):
    """
    The same weights after two trainings, up to a share of the way that each may have gone: the sum of its learning rates.
    Where that is 0 nothing was trained, and they are equal.
    """
    for name, param in ours.items():
        if not way:
            assert torch.equal(param, theirs[name]), name
            continue
        apart = (param - theirs[name]).detach().abs() / way
        strays = int((apart > share).sum())
        assert strays <= max(1, STRAYS * apart.numel()), f"{name}: {strays} of {apart.numel()} weights differ"
        assert apart.max() <= SHARE_OF_STRAYS, f"{name}: a weight is {apart.max():.2f} of the way off"
