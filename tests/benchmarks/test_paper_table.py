import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from synthetic_movielens import write_movielens

from benchmarks.paper_table import __main__ as paper_table
from benchmarks.paper_table import models, runs
from benchmarks.paper_table.models import mask_list
from benchmarks.paper_table.plan import SIZES, searched, sweeps, systems
from benchmarks.paper_table.statistics import best_weight, paired_difference, summary, weighted_sum
from trl_sdpo.pipeline import train_title_tokenizer
from trl_sdpo.pipeline.stage_records import chosen_rows
from trl_sdpo.recsys import get_template, read_scores


@pytest.fixture(scope="module")
def movielens_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("movielens")
    write_movielens(folder, rows=3000, seed=0)
    return folder


class InterruptedByTestError(Exception):
    pass


class TestProgram:
    @pytest.fixture(scope="class")
    def run(self, movielens_files, tmp_path_factory):
        """The program, interrupted once in the middle of the table and started again."""
        output = tmp_path_factory.mktemp("table")
        arguments = ["--size", "tiny", "--seeds", "1", "--data", str(movielens_files), "--output_dir", str(output)]
        trained, scored = [], []
        run_stage, log_probs = runs.run_stage, runs.completion_log_probs

        def counting_run_stage(state, make_trainer):
            def counting():
                trained.append(state.directory.relative_to(output / "tiny").as_posix())
                return make_trainer()

            return run_stage(state, counting)

        def interrupted_log_probs(*args, **kwargs):
            scored.append(kwargs["desc"])
            if len(scored) == 5:
                raise InterruptedByTestError
            return log_probs(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            for module in (runs, models):
                patch.setattr(module, "run_stage", counting_run_stage)
            patch.setattr(runs, "completion_log_probs", interrupted_log_probs)
            with pytest.raises(InterruptedByTestError):
                paper_table.main(paper_table.parse_arguments(arguments))
            before = list(trained)
            paper_table.main(paper_table.parse_arguments(arguments))
        return output / "tiny", before, trained

    def test_no_run_is_trained_twice(self, run):
        directory, before, trained = run
        assert before
        assert len(trained) > len(before)
        assert len(trained) == len(set(trained))
        size = SIZES["tiny"]
        table = [point.name for system in systems(size) for point in searched(system, size)]
        assert {name.removeprefix("candidates/runs/") for name in trained if name.startswith("candidates/r")} == set(
            table
        )
        chosen = json.loads((directory / "history" / "chosen.json").read_text())
        (last,) = [run for run in searched(systems(size)[-1], size) if run.name == chosen[f"S-DPO, K = {size.many}"]]
        swept = [run.name for runs in sweeps(last, size).values() for run in runs]
        assert {name.removeprefix("history/runs/") for name in trained if name.startswith("history/r")} == {
            *table,
            *swept,
        }

    def test_results(self, run):
        results = json.loads((run[0] / "results.json").read_text())
        assert set(results["baselines"]) == {
            "popularity", "last-item co-occurrence", "item-kNN", "SASRec", "GRU4Rec",
        }  # fmt: skip
        for style in ("history", "candidates"):
            rows = results["styles"][style]["systems"]
            assert list(rows) == ["SFT", *(system.system for system in systems(SIZES["tiny"]))]
            for row in rows.values():
                assert row["n"] == 20
                assert row["hr@1_ci"][0] <= row["hr@1"] <= row["hr@1_ci"][1]
            assert set(rows["S-DPO, K = 5"]["differences"]) >= {"SFT", "DPO, 1 negative", "SASRec"}
            assert ("generated_valid_ratio" in rows["SFT"]) == (style == "candidates")
        assert [row["value"] for row in results["styles"]["history"]["sweeps"]["K"]] == [1, 5]
        assert len(results["styles"]["history"]["sweeps"]["negatives"]) == 5
        assert len(results["styles"]["history"]["sums"]) == 4

    def test_metrics_are_those_of_the_scores_on_disk(self, run):
        results = json.loads((run[0] / "results.json").read_text())
        scores = read_scores(run[0] / "history" / "sft" / "test.parquet", 20)
        hits = [row[0] > row[1:].max() for row in scores]
        assert results["styles"]["history"]["systems"]["SFT"]["hr@1"] == pytest.approx(np.mean(hits))

    def test_report(self, run):
        text = (run[0] / "results.md").read_text()
        assert "| S-DPO, K = 5 | " in text
        assert "### Sweep of β" in text
        assert (run[0] / "results.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_search_goes_by_mrr_of_validation_records(monkeypatch, tmp_path):
    """With 3e-4 all targets come second (mrr .5), with the others one first and three last (mrr .4, but a hit)."""
    first, second, last = [np.array([target, 4.0, 2.0, 1.0, 0.0]) for target in (5.0, 3.0, -1.0)]
    trained = []

    def score(style, place, split):
        assert split == "validation"
        return [second] * 4 if trained[-1].learning_rate == 3e-4 else [first, last, last, last]

    monkeypatch.setattr(paper_table, "train", lambda style, run, sft: trained.append(run))
    monkeypatch.setattr(paper_table, "score", score)
    size = replace(SIZES["tiny"], learning_rates=(1e-4, 3e-4, 1e-3))
    system = systems(size)[-1]
    chosen = paper_table.choose(SimpleNamespace(size=size, directory=tmp_path), system, {})
    assert chosen == replace(system, learning_rate=3e-4, beta=1.0)
    assert [run.learning_rate for run in trained] == [1e-4, 3e-4, 1e-3]


def test_of_the_list_nothing_is_learned():
    titles = [f"The Picture Number {number} (1995)" for number in range(9)]
    template = get_template("list-and-lines")
    history_header = get_template("lines").text.partition("{history}")[0]
    tokenizer = train_title_tokenizer(titles, [history_header], vocab_size=400)
    prompt, chosen = template.render(titles[:2], titles[2:6]), template.complete(titles[6])
    records = Dataset.from_list([{"prompt": prompt, "chosen": chosen, "rejected": [template.complete(titles[7])]}])
    (row,) = mask_list(chosen_rows(records, "train", tokenizer, "", None, None), tokenizer)
    learned = [token for token, mask in zip(row["input_ids"], row["completion_mask"], strict=True) if mask]
    assert tokenizer.decode(learned) == "".join(f"{title}\n" for title in (*titles[:2], titles[6]))


class TestStatistics:
    def test_a_sure_difference(self):
        users = np.repeat(np.arange(30), 4)
        difference = paired_difference(np.ones(120), np.tile([1, 0, 1, 0], 30), users)
        assert difference["mean"] == 0.5
        assert difference["p"] == pytest.approx(1 / 10_001)

    def test_one_user_is_one_piece_of_evidence(self):
        """200 records of 2 users who agree: nothing is shown, although 200 records would show it."""
        difference = paired_difference(np.ones(200), np.zeros(200), np.repeat([0, 1], 100))
        assert difference["p"] == 0.5

    def test_mean_over_seeds(self):
        first, second = [np.array([2.0, 1.0]), np.array([0.0, 1.0])], [np.array([2.0, 1.0]), np.array([2.0, 1.0])]
        row = summary([first, second])
        assert row["hr@1"] == 0.75
        assert row["hr@1_seeds"] == [0.5, 1.0]

    def test_weight_of_the_better_system(self):
        generator = np.random.default_rng(0)
        good = [np.array([3.0, *generator.normal(size=4)]) for _ in range(50)]
        noise = [generator.normal(size=5) for _ in range(50)]
        assert best_weight(good, noise) > 0.5
        assert best_weight(noise, good) < 0.5
        # scores of different scales weigh the same
        once, scaled = weighted_sum(good, noise, 0.5), weighted_sum([100 * row for row in good], noise, 0.5)
        np.testing.assert_allclose(once, scaled)
