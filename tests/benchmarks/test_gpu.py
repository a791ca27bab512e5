"""The half hour on a card is rehearsed here, so that it meets no surprise there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


PROGRAM = Path(__file__).parents[2] / "benchmarks" / "gpu" / "run.py"


def run(folder, *words):
    return subprocess.run(
        [sys.executable, str(PROGRAM), "--out", str(folder), *words], capture_output=True, text=True, timeout=500
    )


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    done = run(folder, "--rehearse")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("stage", ["tests", "speed", "ranking", "train"])
def test_every_cell_is_measured(rehearsal, stage):
    cells = json.loads((rehearsal / f"{stage}.json").read_text())
    assert len(cells) >= 3
    assert {name: one["error"] for name, one in cells.items() if "error" in one} == {}
    if stage == "tests":
        assert [name for name, one in cells.items() if not one["passed"]] == []


def test_the_page_names_the_machine_and_has_every_stage(rehearsal):
    page = (rehearsal / "gpu.md").read_text()
    for words in ("torch", "## Equal results", "## A step", "## Ranking", "## Training", "s-dpo K = 15"):
        assert words in page


def test_what_was_measured_is_kept_and_no_cell_is_begun_without_time(rehearsal):
    before = (rehearsal / "speed.json").read_bytes()
    assert run(rehearsal, "--rehearse", "--stage", "speed", "--minutes", "0").returncode == 0
    assert (rehearsal / "speed.json").read_bytes() == before
    (rehearsal / "speed.json").unlink()
    assert run(rehearsal, "--rehearse", "--stage", "speed", "--minutes", "0").returncode == 3
    (rehearsal / "speed.json").write_bytes(before)


def test_without_a_card_it_says_how_to_rehearse(tmp_path):
    done = run(tmp_path)
    assert done.returncode != 0
    assert "--rehearse" in done.stderr
