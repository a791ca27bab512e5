"""How near two trainings must be, on any processor."""

import pytest


# Of the way that a weight may have gone: the rounding of another order of sums moves weights whose gradient is nearly 0 by
# some hundredths of a step under Adam, and a wrong gradient by a whole one
SHARE_OF_THE_WAY = 0.05
# With the kernels of another processor a single weight of thousands goes further, for the same reason; never by a whole step
STRAYS, SHARE_OF_STRAYS = 1 / 500, 0.5


def assert_same_training(ours, theirs, names=("loss", "grad_norm"), share=SHARE_OF_THE_WAY):
    """Step by step the same logged values, and in the end the same weights, up to a share of what the steps moved."""
    logs = [[entry for entry in trainer.state.log_history if "loss" in entry] for trainer in (ours, theirs)]
    assert len(logs[0]) == len(logs[1]) > 1
    for left, right in zip(*logs, strict=True):
        for name in names:
            assert left[name] == pytest.approx(right[name], rel=2e-4, abs=2e-4), name
    way = theirs.args.learning_rate * theirs.state.global_step
    weights = dict(theirs.model.named_parameters())
    for name, param in ours.model.named_parameters():
        apart = (param - weights[name]).detach().abs() / way
        strays = int((apart > share).sum())
        assert strays <= max(1, STRAYS * apart.numel()), f"{name}: {strays} of {apart.numel()} weights differ"
        assert apart.max() <= SHARE_OF_STRAYS, f"{name}: a weight is {apart.max():.2f} of the way off"
