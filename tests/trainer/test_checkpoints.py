"""Which checkpoints are whole, what a killed run resumes from, and what is saved of a model with two adapters."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from helpers import killed_run
from trl_sdpo import SoftmaxDPOTrainer
from trl_sdpo.trainer.checkpoints import find_last_checkpoint, why_checkpoint_is_not_whole


def make_checkpoint(folder):
    """The files of a checkpoint of a small model in two shards."""
    folder.mkdir(parents=True)
    tensors = {"weight": torch.zeros(100)}
    for number in (1, 2):
        save_file(tensors, folder / f"model-0000{number}-of-00002.safetensors")
    index = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save(tensors, folder / name)
    (folder / "trainer_state.json").write_text('{"global_step": 2}')
    return folder


def cut(path, share=0.7):
    with open(path, "rb+") as file:
        file.truncate(int(share * path.stat().st_size))


class TestWhole:
    def test_whole(self, tmp_path):
        assert why_checkpoint_is_not_whole(make_checkpoint(tmp_path / "checkpoint-2")) is None

    @pytest.mark.parametrize(
        "name",
        [
            *("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"),
            *("model-00002-of-00002.safetensors", "model.safetensors.index.json"),
        ],
    )
    @pytest.mark.parametrize("share", [0, 0.3, 0.99])
    def test_file_that_is_cut_short(self, tmp_path, name, share):
        checkpoint = make_checkpoint(tmp_path / "checkpoint-2")
        cut(checkpoint / name, share)
        assert why_checkpoint_is_not_whole(checkpoint) == f"{name} is cut short"

    def test_missing_files(self, tmp_path):
        checkpoint = make_checkpoint(tmp_path / "checkpoint-2")
        (checkpoint / "model-00001-of-00002.safetensors").unlink()
        assert why_checkpoint_is_not_whole(checkpoint) == "model-00001-of-00002.safetensors is missing"
        (checkpoint / "optimizer.pt").unlink()
        assert why_checkpoint_is_not_whole(checkpoint) == "it has no state of the optimizer"
        for path in checkpoint.glob("model*"):
            path.unlink()
        assert why_checkpoint_is_not_whole(checkpoint) == "it has no weights"
        (checkpoint / "trainer_state.json").unlink()
        assert why_checkpoint_is_not_whole(checkpoint) == "it has no trainer_state.json, which is written last"
        assert why_checkpoint_is_not_whole(tmp_path / "checkpoint-3") == "it is not a folder"

    def test_saved_without_an_optimizer(self, tmp_path):
        checkpoint = make_checkpoint(tmp_path / "checkpoint-2")
        (checkpoint / "optimizer.pt").unlink()
        assert why_checkpoint_is_not_whole(checkpoint, with_optimizer=False) is None

    def test_last_one_is_by_number(self, tmp_path):
        for step in (2, 9, 10):
            make_checkpoint(tmp_path / f"checkpoint-{step}")
        (tmp_path / "checkpoint-best").mkdir()
        (tmp_path / "checkpoint-12").write_text("a file")
        assert find_last_checkpoint(tmp_path) == (str(tmp_path / "checkpoint-10"), {})
        cut(tmp_path / "checkpoint-10" / "optimizer.pt")
        skipped = {str(tmp_path / "checkpoint-10"): "optimizer.pt is cut short"}
        assert find_last_checkpoint(tmp_path) == (str(tmp_path / "checkpoint-9"), skipped)
        assert find_last_checkpoint(tmp_path / "nowhere") == (None, {})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same run that nobody kills."""
    trainer = killed_run.make_trainer(tmp_path_factory.mktemp("undisturbed"))
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Output folders of runs that were killed, by the point at which they were."""
    folders = {point: tmp_path_factory.mktemp(point) for point in ("step", "weights", "optimizer", "state")}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    runs = {
        point: subprocess.Popen([sys.executable, killed_run.__file__, folder, point], env=environment)
        for point, folder in folders.items()
    }
    for point, run in runs.items():
        expected = signal.SIGKILL if point in ("step", "state") else signal.SIGXFSZ
        assert run.wait(timeout=300) == -expected, point
    return folders


def assert_same_run(resumed, whole):
    losses = [[logs["loss"] for logs in run.state.log_history if "loss" in logs] for run in (resumed, whole)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
    for (name, left), right in zip(resumed.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(left, right), name
    states = [run.optimizer.state_dict()["state"] for run in (resumed, whole)]
    assert states[0].keys() == states[1].keys()
    assert states[0]
    for left, right in zip(states[0].values(), states[1].values(), strict=True):
        assert all(torch.equal(left[name], right[name]) for name in right)
    assert resumed.lr_scheduler.state_dict() == whole.lr_scheduler.state_dict()


class TestKilledRun:
    @pytest.mark.parametrize(
        ("point", "reason"),
        [
            ("step", None),
            ("weights", "it has no trainer_state.json"),
            ("optimizer", "it has no trainer_state.json"),
            ("state", "it has no trainer_state.json"),
        ],
    )
    def test_resumes_from_the_last_whole_checkpoint(self, killed, undisturbed, tmp_path, caplog, point, reason):
        """Weights, optimizer, learning rate, losses and dropout go on as if nothing had happened."""
        shutil.copytree(killed[point], tmp_path / "output")
        assert (tmp_path / "output" / "checkpoint-4").exists() == (point != "step")
        resumed = killed_run.make_trainer(tmp_path / "output")
        with caplog.at_level(logging.INFO):
            resumed.train(resume_from_checkpoint=True)
        assert f"Resuming from {tmp_path / 'output' / 'checkpoint-2'}" in caplog.text
        assert caplog.text.count("which is not whole") == (reason is not None)
        if reason is not None:
            assert f"{tmp_path / 'output' / 'checkpoint-4'}, which is not whole: {reason}" in caplog.text
        assert_same_run(resumed, undisturbed)
        # what was half-written is written anew
        assert why_checkpoint_is_not_whole(tmp_path / "output" / "checkpoint-4") is None

    @pytest.mark.parametrize("name", ["optimizer.pt", "adapter_model.safetensors", "reference.safetensors"])
    def test_file_that_is_cut_short(self, undisturbed, tmp_path, caplog, name):
        """As by a full disk, or a copy that was interrupted: the last file is there and another is not whole."""
        shutil.copytree(undisturbed.args.output_dir, tmp_path / "output")
        shutil.rmtree(tmp_path / "output" / "checkpoint-6")
        cut(tmp_path / "output" / "checkpoint-4" / name)
        resumed = killed_run.make_trainer(tmp_path / "output")
        resumed.train(resume_from_checkpoint=True)
        assert f"checkpoint-4, which is not whole: {Path(name).name} is cut short" in caplog.text
        assert_same_run(resumed, undisturbed)

    def test_asked_for_as_text(self, killed, tmp_path, caplog):
        """As `--resume_from_checkpoint True` on a command line."""
        shutil.copytree(killed["state"], tmp_path / "output")
        with caplog.at_level(logging.INFO):
            killed_run.make_trainer(tmp_path / "output").train(resume_from_checkpoint="True")
        assert f"Resuming from {tmp_path / 'output' / 'checkpoint-2'}" in caplog.text

    def test_half_written_one_that_is_asked_for(self, killed, tmp_path):
        trainer = killed_run.make_trainer(tmp_path / "output")
        checkpoint = killed["optimizer"] / "checkpoint-4"
        with pytest.raises(
            ValueError, match=r"resume from .*checkpoint-4: it has no trainer_state.json.*`resume_from"
        ):
            trainer.train(resume_from_checkpoint=str(checkpoint))

    def test_nothing_to_resume_from(self, tmp_path):
        trainer = killed_run.make_trainer(tmp_path / "output")
        with pytest.raises(ValueError, match="No valid checkpoint found in output directory"):
            trainer.train(resume_from_checkpoint=True)

    def test_a_checkpoint_that_is_written_over_is_not_whole(self, undisturbed, tmp_path):
        """Another run into the same folder dies within checkpoint-2: its files are of two runs then."""
        shutil.copytree(undisturbed.args.output_dir, tmp_path / "output")

        class FullDisk(SoftmaxDPOTrainer):
            def _save_rng_state(self, output_dir):
                raise OSError("No space left on device")

        trainer = killed_run.make_trainer(tmp_path / "output", FullDisk)
        with pytest.raises(OSError, match="No space left"):
            trainer.train()
        assert "trainer_state.json" in why_checkpoint_is_not_whole(tmp_path / "output" / "checkpoint-2")

    def test_checkpoints_without_an_optimizer(self, llama, records, make_trainer):
        """A run with `save_only_model` may resume as far as that goes; another run does not take them for whole."""
        args = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True}
        make_trainer(llama(), records(8), args=args).train()
        resumed = make_trainer(llama(), records(8), args=args | {"max_steps": 5})
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == 5
        other = make_trainer(llama(), records(8), args={"max_steps": 5})
        with pytest.raises(ValueError, match="No valid checkpoint"):
            other.train(resume_from_checkpoint=True)


def lora_config():
    return LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, init_lora_weights=False)


class TestAdapters:
    def test_checkpoints_keep_the_reference(self, llama, records, make_trainer):
        model = get_peft_model(llama(), lora_config())
        start = {name: param.detach().clone() for name, param in model.named_parameters() if param.requires_grad}
        trainer = make_trainer(model, records(8), args={"save_strategy": "steps", "save_steps": 4})
        trainer.train()
        saved = load_file(Path(trainer.args.output_dir) / "checkpoint-4" / "reference.safetensors")
        assert saved.keys() == start.keys()
        assert all(torch.equal(saved[name], start[name]) for name in start)

    def test_saved_model_is_the_policy_alone(self, llama, records, make_trainer, tmp_path, tokenizer):
        model = get_peft_model(llama(), lora_config())
        trainer = make_trainer(model, records(8))
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
        assert [path.name for path in (tmp_path / "saved").rglob("adapter_model*")] == ["adapter_model.safetensors"]
        assert not list((tmp_path / "saved").glob("ref*"))
        saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
        assert saved.keys() == {
            name.replace(".default", "") for name in dict(model.named_parameters()) if ".default" in name
        }
        # the trainer itself goes on with both
        trainer.evaluate(trainer.train_dataset)
        loaded = PeftModel.from_pretrained(llama(), tmp_path / "saved").eval()
        inputs = tokenizer("Watched: Red River (1948)", return_tensors="pt").input_ids
        with torch.no_grad():
            torch.testing.assert_close(loaded(inputs).logits, model.eval()(inputs).logits)

    def test_pushed_model_is_the_policy_alone(self, llama, records, make_trainer, monkeypatch):
        """`push_to_hub` saves on its way, through a path of its own."""
        pushed = {}

        class Hub:
            def create_repo(self, repo_id, **kwargs):
                return type("RepoUrl", (), {"repo_id": repo_id})

            def upload_folder(self, folder_path, **kwargs):
                pushed[kwargs["repo_id"]] = {
                    str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*")
                }

        monkeypatch.setattr("transformers.trainer.hf_api", Hub)
        monkeypatch.setattr("trl_sdpo.hub.trainer_pushes.hf_api", Hub)
        trainer = make_trainer(get_peft_model(llama(), lora_config()), records(8), args={"max_steps": 1})
        trainer.train()
        trainer.push_to_hub(token="hf_made_up")
        (files,) = pushed.values()
        assert "adapter_model.safetensors" in files
        assert not any(file.startswith("ref") for file in files)
