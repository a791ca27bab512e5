"""What commands say of errors: in the words of flags, and of a full disk what to do."""

import ast
import json
import re
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file, save_file

import trl_sdpo
from trl_sdpo import cli
from trl_sdpo._errors import in_flags, is_full_disk
from trl_sdpo.commands import evaluate, prepare, push, recommend, sft, train
from trl_sdpo.files import write_text


PACKAGE = Path(trl_sdpo.__file__).parent


@pytest.fixture(scope="module")
def flags():
    modules = {"prepare": prepare, "evaluate": evaluate, "recommend": recommend, "push": push}
    modules |= {"sft": sft, "train": train}
    return {name: module.make_parser(f"trl-sdpo {name}").flags for name, module in modules.items()}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ('Correct it, or pass unknown_titles="keep" to take it.', "Correct it, or pass --unknown_titles keep to take it."),
        ("min_history=0 is below 1.", "--min_history 0 is below 1."),
        ("Lower min_rating=4.5, min_length=3 or", "Lower --min_rating 4.5, --min_length 3 or"),
        ("ratios=(0.5, 0.2, 0.2) are not", "--ratios 0.5 0.2 0.2 are not"),
        ("holds a data set. Pass overwrite=True (--overwrite), or", "holds a data set. Pass --overwrite, or"),
        ("max_length=9 needs one. Pass processing_class.", "--max_length 9 needs one. Pass --tokenizer."),
        ("time_unit='h' is not one of s", "--loader_options time_unit='h' is not one of s"),
        ("Raise `max_length`.", "Raise --max_length."),
        ("negatives='hrad': none", "--negatives hrad: none"),
        # what comes from the data is quoted, and stays
        ("row 3: 'seed=3' is no title, nor is 'a `seed` b'.", "row 3: 'seed=3' is no title, nor is 'a `seed` b'."),
        ("a user's seed=3", "a user's --seed 3"),
    ],
)  # fmt: skip
def test_options_are_named_as_flags(flags, message, said):
    known = {*flags["prepare"], *flags["recommend"]}
    assert in_flags(message, known, loader=True) == said


# What no command passes on, since only programs call these functions; and `max_{split}_records`, which is put together
ONLY_PYTHON = {
    "recsys/records": {"max_VALUE_records"},
    "recsys/negatives": {"num_negatives"},
    "evaluation": {"metric_for_best_model"},
    # `train` loads an adapter on its base itself
    "trainer": {"is_trainable", "ref_model", "init_lora_weights", "model"},
}


def messages(folder):
    """The texts of the errors that the modules of a folder raise, with values as `{...}`."""
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                for argument in node.exc.args:
                    if isinstance(argument, ast.JoinedStr):
                        parts = [p.value if isinstance(p, ast.Constant) else "VALUE" for p in argument.values]
                        yield path, "".join(parts)
                    elif isinstance(argument, ast.Constant):
                        yield path, str(argument.value)


@pytest.mark.parametrize(
    ("folder", "commands"),
    [
        ("recsys/records", ["prepare"]),
        ("recsys/interactions", ["prepare"]),
        ("recsys/negatives", ["prepare"]),
        ("recommender", ["recommend"]),
        ("evaluation", ["evaluate"]),
        ("hub", ["push"]),
        ("trainer", ["train"]),
    ],
)
def test_errors_of_the_package_name_no_python_to_who_runs_a_command(flags, folder, commands):
    """Of every error in the rooms behind a command: an option that is passed in Python is a flag there."""
    left, known = [], {name for command in commands for name in flags[command]}
    for path, message in messages(folder):
        said = in_flags(message, known, loader="prepare" in commands)
        named = re.sub(r"--loader_options \w+=", "", said)
        for name in re.findall(r"(?<![\w.'-])([a-z]\w*)=(?=\w|['\"(])", named):
            if name not in ONLY_PYTHON.get(folder, ()):
                left.append(f"{path.name}: {name}= in {said!r}")
    assert not left, "\n".join(left)


@contextmanager
def file_size_limit(size):
    """What a full disk does to who writes: files grow to so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save({"x": torch.zeros(100_000)}, path),
        lambda path: save_file({"x": torch.zeros(100_000)}, path),
        lambda path: write_text(path, "x" * 100_000),
    ],
    ids=["torch", "safetensors", "text"],
)
def test_a_full_disk_is_known_whoever_writes(tmp_path, write):
    with pytest.raises(Exception) as error, file_size_limit(50_000):  # noqa: PT011 - each library has its own
        write(tmp_path / "file")
    assert is_full_disk(error.value)
    assert not is_full_disk(RuntimeError("CUDA out of memory"))
    assert not is_full_disk(FileNotFoundError(2, "no such file"))


@pytest.mark.parametrize("short", ["weights", "optimizer"])
def test_a_disk_that_fills_up_while_training(tmp_path, monkeypatch, llama, tokenizer, records, capsys, short):
    """One sentence, and the same command goes on from the last whole checkpoint to what an unbroken run comes to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    llama().save_pretrained("model")
    tokenizer.save_pretrained("model")
    DatasetDict({"train": Dataset.from_list(records(12, 2, 4))}).save_to_disk("data")
    words = ["train", "--dataset_name", "data", "--model_name_or_path", "model", "--dataset_test_split", "none"]
    words += ["--per_device_train_batch_size", "4", "--lr_scheduler_type", "constant", "--save_steps", "1"]
    assert cli.main([*words, "--max_steps", "2", "--output_dir", "whole"]) == 0
    assert cli.main([*words, "--max_steps", "1", "--output_dir", "out"]) == 0
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    again = [*words, "--max_steps", "2", "--output_dir", "out", "--resume_from_checkpoint", "True"]
    capsys.readouterr()
    with file_size_limit(int(size * (0.9 if short == "weights" else 1.5))):
        assert cli.main(again) == 1
    error = capsys.readouterr().err
    assert "trl-sdpo train: error: the disk is full, or a quota or a limit on the size of files is reached (" in error
    assert "Make room; the same command goes on. A checkpoint that was half written is recognised" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "checkpoint-2" / "trainer_state.json").exists()
    assert cli.main(again) == 0
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 2
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
