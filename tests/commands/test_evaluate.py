import csv
import json

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model

from helpers.closeness import assert_same_scores
from helpers.prepared_data import TITLES, Prepared
from trl_sdpo import Recommender, copy_recommender_files, save_recommender_files
from trl_sdpo.cli import main
from trl_sdpo.evaluation.fusion import cold_features
from trl_sdpo.recsys import (
    Fusion,
    events_of_records,
    fit_fusion,
    item_knn_scorer,
    ranking_metrics,
    ranks,
    read_scores,
    score_records,
    write_lists,
    write_scores,
)
from trl_sdpo.recsys.metrics.probes import leak_probes
from trl_sdpo.recsys.records.recommender_files import Catalogue, load_recommender_files
from trl_sdpo.scoring.log_probs import implicit_rewards


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return Prepared(tmp_path_factory)


@pytest.fixture
def folders(prepared, llama, tokenizer, tmp_path, monkeypatch):
    """A data set, a model without files of its own, and an adapter with them."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = llama()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model.name_or_path = str(tmp_path / "base")
    adapter = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False))
    adapter.save_pretrained(tmp_path / "s-dpo")
    dataset, _ = prepared()
    copy_recommender_files(dataset, tmp_path / "s-dpo")
    return dataset, tmp_path


def run(*words):
    return main([str(word) for word in words])


class TestEvaluate:
    def test_mutual_information(self, folders, prepared):
        dataset, folder = folders
        words = ["--dataset", dataset, "--model", f"tuned={folder / 's-dpo'}", "--output", folder / "out", "--pmi"]
        assert run("evaluate", *words, "--num_examples", 0) == 0
        results = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
        (ranking,) = results["sections"]
        assert "tuned (mutual information)" in ranking["systems"]
        assert results["settings"]["pmi"] is True
        records, tuned = prepared()[1]["test"], Recommender.from_pretrained(folder / "s-dpo")
        lost = implicit_rewards(tuned.log_probs(records), tuned.log_probs(records, history=False))
        hits = np.mean([row[0] > row[1:].max() for row in lost])
        assert ranking["systems"]["tuned (mutual information)"]["hr@1"] == pytest.approx(hits)

    def test_from_models_to_the_report(self, folders, prepared, capsys):
        dataset, folder = folders
        records = prepared()[1]["test"]
        write_scores(np.random.default_rng(0).normal(size=(len(records), 5)), folder / "sasrec.parquet")
        words = ["--dataset", dataset, "--model", folder / "base", "--model", f"tuned={folder / 's-dpo'}"]
        words += ["--ref_model", "base", "--scores", f"SASRec={folder / 'sasrec.parquet'}", "--output", folder / "out"]
        words += ["--protocol", "ranking", "generation", "catalogue", "--facts", "tuned:num_negatives=15,beta=1"]
        assert run("evaluate", *words, "--num_examples", 2, "--top_k", 5) == 0
        results = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
        ranking, generation, catalogue = results["sections"]
        assert list(ranking["systems"]) == [
            "chance", "popularity", "SASRec", "base", "tuned", "tuned (implicit reward)",
        ]  # fmt: skip
        assert list(generation["systems"]) == list(catalogue["systems"]) == ["chance", "base", "tuned"]
        assert results["dataset"] == {
            "name": dataset.name, "split": "test", "records": len(records), "of": len(records), "source": "tiny",
        }  # fmt: skip
        assert results["facts"] == {"tuned": {"num_negatives": 15.0, "beta": 1.0}}
        assert results["leak_probe"]["n"] == len(records)
        # the scores are those of the recommender, and lie beside the report
        tuned = Recommender.from_pretrained(folder / "s-dpo").log_probs(records)
        for ours, theirs in zip(read_scores(folder / "out" / "scores" / "tuned.parquet"), tuned, strict=True):
            assert_same_scores(ours, theirs)
        base = read_scores(folder / "out" / "scores" / "base.parquet")
        better = [row[0] > row[1:].max() for row in implicit_rewards(tuned, base)]
        assert ranking["systems"]["tuned (implicit reward)"]["hr@1"] == pytest.approx(np.mean(better))
        # lists of the catalogue hold what is not in the history
        assert catalogue["systems"]["tuned"]["n"] == len(records)
        assert "hr@5" in catalogue["systems"]["tuned"]
        out = capsys.readouterr().out
        assert "tuned (implicit reward)" in out
        assert "Leak probe: a lookup that never sees a history" in out
        # the rules are those of the library, in the file and on the terminal
        splits = prepared()[1]
        rules = {one["name"]: one for one in results["leak_probes"]}
        for probe in leak_probes(records, splits["train"]):
            assert (rules[probe.name]["hr_at_1"], rules[probe.name]["ci"]) == (probe.hr_at_1, list(probe.ci))
            assert probe.name in out
        page = (folder / "out" / "results.html").read_text(encoding="utf-8")
        assert page.startswith("<!DOCTYPE html>")
        # nothing of the machine
        assert str(folder) not in page
        assert str(dataset.parent) not in page
        assert (folder / "out" / "results.md").is_file()

    def test_a_sample_is_the_same_for_all(self, folders, prepared):
        dataset, folder = folders
        records = prepared()[1]["test"]
        # of all records, of which only those of the sample count
        write_scores(Recommender.from_pretrained(folder / "s-dpo").log_probs(records), folder / "all.parquet")
        words = ["--dataset", dataset, "--max_records", 6, "--seed", 3]
        words += ["--model", folder / "s-dpo", "--scores", f"file={folder / 'all.parquet'}"]
        assert run("evaluate", *words, "--output", folder / "one") == 0
        first = (folder / "one" / "results.json").read_text(encoding="utf-8")
        results = json.loads(first)
        assert (results["dataset"]["records"], results["dataset"]["of"]) == (6, len(records))
        systems = results["sections"][0]["systems"]
        assert systems["file"]["mrr"] == systems["s-dpo"]["mrr"]
        # scores of a sample go for the same sample
        kept = folder / "one" / "scores" / "s-dpo.parquet"
        again = ["--dataset", dataset, "--max_records", 6, "--seed", 3, "--scores", f"s-dpo={kept}", "--output"]
        assert run("evaluate", *again, folder / "two") == 0
        second = json.loads((folder / "two" / "results.json").read_text(encoding="utf-8"))
        assert second["sections"][0]["systems"]["s-dpo"] == results["sections"][0]["systems"]["s-dpo"]

    def test_a_finished_report_is_not_replaced(self, folders, prepared, capsys):
        dataset, folder = folders
        out, scores = folder / "out", [[2.0, 1.0, 0.0, 0.0, 0.0]] * len(prepared()[1]["test"])
        write_scores(scores, folder / "all.parquet", prepared()[1]["test"])
        words = ["--dataset", dataset, "--output", out, "--max_records", 5]
        assert run("evaluate", *words, "--model", f"a={folder / 's-dpo'}", "--model", f"b={folder / 's-dpo'}") == 0
        assert sorted(path.name for path in (out / "scores").iterdir()) == ["a.parquet", "b.parquet"]
        before = (out / "results.json").read_bytes()
        (out / "_run.json").write_text('{"done": true}')
        assert run("evaluate", *words, "--model", f"b={folder / 's-dpo'}") == 1
        assert f"{out} holds a finished report. Pass --overwrite" in capsys.readouterr().err
        assert (out / "results.json").read_bytes() == before
        assert (out / "_run.json").exists()
        # a mistake after that leaves all as it was, too
        assert (
            run("evaluate", *words, "--overwrite", "--model", folder / "s-dpo", "--scores", "x=nothing.parquet") == 1
        )
        assert (out / "_run.json").exists()
        words += ["--overwrite", "--scores", f"x={folder / 'all.parquet'}", f"old={out / 'scores' / 'a.parquet'}"]
        assert run("evaluate", *words, "--model", f"c={folder / 's-dpo'}") == 0
        # what is no longer in the report is gone, but for what was read; a run has nothing done any more
        assert sorted(path.name for path in (out / "scores").iterdir()) == ["a.parquet", "c.parquet"]
        assert not (out / "_run.json").exists()
        systems = json.loads((out / "results.json").read_text(encoding="utf-8"))["sections"][0]["systems"]
        assert systems["old"] == systems["c"]

    def test_baselines_and_lists_in_every_protocol(self, folders, prepared, capsys):
        dataset, folder = folders
        test = prepared()[1]["test"]
        targets = [[str(item)] for item in test["item_id"]]
        write_lists(targets, folder / "lists.parquet", test)
        words = ["--dataset", dataset, "--output", folder / "out", "--lists", f"oracle={folder / 'lists.parquet'}"]
        words += ["--baseline", "popularity", "item-knn", "--protocol", "ranking", "generation", "catalogue"]
        assert run("evaluate", *words, "--top_k", 3) == 0
        results = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
        ranking, generation, catalogue = results["sections"]
        assert list(ranking["systems"]) == list(generation["systems"]) == ["chance", "popularity", "item-knn"]
        assert list(catalogue["systems"]) == ["chance", "popularity", "item-knn", "oracle"]
        # an answer is the candidate that is ranked first
        for name in ("popularity", "item-knn"):
            assert generation["systems"][name]["hr@1"] == ranking["systems"][name]["hr@1"]
            assert generation["systems"][name]["valid_ratio"] == 1
        assert catalogue["systems"]["oracle"]["hr@1"] == 1
        assert catalogue["label"].startswith("full ranking: lists from all 30 items, without what a user had before")
        # a user takes an item once: what is left is what the user never had
        assert catalogue["repeats"] == 0
        left = [30 - place for place in test["position"]]
        assert catalogue["systems"]["chance"]["hr@3"] == pytest.approx(np.mean([3 / one for one in left]))

    def test_systems_are_fused_by_validation_records(self, folders, prepared, capsys):
        """The fusion is one more system, its weights those of a fit on the validation records, with training counts."""
        dataset, folder = folders
        splits = prepared()[1]
        words = ["--dataset_name", dataset, "--output_dir", folder / "out", "--model_name_or_path", folder / "s-dpo"]
        words += ["--baseline", "popularity", "item-knn", "--fuse", "item-knn", "s-dpo"]
        assert run("evaluate", *words) == 0
        assert "What the fusion adds up" in capsys.readouterr().out
        section = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))["sections"][0]
        assert list(section["systems"]) == ["chance", "popularity", "item-knn", "s-dpo", "fusion"]
        fusion = Fusion.load(folder / "out" / "fusion.json")
        assert fusion.features == ("item-knn", "s-dpo", "log(1 + training events)", "no training event")
        assert section["fusion"]["weights"] == list(fusion.weights)
        # by hand, from the parts
        catalogue = load_recommender_files(dataset).catalogue
        knn = item_knn_scorer(events_of_records(splits["train"]))
        recommender = Recommender.from_pretrained(folder / "s-dpo")
        rows = {split: {"item-knn": score_records(knn, splits[split], desc=None)} for split in ("validation", "test")}
        for split, found in rows.items():
            found["s-dpo"] = recommender.log_probs(splits[split])
            found |= cold_features(splits[split], catalogue)
        again = fit_fusion(rows["validation"], groups=splits["validation"]["user_id"])
        np.testing.assert_allclose(fusion.weights, again.weights, rtol=1e-4, atol=1e-6)
        expected = ranking_metrics(ranks(again.scores(rows["test"])), (1,), groups=splits["test"]["user_id"])
        assert section["systems"]["fusion"]["hr@1"] == pytest.approx(expected["hr@1"])

    def test_all_titles_or_a_search(self, folders, prepared):
        dataset, folder = folders
        words = ["--dataset", dataset, "--model", folder / "s-dpo", "--protocol", "catalogue", "--top_k", 5]
        assert run("evaluate", *words, "--exact", "--output", folder / "exact") == 0
        assert run("evaluate", *words, "--num_beams", 30, "--output", folder / "wide") == 0
        assert run("evaluate", *words, "--repeats", "--output", folder / "repeats") == 0
        exact, wide, repeats = (
            json.loads((folder / name / "results.json").read_text(encoding="utf-8"))["sections"][0]
            for name in ("exact", "wide", "repeats")
        )
        assert exact["systems"] == wide["systems"]
        assert exact["label"] == "full ranking: lists from all 30 items, without what a user had before"
        assert "(beam search, 30 beams: s-dpo)" in wide["label"]
        assert repeats["label"].endswith("(beam search, 10 beams: s-dpo)")
        assert repeats["systems"]["chance"]["hr@5"] == pytest.approx(5 / 30)

    def test_other_prompts_and_other_records_are_refused_before_a_model_is_loaded(
        self, folders, prepared, capsys, monkeypatch
    ):
        dataset, folder = folders
        (listed, _), test = prepared("choose", "candidates"), prepared()[1]["test"]
        write_scores([[1.0, 0, 0, 0, 0]] * len(test), folder / "scores.parquet", test)
        for name in ("user_id", "position"):
            other = test.map(lambda row, name=name: {name: row[name] + 1})
            write_scores([[1.0, 0, 0, 0, 0]] * len(test), folder / f"{name}.parquet", other)
        given = ["--model", folder / "s-dpo", "--output", folder / "out"]
        with monkeypatch.context() as patch:
            patch.setattr(Recommender, "from_pretrained", None)
            assert run("evaluate", "--dataset", listed, *given) == 1
            error = capsys.readouterr().err
            assert "was trained on other prompts than" in error
            assert "templates ['watched'] there, ['choose'] here" in error
            for name, message in (
                ("user_id", f"record 0 was of user {test['user_id'][0] + 1}, where"),
                ("position", f"record 0 was at position {test['position'][0] + 1}, where"),
            ):
                words = ["--dataset", dataset, *given, "--scores", f"x={folder / name}.parquet"]
                assert run("evaluate", *words) == 1
                assert message in capsys.readouterr().err
        assert not (folder / "out").exists()
        words = ["--dataset", listed, *given, "--ignore_differences", "--max_records", 4]
        assert run("evaluate", *words) == 0
        settings = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))["settings"]
        assert settings["differences, s-dpo"] == "templates ['watched'] there, ['choose'] here"

    def test_flags_from_a_file(self, folders, capsys):
        dataset, folder = folders
        config = f"evaluate:\n  dataset: {dataset}\n  model:\n    - s-dpo={folder / 's-dpo'}\n  max_records: 4\n"
        (folder / "run.yaml").write_text(f"{config}  output: {folder / 'out'}\n")
        assert run("evaluate", "--config", folder / "run.yaml") == 0
        assert "4 of" in (folder / "out" / "results.md").read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--model", "a/b"], "--dataset_name is missing"),
            (["--dataset", "{data}", "--output", "out"], "--model_name_or_path is missing, and --scores too"),
            (["--dataset", "{data}", "--model", "x", "--output", "out", "--protocol", "rank"], "'rank' is none of"),
            (["--dataset", "{data}", "--model", "x", "--output", "out", "--max_records", "0"], "--max_records: 0 is below"),
            (["--dataset", "{data}", "--model", "x", "--output", "out", "--lists", "a=b"], "--lists are compared under"),
            (["--dataset", "{data}", "--model", "x", "--output", "out", "--num_beams", "5"], "--num_beams: 5 is below 2 or"),
            (["--dataset", "{data}", "--modle", "x"], "'--modle' is no flag. Did you mean '--model_name_or_path'?"),
        ],
    )  # fmt: skip
    def test_wrong_words(self, folders, words, message, capsys):
        dataset, _ = folders
        with pytest.raises(SystemExit):
            run("evaluate", *[word.format(data=dataset) for word in words])
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--dataset_split", "tset"], "has no split 'tset', only ['train', 'validation', 'test']"),
            (["--model", "s-dpo={folder}/base"], "two systems are called 's-dpo'"),
            (["--scores", "SASRec={folder}/nothing.parquet"], "nothing.parquet"),
            (
                ["--scores", "short={folder}/short.parquet"],
                "short.parquet: scores of 1 records, where --dataset_split test has",
            ),
            (["--fuse", "sasrec"], "--fuse: 'sasrec' is no baseline and no model of this evaluation"),
            (
                ["--fuse", "s-dpo", "--dataset_split", "validation"],
                "--fuse: {dataset} needs a split 'validation' to fit",
            ),
            (["--fuse", "s-dpo", "--protocol", "generation"], "--fuse: scores are fused under --protocol ranking"),
            (["--baseline", "sasrek"], "--baseline: 'sasrek' is none of"),
            (["--facts", "sdpo:beta=1"], "'sdpo' is none of the systems ['s-dpo']"),
            (["--facts", "s-dpo:gamma=1"], "'gamma=1' is not NAME=VALUE"),
            (["--facts", "s-dpo:beta=one"], "'one' is no number"),
        ],
    )
    def test_wrong_values(self, folders, words, message, capsys):
        dataset, folder = folders
        write_scores([[1.0, 0, 0, 0, 0]], folder / "short.parquet")
        given = ["--dataset", dataset, "--model", folder / "s-dpo", "--output", folder / "out"]
        assert run("evaluate", *given, *[word.format(folder=folder) for word in words]) == 1
        assert message.format(dataset=dataset) in capsys.readouterr().err
        assert not (folder / "out" / "results.json").exists()


class TestRecommend:
    def test_one_history(self, folders, capsys):
        _, folder = folders
        assert run("recommend", "--model", folder / "s-dpo", "--history", *TITLES[:3], "--top_k", 2) == 0
        expected = Recommender.from_pretrained(folder / "s-dpo").recommend(TITLES[:3], top_k=2)
        lines = capsys.readouterr().out.splitlines()
        assert lines == [
            f"{place:3}. {item.title}  ({item.item_id})  {item.score:.3f}" for place, item in enumerate(expected, 1)
        ]

    def test_ids_and_candidates(self, folders, capsys):
        _, folder = folders
        words = ["--model", folder / "s-dpo", "--history", "100", "101", "--candidates", *TITLES[5:8]]
        assert run("recommend", *words) == 0
        out = capsys.readouterr().out
        assert len(out.splitlines()) == 3
        assert all(title in out for title in TITLES[5:8])

    def test_lines_in_lines_out(self, folders):
        _, folder = folders
        rows = [{"user_id": "ann", "history": TITLES[:2]}, {"history": [102, 103], "candidates": TITLES[5:7]}]
        text = "\n".join([json.dumps(rows[0]), "", json.dumps(rows[1]), json.dumps(TITLES[3:5])])
        (folder / "in.jsonl").write_text(text)
        words = ["--model", folder / "s-dpo", "--histories", folder / "in.jsonl", "--top_k", 3]
        assert run("recommend", *words, "--output", folder / "new" / "out.jsonl") == 0
        lines = (folder / "new" / "out.jsonl").read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines]
        assert [row["user_id"] for row in found] == ["ann", "3", "4"]
        served = Recommender.from_pretrained(folder / "s-dpo")
        expected = [
            served.recommend(TITLES[:2], top_k=3),
            served.recommend(TITLES[2:4], TITLES[5:7], top_k=3),
            served.recommend(TITLES[3:5], top_k=3),
        ]
        for row, items in zip(found, expected, strict=True):
            assert [one["item_id"] for one in row["recommendations"]] == [item.item_id for item in items]
            assert [one["score"] for one in row["recommendations"]] == pytest.approx(
                [item.score for item in items], abs=1e-4
            )

    def test_events_of_a_csv_in_csv_out(self, folders):
        _, folder = folders
        rows = [("b", TITLES[1], 20), ("a", TITLES[4], 5), ("b", TITLES[0], 10), ("b", TITLES[2], 30)]
        with (folder / "in.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("user_id", "title", "timestamp"), *rows])
        words = ["--model", folder / "s-dpo", "--histories", folder / "in.csv", "--top_k", 2]
        assert run("recommend", *words, "--output", folder / "out.csv") == 0
        with (folder / "out.csv").open(newline="") as file:
            found = list(csv.DictReader(file))
        assert [(row["user_id"], row["rank"]) for row in found] == [("b", "1"), ("b", "2"), ("a", "1"), ("a", "2")]
        served = Recommender.from_pretrained(folder / "s-dpo")
        expected = served.recommend(TITLES[:3], top_k=2)
        assert [(row["item_id"], row["title"]) for row in found[:2]] == [(one.item_id, one.title) for one in expected]
        assert float(found[0]["score"]) == pytest.approx(expected[0].score, abs=1e-4)

    def test_a_column_of_ids_holds_no_titles(self, folders, capsys):
        """The id of one item may be the title of another."""
        _, folder = folders
        files = load_recommender_files(folder / "s-dpo")
        save_recommender_files(folder / "s-dpo", files.config, Catalogue(["7", "8", "9"], ["9", *TITLES[:2]]))
        (folder / "in.csv").write_text("user_id,item_id\na,9\n")
        words = ["--model", folder / "s-dpo", "--histories", folder / "in.csv", "--top_k", 3]
        assert run("recommend", *words) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert {item["item_id"] for item in json.loads(line)["recommendations"]} == {"7", "8"}

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.jsonl", "", "holds no history"),
            ("a.jsonl", "[]", "line 1, 'history': [] is no list of titles or ids"),
            ("a.jsonl", '{"history": ["Heat"]', "line 1: not a JSON"),
            ("a.jsonl", '{"histroy": ["Heat"]}', "line 1, 'history': None is no list"),
            ("a.jsonl", '["Rivr River (1950)"]', "history, row 0: 'Rivr River (1950)' is no title and no id"),
            ("a.csv", "user_id,name\n1,a\n", "no column 'item_id', only ['user_id', 'name']"),
            ("a.csv", "user_id,title\n1,\n", "line 2, column 'title': None is missing"),
            ("a.csv", "user_id,title,timestamp\n1,a,noon\n", "line 2, column 'timestamp': 'noon' is not a number"),
            ("a.csv", "user_id,item_id\n1,999\n", "line 2, item_id: 999 is no id of the 30 items"),
        ],
    )
    def test_bad_files(self, folders, name, text, message, capsys):
        _, folder = folders
        (folder / name).write_text(text)
        assert run("recommend", "--model", folder / "s-dpo", "--histories", folder / name) == 1
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--history", "A"], "--model_name_or_path is missing"),
            (["--model", "m"], "pass either --history or --histories"),
            (["--model", "m", "--history", "A", "--histories", "a.csv"], "pass either --history or --histories"),
            (["--model", "m", "--histories", "a.txt"], "'a.txt' ends in none of .jsonl, .csv"),
            (["--model", "m", "--history", "A", "--output", "a.xml"], "'a.xml' ends in none of"),
        ],
    )
    def test_wrong_words(self, words, message, capsys):
        with pytest.raises(SystemExit):
            run("recommend", *words)
        assert message in capsys.readouterr().err

    def test_a_model_without_files(self, folders, capsys):
        _, folder = folders
        assert run("recommend", "--model", folder / "base", "--history", "A") == 1
        assert (
            "base: has no recommender.json, so how its prompts are worded is unknown. Copy it from the directory that `trl-sdpo prepare` wrote, or pass --template NAME"
            in (capsys.readouterr().err)
        )
