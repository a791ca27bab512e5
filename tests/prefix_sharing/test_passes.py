"""Padded rows in several forward passes: the results, and the gradients, of one."""

import itertools

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.utils import add_fused_lm_head

from helpers.closeness import assert_same_scores
from trl_sdpo import DataCollatorForMultiPreference
from trl_sdpo.prefix_sharing.passes import num_passes, score_in_passes
from trl_sdpo.prefix_sharing.rows import score_completions


@given(rows=st.integers(1, 200), width=st.integers(1, 50), budget=st.integers(1, 500))
def test_number_of_passes(rows, width, budget):
    """As few as hold the tokens, and none of more than the budget but for a single row."""
    passes = num_passes({"input_ids": torch.zeros(rows, width)}, budget)
    bounds = [rows * number // passes for number in range(passes + 1)]
    sizes = [stop - start for start, stop in itertools.pairwise(bounds)]
    assert sum(sizes) == rows
    assert all(0 < size * width <= budget or size == 1 for size in sizes)
    assert passes == 1 or -(-rows // (passes - 1)) * width > budget


@pytest.mark.parametrize("prompts", [(9, 15), (0, 1)])
def test_scores_and_gradients(llama, token_records, prompts):
    model = llama().eval()
    add_fused_lm_head(model)
    # behind an empty prompt nothing predicts a completion of one token
    records = token_records(num=4, pools=(7, 2, 11, 1), prompt_length=prompts)
    batch = DataCollatorForMultiPreference(0, prefix_sharing=False)(records)
    rows = batch["input_ids"].size(0)

    def gradients(scores):
        model.zero_grad()
        scores.log_probs.sin().sum().backward()
        return torch.cat([param.grad.flatten() for param in model.parameters()])

    whole = score_completions(model, batch)
    expected = gradients(whole)
    for passes in (1, 2, 5, rows, rows + 3):
        parts = score_in_passes(lambda part: score_completions(model, part), batch, passes)
        assert_same_scores(parts.log_probs, whole.log_probs, times=10)
        assert_same_scores(parts.token_log_probs, whole.token_log_probs, times=10)
        assert torch.equal(parts.num_tokens, whole.num_tokens)
        assert parts.token_sums.keys() == whole.token_sums.keys()
        for name, values in whole.token_sums.items():
            assert_same_scores(parts.token_sums[name], values, times=10)
        assert_same_scores(gradients(parts), expected, times=10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precompute_ref_log_probs": True},
        {"num_negatives": 3, "gradient_checkpointing": True},
        {"loss_type": "sigmoid", "ld_alpha": 0.5},
    ],
    ids=str,
)
def test_training_and_evaluation(llama, records, make_trainer, logged, options):
    data, results, largest = Dataset.from_list(records(8, 3, 7)), [], []
    for budget in (65_536, 100):
        args = {**options, "prefix_sharing": "false", "max_tokens_per_pass": budget}
        trainer = make_trainer(llama(), data, ref_model=llama(seed=1), args=args, eval_dataset=data)
        sizes = []
        for model in (trainer.model, trainer.ref_model):
            model.get_input_embeddings().register_forward_hook(
                lambda module, inputs, output, sizes=sizes: sizes.append(inputs[0].numel())
            )
        trainer.train()
        metrics = trainer.evaluate()
        timings = ("runtime", "per_second", "time")
        results.append([logged(trainer), [v for name, v in metrics.items() if not name.endswith(timings)]])
        largest.append(max(sizes))
    assert largest[1] <= 100 < largest[0]
    assert results[1][0] == pytest.approx(results[0][0], abs=1e-4)
    assert results[1][1] == pytest.approx(results[0][1], abs=1e-4)


def test_budget_of_nothing(make_trainer, llama, records):
    with pytest.raises(ValueError, match="`max_tokens_per_pass` must be at least 1, got 0"):
        make_trainer(llama(), records(4), args={"max_tokens_per_pass": 0})
