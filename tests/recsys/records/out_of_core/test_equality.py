"""The records that are made a partition at a time are those of the way in memory, whatever the options."""

import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from helpers.invented_events import make
from trl_sdpo.recsys import prepare
from trl_sdpo.recsys.interactions.streams import EventStream
from trl_sdpo.recsys.records.config import RecordConfig
from trl_sdpo.recsys.records.dataset import plan_records
from trl_sdpo.recsys.records.out_of_core import engine, partitions
from trl_sdpo.recsys.records.out_of_core.plan import plan_on_disk


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Four partitions, and chunks that end within them."""
    monkeypatch.setattr(partitions, "EVENTS_PER_PARTITION", 200)
    for module in ("dataset", "out_of_core.plan"):
        monkeypatch.setattr(f"trl_sdpo.recsys.records.{module}.CHUNK_SIZE", 70)


def result(function):
    try:
        return function()
    except ValueError as error:
        return str(error)


def check(interactions, folder, as_codes=False, **options):
    config = RecordConfig(**{"num_candidates": 6, "history_size": 5, **options})
    memory = result(lambda: plan_records(interactions, config))
    written = partitions.write_partitions(EventStream.of(interactions), folder, config)
    disk = result(lambda: plan_on_disk(written))
    if isinstance(memory, str):
        assert isinstance(disk, str)
        assert re.sub(r"\d+ (such|targets)", "", disk) == re.sub(r"\d+ (such|targets)", "", memory)
        return
    assert not isinstance(disk, str), disk
    assert len(written) > 2
    memory.builder.as_codes = disk.builder.as_codes = as_codes
    assert disk.sizes == memory.sizes
    for split in memory.sizes:
        for one, other in zip(memory.chunks(split), disk.chunks(split), strict=True):
            assert other.table.equals(one.table)
            for name in ("items", "histories"):
                np.testing.assert_array_equal(getattr(other.rows, name), getattr(one.rows, name))
            np.testing.assert_array_equal(other.pool, one.pool)
    assert json.dumps(disk.report) == json.dumps(memory.report)
    assert disk.builder.sampler.filled_uniformly == memory.builder.sampler.filled_uniformly
    assert disk.train_counts.tolist() == memory.train_counts.tolist()
    assert disk.catalogue.equals(memory.catalogue)


@st.composite
def cases(draw):
    """A table, and options that go together."""

    def one(*values):
        return draw(st.sampled_from(values))

    table = {"seed": one(0, 1), "text": one(False, True), "has_time": one(True, True, False)}
    table["finer"] = table["has_time"] and one(False, False, True)
    options = {
        "seed": one(0, 7),
        "split": one("temporal", "leave-one-out", "user", "user-by-time"),
        "order": one("time", "time", "time", "file-unchecked", "time-then-item"),
        "negatives": one("uniform", "popularity", "hard", "uniform:0.5,hard:0.5", "low-rated:0.5,uniform:0.5"),
        "eval_negatives": one("uniform", "popularity", "hard"),
        "existence": one(None, None, "first-event", "release-year", "off"),
        "exclude_seen": one("phase", "phase", "ever"),
        "merge_repeats": one(True, True, False),
        "min_rating": one(None, None, 2.0),
        "min_interactions": one(1, 1, 6, 9),
        "core_period": one("all", "train"),
        "k_core": one("fixed-point", "once"),
        "min_length": one(1, 1, 8),
        "windows": one("all", "last", 3),
        "eval_windows": one("all", "all", 2),
        "train_stride": one(1, 2),
        "max_train_records": one(None, 1, 60),
        "max_test_records": one(None, 9),
        "ratios": one((0.8, 0.1, 0.1), (0.6, 0.2, 0.2), (0.7, 0.3, 0.0)),
        "pool_size": one(None, 8),
        "prompt_style": one("history", "candidates"),
        "conversational": one(False, True),
        "scores": one(False, True),
        "min_history": one(1, 3),
        "popularity_alpha": one(1.0, 0.5),
    }
    if "low-rated" in options["negatives"]:
        options |= {"low_rating": 2.0, "exclude_seen": "phase"}
    if draw(st.booleans()) and draw(st.booleans()):
        plain = dict.fromkeys(("negatives", "eval_negatives"), "uniform")
        options |= plain | {"candidate_seed": "target", "pool_size": None, "existence": None, "low_rating": None}
    options["file_order"] = not table["has_time"] and options["split"] == "leave-one-out"
    return table, options


@settings(
    max_examples=10, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(cases(), st.booleans())
def test_records_and_report_are_those_of_the_way_in_memory(tmp_path_factory, case, as_codes):
    table, options = case
    assume(table["has_time"] or options["split"] in ("leave-one-out", "user"))
    check(make(**table), tmp_path_factory.mktemp("partitions"), as_codes, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"existence": "release-year", "negatives": "uniform:0.4,hard:0.3,popularity:0.3", "max_train_records": 40},
        {"split": "leave-one-out", "negatives": "low-rated:0.5,uniform:0.5", "low_rating": 3.0, "scores": True},
        {"split": "user", "min_interactions": 5, "min_length": 6, "template": "random", "conversational": True},
        {"core_period": "train", "min_interactions": 4, "candidate_seed": "target"},
        {"min_interactions": 400},
        {"min_history": 600},
        {"num_candidates": 59, "existence": "off"},
    ],
    ids=str,
)
def test_each_step(tmp_path, options):
    check(make(3, text=True, finer=True), tmp_path, **options)


def test_options_that_the_steps_do_not_know_are_refused(monkeypatch):
    config = RecordConfig(train_stride=2)
    monkeypatch.setattr(engine, "KNOWN_OPTIONS", engine.KNOWN_OPTIONS - {"train_stride"})
    assert engine.check_engine("auto", config) == "memory"
    assert engine.check_engine("disk", RecordConfig()) == "disk"
    with pytest.raises(ValueError, match="train_stride=2 needs all events in memory"):
        engine.check_engine("disk", config)


@pytest.mark.parametrize("form", ["text", "ids"])
def test_bytes_of_a_data_set(tmp_path, form):
    reports = {
        way: prepare(make(5), tmp_path / way, engine=way, form=form, num_candidates=6, max_train_records=150)
        for way in ("memory", "disk")
    }
    assert (reports["memory"].pop("engine"), reports["disk"].pop("engine")) == ("memory", "disk")
    assert json.dumps(reports["disk"]) == json.dumps(reports["memory"])
    files = {way: sorted(path.relative_to(tmp_path / way) for path in (tmp_path / way).rglob("*")) for way in reports}
    assert files["disk"] == files["memory"]
    for name in files["memory"]:
        if (tmp_path / "memory" / name).is_file() and not name.name.startswith("report."):
            assert (tmp_path / "disk" / name).read_bytes() == (tmp_path / "memory" / name).read_bytes(), name
    assert "a partition at a time" in (tmp_path / "disk" / "report.md").read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "memory"]  # no partition is left
