"""What stands in a file when a command's output goes to one: sentences and tables, and no bars."""

import os
import re
import subprocess
import sys
import warnings

import pytest
import yaml
from transformers import TrainingArguments

from trl_sdpo import SoftmaxDPOConfig, _progress
from trl_sdpo.commands import sft, train
from trl_sdpo.pipeline import machine_defaults


# One process, which imports once
CODE = """
import sys
from trl_sdpo import cli
for words in (["prepare"], ["sft"], ["train"], ["evaluate"]):
    assert cli.main([*words, "--config", "mine.yaml"]) == 0, words
"""
FILE = {
    "common": {"dataset_name": "data", "max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1},
    "prepare": {
        "source": "table",
        "path": "log.csv",
        "loader_options": ["user=user", "item=item", "timestamp=time", "title=title"],
        "output_dir": "data",
        "num_candidates": 4,
    },
    "sft": {"model_name_or_path": "model", "output_dir": "sft"},
    "train": {"model_name_or_path": "sft", "output_dir": "s-dpo", "num_negatives": 3, "use_peft": True},
    "evaluate": {
        "model_name_or_path": ["sft=sft", "s-dpo=s-dpo"],
        "baseline": "item-knn",
        "protocol": ["ranking", "generation"],
        "output_dir": "report",
    },
}
NOISE = {
    "a bar": r"\r|\d+%\||it/s|\x1b",
    "a dict or a list of Python": r"[{\[]'\w+'|\{\}|\[\d{5,}",
    "seconds since 1970": r"(?<![\d.])1[67]\d{8}(?!\d)",
    "a rank": r"\[RANK",
    "a warning of a library": r"\w+Warning|deprecated|kernels|Failed to|Loading weights|Writing model|HTTP Request",
    "a logger's form": r"\b(?:INFO|WARNING):",
}


def test_a_log_holds_sentences(tmp_path, llama, tokenizer):
    llama().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [
        f'{user},{item},{1_700_000_000 + 50_000 * step + user},"Film {item % 18} ({1980 + item % 18})"'
        for user in range(12)
        for step in range(8)
        for item in [(5 * user + 7 * step) % 20]  # two items share their title with another
    ]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time,title", *rows]) + "\n")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(FILE, sort_keys=False))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TQDM", "HF_"))}
    with open(tmp_path / "log.txt", "wb") as log:
        status = subprocess.run(
            [sys.executable, "-c", CODE],
            cwd=tmp_path,
            env=environment | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        ).returncode
    text = (tmp_path / "log.txt").read_bytes().decode()
    assert status == 0, text
    for what, pattern in NOISE.items():
        assert not re.search(pattern, text), f"{what}: {re.search(pattern, text)}\n{text}"
    assert re.search(r"Equal titles: 0 items are told apart by their years, 2 are one with another", text)
    assert re.search(r"^log: 96 events of 12 users with 18 items stay of 96 events\.$", text, re.MULTILINE)
    assert re.search(r"Split by time: .* validation from 2023-11-\d\d \d\d:\d\d:\d\d, test from 2023-11", text)
    assert re.search(r"^step 1 of 2, ", text, re.MULTILINE)
    assert re.search(r"^chance +0\.250", text, re.MULTILINE)


class TestLines:
    """Where there is no terminal, a bar is a line of the log after ten seconds, each minute, and at the end."""

    @pytest.fixture
    def clock(self, monkeypatch):
        class Clock:
            now = 1000.0

        monkeypatch.setattr(_progress._Lines, "_time", lambda self: Clock.now, raising=False)
        monkeypatch.setattr(_progress.time, "monotonic", lambda: Clock.now)
        return Clock

    @pytest.mark.parametrize("way", ["update", "iterate"])
    def test_a_line_a_minute(self, clock, monkeypatch, caplog, capfd, way):
        monkeypatch.setattr("tqdm.std.time", lambda: clock.now)
        caplog.set_level("INFO")
        options = {"desc": "Ranking, sft", "unit": "records"}
        if way == "update":
            with _progress.progress(total=1200, **options) as bar:
                for _ in range(200):
                    clock.now += 1
                    bar.update(6)
        else:
            for _ in _progress.progress(range(200), **options):
                clock.now += 1
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 1 + 3 + 1, lines
        assert all(line.startswith("Ranking, sft: ") for line in lines)
        if way == "update":
            assert lines[0] == "Ranking, sft: 60 of 1,200 records, 6 a second, 190 s left.".replace("190 s", "3 min")
            assert lines[-1] == "Ranking, sft: 1,200 records in 3 min."
        assert capfd.readouterr() == ("", "")

    def test_what_takes_seconds_says_nothing(self, clock, monkeypatch, caplog, capfd):
        monkeypatch.setattr("tqdm.std.time", lambda: clock.now)
        caplog.set_level("INFO")
        for _ in _progress.progress(range(5), desc="x", unit="records"):
            clock.now += 1
        assert not caplog.records
        assert capfd.readouterr() == ("", "")

    def test_bytes_and_what_has_no_total(self, clock, monkeypatch, caplog):
        monkeypatch.setattr("tqdm.std.time", lambda: clock.now)
        caplog.set_level("INFO")
        with _progress.progress(desc="ml-25m.zip", unit="B", initial=5_000_000) as bar:
            clock.now += 20
            bar.update(10_000_000)
        assert caplog.records[0].getMessage() == "ml-25m.zip: 15.0 MB, 0.5 MB a second."


@pytest.mark.parametrize("words", [[], ["--gradient_checkpointing", "True"], ["--gradient_checkpointing", "False"]])
@pytest.mark.parametrize("command", [sft, train])
def test_no_deprecated_name_is_passed_on(command, words, tmp_path):
    """Checkpointing has another name in newer releases of transformers; TRL's and the old flag mean the same."""
    parser = command.make_parser("trl-sdpo train")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        places = ["--dataset_name", "data", "--model_name_or_path", "model", "--output_dir", str(tmp_path)]
        args = parser.parse_args([*places, *words]).training_args
        config = SoftmaxDPOConfig(output_dir=str(tmp_path), **machine_defaults())
    assert args.gradient_checkpointing is (words[-1:] == ["True"])
    assert getattr(args, "activation_checkpointing", None) in (None, args.gradient_checkpointing)
    assert config.gradient_checkpointing is False
    if "activation_checkpointing" in TrainingArguments.__dataclass_fields__:
        assert parser.parse_args([*places, "--activation_checkpointing"]).training_args.gradient_checkpointing


def test_a_config_without_flags_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        config = SoftmaxDPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True)
    assert config.gradient_checkpointing  # as TRL has it


def test_no_module_shows_bars_of_its_own():
    """All go through one function, which knows whether there is a terminal."""
    from pathlib import Path

    import trl_sdpo

    folder = Path(trl_sdpo.__file__).parent
    own = [
        path for path in folder.rglob("*.py") if re.search(r"^\s*(?:from|import) tqdm", path.read_text(), re.MULTILINE)
    ]
    assert [path.name for path in own] == ["_progress.py"]
