import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from datasets import load_dataset

from trl_sdpo import load_recommender_files
from trl_sdpo.recsys import Interactions, build_preference_dataset, prepare
from trl_sdpo.recsys.records import report as preparation_report
from trl_sdpo.recsys.records import rows as records


OPTIONS = {"seed": 3, "num_candidates": 6, "template": "random", "pool_size": 8, "negatives": "uniform:0.5,hard:0.5"}


@pytest.fixture
def interactions():
    """40 users with 25 of 90 items each; times of users overlap."""
    generator = np.random.default_rng(0)
    item = np.concatenate([generator.permutation(90)[:25] for _ in range(40)])
    user = np.repeat(np.arange(40), 25)
    events = pl.DataFrame({"user_id": user, "item_id": item, "timestamp": np.tile(np.arange(25) * 100, 40) + user})
    items = pl.DataFrame(
        {"item_id": range(90), "title": [f"Film “{number}” ({1950 + number})" for number in range(90)]}
    )
    return Interactions(events, items, "tiny", report={"events_read": 1001})


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr("trl_sdpo.recsys.records.dataset.CHUNK_SIZE", 100)


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def test_what_is_on_disk_is_what_is_built_in_memory(interactions, tmp_path):
    report = prepare(interactions, tmp_path / "out", **OPTIONS)
    built, counts = build_preference_dataset(interactions, domain="items", **OPTIONS)
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train", "validation", "test"]
    for split in built:
        assert loaded[split].features == built[split].features
        assert loaded[split].to_dict() == built[split].to_dict()
        assert report[split].items() >= counts[split].items()
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert report["loader"] == {"events_read": 1001}


def test_bytes_are_the_same_whatever_the_number_of_threads(interactions, tmp_path, small_chunks):
    for workers in (1, 2, 5):
        prepare(interactions, tmp_path / str(workers), num_workers=workers, **OPTIONS)
    first = digests(tmp_path / "1")
    assert set(first) == {
        *(f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")),
        *("report.json", "report.md", "report.png", "recommender.json", "catalogue.json"),
    }
    assert digests(tmp_path / "2") == digests(tmp_path / "5") == first
    prepare(interactions, tmp_path / "other", **OPTIONS | {"seed": 4})
    assert digests(tmp_path / "other")["data/test-00000-of-00001.parquet"] != first["data/test-00000-of-00001.parquet"]


def test_bytes_are_the_same_in_another_process(tmp_path):
    """With other hash seeds and numbers of threads of the libraries, from files."""
    rows = [
        f"{user},{(7 * user + 11 * step) % 60},5.0,{1000 + 40 * step + user}"
        for user in range(30)
        for step in range(20)
    ]
    (tmp_path / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *rows]) + "\n")
    movies = [f"{number},Film {number} (1999),Drama" for number in range(60)]
    (tmp_path / "movies.csv").write_text("\n".join(["movieId,title,genres", *movies]) + "\n")
    command = [sys.executable, "-m", "trl_sdpo.cli", "prepare", "movielens", "--path", str(tmp_path)]
    for number in (1, 2):
        threads = {"POLARS_MAX_THREADS": str(number), "OMP_NUM_THREADS": str(number), "PYTHONHASHSEED": str(number)}
        extra = ["--output", str(tmp_path / f"out{number}"), "--num-workers", str(number), "--num-candidates", "5"]
        subprocess.run([*command, *extra], check=True, env=os.environ | threads, capture_output=True)
    assert digests(tmp_path / "out1") == digests(tmp_path / "out2")
    assert len(digests(tmp_path / "out1")) == 8


def test_the_report_counts_and_says_what_leaks(interactions, tmp_path):
    report = prepare(interactions, tmp_path / "out", split="leave-one-out", max_test_records=20, **OPTIONS)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| events of the split | 920 | 40 | 40 |" in text
    assert "| **records** | 800 | 40 | 20 |" in text
    assert "| dropped: subsampling | 0 | 0 | 20 |" in text
    later = report["leaks"]["train_events_after_evaluation_begins"]
    # 40 users overlap in time: training events of the others while the first user is tested
    assert later == 0
    assert report["leaks"]["users_in_train_and_evaluation"] == 40
    probe = report["leak_probe"]
    assert (probe["split"], probe["n"], probe["chance"]) == ("test", 20, pytest.approx(1 / 6))
    assert f"| history-blind lookup | {probe['hr_at_1']:.3f} |" in text
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("order", ["time", "file-unchecked"])
def test_facts_of_time_are_those_of_the_events(interactions, tmp_path, order):
    """Counted on the source, event by event; rows of a user that stand in no order put the future into histories."""
    shuffled = interactions.events.sample(fraction=1.0, shuffle=True, seed=1).with_columns(pl.col("timestamp") // 300)
    source = Interactions(shuffled, interactions.items, "tiny")
    options = OPTIONS | {"order": order, "existence": "off"}
    report = prepare(source, tmp_path / "out", **options)
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    times = {(user, item): time for user, item, time in shuffled.select("user_id", "item_id", "timestamp").iter_rows()}
    for split, rows in loaded.items():
        facts, later, at, tied = report[split]["record_facts"], 0, 0, 0
        catalogue = load_recommender_files(tmp_path / "out").catalogue
        counts = dict(zip(catalogue.item_ids, catalogue.train_counts, strict=True))
        for record in rows:
            before = [times[record["user_id"], item] for item in record["history_item_ids"]]
            later += sum(time > record["timestamp"] for time in before)
            at += sum(time == record["timestamp"] for time in before)
            same = [key for key, time in times.items() if key[0] == record["user_id"] and time == record["timestamp"]]
            tied += len(same) > 1
        assert (facts["targets"], facts["history_events_later_than_target"]) == (len(rows), later)
        assert facts["history_events_at_time_of_target"] == at
        assert facts["history_events"] == sum(map(len, rows["history_item_ids"]))
        if order == "time":
            assert facts["targets_tied_in_time"] == tied > 0
            assert later == at == 0
        else:
            assert later > 0
        assert facts["targets_without_train_event"] == sum(not counts[str(item)] for item in rows["item_id"])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| events in histories that are later than their target |" in text
    assert "popularity (training events)" in text


def test_what_a_recommender_needs_lies_beside_the_records(interactions, tmp_path):
    """The templates render the prompts of the records, and the catalogue tells the titles and counts of their items."""
    prepare(interactions, tmp_path / "out", min_interactions=11, **OPTIONS | {"template": "question"})
    files = load_recommender_files(tmp_path / "out")
    assert (files.config.history_size, files.config.domain, files.config.source) == (10, "items", "tiny")
    assert (files.config.conversational, files.config.append_eos, files.config.max_length) == (False, None, None)
    titles = dict(zip(files.catalogue.item_ids, files.catalogue.titles, strict=True))
    (template,) = files.config.templates
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    for record in loaded["train"].select(range(0, len(loaded["train"]), 50)):
        assert record["prompt"] == template.render([titles[str(item)] for item in record["history_item_ids"]])
        assert record["chosen"] == template.complete(titles[str(record["item_id"])])
    # the items that have events left, which are not all
    kept = interactions.events.group_by("item_id").len().filter(pl.col("len") >= 11)["item_id"]
    assert set(files.catalogue.item_ids) == set(kept.cast(pl.String)) != set(interactions.items["item_id"])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert 0 < sum(files.catalogue.train_counts) < report["events"]


def test_popularity_in_the_report_is_of_training_events(interactions, tmp_path):
    report = prepare(
        interactions, tmp_path / "out", seed=0, num_candidates=6, negatives="popularity", popularity_alpha=3.0
    )
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    # the last event that is for training, by the times of the first that is not
    end = min(loaded["validation"]["timestamp"])
    train = interactions.events.filter(pl.col("timestamp") < end)
    assert 900 > train.height > 700
    counts = dict(train.group_by("item_id").len().iter_rows())
    found = {}
    for split in ("train", "test"):
        drawn = sorted(counts.get(item, 0) for row in loaded[split]["rejected_item_ids"] for item in row)
        found[split] = report[split]["train_events_of_negatives"]
        assert found[split]["mean"] == pytest.approx(np.mean(drawn), abs=0.006)
        quantiles = [drawn[-(-len(drawn) * share // 100) - 1] for share in (50, 95)]
        assert [found[split][name] for name in ("median", "95%", "max")] == [*quantiles, drawn[-1]]
    assert found["train"]["mean"] > found["test"]["mean"]


def test_without_matplotlib_there_is_a_warning_and_no_figure(interactions, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(preparation_report.importlib.util, "find_spec", lambda name: None)
    prepare(interactions, tmp_path / "out", **OPTIONS)
    assert "matplotlib is not installed" in caplog.text
    assert not (tmp_path / "out" / "report.png").exists()
    assert "report.png" not in (tmp_path / "out" / "report.md").read_text()


def test_nothing_is_left_of_a_run_that_fails(interactions, tmp_path, monkeypatch, small_chunks):
    prepare(interactions, tmp_path / "out", **OPTIONS)
    before = digests(tmp_path / "out")
    build, calls = records.RecordBuilder.build, []

    def break_off(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError("No space left on device")
        return build(self, *args)

    monkeypatch.setattr(records.RecordBuilder, "build", break_off)
    with pytest.raises(OSError, match="No space left"):
        prepare(interactions, tmp_path / "out", overwrite=True, num_workers=1, **OPTIONS | {"seed": 9})
    assert digests(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_in_the_way_is_left_alone(interactions, tmp_path):
    prepare(interactions, tmp_path / "out", **OPTIONS)
    with pytest.raises(FileExistsError, match="holds a data set already"):
        prepare(interactions, tmp_path / "out", **OPTIONS)
    before = digests(tmp_path / "out")
    prepare(interactions, tmp_path / "out", overwrite=True, **OPTIONS | {"seed": 4})
    assert digests(tmp_path / "out") != before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else"):
        prepare(interactions, tmp_path / "thesis", overwrite=True, **OPTIONS)
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "mine"


def test_an_unknown_option_is_an_error_before_anything_is_read(tmp_path):
    with pytest.raises(TypeError, match="histroy_size"):
        prepare("movielens", tmp_path / "out", path=tmp_path / "nothing", histroy_size=3)
    with pytest.raises(ValueError, match="num_workers=0 is below 1"):
        prepare(make_small(), tmp_path / "out", num_workers=0, num_candidates=3)


def make_small():
    events = pl.DataFrame({"user_id": [1] * 20, "item_id": list(range(20)), "timestamp": list(range(20))})
    items = pl.DataFrame({"item_id": range(30), "title": [f"Film {number}" for number in range(30)]})
    both = pl.concat([events, events.with_columns(user_id=pl.lit(2, dtype=pl.Int64), item_id=pl.col("item_id") + 10)])
    return Interactions(both, items, "small")
