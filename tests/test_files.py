"""Files and directories that are whole, or as they were before."""

import ast
from pathlib import Path

import pytest

import trl_sdpo
from trl_sdpo.files import write_text, writing, writing_directory


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


def test_a_file_is_whole_or_as_before(tmp_path):
    write_text(tmp_path / "file", "before")

    def fail():
        with writing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "file").read_text() == "before"
    assert everything_in(tmp_path) == ["file"]


def test_a_file_is_replaced_and_not_written_into(tmp_path):
    """Whoever reads the former one, or has it by a hard link, goes on to."""
    write_text(tmp_path / "file", "before")
    (tmp_path / "link").hardlink_to(tmp_path / "file")
    write_text(tmp_path / "file", "after")
    assert (tmp_path / "link").read_text() == "before"
    assert (tmp_path / "file").read_text() == "after"


class TestWritingDirectory:
    def test_appears_at_the_end(self, tmp_path):
        with writing_directory(tmp_path / "a" / "b") as stage:
            (stage / "file").write_text("x")
            assert not (tmp_path / "a" / "b").exists()
        assert everything_in(tmp_path / "a") == ["b", "b/file"]

    @pytest.mark.parametrize("replace", [True, False])
    @pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
    def test_nothing_changes_on_an_error(self, tmp_path, error, replace):
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "before").write_text("x")

        def write():
            with writing_directory(tmp_path / "a" / "b", replace=replace) as stage:
                (stage / "half").write_text("x")
                raise error

        with pytest.raises(type(error)):
            write()
        assert everything_in(tmp_path / "a") == ["b", "b/before"]

    @pytest.mark.parametrize(("replace", "wins"), [(False, "fast"), (True, "slow")])
    def test_another_process_was_faster(self, tmp_path, replace, wins):
        with writing_directory(tmp_path / "a" / "b", replace=replace) as stage:
            (stage / "slow").write_text("")
            with writing_directory(tmp_path / "a" / "b") as other:
                (other / "fast").write_text("")
        assert everything_in(tmp_path / "a") == ["b", f"b/{wins}"]


PACKAGE = Path(trl_sdpo.__file__).parent
# Methods that write a file where they stand, so that an interruption leaves half of it
WRITING = {"write_text", "write_bytes", "savefig", "to_parquet", "write_parquet", "ParquetWriter", "save_file", "dump"}
# Where they may: what they write to is a part of a directory or file that appears when it is whole
WITHIN_WHOLE_ONES = {
    "files.py": "the atomic writers themselves",
    "commands/run.py": "a temporary directory",
    "evaluation/figures.py": "a buffer in memory",
    "hub/privacy.py": "`writing`",
    "hub/pushes.py": "a stage that is pushed",
    "hub/training_curves.py": "`writing`",
    "recommender/bulk.py": "`writing`",
    "recsys/interactions/archives.py": "a directory that is renamed",
    "recsys/interactions/download.py": "a part that is renamed, and that a download goes on with",
    "recsys/interactions/readers/text_files.py": "a temporary copy",
    "recsys/records/out_of_core/partitions.py": "`writing`",
    "recsys/records/out_of_core/shared.py": "the same",
    "recsys/records/preparation.py": "`writing_directory`",
    "recsys/records/report.py": "the same",
}


def writes_in_place(path):
    """Lines of a module that call a method of `WRITING`, or open a file to write."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", "")
        words = [
            value.value
            for value in [*node.args, *(word.value for word in node.keywords)]
            if isinstance(value, ast.Constant)
        ]
        opens = "open" in (name, getattr(node.func, "id", "")) and any(
            word in words for word in ("w", "wb", "a", "ab", "x", "xb")
        )
        if opens or name in WRITING:
            yield node.lineno


def test_files_are_written_whole_everywhere():
    found = {path.relative_to(PACKAGE).as_posix(): list(writes_in_place(path)) for path in PACKAGE.rglob("*.py")}
    lines = {name: lines for name, lines in found.items() if lines and name not in WITHIN_WHOLE_ONES}
    assert not lines, (
        f"{lines} write in place: take `trl_sdpo.files.writing` or `write_text`, or say in WITHIN_WHOLE_ONES why not"
    )
    assert found["recsys/records/report.py"]  # what the test looks for is found
