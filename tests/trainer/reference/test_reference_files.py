"""Log-probabilities computed ahead of training are found again if, and only if, nothing that they depend on has changed."""

import logging

import pytest
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from helpers.closeness import assert_same_scores
from trl_sdpo import SoftmaxDPOConfig, SoftmaxDPOTrainer
from trl_sdpo.trainer.reference_files import cache_key


def policy(llama, alpha=8, seed=0, **config):
    lora = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=2, lora_alpha=alpha, init_lora_weights=False
    )
    torch.manual_seed(seed)
    return get_peft_model(llama(**config), lora)


def rope(theta):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def scaled(model):
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.scaling["default"] = 0.5


CHANGES = {
    "nothing": {},
    "rope": {"model": rope(50.0)},
    "alpha": {"model": {"alpha": 32}},
    "attention": {"model": {"attn_implementation": "eager"}},
    "norm": {"model": {"rms_norm_eps": 1e-2}},
    "scaling": {"change": scaled},
    "switched off": {"change": lambda model: model.base_model.disable_adapter_layers()},
    "merged": {"change": lambda model: model.merge_adapter()},
    "precision": {"args": {"bf16": True}},
    "max_length": {"args": {"max_length": 100}},
    "ld_alpha": {"args": {"ld_alpha": 0.5}},
    "layout": {"args": {"prefix_sharing": "false"}},
    "tokens": {"token": 5},
    "weights": {"weights": "other"},
    "pool": {"pool": 7},
}


def key(llama, tmp_path, model=None, change=lambda model: None, args=None, token=4, weights="some", pool=3):
    made = policy(llama, **(model or {}))
    change(made)
    config = SoftmaxDPOConfig(
        **{"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "max_length": 99, **(args or {})}
    )
    rows = [{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [[token], [5, 6]], "record_id": 0}] * 3
    return cache_key(made, weights, config, Dataset.from_list(rows), pool)


@pytest.mark.parametrize("change", CHANGES)
def test_key(llama, tmp_path, change):
    same = key(llama, tmp_path) == key(llama, tmp_path, **CHANGES[change])
    assert same == (change == "nothing")


def test_key_sees_new_versions(llama, tmp_path, monkeypatch):
    before = key(llama, tmp_path)
    monkeypatch.setattr("trl_sdpo.trainer.reference_files.version", lambda name: "99.0")
    assert key(llama, tmp_path) != before


def test_cache_of_the_run_before(llama, records, make_trainer, tmp_path, monkeypatch):
    """From a dataset with a cache on disk, as users have them: computed once, and again for another reference."""
    Dataset.from_list(records(8, 2, 4)).to_parquet(tmp_path / "train.parquet")
    passes = []

    def reference_of(model, ahead):
        data = load_dataset(
            "parquet", data_files=str(tmp_path / "train.parquet"), split="train", cache_dir=str(tmp_path / "cache")
        )
        trainer = make_trainer(model, data, args={"precompute_ref_log_probs": ahead, "max_steps": 1}, ref_model=None)
        if ahead:
            trainer.train()  # which compares policy and reference
            return torch.tensor(trainer.train_dataset["ref_chosen_logps"])
        batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset.select(range(4)))))
        return trainer.compute_ref_log_probs(trainer.ref_model, dict(batch))[0]

    original = SoftmaxDPOTrainer.compute_ref_log_probs
    monkeypatch.setattr(
        SoftmaxDPOTrainer, "compute_ref_log_probs", lambda *args: (passes.append(1), original(*args))[1]
    )
    for change in ({}, {}, {"alpha": 32}, rope(50.0), {}):
        passes.clear()
        found = reference_of(policy(llama, **change), ahead=True)
        computed = len(passes)
        expected = reference_of(policy(llama, **change), ahead=False)
        assert_same_scores(found[:4], expected, times=10)
        passes.append(computed)
    assert computed == 0


def test_half_precision_is_said(llama, records, make_trainer, caplog):
    args = {"precompute_ref_log_probs": True, "bf16": True, "max_steps": 1}
    with caplog.at_level(logging.WARNING, "trl_sdpo.trainer"):
        make_trainer(llama(), records(8, 2, 4), args=args, ref_model=None).train()
    assert "in the half precision of training" in caplog.text
