"""Records as rows of a catalogue show what records as text hold: record by record, column by column, in every command."""

import json
import shutil

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.tiny_models import build_llama, build_tokenizer
from trl_sdpo import Recommender, SoftmaxDPOConfig
from trl_sdpo.cli import main
from trl_sdpo.commands.demo import load_users
from trl_sdpo.data_utils import plain_records
from trl_sdpo.evaluation.baselines import consumed_items
from trl_sdpo.evaluation.breakdowns import training_steps
from trl_sdpo.evaluation.probing import probe_all
from trl_sdpo.pipeline.datasets import load_records
from trl_sdpo.pipeline.digests import digest_of_records
from trl_sdpo.pipeline.stage_records import completions_are_lines, non_overlapping_windows
from trl_sdpo.recsys import Interactions, load_prepared, prepare
from trl_sdpo.recsys.baselines.identity import record_identity
from trl_sdpo.recsys.metrics.facts import record_facts
from trl_sdpo.recsys.records import compact, preparation
from trl_sdpo.recsys.records.recommender_files import load_recommender_files
from trl_sdpo.scoring.generation import generate_answers
from trl_sdpo.scoring.log_probs import completion_log_probs
from trl_sdpo.scoring.mining import mine_negatives
from trl_sdpo.trainer.dataset_preparation import prepare_multi_preference, with_first_example


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def interactions(seed=0, text_ids=False, users=14, items=60, length=12):
    generator = np.random.default_rng(seed)
    item = np.concatenate([generator.permutation(items)[:length] for _ in range(users)])
    user = np.repeat(np.arange(users), length)
    names = [f"i{number:03d}" for number in range(items)] if text_ids else list(range(items))
    events = pl.DataFrame(
        {
            "user_id": [f"u{number}" for number in user] if text_ids else user,
            "item_id": [names[number] for number in item],
            "timestamp": np.tile(np.arange(length) * 100, users) + 7 * user,
        }
    )
    catalogue = {"item_id": names, "title": [f"Film “{number}” ({1950 + number})" for number in range(items)]}
    catalogue["genres"] = [[f"Genre {number % 5}", f"Genre {number % 3}"] for number in range(items)]
    return Interactions(events, pl.DataFrame(catalogue), "tiny")


def both(folder, **options):
    source = interactions(options.pop("source_seed", 0), options.pop("text_ids", False))
    for form in ("text", "ids"):
        prepare(source, folder / form, form=form, overwrite=True, **options)
    return load_dataset(str(folder / "text")), load_prepared(folder / "ids")


OPTIONS = st.fixed_dictionaries(
    {
        "source_seed": st.integers(0, 1000),
        "text_ids": st.booleans(),
        "seed": st.integers(0, 100),
        "prompt_style": st.sampled_from(["history", "candidates"]),
        "template": st.sampled_from([None, "random"]),
        "conversational": st.booleans(),
        "history_size": st.integers(1, 5),
        "num_candidates": st.integers(2, 5),
        "pool_size": st.sampled_from([None, 7]),
        "merge_repeats": st.booleans(),
        "item_format": st.sampled_from([None, "{title}[ ({genres:2})]"]),
        "completion_format": st.sampled_from([None, "[{genres:1}: ]{title}"]),
    }
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(OPTIONS)
def test_both_forms_show_the_same(tmp_path_factory, options):
    folder = tmp_path_factory.mktemp("forms")
    texts, rendered = both(folder, **options)
    assert list(texts) == list(rendered)
    for split, expected in texts.items():
        found = rendered[split]
        assert found.column_names == expected.column_names
        assert found[:] == expected[:]
        assert list(found) == list(expected)
        assert found[len(found) - 1] == expected[len(found) - 1]
        assert found.select([2, 0]).select_columns(["rejected", "prompt"])[:] == {
            name: expected.select([2, 0])[name][:] for name in ("rejected", "prompt")
        }
        for name in expected.column_names:
            assert found[name][:] == expected[name][:]
            assert found[name][1] == expected[name][1]
        assert plain_records(found).to_dict() == expected.to_dict()
        streamed = list(load_prepared(folder / "ids", streaming=True)[split])
        assert streamed == list(expected)
    shutil.rmtree(folder)


def test_what_reads_records_reads_both_forms_alike(tmp_path):
    texts, rendered = both(tmp_path)
    for path in ("text", "ids"):
        loaded = load_records(str(tmp_path / path))
        assert {split: records[:] for split, records in loaded.items()} == {
            split: records[:] for split, records in texts.items()
        }
    one_file = load_records(str(tmp_path / "ids" / "data" / "test-00000-of-00001.parquet"))
    assert one_file["train"][:] == texts["test"][:]
    train, test = texts["train"], texts["test"]
    catalogue = load_recommender_files(tmp_path / "ids").catalogue
    assert probe_all(rendered, "test", rendered["test"], catalogue) == probe_all(texts, "test", test, catalogue)
    assert record_facts(rendered["test"], [rendered["train"]]) == record_facts(test, [train])
    assert training_steps(rendered["train"]) == training_steps(train)
    assert consumed_items(rendered["test"]) == consumed_items(test)
    assert consumed_items(rendered["train"], [rendered["test"]]) == consumed_items(train, [test])
    assert record_identity(rendered["test"]) == record_identity(test)
    assert completions_are_lines(rendered["train"]) is completions_are_lines(train)
    windows = [non_overlapping_windows(one, window=4, epochs=2, seed=1)[:] for one in (rendered["train"], train)]
    assert windows[0] == windows[1]
    names = ("prompt", "rejected", "item_id")
    assert digest_of_records(rendered["train"], names) == digest_of_records(train, names)


def test_the_trainer_takes_the_same_tokens(tmp_path):
    texts, rendered = both(tmp_path)
    tokenizer = build_tokenizer()
    args = SoftmaxDPOConfig(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, max_length=400)
    tokens = [
        prepare_multi_preference(with_first_example(one, "train")[0], tokenizer, args, "train")
        for one in (texts["train"], rendered["train"])
    ]
    assert (
        tokens[0].select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])[:]
        == (tokens[1].select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])[:])
    )


def test_what_scores_records_scores_both_forms_alike(tmp_path):
    texts, rendered = (one["test"].select(range(6)) for one in both(tmp_path, num_candidates=5, pool_size=7))
    tokenizer = build_tokenizer()
    model = build_llama(len(tokenizer)).eval()
    scores = [completion_log_probs(model, one, tokenizer) for one in (texts, rendered)]
    for expected, found in zip(*scores, strict=True):
        np.testing.assert_array_equal(found, expected)
    answers = [generate_answers(model, one, tokenizer, max_new_tokens=3) for one in (texts, rendered)]
    assert answers[0] == answers[1]
    mined = [mine_negatives(one, model, tokenizer, num_negatives=2) for one in (texts, rendered)]
    assert mined[0].column_names == mined[1].column_names
    assert mined[0].to_dict() == mined[1].to_dict()


def test_commands_go_from_ids_on_disk_to_lists_and_write_no_text(tmp_path, monkeypatch):
    """The records of a run are rendered as they are read: no title of theirs gets into the cache of `datasets`."""
    monkeypatch.chdir(tmp_path)
    prepare(interactions(), "data", form="ids", num_candidates=5)
    tokenizer = build_tokenizer()
    build_llama(len(tokenizer)).save_pretrained("base")
    tokenizer.save_pretrained("base")
    quick = ("--dataset_name", "data", "--max_steps", "1", "--per_device_train_batch_size", "2", "--use_cpu")
    assert not main(["sft", *quick, "--model_name_or_path", "base", "--output_dir", "sft"])
    words = ["--model_name_or_path", "sft", "--output_dir", "s-dpo", "--num_negatives", "2"]
    assert not main(["train", *quick, *words])
    assert "eval_mrr" in json.loads((tmp_path / "s-dpo" / "all_results.json").read_text())
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if "Film “".encode() in path.read_bytes()] == []

    # histories in the records' own file are item ids, and not rows of the catalogue
    words = ["--histories", "data/data/test-00000-of-00001.parquet", "--top_k", "3", "--num_beams", "3"]
    assert not main(["recommend", "--model_name_or_path", "s-dpo", *words, "--output", "lists.parquet"])
    lists, records = pq.read_table("lists.parquet").to_pylist(), load_prepared("data")["test"]
    assert [row["user_id"] for row in lists] == [str(user) for user in records["user_id"]]
    catalogue = load_recommender_files("data").catalogue
    titles = dict(zip(catalogue.item_ids, catalogue.titles, strict=True))
    for row, record in zip(lists, records, strict=True):
        assert [titles[item] for item in row["item_ids"]] == row["titles"]
        assert not set(row["item_ids"]) & set(map(str, record["history_item_ids"]))

    recommender = Recommender.from_pretrained("s-dpo")
    users = load_users("data", {"s-dpo": recommender})
    assert [user.history for user in users[:1]] == [[str(item) for item in records[0]["history_item_ids"]]]


def test_evaluate_says_the_same_of_both_forms(tmp_path):
    both(tmp_path)
    found = {}
    for form in ("text", "ids"):
        output = tmp_path / f"report-{form}"
        words = ["--dataset_name", tmp_path / form, "--output", output, "--baseline", "popularity", "item-knn"]
        assert not main(["evaluate", *map(str, words), "--protocol", "ranking", "generation", "catalogue"])
        found[form] = json.loads((output / "results.json").read_text(encoding="utf-8"))
        found[form]["dataset"].pop("name")
    assert found["ids"] == found["text"]


def test_large_sets_are_ids_and_say_so(tmp_path, monkeypatch, caplog):
    small = prepare(interactions(), tmp_path / "small")
    assert small["form"] == "text"
    assert not (tmp_path / "small" / "catalogue.parquet").exists()
    monkeypatch.setattr(compact, "LARGEST_TEXT_FORM", 1000)
    with caplog.at_level("WARNING"):
        large = prepare(interactions(), tmp_path / "large")
    assert large["form"] == "ids"
    assert "rows of catalogue.parquet" in caplog.text
    assert "load_prepared" in (tmp_path / "large" / "report.md").read_text()
    chosen = prepare(interactions(), tmp_path / "chosen", form="text")
    assert chosen["form"] == "text"
    assert chosen["form_reason"].startswith("chosen; ")
    with pytest.raises(ValueError, match="form='codes' is none of"):
        prepare(interactions(), tmp_path / "no", form="codes")


@pytest.mark.parametrize("form", ["text", "ids"])
def test_shards_are_one_data_set(tmp_path, monkeypatch, form):
    prepare(interactions(), tmp_path / "whole", form=form)
    monkeypatch.setattr(preparation, "_RECORDS_PER_FILE", 30)
    monkeypatch.setattr("trl_sdpo.recsys.records.dataset.CHUNK_SIZE", 10)
    report = prepare(interactions(), tmp_path / "shards", form=form)
    count = report["train"]["records"]
    paths = sorted((tmp_path / "shards" / "data").glob("train-*"))
    assert [path.name for path in paths] == [
        f"train-{number:05d}-of-{len(paths):05d}.parquet" for number in range(len(paths))
    ]
    assert [pq.read_metadata(path).num_rows for path in paths] == [30] * (count // 30) + [count % 30] * (
        count % 30 > 0
    )
    whole, shards = load_prepared(tmp_path / "whole"), load_prepared(tmp_path / "shards")
    assert {split: one[:] for split, one in whole.items()} == {split: one[:] for split, one in shards.items()}


def test_a_dictionary_holds_what_its_row_group_uses(tmp_path):
    """Of a large catalogue a few titles occur: the file holds these."""
    prepare(interactions(users=3, items=5000, length=30), tmp_path / "out", num_candidates=3, existence="off")
    with pq.ParquetFile(tmp_path / "out" / "data" / "test-00000-of-00001.parquet") as file:
        group = file.metadata.row_group(0)
        sizes = {
            group.column(at).path_in_schema: group.column(at).total_uncompressed_size
            for at in range(group.num_columns)
        }
    assert sizes["chosen"] < 2000


def test_a_catalogue_that_is_missing_or_of_another_version_is_an_error(tmp_path):
    both(tmp_path)
    path = tmp_path / "ids" / "catalogue.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(ValueError, match="format_version is None"):
        load_prepared(tmp_path / "ids")
    path.unlink()
    with pytest.raises(ValueError, match=r"no catalogue\.parquet to render them of"):
        load_records(str(tmp_path / "ids"))
