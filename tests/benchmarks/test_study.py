import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from synthetic_movielens import write_movielens

from benchmarks.study import __main__ as study
from benchmarks.study import data
from benchmarks.study.plan import MORE_SFT, SIZES, SOURCES, systems
from benchmarks.study.report import differences, paired_difference, summary
from benchmarks.study.scores import BASELINES, SASREC_TEXT, TEXT
from trl_sdpo.recsys import read_scores


NAME = "ml-latest-small"


class InterruptedByTestError(Exception):
    pass


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The program on made-up films, interrupted once in the second stage and started again."""
    files, output = tmp_path_factory.mktemp("movielens"), tmp_path_factory.mktemp("study")
    write_movielens(files, rows=3000, seed=0)
    arguments = ["--size", "tiny", "--seeds", "2", "--datasets", NAME, "--paths", f"{NAME}={files}"]
    options = study.parse_arguments([*arguments, "--output_dir", str(output)])
    trained, train = [], study.train

    def interrupted(setting, system, *args):
        trained.append(system.name)
        if len(trained) == 5:
            raise InterruptedByTestError
        return train(setting, system, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "train", interrupted)
        with pytest.raises(InterruptedByTestError):
            study.main(options)
        begun = {path: path.stat().st_mtime_ns for path in (output / "tiny").rglob("train_results.json")}
        study.main(options)
    return output / "tiny", begun


@pytest.fixture(scope="module")
def results(run):
    return json.loads((run[0] / NAME / "results.json").read_text())


class TestProgram:
    def test_no_stage_is_trained_twice(self, run):
        assert len(run[1]) >= 4
        assert all(path.stat().st_mtime_ns == time for path, time in run[1].items())

    def test_all_systems_are_there(self, results):
        names = [system.name for system in systems(SOURCES[NAME])]
        assert {*BASELINES, TEXT, SASREC_TEXT, "SFT", "SFT, titles alone", *names} <= set(results["systems"])
        assert all(
            len(results["systems"][name]["seeds"]) == 1 for name in names if "ratings" in name or "hard" in name
        )
        for name in (MORE_SFT, "DPO, 1 negative", "S-DPO, K = 15"):
            rows = results["systems"][name], results["fusion"][f"ids + {name}"], results["cold"][name]
            assert [len(row["seeds"]) for row in rows] == [2, 2, 2]
        for row in (results["systems"] | results["fusion"]).values():
            assert row["n"] == SIZES["tiny"].test_records
            assert row["ci"][0] <= row["hr@1"] <= row["ci"][1]
        compared = {(row["system"], row["minus"]) for row in results["differences"]}
        assert compared >= {(name, other) for name in names for other in ("SFT", MORE_SFT) if name != other}
        assert set(results["catalogue"]) >= {"popularity", "SFT", "S-DPO, K = 15"}
        assert [point["effective_number"] for point in results["negatives"]["S-DPO, K = 3"]]

    def test_metrics_are_those_of_the_scores_on_disk(self, run, results):
        scores = read_scores(run[0] / NAME / "attributes" / "sft" / "test.parquet", 30)
        assert results["systems"]["SFT"]["hr@1"] == pytest.approx(np.mean([row[0] > row[1:].max() for row in scores]))

    def test_report(self, run):
        text = (run[0] / "results.md").read_text()
        assert "| S-DPO, K = 15 | 0.001 | " in text
        assert (run[0] / "results.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

    def test_attributes_stand_before_titles(self, run):
        records = pl.read_parquet(run[0] / NAME / "attributes" / "data" / "data" / "test-*.parquet")
        assert records["chosen"].str.contains(r"^\d{3}0s Drama, Comedy: The Picture Number").all()
        plain = pl.read_parquet(run[0] / NAME / "titles" / "data" / "data" / "test-*.parquet")
        assert plain["chosen"].str.starts_with("The Picture Number").all()
        assert plain["rejected_item_ids"].to_list() == records["rejected_item_ids"].to_list()

    def test_the_learning_rate_is_that_of_the_highest_mrr_on_validation(self, run, results):
        point = next(row for row in results["search"] if row["system"] == MORE_SFT)
        folder = run[0] / NAME / "attributes" / systems(SOURCES[NAME])[0].folder(point["learning_rate"], 0)
        scores = read_scores(folder / "validation.parquet")
        mrr = np.mean([1 / (1 + (row[1:] >= row[0]).sum()) for row in scores])
        assert point["mrr"] == pytest.approx(mrr)
        assert point["chosen"]


def test_tags_of_artists_are_those_of_the_training_period(tmp_path):
    """Artists are called "rock" by 9 users in January 2005, and "new" by three in 2010, when the test begins."""
    rows = [(user, item, 1, user + 1, 1, 2005) for user in range(9) for item in (1, 2, 3)]
    rows += [(user, 1, 2, 1, 1, year) for year in (2009, 2010) for user in range(year, year + 3)]
    (tmp_path / "user_taggedartists.dat").write_text(
        "\n".join(
            "\t".join(map(str, row)) for row in [("userID", "artistID", "tagID", "day", "month", "year"), *rows, ()]
        )
    )
    (tmp_path / "artists.dat").write_text(
        "id\tname\turl\tpictureURL\n" + "".join(f"{item}\tArtist {item}\tu\tp\n" for item in (1, 2, 3))
    )
    (tmp_path / "tags.dat").write_bytes("tagID\ttagValue\r\n1\tRock\r\n2\tnew\r\n".encode("latin-1"))
    interactions = data.load_interactions(SOURCES["lastfm"], Path(tmp_path))
    assert interactions.items["tags"].to_list() == [["rock"]] * 3


class TestStatistics:
    def test_one_user_is_one_piece_of_evidence(self):
        """200 records of 2 users who agree: nothing is shown, although 200 records would show it."""
        assert paired_difference(np.ones(200), np.zeros(200), np.repeat([0, 1], 100))["p"] == 0.5

    def test_a_sure_difference(self):
        users = np.repeat(np.arange(30), 4)
        difference = paired_difference(np.ones(120), np.tile([1, 0, 1, 0], 30), users)
        assert difference["mean"] == 0.5
        assert difference["p"] == pytest.approx(1 / 10_001)

    def test_mean_over_seeds(self):
        row = summary([np.array([1.0, 2.0]), np.array([1.0, 1.0])], ["ann", "bob"])
        assert row["hr@1"] == 0.75
        assert row["seeds"] == [0.5, 1.0]

    def test_p_values_are_corrected_over_the_table(self):
        users = np.arange(40)
        placed = {"a": [np.ones(40)], "b": [np.full(40, 2.0)], "c": [np.ones(40)]}
        rows = differences(placed, [("a", "b"), ("a", "c"), ("a", "a"), ("a", "d")], users)
        assert [(row["system"], row["minus"]) for row in rows] == [("a", "b"), ("a", "c")]
        assert rows[0]["p_holm"] == pytest.approx(2 * rows[0]["p"])
        assert rows[1]["mean"] == 0


def test_the_second_stage_begins_with_the_checkpoint(run):
    config = json.loads(next((run[0] / NAME / "attributes" / "runs").glob("*/adapter_config.json")).read_text())
    assert config["base_model_name_or_path"] == str(run[0] / NAME / "attributes" / "sft")
