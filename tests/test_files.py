"""Files and directories that are whole, or as they were before."""

import pytest

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
