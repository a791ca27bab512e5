"""Files with a section per command, and `trl-sdpo run`, which goes through them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from helpers.run_file import SECTIONS, main, write
from trl_sdpo.commands import run as run_command
from trl_sdpo.commands._config_file import read_config


def adapter(directory):
    return (directory / "adapter_model.safetensors").read_bytes()


def test_all_sections_in_order_and_nothing_twice(workplace, start):
    assert main("run", "mine.yaml") == 0
    assert start == [("prepare", []), ("sft", []), ("train", [])]
    log = json.loads((workplace / "s-dpo" / "trainer_state.json").read_text())
    assert (log["max_steps"], log["global_step"]) == (2, 2)
    trained = adapter(workplace / "s-dpo")
    start.clear()
    assert main("run", "mine.yaml") == 0
    assert start == []
    assert adapter(workplace / "s-dpo") == trained


def test_a_run_that_was_killed_goes_on_from_its_checkpoint(workplace, start):
    assert main("run", "mine.yaml", "train.lr_scheduler_type=constant", "train.max_steps=3") == 0
    whole = adapter(workplace / "s-dpo")
    # as a kill in the middle of the last stage leaves it
    out = workplace / "s-dpo"
    for path in out.iterdir():
        if path.name not in ("checkpoint-1", "_run.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    state = json.loads((out / "_run.json").read_text())
    (out / "_run.json").write_text(json.dumps(state | {"done": False}))
    start.clear()
    assert main("run", "mine.yaml", "train.lr_scheduler_type=constant", "train.max_steps=3") == 0
    assert start == [("train", ["--resume_from_checkpoint", "True"])]
    assert adapter(out) == whole
    # and before its first checkpoint was whole
    for name in ("checkpoint-1", "checkpoint-2"):
        shutil.rmtree(out / name)
    (out / "checkpoint-3" / "trainer_state.json").unlink()
    (out / "_run.json").write_text(json.dumps(state | {"done": False}))
    start.clear()
    assert main("run", "mine.yaml", "train.lr_scheduler_type=constant", "train.max_steps=3") == 0
    assert start == [("train", ["--overwrite"])]
    assert adapter(out) == whole


class Killed(BaseException):
    """As SIGKILL, which nothing can answer."""


@pytest.mark.parametrize("dies", ["prepare", "sft"])
def test_a_first_run_that_was_killed_goes_on(workplace, monkeypatch, start, dies):
    """Before its first command was done, when nothing but what a run writes as it begins says whose the directory is."""

    def killed(name, words):
        if name == dies == "prepare":  # whose directory appears when it is whole
            raise Killed
        assert main(name, *words) == 0
        if name == dies:
            for path in (workplace / name).iterdir():
                if path.name not in ("checkpoint-1", "_run.json"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise Killed
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(run_command, "_start", killed)
        with pytest.raises(Killed):
            main("run", "mine.yaml")
    start.clear()
    assert main("run", "mine.yaml") == 0
    begun = [("prepare", []), ("sft", [])] if dies == "prepare" else [("sft", ["--resume_from_checkpoint", "True"])]
    assert start == [*begun, ("train", [])]


def test_an_edited_file_of_the_same_size_is_a_setting(workplace, start, capsys):
    assert main("run", "mine.yaml", "--stages", "prepare") == 0
    log = workplace / "log.csv"
    text, size = log.read_text(), log.stat().st_size
    log.write_text(text.replace("1000", "1001", 1))
    assert log.stat().st_size == size
    assert main("run", "mine.yaml", "--stages", "prepare") == 1
    assert "other settings (the files of `path`)" in capsys.readouterr().err


def test_what_was_made_with_other_settings_is_kept_until_told(workplace, start, capsys):
    assert main("run", "mine.yaml") == 0
    before = {name: adapter(workplace / name) for name in ("sft", "s-dpo")}
    start.clear()
    assert main("run", "mine.yaml", "sft.learning_rate=0.02") == 1
    assert "sft: sft holds what was made with other settings (learning_rate)" in capsys.readouterr().err
    assert start == []
    assert {name: adapter(workplace / name) for name in before} == before
    assert main("run", "mine.yaml", "sft.learning_rate=0.02", "--overwrite") == 0
    # S-DPO builds on SFT
    assert start == [("sft", ["--overwrite"]), ("train", ["--overwrite"])]
    assert all(adapter(workplace / name) != before[name] for name in before)
    # the files that prepare reads are a setting, too
    with open("log.csv", "a") as file:
        file.write('0,19,9999,"Film 19 (1999)"\n')
    assert main("run", "mine.yaml", "sft.learning_rate=0.02") == 1
    assert "prepare: data holds what was made with other settings (the files of `path`)" in capsys.readouterr().err


def test_what_another_command_left_is_kept(workplace, start, capsys):
    assert main("prepare", "--config", "mine.yaml") == 0
    assert main("run", "mine.yaml") == 1
    assert "prepare: data holds what no run left. Pass --overwrite" in capsys.readouterr().err
    assert main("run", "mine.yaml", "--stages", "sft") == 0
    assert start == [("sft", [])]


def test_a_command_that_fails_ends_the_run(workplace, start, capsys):
    assert main("run", "mine.yaml", "sft.dataset_train_split=nowhere") == 1
    assert [name for name, _ in start] == ["prepare", "sft"]
    assert "sft ended with status 1. When its error is mended, the same command goes on from there" in (
        capsys.readouterr().err
    )
    start.clear()
    assert main("run", "mine.yaml", "--overwrite") == 0
    assert [name for name, _ in start] == ["sft", "train"]


@pytest.mark.parametrize("what", ["done", "typo"])
def test_a_run_answers_without_torch_where_nothing_is_to_be_computed(workplace, start, what):
    """In a process of its own: what it imports is what takes time."""
    assert main("run", "mine.yaml") == 0
    words = ["run", "mine.yaml", *(["sft.model_name_or_path=sft2"] if what == "typo" else [])]
    code = f"import sys, time; from trl_sdpo.cli import main; print(main({words!r}))\n"
    code += "print({'torch', 'transformers', 'trl'} & set(sys.modules), file=sys.stdout)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == (["0"] if what == "done" else ["1"]) + ["set()"]
    assert ("Stage 3 of 3: Softmax-DPO, done before: s-dpo" in done.stderr) == (what == "done")


class TestFile:
    def test_a_command_takes_its_section_before_what_is_common(self, workplace):
        from trl_sdpo.commands import sft, train

        write(SECTIONS | {"train": SECTIONS["train"] | {"max_steps": 7, "learning_rate": "2e-5"}})
        parsed = {
            module.__name__.rpartition(".")[2]: module.make_parser(
                f"trl-sdpo {module.__name__.rpartition('.')[2]}"
            ).parse_args(["--config=mine.yaml", "--seed", "5"])
            for module in (sft, train)
        }
        assert [parsed[name].training_args.max_steps for name in ("sft", "train")] == [2, 7]
        assert parsed["train"].training_args.learning_rate == 2e-5
        assert parsed["train"].training_args.seed == 5
        assert [parsed[name].model_args.model_name_or_path for name in ("sft", "train")] == ["model", "sft"]

    def test_a_command_without_a_section_is_an_error(self, workplace, capsys):
        write({name: SECTIONS[name] for name in ("common", "sft")})
        assert main("train", "--config", "mine.yaml") == 2
        assert "there is no section 'train', only ['sft']. Add it" in capsys.readouterr().err

    def test_flags_of_accelerate_are_for_the_launch(self, workplace):
        from trl_sdpo.commands import train

        write(SECTIONS | {"train": SECTIONS["train"] | {"accelerate_config": "zero2", "num_processes": 4}})
        args = train.make_parser("trl-sdpo train").parse_args(
            ["--config", "mine.yaml", "--main_process_port", "29501"]
        )
        assert args.launch_words == [
            *("--accelerate_config", "zero2", "--num_processes", "4", "--main_process_port", "29501")
        ]

    def test_the_environment_is_set(self, workplace, monkeypatch):
        from trl_sdpo.commands import train

        monkeypatch.setenv("TRL_SDPO_TEST", "before")
        write(SECTIONS | {"env": {"TRL_SDPO_TEST": 3}})
        train.make_parser("trl-sdpo train").parse_args(["--config", "mine.yaml"])
        assert os.environ["TRL_SDPO_TEST"] == "3"

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("- a\n", "expected `name: value` lines"),
            ("a: [\n", "not YAML that can be read"),
            ("sft:\n  seed: 1\nsft:\n  seed: 2\n", "line 3: the key 'sft' stands there a second time"),
            ("sft: {}\nseed: 1\n", "'seed' is no section. "),
        ],
    )
    def test_a_malformed_file_is_named(self, tmp_path, text, says):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"{tmp_path}/x.yaml: ") as error:
            read_config(tmp_path / "x.yaml")
        assert says in str(error.value)

    def test_a_shared_mapping_of_yaml_is_read(self, tmp_path):
        (tmp_path / "x.yaml").write_text("common: &base\n  seed: 1\nsft:\n  <<: *base\n  seed: 2\n")
        assert read_config(tmp_path / "x.yaml")["sft"] == {"seed": 2}


def test_a_command_has_a_process_of_its_own(workplace, capfd):
    assert main("run", "mine.yaml", "--stages", "prepare") == 0
    assert (workplace / "data" / "report.json").is_file()
    # said by the other process, to where this one speaks
    assert "data: " in capfd.readouterr().out


def test_kill_ends_the_command_too(tmp_path, monkeypatch):
    program = tmp_path / "python"
    code = f'import time; open("{tmp_path}/begun", "w"); time.sleep(60)'
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(run_command.sys, "executable", str(program))

    def kill():
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=kill)
    thread.start()
    assert run_command._start("sft", []) in (-signal.SIGINT, 128 + signal.SIGINT)
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_report_is_made_anew_or_gone_on_with(tmp_path):
    """`evaluate` itself refuses to replace a report."""
    stage = run_command.Stage("evaluate", {"output_dir": str(tmp_path / "out")}, {"flags": "new"})
    assert run_command._words_to_go_on(stage, overwrite=False) == []
    (tmp_path / "out").mkdir()
    for state, overwrite, words in (
        ({"done": True, "digests": {"flags": "new"}}, False, None),
        ({"done": False, "digests": {"flags": "new"}}, False, ["--overwrite"]),
        ({"done": True, "digests": {"flags": "old"}}, True, ["--overwrite"]),
    ):
        (tmp_path / "out" / "_run.json").write_text(json.dumps(state))
        assert run_command._words_to_go_on(stage, overwrite) == words
    with pytest.raises(ValueError, match="other settings"):
        run_command._words_to_go_on(stage, overwrite=False)


def test_what_the_terminal_shows_of_a_run(workplace, start, capfd, caplog):
    """Sentences, and of other libraries neither dicts nor tables of all they know; each model is evaluated once."""
    sections = SECTIONS | {
        "train": SECTIONS["train"] | {"num_negatives": 15},
        "evaluate": {"model_name_or_path": ["sft=sft", "s-dpo=s-dpo"], "output_dir": "report"},
    }
    write(sections)
    with caplog.at_level("INFO"):
        assert main("run", "mine.yaml") == 0
    shown = capfd.readouterr()
    text = shown.out + shown.err + caplog.text
    for line in ("Stage 1 of 4: records, into data", "Stage 3 of 4: Softmax-DPO, into s-dpo", "Training on"):
        assert line in text
    assert "step 1 of 2, " in text
    assert "Next: trl-sdpo recommend --model_name_or_path s-dpo --history" in text
    for noise in ("{'loss'", "{'train_runtime'", "***** train metrics", "total_flos", "HTTP Request"):
        assert noise not in text
    # K is what was drawn of the 3 negatives that the records have
    results = json.loads((workplace / "report" / "results.json").read_text())
    assert results["facts"]["s-dpo"]["num_negatives"] == 3
    log = json.loads((workplace / "s-dpo" / "trainer_state.json").read_text())["log_history"]
    assert not any("eval_loss" in entry for entry in log)
    metrics = json.loads((workplace / "s-dpo" / "eval_results.json").read_text())
    row = results["sections"][0]["systems"]["s-dpo"]
    assert all(metrics[f"eval_{name}"] == row[name] for name in ("hr@1", "hr@1_ci", "n", "users"))
    assert metrics["eval_candidates"] == [4, 4]
    # an evaluation that a section asks for is made
    assert dict(start)["train"] == ["--dataset_test_split", "none"]
    write(sections | {"train": sections["train"] | {"dataset_test_split": "test"}})
    start.clear()
    assert main("run", "mine.yaml", "--overwrite") == 0
    assert dict(start)["train"] == ["--overwrite"]
    assert "eval_loss" in json.loads((workplace / "s-dpo" / "all_results.json").read_text())


def test_a_library_s_line_is_ours_on_the_terminal():
    import logging

    from trl_sdpo._terminal import _Formatter

    def said(name, text):
        return _Formatter(["num_negatives"]).format(logging.LogRecord(name, 30, "", 0, text, (), None))

    assert said("trl_sdpo.x", "[RANK 0] `num_negatives=15` is more") == "--num_negatives 15 is more"
    assert said("trl_sdpo.x", "[RANK 1] a") == "[RANK 1] a"
    assert said("other", "[RANK 0] `num_negatives=15`") == "[RANK 0] `num_negatives=15`"
