"""A checkpoint without its reference adapter, as the Hub has it, resumes against the reference that it began with."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.tiny_models import build_llama
from trl_sdpo.hub import trainer_pushes as trainer_hub
from trl_sdpo.trainer.reference_files import REFERENCE_FILE, WEIGHTS_FILE


@pytest.fixture
def policy(tokenizer):
    """Makes a model with a trained adapter, of which one value can be moved."""

    def make(moved=0.0):
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2, init_lora_weights=False)
        model = get_peft_model(build_llama(len(tokenizer)), lora)
        name = next(name for name, param in model.named_parameters() if param.requires_grad)
        model.get_parameter(name).data[0, 0] += moved
        return model

    return make


@pytest.fixture
def run(policy, records, make_trainer, tmp_path):
    """Trains from `checkpoint`, or makes two of them, and returns the trainer."""

    def train(checkpoint=None, moved=0.0, **args):
        args = {"save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path / "run"), **args}
        trainer = make_trainer(policy(moved), records(8), args=args)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    return train


@pytest.fixture
def from_hub(run, tmp_path):
    """The checkpoint after step 2 as a push leaves it, and the weights that the run came to."""
    trainer = run()
    folder = tmp_path / "from_hub"
    shutil.copytree(tmp_path / "run" / "checkpoint-2", folder)
    (folder / WEIGHTS_FILE).unlink()
    return folder, weights(trainer)


def weights(trainer):
    return {name: param.detach().clone() for name, param in trainer.model.named_parameters() if param.requires_grad}


def test_same_reference(run, from_hub, tmp_path):
    folder, expected = from_hub
    found = weights(run(str(folder), output_dir=str(tmp_path / "other")))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_other_reference(run, from_hub):
    folder, _ = from_hub
    with pytest.raises(
        ValueError, match=r"goes without the reference adapter, .* is not the one that the run began with"
    ):
        run(str(folder), moved=1e-6)


def test_checkpoint_with_its_reference(run, from_hub, tmp_path):
    """The folder of the run itself holds what it needs, whatever the script begins with."""
    _, expected = from_hub
    found = weights(run(str(tmp_path / "run" / "checkpoint-2"), moved=1e-6))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_without_a_hash(run, from_hub, caplog):
    folder, _ = from_hub
    (folder / REFERENCE_FILE).unlink()
    with caplog.at_level(logging.WARNING, "trl_sdpo.trainer.reference_files"):
        run(str(folder))
    assert "holds neither the reference adapter nor its hash" in caplog.text


@pytest.mark.parametrize("content", ["", "{}", "[]", json.dumps({"sha256": "0" * 64})])
def test_damaged_hash(run, from_hub, content):
    folder, _ = from_hub
    (folder / REFERENCE_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"is damaged|is not the one that the run began with"):
        run(str(folder))


def test_saved_model_has_none(run, tmp_path):
    run().save_model(str(tmp_path / "saved"))
    assert not list(Path(tmp_path / "saved").rglob("ref*"))


@pytest.mark.parametrize(
    ("strategy", "pushes"), [("end", 0), ("every_save", 1), ("checkpoint", 2), ("all_checkpoints", 2)]
)
def test_what_each_strategy_pushes(policy, records, make_trainer, monkeypatch, tmp_path, strategy, pushes):
    """Of one save; the files of both pushes, and that the views of the folder are gone."""
    folders, seen = [], []

    class Hub:
        def create_repo(self, repo_id, **kwargs):
            return type("RepoUrl", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path, path_in_repo=None, **kwargs):
            folders.append(path_in_repo)
            seen.extend(path.relative_to(folder_path).parts for path in Path(folder_path).rglob("*"))
            done = trainer_hub.Future()
            done.set_result(None)
            return done

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    monkeypatch.setattr(trainer_hub, "hf_api", Hub)
    args = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "push_to_hub": True, "hub_strategy": strategy}
    trainer = make_trainer(policy(), records(4), args={**args, "save_total_limit": 1, "hub_token": "hf_made_up"})
    trainer.train()
    assert folders == [None, {"checkpoint": "last-checkpoint"}.get(strategy, "checkpoint-1")][:pushes]
    assert not any("ref" in part for parts in seen for part in parts if part != REFERENCE_FILE)
    assert not list(Path(trainer.args.output_dir).glob("_push-*"))
