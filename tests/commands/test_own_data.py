"""docs/own_data.md as a newcomer follows it, with a table of made-up rows and a tiny model under the name on the page."""

import json
import re
import shlex
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from trl_sdpo import cli
from trl_sdpo.commands import run


PAGE = Path(__file__).parents[2] / "docs" / "own_data.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def blocks(language):
    return [text for name, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if name == language]


@pytest.fixture
def newcomer(tmp_path, monkeypatch, llama, tokenizer):
    """A directory with the two files of the page, the table longer than there."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    # in this process, which has imported what the commands need
    monkeypatch.setattr(run, "_start", lambda name, words: cli.main([name, *words]))
    llama().save_pretrained(MODEL)
    tokenizer.save_pretrained(MODEL)
    table = blocks("text")[0]
    header = table.splitlines()[0]
    rows = [
        f'{user},{(5 * user + 7 * step) % 50},{1714720000000 + 86400000 * step + 1000 * user},"Tale {(5 * user + 7 * step) % 50}, a"'
        for user in range(20)
        for step in range(12)
    ]
    (tmp_path / "log.csv").write_text("\n".join([header, *rows]) + "\n")
    (file,) = blocks("yaml")
    assert file.startswith("# mine.yaml\n")
    (tmp_path / "mine.yaml").write_text(file)
    return tmp_path


def test_from_a_table_to_a_recommendation(newcomer, capsys):
    commands = [line for text in blocks("bash") for line in text.splitlines()]
    assert commands[0] == 'python -m pip install -c constraints.txt -e ".[examples]"'
    for command in commands[1:]:
        program, *words = shlex.split(command)
        assert program == "trl-sdpo"
        capsys.readouterr()
        assert cli.main(words) == 0
    # what the last command said: five titles of the table, with their ids
    recommended = re.findall(r"^ +\d\. Tale (\d+), a  \((\d+)\)  -\d", capsys.readouterr().out, re.MULTILINE)
    assert len(recommended) == 5
    assert all(number == item and number not in ("42", "7") for number, item in recommended)
    output = newcomer / "outputs" / "mine" / "s-dpo"
    assert f"`{output.relative_to(newcomer)}` is the trained adapter" in PAGE.read_text(encoding="utf-8")
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL), output)
    results = json.loads((output / "eval_results.json").read_text())
    assert all(0 <= results[name] <= 1 for name in ("eval_hr@1", "eval_ndcg@10", "eval_mrr"))
    assert "s-dpo" in (newcomer / "outputs" / "mine" / "report" / "results.html").read_text()
    report = json.loads((newcomer / "data" / "mine" / "report.json").read_text())
    assert report["train"]["records"] > 100
    trained = json.loads((output / "train_results.json").read_text())
    assert (trained["epoch"], trained["num_negatives"], trained["beta"]) == (1.0, 15, 1.0)
    results = json.loads((newcomer / "outputs" / "mine" / "report" / "results.json").read_text())
    steps = json.loads((output / "trainer_state.json").read_text())["global_step"]
    assert results["facts"]["s-dpo"] == {"num_negatives": 15, "beta": 1.0, "steps": steps}


def test_the_row_of_the_page_is_read(newcomer):
    """The very rows of the page, which are too few to train on."""
    table = blocks("text")[0]
    (newcomer / "log.csv").write_text(table)
    from trl_sdpo.recsys import load_table

    interactions = load_table("log.csv", user="uid", item="sku", timestamp="at", time_unit="ms", title="label")
    assert interactions.events.height == 3
    assert set(interactions.items["title"]) == {"Moby Dick; or, The Whale", "Emma"}
