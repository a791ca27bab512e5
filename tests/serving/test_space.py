import ast
import subprocess
import sys

import pytest
import yaml

from trl_sdpo.hub.licences import find_licence
from trl_sdpo.serving.space import push_space, write_space


OPEN, CLOSED = find_licence(["goodbooks-10k"]), find_licence(["lastfm"])


def test_a_space_is_whole(tmp_path):
    write_space(tmp_path / "space", ["me/s-dpo", "me/sft"], 'The "best" films', OPEN)
    app = (tmp_path / "space" / "app.py").read_text()
    (models,) = [line for line in app.splitlines() if line.startswith("MODELS = ")]
    assert ast.literal_eval(models.removeprefix("MODELS = ")) == ["me/s-dpo", "me/sft"]
    _, header, text = (tmp_path / "space" / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(header)
    assert card["title"] == 'The "best" films'
    assert card["sdk"] == "gradio"
    assert card["models"] == ["me/s-dpo", "me/sft"]
    assert "CC BY-SA 4.0" in text
    assert (tmp_path / "space" / "requirements.txt").read_text().startswith("trl-sdpo[demo]==")


def test_the_app_runs_with_models_of_this_machine(tmp_path, model_folder):
    """Its models are on the Hub; the same words with a folder in their place build the page."""
    write_space(tmp_path / "space", ["me/s-dpo"], "Films", OPEN)
    app = (tmp_path / "space" / "app.py").read_text()
    app = app.replace('"me/s-dpo"', repr(str(model_folder))).replace(
        ".launch(**page_options())", "\nprint(sorted(page_options()))"
    )
    run = subprocess.run([sys.executable, "-c", app], capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "theme" in run.stdout


def test_a_folder_of_this_machine_is_no_model_of_a_space(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="trl-sdpo push"):
        write_space(tmp_path / "space", [str(tmp_path / "model")], "Films", OPEN)
    assert not (tmp_path / "space").exists()


def test_a_licence_that_forbids_it_keeps_a_space_from_the_public(tmp_path):
    with pytest.raises(PermissionError, match="--redistribution_permitted"):
        push_space(tmp_path, "me/space", CLOSED, private=False)


def test_the_command_writes_a_space_and_pushes_nothing(tmp_path, monkeypatch, capsys):
    """The wording of the model is asked of the Hub; here there is none, and the licence is unknown then."""
    from trl_sdpo import cli
    from trl_sdpo.recsys.records import recommender_files

    monkeypatch.setattr(recommender_files, "find_file", lambda *args, **kwargs: None)
    words = [
        "demo",
        "--model",
        "me/s-dpo",
        "--compare",
        "me/sft",
        "--space",
        "me/films",
        "--output",
        str(tmp_path / "films"),
    ]
    assert cli.main(words) == 0
    assert "Nothing was pushed" in capsys.readouterr().out
    assert '["me/s-dpo", "me/sft"]' in (tmp_path / "films" / "app.py").read_text()
    assert (
        cli.main(["demo", "--model", str(tmp_path), "--space", "me/films", "--output", str(tmp_path / "other")]) == 1
    )
    assert "Push it first" in capsys.readouterr().err
