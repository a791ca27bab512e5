"""What reads titles and attributes, from records to the report: baselines, mutual information, and a probe of the model."""

import json

import numpy as np
import pytest

from helpers.prepared_data import Prepared
from trl_sdpo import Recommender, copy_recommender_files
from trl_sdpo.cli import main


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture
def base(llama, tokenizer, tmp_path, monkeypatch):
    """A model without files of its own."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    llama().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def movielens(tmp_path):
    """Rows in the format of MovieLens-1M."""
    generator, ratings = np.random.default_rng(0), []
    for user in range(1, 13):
        for place, item in enumerate(generator.permutation(30)[:14]):
            ratings.append(f"{user}::{item + 1}::4::{978300000 + 86400 * place + user}")
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    (folder / "ratings.dat").write_text("\n".join(ratings) + "\n")
    movies = [f"{item + 1}::Film {item} ({1950 + item})::{['Drama', 'War'][item % 2]}" for item in range(30)]
    (folder / "movies.dat").write_text("\n".join(movies) + "\n")
    return folder


def test_baselines_of_what_items_are_like_and_the_probe_of_a_pretrained_model(base, movielens, tmp_path, capsys):
    data = ["--path", movielens, "--num_candidates", 4, "--min_history", 2, "--loader_options", "attributes=genres"]
    assert run("prepare", "movielens-1m", "--output_dir", tmp_path / "data", *data) == 0
    words = ["--dataset_name", tmp_path / "data", "--model_name_or_path", f"base={base}"]
    words += ["--baseline", "content", "text", "sasrec-text", "--output_dir", tmp_path / "out"]
    assert run("evaluate", *words) == 1
    assert "read vectors of titles. Pass --text_model" in capsys.readouterr().err
    words += ["--text_model", base, "--memorisation", movielens]
    assert run("evaluate", *words) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert {"content", "text", "sasrec-text", "base"} <= set(results["sections"][0]["systems"])
    probe = results["memorisation"]["base"]
    assert probe["n"] == 12
    assert probe["ci"][0] < probe["gain"] < probe["ci"][1]
    assert results["settings"]["memorisation probe, base"] == probe["verdict"]
    assert "next titles are" in capsys.readouterr().out


def test_mutual_information_of_the_catalogue(base, tmp_path, tmp_path_factory):
    folder, dataset = Prepared(tmp_path_factory)()
    copy_recommender_files(folder, base)
    words = ["--dataset_name", folder, "--model_name_or_path", f"tuned={base}", "--pmi", "--top_k", 5]
    words += ["--protocol", "catalogue", "--output_dir", tmp_path / "out", "--max_records", 6]
    assert run("evaluate", *words, "--num_examples", 0) == 0
    (section,) = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["sections"]
    assert list(section["systems"]) == ["chance", "tuned", "tuned (mutual information)"]
    records = dataset["test"]
    rows = np.sort(np.random.default_rng(0).choice(len(records), 6, replace=False))
    tuned, hits = Recommender.from_pretrained(base), []
    for row in (records[int(row)] for row in rows):
        had, history = [list(map(str, row["consumed_item_ids"]))], [list(map(str, row["history_item_ids"]))]
        (found,) = tuned.recommend_ids(history, top_k=5, exclude=had, exclude_history=False, score="pmi")
        hits.append(str(row["item_id"]) in [item.item_id for item in found])
    assert section["systems"]["tuned (mutual information)"]["hr@5"] == pytest.approx(np.mean(hits))
