"""A call that was broken off goes on, and says what a disk has no room for."""

import errno
from collections import namedtuple

import pytest

from helpers.invented_events import make
from trl_sdpo.recsys import prepare
from trl_sdpo.recsys.records.out_of_core import engine, partitions, steps


OPTIONS = {"engine": "disk", "form": "ids", "num_candidates": 6, "max_train_records": 90}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(partitions, "EVENTS_PER_PARTITION", 350)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"}


def breaking_off(monkeypatch, at, error):
    """Let the call end when it is about to say that a step is done with a partition, for the `at`-th time."""
    write, calls = steps.write_facts, []

    def write_or_break(path, *facts):
        calls.append(path.parent.name)
        if len(calls) == at:
            path.with_name(f".{path.name}.half").write_bytes(b"half")
            raise error
        write(path, *facts)

    monkeypatch.setattr(steps, "write_facts", write_or_break)
    return calls


def test_a_call_goes_on_with_the_next_partition(tmp_path, monkeypatch):
    interactions = make(1)
    prepare(interactions, tmp_path / "whole", **OPTIONS)
    for at in (1, 4, 8):  # in the first step, in the second, in the last
        with monkeypatch.context() as patch:
            broken = breaking_off(patch, at, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                prepare(interactions, tmp_path / "again", **OPTIONS)
            assert not (tmp_path / "again").exists()
        with monkeypatch.context() as patch:
            done = breaking_off(patch, 99, KeyboardInterrupt())
            prepare(interactions, tmp_path / "again", overwrite=True, **OPTIONS)
        assert len(broken) + len(done) == 9  # of eight, and the one that was broken off
        assert files(tmp_path / "again") == files(tmp_path / "whole")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "whole"]
        (tmp_path / "again").rename(tmp_path / "done")
        for path in sorted((tmp_path / "done").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "done").rmdir()


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        breaking_off(patch, 3, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OSError, match="the same call goes on from what is done") as raised:
            prepare(make(1), tmp_path / "out", **OPTIONS)
    assert raised.value.errno == errno.ENOSPC
    assert not (tmp_path / "out").exists()
    usage = namedtuple("usage", "total used free")(10**6, 10**6 - 10, 10)
    monkeypatch.setattr(engine.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="partitions of 700 events take about") as raised:
        prepare(make(2), tmp_path / "out", **OPTIONS)
    assert raised.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_other_options_begin_anew(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        breaking_off(patch, 4, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prepare(make(1), tmp_path / "out", seed=1, **OPTIONS)
    prepare(make(1), tmp_path / "out", seed=2, **OPTIONS)
    prepare(make(1), tmp_path / "whole", seed=2, **OPTIONS)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("split", ["temporal", "leave-one-out"])
def test_what_a_source_without_times_cannot_is_said_before_its_events_are_read(tmp_path, monkeypatch, split):
    monkeypatch.setattr(partitions, "write_partitions", lambda *_: pytest.fail("events were read"))
    timeless = make(1, has_time=False)
    with pytest.raises(ValueError, match="the source has no time"):
        prepare(timeless, tmp_path / "data", split=split, existence="off", **OPTIONS)
    assert not list(tmp_path.iterdir())
