"""Metrics by hand."""

import math

import pytest
import torch

from trl_sdpo.trainer.metrics import negative_weights


class TestNegativeWeights:
    def test_by_hand(self):
        """
        Rewards ln 2, 0 and 0: weights 1/2, 1/4 and 1/4, whose entropy is 1/2 ln 2 + 2/4 ln 4 = 1.5 ln 2, and its
        exponential 2 sqrt(2). One of two: 1. The chosen completion does not count.
        """
        rewards = torch.tensor([[7.0, math.log(2), 0.0, 0.0], [-3.0, 1.0, 99.0, 99.0]])
        exists = torch.tensor([[True] * 4, [True, True, False, False]])
        found = negative_weights(rewards, exists)
        assert found["negatives/effective_number"].tolist() == pytest.approx([2 * math.sqrt(2), 1.0])
        assert found["negatives/hardest_weight"].tolist() == pytest.approx([0.5, 1.0])

    def test_extremes(self):
        found = negative_weights(torch.tensor([[0.0, 1e4, -1e4], [0.0, 5.0, 5.0]]), torch.ones(2, 3, dtype=torch.bool))
        assert found["negatives/effective_number"].tolist() == pytest.approx([1.0, 2.0])
        assert found["negatives/hardest_weight"].tolist() == pytest.approx([1.0, 0.5])

    def test_logged_from_k_on(self, llama, records, make_trainer, logged):
        """At the start, policy and reference agree, and all K have the same weight."""
        trainer = make_trainer(llama(), records(8, 4, 4), args={"max_steps": 2})
        trainer.train()
        assert logged(trainer, "negatives/effective_number")[0] == pytest.approx(4, abs=1e-3)
        assert logged(trainer, "negatives/hardest_weight")[0] == pytest.approx(0.25, abs=1e-3)
        assert 1 <= trainer.evaluate(trainer.train_dataset)["eval_negatives/effective_number"] <= 4
