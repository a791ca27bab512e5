"""A run in one process, interrupted, taken up, and begun with other settings; real trainers on a few thousand weights."""

import json
import os

import numpy as np
import polars as pl
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl import SFTConfig

from trl_sdpo import SoftmaxDPOConfig
from trl_sdpo.pipeline import Run, machine_defaults, make_small_llama, non_overlapping_windows
from trl_sdpo.pipeline.digests import (
    digest,
    digest_of_interactions,
    digest_of_model,
    digest_of_records,
    state_of_files,
)
from trl_sdpo.recsys import Interactions, load_table


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def interactions(users=60, volumes=9, series=4) -> Interactions:
    """Users who come one after the other, each through one series in its order."""
    rows = [
        {
            "user": user,
            "item": f"Series {user % series}, {(user // series + step) % volumes}",
            "time": 100 * user + step,
        }
        for user in range(users)
        for step in range(6)
    ]
    return load_table(pl.DataFrame(rows), user="user", item="item", title="item", timestamp="time", name="volumes")


RECORDS = {"num_candidates": 6, "max_test_records": 12}


def small_run(directory, **options):
    run = Run(directory, **options)
    dataset = run.prepare(interactions(), **RECORDS)
    base = make_small_llama(run.data, run.directory / "base", vocab_size=300, hidden_size=64, num_layers=1)
    return run, dataset, base


def sft_config(**changes):
    defaults = {"learning_rate": 1e-2, "max_steps": 6, "save_steps": 2, "per_device_train_batch_size": 4, "seed": 0}
    return SFTConfig(**{**defaults, "report_to": "none", **machine_defaults(), **changes})


def weights(directory):
    return load_file(directory / "model.safetensors")


class InterruptedByTestError(Exception):
    pass


class InterruptAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise InterruptedByTestError


def interrupting(monkeypatch, step):
    """The trainers of the next stage stop at a step."""
    from trl_sdpo.pipeline import trainers

    def make(*args, **kwargs):
        trainer = trainers.make_sft_trainer(*args, **kwargs)
        trainer.add_callback(InterruptAt(step))
        return trainer

    monkeypatch.setattr("trl_sdpo.pipeline.run.make_sft_trainer", make)


class TestStages:
    def test_interrupted_training_ends_in_the_same_weights(self, tmp_path, monkeypatch):
        run, dataset, base = small_run(tmp_path / "whole")
        whole = run.sft(base, sft_config(), dataset["train"])
        run, dataset, base = small_run(tmp_path / "broken")
        with monkeypatch.context() as patch:
            interrupting(patch, step=5)
            with pytest.raises(InterruptedByTestError):
                run.sft(base, sft_config(), dataset["train"])
        assert json.loads((run.directory / "sft" / "_run.json").read_text())["done"] is False
        taken_up = small_run(tmp_path / "broken")[0].sft(base, sft_config(), dataset["train"])
        assert taken_up.steps == whole.steps == 6
        for name, weight in weights(whole.directory).items():
            torch.testing.assert_close(weights(taken_up.directory)[name], weight)
        # the seconds before the interruption count
        elapsed = json.loads((run.directory / "sft" / "checkpoint-4" / "elapsed.json").read_text())["seconds"]
        assert taken_up.seconds >= elapsed > 0

    def test_a_finished_stage_is_taken_as_it_is(self, tmp_path, monkeypatch):
        run, dataset, base = small_run(tmp_path / "run")
        first = run.sft(base, sft_config(), dataset["train"])
        monkeypatch.setattr("trl_sdpo.pipeline.run.make_sft_trainer", None)
        run, dataset, base = small_run(tmp_path / "run")
        assert run.sft(base, sft_config(), dataset["train"]) == first

    @pytest.mark.parametrize(
        ("changes", "names"),
        [({"learning_rate": 2e-2}, "learning_rate"), ({"seed": 1}, "seed"), ({"max_steps": 3}, "max_steps")],
    )
    def test_other_settings_are_refused_by_name(self, tmp_path, changes, names):
        run, dataset, base = small_run(tmp_path / "run")
        run.sft(base, sft_config(max_steps=1), dataset["train"])
        with pytest.raises(FileExistsError, match=rf"made with other settings \({names}\)"):
            run.sft(base, sft_config(**{"max_steps": 1, **changes}), dataset["train"])
        with pytest.raises(FileExistsError, match=r"made with other settings \(records\)"):
            run.sft(base, sft_config(max_steps=1), dataset["train"].select(range(8)))
        with pytest.raises(FileExistsError, match=r"made with other settings \(num_candidates\)"):
            run.prepare(interactions(), **{**RECORDS, "num_candidates": 5})
        anew = Run(run.directory, resume=False).sft(base, sft_config(**{"max_steps": 1, **changes}), dataset["train"])
        assert anew.steps == {"max_steps": 1, **changes}["max_steps"]

    @pytest.mark.parametrize("resume", [True, False])
    def test_files_of_something_else_are_left_alone(self, tmp_path, resume):
        run, dataset, base = small_run(tmp_path / "run", resume=resume)
        for stage in ("sft", "data"):
            (run.directory / stage).mkdir(exist_ok=True)
        (run.directory / "sft" / "thesis.tex").write_text("mine")
        with pytest.raises(FileExistsError, match="holds what no run left"):
            run.sft(base, sft_config(), dataset["train"])
        assert (run.directory / "sft" / "thesis.tex").read_text() == "mine"

    def test_a_new_model_below_makes_a_stage_other(self, tmp_path):
        run, dataset, base = small_run(tmp_path / "run")
        sft = run.sft(base, sft_config(max_steps=1), dataset["train"])
        args = {"num_negatives": 2, "max_steps": 1, "per_device_train_batch_size": 2, **machine_defaults()}
        lora = LoraConfig(r=2, target_modules="all-linear")
        run.align(sft, SoftmaxDPOConfig(**args), dataset["train"], peft_config=lora)
        sft = Run(run.directory, resume=False).sft(base, sft_config(max_steps=1, seed=5), dataset["train"])
        with pytest.raises(FileExistsError, match=r"made with other settings \(model\)"):
            run.align(sft, SoftmaxDPOConfig(**args), dataset["train"], peft_config=lora)


def test_evaluation_ranks_with_the_tokens_of_training(tmp_path):
    """Some epochs of a series in its order: fine-tuning finds what comes next, the model of random weights does not."""
    run, dataset, base = small_run(tmp_path / "run")
    sft = run.sft(
        base,
        sft_config(
            max_steps=-1, num_train_epochs=8, learning_rate=3e-3, completion_only_loss=False, save_strategy="no"
        ),
        dataset["train"],
    )
    results = run.evaluate({"base": base, "sft": sft}, reference="base")
    systems = results["sections"][0]["systems"]
    assert list(systems) == ["chance", "popularity", "base", "sft", "sft (implicit reward)"]
    assert systems["sft"]["hr@1"] > 0.5 > systems["base"]["hr@1"]
    assert results["facts"]["sft"]["steps"] == sft.steps
    # what the records tell is there as it is in `trl-sdpo evaluate`, learned from the training records
    rules = {one["name"]: one for one in results["leak_probes"]}
    assert "never a training negative" in rules
    assert rules["list lookup"]["popularity"] == systems["popularity"]["hr@1"]
    assert results["record_facts"]["targets"] == systems["sft"]["n"]
    assert "user" in {one["name"] for one in results["sections"][0]["breakdowns"]}
    with pytest.raises(ValueError, match="reference='other' is none of the models"):
        run.evaluate({"base": base}, reference="other")


class TestDigests:
    def test_each_value_and_order_counts(self):
        assert digest({"a": 1, "b": {"x", "y"}}) == digest({"b": {"y", "x"}, "a": 1})
        records = Dataset.from_list([{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}])
        assert digest_of_records(records, ["prompt"]) == digest_of_records(
            records.remove_columns("n"), ["prompt", "n"]
        )
        assert digest_of_records(records, ["prompt"]) != digest_of_records(records.select([1, 0]), ["prompt"])
        once, less = interactions(), interactions(users=59)
        assert digest_of_interactions(once) == digest_of_interactions(interactions()) != digest_of_interactions(less)

    def test_of_a_large_file_the_end_counts(self, tmp_path):
        def write(end):
            (tmp_path / "model.safetensors").write_bytes(bytes(3_000_000) + end)
            return digest_of_model(tmp_path)

        assert write(b"1") == write(b"1") != write(b"2")
        assert digest_of_model(tmp_path / "not-here") == digest(str(tmp_path / "not-here"))


def test_windows_do_not_overlap_and_are_cut_anew():
    records = Dataset.from_dict({"user_id": [1] * 30 + [2] * 30, "position": list(range(3, 33)) * 2})
    found = non_overlapping_windows(records, window=11, epochs=6, seed=0)
    users, positions = np.array(found["user_id"]), np.array(found["position"])
    # 30 positions have two or three of every residue, for each of two users
    assert 4 * 6 <= len(found) <= 6 * 6
    for user in (1, 2):
        assert len(set(positions[users == user] % 11)) > 1
    again = non_overlapping_windows(records, window=11, epochs=6, seed=0)
    assert again["position"][:] == found["position"][:]
    assert non_overlapping_windows(records, window=11, epochs=6, seed=1)["position"][:] != found["position"][:]
    one = non_overlapping_windows(records, window=11, epochs=1, seed=0)
    for user in (1, 2):
        cut = np.sort(np.array(one["position"])[np.array(one["user_id"]) == user])
        assert set(np.diff(cut)) == {11}


def test_a_file_that_was_edited_to_the_same_size_is_another(tmp_path):
    file = tmp_path / "ratings.csv"
    file.write_text("1,2,3\n")
    before, time = state_of_files(tmp_path), file.stat().st_mtime_ns
    assert state_of_files(tmp_path) == before
    file.write_text("1,2,4\n")
    os.utime(file, ns=(time + 1_000, time + 1_000))
    assert state_of_files(tmp_path) != before
    assert state_of_files(file) == state_of_files(tmp_path)
