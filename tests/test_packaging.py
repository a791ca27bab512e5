"""The distributions hold what they should, and what they hold works and is light to import."""

import ast
import configparser
import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from helpers.extras import EXTRAS


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trl_sdpo"
# What only a data set, a figure or a report needs: the trainer and `--help` do not wait for it.
NOT_FOR_TRAINING = {"polars", "matplotlib", "torchmetrics", "trl_sdpo.recsys"}
NOT_FOR_HELP = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy", "pandas"} | NOT_FOR_TRAINING

# Imported by functions that look first whether the library is there, or that name the extra
MODULES_OF_OPTIONAL_LIBRARIES = {
    "evaluation/figures.py": {"matplotlib"},
    "serving/api.py": {"fastapi", "pydantic", "starlette", "swagger_ui_bundle"},
    "serving/demo.py": {"fastapi", "gradio"},
    "serving/server.py": {"fastapi"},
}
BUILD_SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
BUILD_WHEEL = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


def run(*command, cwd, **environment):
    """What a command prints; it must succeed."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution, of a copy of the files: a build leaves traces beside them."""
    folder = tmp_path_factory.mktemp("sdist")
    outputs = shutil.ignore_patterns(".*", "build", "dist", "outputs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "copy", ignore=outputs)
    name = run(sys.executable, "-c", BUILD_SDIST, str(folder), cwd=folder / "copy")
    return folder / name.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel, built from the source distribution and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    name = run(sys.executable, "-c", BUILD_WHEEL, str(folder), cwd=folder / sdist.name.removesuffix(".tar.gz"))
    return folder / name.splitlines()[-1]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A directory with the wheel in it, to be searched before all others."""
    folder = tmp_path_factory.mktemp("installed")
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"),
        *("--disable-pip-version-check", "--target", str(folder), str(wheel)),
        cwd=folder,
    )
    return folder


def package_files():
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(ROOT)) for path in files}


def test_the_source_distribution_is_whole(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert package_files() | {"README.md", "LICENSE", "setup.cfg", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith(("tests", "docs", "outputs"))]


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
        entry_points = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    info = metadata.removesuffix("METADATA")
    assert {name for name in names if not name.startswith(info)} == package_files()
    assert "trl_sdpo/py.typed" in names
    assert f"{info}licenses/LICENSE" in names
    assert "trl-sdpo = trl_sdpo.cli:main" in entry_points
    assert re.search(r"^License(-Expression)?: Apache-2.0$", text, re.MULTILINE)
    assert "# trl_sdpo" in text  # the README is the description


@pytest.mark.parametrize(
    ("name", "versions"),
    [
        ("trl", ["1.16.0", "1.16.1"]),
        ("transformers", ["5.10.4", "5.23.0", "5.24.0"]),
        ("torch", ["2.13.0+cpu", "2.14.1", "2.15.0"]),
    ],
)
def test_the_wheel_replaces_nothing_that_people_have(wheel, name, versions):
    """By its metadata, which pip reads. Which of these the tests were run with is in the README's table."""
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [path for path in archive.namelist() if path.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(path))
    required = {one.name: one for one in map(Requirement, metadata.get_all("Requires-Dist")) if one.marker is None}
    assert all(version in required[name].specifier for version in versions)
    # and an upper bound stands only where it is known what breaks, see setup.cfg
    assert {one.name for one in required.values() if "<" in str(one.specifier)} == {"trl"}


def test_every_library_that_the_package_imports_is_required():
    """At module level: what is imported within a function is optional, and says so when it is missing."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = {line.split(">")[0] for line in setup["options"]["install_requires"].split("\n")[1:]}
    # pyarrow holds the tables of datasets; the others are what transformers reads its models with
    required |= {"pyarrow", "safetensors", "tokenizers"}
    distributions = packages_distributions()
    for path in PACKAGE.rglob("*.py"):
        for name in imported_libraries(path) - MODULES_OF_OPTIONAL_LIBRARIES.get(
            path.relative_to(PACKAGE).as_posix(), set()
        ):
            names = {one.lower().replace("-", "_") for one in distributions.get(name, [name])}
            assert names & {one.lower().replace("-", "_") for one in required}, (
                f"{path} imports {name}: add it to install_requires in setup.cfg, or import it where it is used"
            )


def imported_libraries(path):
    """What a module imports when it is imported, but for the standard library and the package itself."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"trl_sdpo"}


SMOKE = """
import json, sys
from pathlib import Path
from trl import DPOTrainer
before = set(sys.modules)
from trl_sdpo import SoftmaxDPOTrainer
more = sorted(name for name in set(sys.modules) - before if not name.startswith("trl_sdpo"))
assert not more, f"`from trl_sdpo import SoftmaxDPOTrainer` imports what `trl.DPOTrainer` does without: {more}"
heavy = sorted(set(json.loads(sys.argv[1])) & set(sys.modules))
assert not heavy, f"`from trl_sdpo import SoftmaxDPOTrainer` imports {heavy}"
import torch, trl_sdpo, trl_sdpo.recsys
from trl_sdpo import cli
for module in (trl_sdpo, trl_sdpo.recsys):
    assert Path(module.__file__).is_relative_to(sys.argv[2]), module.__file__
    assert all(hasattr(module, name) for name in module.__all__)
loss = trl_sdpo.softmax_dpo_loss(torch.zeros(1), torch.zeros(1, 3), beta=1.0)
assert abs(loss.item() - 1.3863) < 1e-4
events = [f"{user},{(7 * user + 11 * step) % 60},5.0,{1000 + 40 * step + user}" for user in range(30) for step in range(20)]
Path("ml").mkdir()
Path("ml/ratings.csv").write_text("\\n".join(["userId,movieId,rating,timestamp", *events]))
Path("ml/movies.csv").write_text("\\n".join(["movieId,title,genres", *(f"{n},Film {n} (1999),Drama" for n in range(60))]))
assert cli.main(["prepare", "movielens", "--path", "ml", "--output", "out", "--num_candidates", "5"]) == 0
assert Path("out/report.md").is_file()
"""


def test_what_is_installed_works_without_a_warning(installed, tmp_path):
    """`-W error`: a warning of any library on import, or of ours at any time, ends the process."""
    run(
        *(sys.executable, "-W", "error", "-c", SMOKE),
        *(json.dumps(sorted(NOT_FOR_TRAINING)), str(installed)),
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    )


def test_what_is_missing_names_the_extra_that_has_it(installed, tmp_path):
    """As in an environment without any extra. `.ci/extras` makes one for each, in which the extra works."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(EXTRAS) == set(setup["options.extras_require"]) - {"docs", "test"}
    blocked = sorted({module for modules in EXTRAS.values() for module in modules})
    paths = os.pathsep.join([str(installed), str(ROOT / "tests")])
    said = run(sys.executable, "-m", "helpers.extras", str(tmp_path), *blocked, cwd=tmp_path, PYTHONPATH=paths)
    said = json.loads(said.splitlines()[-1])
    assert said.keys() == EXTRAS.keys()
    for extra, words in said.items():
        # the figures and the weights of a file of llama.cpp, one after the other
        assert words.count(f"python -m pip install 'trl-sdpo[{extra}]'") == (2 if extra == "examples" else 1)


def test_help_waits_for_no_heavy_library(installed, tmp_path):
    code = "import sys; from trl_sdpo.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(*sys.modules)"
    loaded = run(sys.executable, "-W", "error", "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).splitlines()[-1]
    assert NOT_FOR_HELP & set(loaded.split()) == set()


def test_the_console_script_is_installed(installed, tmp_path):
    said = run(str(installed / "bin" / "trl-sdpo"), "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert said.startswith("usage: trl-sdpo")
