"""Every option of records is a flag of `trl-sdpo prepare` and a line of the file of `trl-sdpo run`, with the same value."""

import dataclasses
import json

import pytest
import yaml

from trl_sdpo.cli import main
from trl_sdpo.commands import run as run_command
from trl_sdpo.commands.prepare import check, make_parser
from trl_sdpo.recsys.records.config import RecordConfig


# One value of each that is not its default; of those that name a choice, all of them
VALUES = {
    "seed": [5],
    "prompt_style": ["candidates"],
    "template": ["lines", "random"],
    "item_format": ["{title}[ ({genres:3})]"],
    "completion_format": ["[{genres:2}: ]{title}"],
    "domain": ["books", "music", "items"],
    "conversational": [True],
    "history_size": [7],
    "min_history": [2],
    "max_length": [200],
    "num_candidates": [10],
    "pool_size": [63],
    "negatives": ["popularity", "hard", "uniform:0.5,hard:0.5"],
    "eval_negatives": ["popularity", "hard"],
    "eval_candidates": ["cold"],
    "popularity_alpha": [0.5],
    "scores": [True],
    "candidate_seed": ["target"],
    "exclude_seen": ["ever"],
    "existence": ["first-event", "release-year", "off"],
    "min_rating": [3.0],
    "min_interactions": [5],
    "k_core": ["once"],
    "core_period": ["train"],
    "min_length": [4],
    "merge_repeats": [False],
    "order": ["file", "file-unchecked", "time-then-item"],
    "split": ["leave-one-out", "user", "user-by-time", "items"],
    "held_out_items": [0.2],
    "ratios": [(0.7, 0.2, 0.1)],
    "file_order": [True],
    "windows": ["last", 2],
    "eval_windows": ["last", 3],
    "train_stride": [11],
    "max_train_users": [50],
    "max_train_records": [100],
    "max_validation_records": [50],
    "max_test_records": [20],
}
# Those that go with another alone
TOGETHER = {"low_rating": {"low_rating": 2.0, "negatives": "low-rated:0.3,uniform:0.7"}}


def test_all_options_are_here():
    assert {field.name for field in dataclasses.fields(RecordConfig)} == VALUES.keys() | TOGETHER.keys()


def as_texts(config):
    """Of windows a number and its digits are one."""
    return dataclasses.asdict(config) | {name: str(getattr(config, name)) for name in ("windows", "eval_windows")}


OPTIONS = [{name: value} for name, values in VALUES.items() for value in values] + list(TOGETHER.values())


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(map(str, options.items())))
def test_a_flag_and_a_line_of_a_file_say_what_python_says(tmp_path, options):
    expected = RecordConfig(**options)
    assert expected != RecordConfig()
    words = []
    for name, value in options.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    given = {"source": "movielens-100k", "output_dir": "out"}
    lines = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"prepare": {**given, **lines}}))
    ways = (["movielens-100k", "--output_dir", "out", *words], ["--config", str(tmp_path / "run.yaml")])
    for way in ways:
        found = RecordConfig(**check(make_parser("trl-sdpo prepare").parse_args(way)))
        assert as_texts(found) == as_texts(expected)


def test_a_run_counts_the_core_over_the_training_period(tmp_path, monkeypatch):
    """Item 9 has three events, two of them after the training: it stays by all of them, and not by those of the training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_command, "_start", lambda name, words: main([name, *words]))
    rows = [f"{user},{(5 * user + 7 * step) % 20 + 10},{100 * step + user}" for user in range(10) for step in range(8)]
    rows += ["0,9,50", "1,9,10000", "2,9,10001"]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    section = {
        "source": "table",
        "path": "log.csv",
        "loader_options": ["user=user", "item=item", "timestamp=time"],
        "num_candidates": 3,
        "min_interactions": 3,
        "core_period": "train",
    }
    for period, there in (("train", False), ("all", True)):
        one = {**section, "core_period": period, "output_dir": period}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({"prepare": one}))
        assert main(["run", "run.yaml"]) == 0
        report = json.loads((tmp_path / period / "report.json").read_text())
        assert report["options"]["core_period"] == period
        assert ("9" in json.loads((tmp_path / period / "catalogue.json").read_text())["item_ids"]) is there
