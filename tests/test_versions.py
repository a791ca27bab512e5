"""The ranges of versions: what pip keeps, what the constraints pin, and what an import says of a TRL outside of them."""

import configparser
import importlib.util
import re
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from trl_sdpo import _versions


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def requirements():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].strip().splitlines()
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def pins(name):
    """The versions of each library; more than one where they depend on Python's."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith(("#", "-c"))]
    versions = {}
    for requirement in map(Requirement, lines):
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        versions.setdefault(requirement.name, []).append(Version(pin.version))
    return versions


@pytest.mark.parametrize(
    ("name", "version"),
    [
        *(("trl", version) for version in ("1.16.0", "1.16.3")),
        *(("transformers", version) for version in ("5.10.4", "5.17.0", "5.23.0", "5.24.0", "5.30.0")),
        *(("torch", version) for version in ("2.13.0", "2.14.0", "2.14.1", "2.15.0", "2.15.0+cu130")),
        *(("numpy", version) for version in ("1.26.4", "2.4.6", "2.5.5")),
        *(("peft", version) for version in ("0.21.0", "0.21.2", "0.22.0")),
    ],
)
def test_what_people_have_is_kept(requirements, name, version):
    assert Version(version) in requirements[name].specifier


def test_only_trl_has_an_upper_bound(requirements):
    bounded = {
        name
        for name, requirement in requirements.items()
        if any(bound.operator not in (">=", "!=") for bound in requirement.specifier)
    }
    assert bounded == {"trl"}


def test_lower_bounds_are_the_oldest_that_are_tested(requirements):
    oldest = pins("constraints/oldest.txt")
    assert oldest.keys() >= requirements.keys()
    for name, requirement in requirements.items():
        (lower,) = [Version(bound.version) for bound in requirement.specifier if bound.operator == ">="]
        assert oldest[name] == [lower], name


@pytest.mark.parametrize("file", ["constraints.txt", "constraints/oldest.txt", "constraints/newest.txt"])
def test_pinned_versions_are_in_the_range(requirements, file):
    versions = pins(file)
    assert set(requirements) <= set(versions)
    for name, requirement in requirements.items():
        assert all(version in requirement.specifier for version in versions[name]), name


CONSTRAINTS_OF_CELLS = {
    "pinned": "constraints.txt",
    "oldest": "constraints/oldest.txt",
    **dict.fromkeys(["newest", "py312", "py313"], "constraints/newest.txt"),
}


@pytest.fixture(scope="module")
def tested_versions():
    """The script by which `.ci/run` writes the table."""
    spec = importlib.util.spec_from_file_location("tested_versions", ROOT / ".ci" / "tested_versions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_tested_versions_is_of_the_constraints(tested_versions, requirements):
    rows = tested_versions.table((ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(rows) == set(CONSTRAINTS_OF_CELLS) == set(tested_versions.CELLS)
    for cell, line in rows.items():
        _, python, *versions, suite = (field.strip() for field in line.strip("|").split("|"))
        assert suite == ("all" if cell == "pinned" else "core")
        assert Version(python) in SpecifierSet(">=3.11")
        pinned = pins(CONSTRAINTS_OF_CELLS[cell])
        for name, version in zip(tested_versions.LIBRARIES, versions, strict=True):
            assert Version(version) in requirements[name].specifier
            # the cell `newest` may take the build of torch for CPUs that is at hand
            assert Version(version) in pinned[name] or (cell, name) == ("newest", "torch"), (
                f"README.md has {name} {version} in the row {cell}: run `.ci/run {cell}`, which writes the table"
            )


def test_a_row_is_replaced_and_the_others_stay(tested_versions, tmp_path):
    readme = tmp_path / "README.md"
    block = f"{tested_versions.START}\n\n| cell |\n| --- |\n| oldest | a |\n| py313 | b |\n\n{tested_versions.END}"
    readme.write_text(f"before\n\n{block}\n\nafter\n")
    row = tested_versions.row("oldest", "core")
    (tmp_path / "oldest.row").write_text(f"{row}\n")
    tested_versions.write(readme, [str(tmp_path / "oldest.row")])
    assert tested_versions.table(readme.read_text()) == {"oldest": row, "py313": "| py313 | b |"}
    assert readme.read_text().startswith("before\n\n<!--")
    assert readme.read_text().endswith("-->\n\nafter\n")
    assert f"| {Version(sys.version.split()[0])} |" in row


def test_range_of_trl_is_the_one_that_is_warned_about(requirements):
    (first, last), specifier = _versions.TESTED_TRL, requirements["trl"].specifier
    assert {bound.operator: bound.version for bound in specifier} == {
        ">=": f"{first[0]}.{first[1]}",
        "<": f"{last[0]}.{last[1] + 1}",
    }


@pytest.mark.parametrize("version", ["1.16.0", "1.16.3", "1.16.0.dev0"])
def test_no_warning_within_the_range(monkeypatch, version):
    monkeypatch.setattr(_versions, "version", lambda name: version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _versions.warn_of_untested_trl()


@pytest.mark.parametrize("version", ["1.15.0", "1.17.0", "1.17.0.dev0", "2.0", "0.29.1", "main"])
def test_warning_outside_of_the_range(monkeypatch, version):
    monkeypatch.setattr(_versions, "version", lambda name: version)
    with pytest.warns(UserWarning, match=rf"trl {re.escape(version)} is installed.*pip install 'trl>=1.16,<1.17'"):
        _versions.warn_of_untested_trl()


def test_no_trl_is_no_matter_of_its_version(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(_versions, "version", missing)
    _versions.warn_of_untested_trl()


def test_the_import_warns_once(tmp_path):
    """With a TRL of another version in the way, of which nothing but the metadata is read."""
    info = tmp_path / "trl-1.99.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 1.99.0\n")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "import trl_sdpo, trl_sdpo.recsys\nassert 'trl' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("trl 1.99.0 is installed") == 1
