"""A place in which a file of several commands runs, and commands that run in this process."""

import pytest

from helpers.run_file import SECTIONS, main, write
from trl_sdpo.commands import run as run_command


@pytest.fixture
def workplace(tmp_path, monkeypatch, llama, tokenizer):
    """A directory with a model, a log of interactions and a file for all commands, in which they run."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    llama().save_pretrained("model")
    tokenizer.save_pretrained("model")
    rows = [
        f'{user},{(5 * user + 7 * step) % 20},{1000 + 50 * step + user},"Film {(5 * user + 7 * step) % 20} (1999)"'
        for user in range(12)
        for step in range(8)
    ]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time,title", *rows]) + "\n")
    write(SECTIONS)
    return tmp_path


@pytest.fixture
def start(monkeypatch):
    """Commands run in this process, which has imported what they need; returns the words of each."""
    started = []

    def start_here(name, words):
        started.append((name, words[2:]))
        return main(name, *words)

    monkeypatch.setattr(run_command, "_start", start_here)
    return started
