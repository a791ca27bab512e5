"""Records that are longer than a row: several rows, the prompt repeated, and the same results."""

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.utils import add_fused_lm_head

import trl_sdpo.scoring.log_probs as log_probs
from helpers.closeness import assert_same_scores
from trl_sdpo import DataCollatorForMultiPreference
from trl_sdpo.data_utils import tokenize_multi_preference
from trl_sdpo.prefix_sharing.rows import (
    expand_shared_rows,
    first_records,
    head_excess,
    score_completions,
    sharing_excess,
    split_completions,
)


@given(
    prompt=st.integers(0, 12), lengths=st.lists(st.integers(1, 8), min_size=1, max_size=12), limit=st.integers(1, 40)
)
def test_split(prompt, lengths, limit):
    """In order, nothing left out, nothing longer than the bound but a single completion, and no row could take more."""
    spans = split_completions(prompt, lengths, limit)
    assert [number for start, stop in spans for number in range(start, stop)] == list(range(len(lengths)))

    def width(start, stop):
        return max(prompt - 1, 0) + sum(lengths[start:stop]) + (stop - start) * bool(prompt)

    assert all(width(*span) <= limit or span[1] - span[0] == 1 for span in spans)
    assert all(width(start, stop + 1) > limit for start, stop in spans[:-1])
    assert split_completions(prompt, lengths, None) == [(0, len(lengths))]


@pytest.mark.parametrize("limit", [1, 20, 24, 33])
def test_scores(llama, token_records, limit):
    model = llama().eval()
    add_fused_lm_head(model)
    records = token_records(num=4, pools=(7, 2, 11, 1))
    with torch.no_grad():
        whole_batch = DataCollatorForMultiPreference(0)(records)
        whole = score_completions(model, whole_batch)
        batch = DataCollatorForMultiPreference(0, max_row_length=limit, pad_to_multiple_of=1)(records)
        assert batch["input_ids"].size(0) > len(records)
        assert batch["input_ids"].size(1) <= max(limit, max(len(r["prompt_ids"]) for r in records) + 5)
        split = score_completions(model, batch)
        assert split.log_probs == pytest.approx(whole.log_probs, abs=1e-4)
        assert torch.equal(split.num_tokens, whole.num_tokens)
        ours, theirs = split.padded_token_log_probs(), whole.padded_token_log_probs()
        assert ours == pytest.approx(theirs, abs=1e-4)
        padded = score_completions(model, expand_shared_rows(batch, 0))
        assert padded.log_probs == pytest.approx(whole.log_probs, abs=1e-4)
        for name in ("input_ids", "segment_ids", "completion_mask"):
            assert torch.equal(expand_shared_rows(batch, 0)[name], expand_shared_rows(whole_batch, 0)[name])
        few = first_records(batch, 2)
        assert score_completions(model, few).log_probs == pytest.approx(whole.log_probs[:2, :8], abs=1e-4)
    assert sharing_excess(lambda b: score_completions(model, b), batch, 0, torch.float32) <= 0
    assert head_excess(model, batch, 0, torch.float32) <= 0


@pytest.mark.parametrize("precompute", [False, True])
@pytest.mark.parametrize("num_negatives", [None, 3])
def test_training_and_evaluation(llama, records, make_trainer, logged, tokenizer, precompute, num_negatives):
    data = Dataset.from_list(records(8, 3, 7))
    tokens = [tokenize_multi_preference(row, 0, tokenizer, tokenizer.eos_token) for row in data]
    longest = max(len(row["prompt_ids"]) + max(map(len, [row["chosen_ids"], *row["rejected_ids"]])) for row in tokens)
    results, widths = [], []
    for limit in (10_000, None):
        args = {"precompute_ref_log_probs": precompute, "num_negatives": num_negatives, "max_row_length": limit}
        args |= {"max_length": longest, "pad_to_multiple_of": 1}
        trainer = make_trainer(llama(), data, ref_model=llama(seed=1), args=args, eval_dataset=data)
        seen = []
        embedding = trainer.model.get_input_embeddings()
        embedding.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(inputs[0].size(1)))
        trainer.train()
        metrics = trainer.evaluate()
        timings = ("runtime", "per_second", "time", "num_tokens", "epoch")
        metrics = {name: value for name, value in metrics.items() if not name.endswith(timings)}
        results.append([logged(trainer), metrics])
        widths.append(max(seen))
    assert widths[1] <= longest < widths[0]
    assert results[1][0] == pytest.approx(results[0][0], abs=1e-4)
    assert results[1][1] == pytest.approx(results[0][1], abs=1e-4)


@pytest.mark.parametrize("prefix_sharing", [True, False])
@pytest.mark.parametrize("per_token", [False, True])
def test_ranking(llama, records, tokenizer, monkeypatch, prefix_sharing, per_token):
    data, model = Dataset.from_list(records(6, 1, 7)), llama()
    options = {"prefix_sharing": prefix_sharing, "per_token": per_token}
    expected = log_probs.completion_log_probs(model, data, tokenizer, **options)
    sizes = []
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: sizes.append(inputs[0].shape))
    for row_tokens, pass_tokens in ((100, 300), (1, 1), (120, 1_000)):
        sizes.clear()
        monkeypatch.setattr(log_probs, "ROW_TOKENS", row_tokens)
        monkeypatch.setattr(log_probs, "PASS_TOKENS", pass_tokens)
        found = log_probs.completion_log_probs(model, data, tokenizer, **options)
        for ours, theirs in zip(found, expected, strict=True):
            assert_same_scores(ours, theirs)
        assert len(sizes) > 8
