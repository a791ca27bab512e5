import json
import os
import subprocess
import sys
import time

import pytest

import trl_sdpo
from trl_sdpo import cli


@pytest.fixture
def movielens_folder(tmp_path):
    folder = tmp_path / "ml"
    folder.mkdir()
    rows = [
        f"{user},{(7 * user + 11 * step) % 60},5.0,{1000 + 40 * step + user}"
        for user in range(30)
        for step in range(20)
    ]
    (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *rows]) + "\n")
    movies = [f"{number},Film {number} (1999),Drama" for number in range(60)]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *movies]) + "\n")
    return folder


def run(*words):
    """The exit status of the command."""
    try:
        return cli.main(list(words))
    except SystemExit as stop:
        return stop.code


def test_help_needs_no_heavy_library():
    code = "import sys; from trl_sdpo import cli; sys.argv = ['trl-sdpo', '--help']\ntry: cli.main()\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'transformers', 'trl', 'polars', 'datasets', 'numpy'} & set(sys.modules)))"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert time.perf_counter() - start < 30  # a second alone on a core; this is for a machine in use
    assert done.stdout.splitlines()[-1] == "[]"
    assert "prepare" in done.stdout


def test_every_public_name_is_there():
    assert sorted(trl_sdpo.__all__) == sorted(name for names in trl_sdpo._NAMES_BY_MODULE.values() for name in names)
    for name in trl_sdpo.__all__:
        assert getattr(trl_sdpo, name).__name__ == name
    assert set(trl_sdpo.__all__) <= set(dir(trl_sdpo))
    with pytest.raises(AttributeError, match="no attribute 'SoftmaxDPOTrianer'"):
        _ = trl_sdpo.SoftmaxDPOTrianer


def test_prepare(movielens_folder, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["prepare", "movielens", "--path", str(movielens_folder), "--output", str(output), "--num_candidates", "5"]
    assert (
        run(*words, "--seed", "7", "--ratios", "0.7", "0.2", "0.1", "--conversational", "--negatives", "popularity")
        == 0
    )
    out = capsys.readouterr().out
    report = json.loads((output / "report.json").read_text())
    assert report["options"]["ratios"] == [0.7, 0.2, 0.1]
    assert report["options"]["conversational"] is True
    assert (report["seed"], report["options"]["negatives"], report["options"]["domain"]) == (7, "popularity", "movies")
    assert f"{report['train']['records']:,} train" in out
    assert f"Leak probe, hr@1 without the history: {report['leak_probe']['hr_at_1']:.3f}" in out


def test_prepare_from_a_file_of_values_which_flags_override(movielens_folder, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"path: {movielens_folder}\nnum_candidates: 4\nseed: 2\nmin_history: 5\n")
    words = ["prepare", "movielens", "--config", str(config), "--output", str(tmp_path / "out"), "--seed", "3"]
    assert run(*words) == 0
    options = json.loads((tmp_path / "out" / "report.json").read_text())["options"]
    assert (options["num_candidates"], options["seed"], options["min_history"]) == (4, 3, 5)


def test_prepare_with_a_template_of_ones_own(movielens_folder, tmp_path, capsys):
    template = {"name": "mine", "style": "history", "text": "Seen: {history}. Next:"}
    (tmp_path / "mine.json").write_text(json.dumps(template))
    words = ["prepare", "movielens", "--path", str(movielens_folder), "--output", str(tmp_path / "out")]
    assert run(*words, "--num_candidates", "5", "--template", str(tmp_path / "mine.json")) == 0
    (tmp_path / "mine.json").write_text(json.dumps(template | {"text": "Next:"}))
    assert run(*words, "--overwrite", "--template", str(tmp_path / "mine.json")) == 1
    assert "text lacks {history}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ([], 2, "which command?"),
        (["prepaer"], 2, "'prepaer' is no command. Did you mean 'prepare'?"),
        (["prepare", "movielens", "--sead", "3"], 2, "'--sead' is no flag. Did you mean '--seed'?"),
        (["prepare", "movielens", "--recipe", "sdpo"], 2, "Did you mean 's-dpo'?"),
        (["prepare", "movielens", "--split", "leave-one-uot"], 2, "Did you mean 'leave-one-out'?"),
        (["prepare", "movielens", "--seed", "x"], 2, "argument --seed: invalid int value: 'x'"),
        (["prepare", "movielens"], 2, "--output_dir is missing"),
        (["prepare", "--output", "out"], 2, "--source is missing"),
        (["prepare", "movielens", "--output", "out", "--path", "no/where"], 1, "no/where"),
        (["prepare", "movielens", "--output", "out", "--min_history", "0"], 1, "--min_history 0 is below 1"),
        (["prepare", "movielens", "--output", "out", "--loader_options", "x"], 1, "'x' is not name=value"),
        (["prepare", "movielens", "--output", "out", "--config", "none.yaml"], 2, "none.yaml"),
    ],
)
def test_mistakes_are_errors_that_say_what_is_right(words, status, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == status
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_the_file_of_values_is_named(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("sede: 3\n")
    assert run("prepare", "movielens", "--output", "out", "--config", str(tmp_path / "config.yaml")) == 2
    assert "--config: 'sede' is no flag. Did you mean 'seed'?" in capsys.readouterr().err


def test_threads_of_openmp_do_not_spin():
    """Set before torch is loaded, and left as it is where somebody has set it."""
    code = (
        "import os, sys; from trl_sdpo.cli import main\ntry: main(['recommend', '--help'])\nexcept SystemExit: pass\n"
    )
    code += "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    for value, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        environment = {**os.environ, "OMP_WAIT_POLICY": value} if value else dict(os.environ)
        if not value:
            environment.pop("OMP_WAIT_POLICY", None)
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{expected} False"


def test_a_file_of_flags_that_is_not_there_is_told_with_the_nearest(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("prepare: {}\n")
    assert run("run", "mine.yml") == 1
    assert "There is no file 'mine.yml'. Did you mean 'mine.yaml'?" in capsys.readouterr().err
