"""Which rejected completions are at the boundary, against a search of all clusters, and what that does to a step."""

import itertools
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_sdpo.data_utils import tokenize_multi_preference
from trl_sdpo.losses.multi_negative import boundary_negatives


VALUES = st.lists(st.integers(-40, 0).map(lambda number: number / 2), min_size=1, max_size=6)


def by_search(chosen, rejected):
    """Who is likelier than the chosen one, or else the likeliest cluster of the best of all splits in three."""
    if any(value >= chosen for value in rejected):
        return [value >= chosen for value in rejected]
    ordered = sorted(rejected, reverse=True)
    count = min(3, len(ordered))
    best = None
    for cuts in itertools.combinations(range(1, len(ordered)), count - 1):
        parts = np.split(np.array(ordered), cuts)
        cost = sum(((part - part.mean()) ** 2).sum() for part in parts)
        # of equal ones the first, as the fewest are at the boundary
        if best is None or cost < best[0] - 1e-9:
            best = cost, parts[0].min()
    return [value >= best[1] for value in rejected]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(-40, 0).map(lambda number: number / 2), VALUES), min_size=1, max_size=3))
def test_against_a_search(rows):
    width = max(len(rejected) for _, rejected in rows)
    rejected = torch.tensor([[*row, *[math.nan] * (width - len(row))] for _, row in rows])
    exists = ~rejected.isnan()
    found = boundary_negatives(torch.tensor([chosen for chosen, _ in rows]), rejected, exists)
    assert not (found & ~exists).any()
    for (chosen, row), flags in zip(rows, found.tolist(), strict=True):
        assert flags[: len(row)] == by_search(chosen, row)


def test_by_hand():
    chosen, rejected = torch.tensor([-2.0, -2.0]), torch.tensor([[-1.0, -2.0, -9.0], [-4.0, -4.5, -9.0]])
    assert boundary_negatives(chosen, rejected).tolist() == [[True, True, False], [True, False, False]]
    # four: two near each other at the top
    rejected = torch.tensor([[-3.1, -3.0, -8.0, -20.0]])
    assert boundary_negatives(torch.tensor([-1.0]), rejected).tolist() == [[True, True, False, False]]


def test_of_equal_clusters_the_smallest():
    """Where splits have one sum of squares, rounding must not choose."""
    rejected = torch.tensor([[-11.5, -10.0, -19.5, -7.5, -5.0, -3.5]])
    assert boundary_negatives(torch.tensor([0.0]), rejected)[0].tolist() == by_search(0.0, rejected[0].tolist())


def test_training_is_by_those_at_the_boundary(llama, records, make_trainer, logged, tokenizer, plain_log_probs):
    rows = records(8, smallest=2, largest=5)
    model, reference = llama(), llama(seed=1)
    tokens = [tokenize_multi_preference(row, i, tokenizer, tokenizer.eos_token) for i, row in enumerate(rows)]
    with torch.no_grad():
        policy, ref = ([row.double().numpy() for row in plain_log_probs(one, tokens)] for one in (model, reference))
    args = {"beta": 0.5, "max_steps": 1, "per_device_train_batch_size": 8, "boundary_negatives": True}
    trainer = make_trainer(model, rows, ref_model=reference, args=args)
    trainer.train()
    expected, left = [], 0
    for ours, theirs in zip(policy, ref, strict=True):
        kept = by_search(ours[0], ours[1:].tolist())
        left += len(kept) - sum(kept)
        rewards = 0.5 * (ours - theirs)
        others = rewards[1:][np.array(kept)]
        expected.append(np.log(1 + np.exp(others - rewards[0]).sum()))
    assert left > 0
    assert logged(trainer)[0] == pytest.approx(np.mean(expected), rel=1e-4)
    assert trainer.evaluate(Dataset.from_list(rows))["eval_loss"] > 0


def test_nothing_to_select_from_is_refused(llama, records, make_trainer):
    with pytest.raises(ValueError, match="`boundary_negatives=True` changes nothing in"):
        make_trainer(llama(), records(4), args={"loss_type": ["sft"], "boundary_negatives": True})
