import json

import pytest
from datasets import Dataset, DatasetDict

from trl_sdpo.pipeline.datasets import load_records, select_split
from trl_sdpo.recsys import load_sdpo_json


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def sdpo_rows(num=4):
    """Made-up records in the form of the published files; every second history is a list."""
    titles = [f"Band {number}" for number in range(9)]
    rows = []
    for index in range(num):
        history = titles[index : index + 3]
        rows.append(
            {
                "historyList": history if index % 2 else "::".join(history),
                "itemList": titles[index + 3 : index + 6],
                "trueSelection": titles[index + 4],
            }
        )
    return rows


def test_sdpo_json_becomes_records(tmp_path):
    path = tmp_path / "music-train.json"
    path.write_text(json.dumps(sdpo_rows()))
    records = load_records(str(path))
    assert list(records) == ["train"]
    assert records["train"].to_list() == load_sdpo_json(path).to_list()
    music = load_records(str(path), template="music-watched")["train"][1]
    assert music["prompt"] == "This user has heard Band 1, Band 2, Band 3. Next:"
    assert (music["chosen"], music["rejected"]) == (" Band 5", [" Band 4", " Band 6"])


def test_a_folder_of_sdpo_json_has_its_splits(tmp_path):
    folder = tmp_path / "music"
    folder.mkdir()
    rows = [row for row in sdpo_rows(5) if isinstance(row["historyList"], str)]
    for name in ("train", "val", "test"):
        (folder / f"music-{name}.json").write_text(json.dumps(rows))
    records = load_records(str(folder))
    assert set(records) == {"train", "validation", "test"}
    assert records["validation"].to_list() == load_sdpo_json(folder / "music-val.json").to_list()


def test_a_malformed_record_of_sdpo_json_is_named(tmp_path):
    rows = sdpo_rows()
    rows[2]["trueSelection"] = "Nobody"
    (tmp_path / "train.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"train.json, record 2: trueSelection 'Nobody' is not in itemList"):
        load_records(str(tmp_path / "train.json"))


@pytest.mark.parametrize("names", [("rejected1", "rejected2"), ("rejected_1", "rejected_2")])
def test_flat_columns_become_lists(tmp_path, names):
    rows = [{"prompt": "Next:", "chosen": " A", names[0]: " B", names[1]: " C" if index else None} for index in (1, 0)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records = load_records(str(tmp_path / "train.jsonl"))["train"]
    assert records["rejected"] == [[" B", " C"], [" B"]]


def test_what_is_in_the_format_stays_as_it_is(tmp_path, records):
    rows = records(4, 2, 3)
    dataset = Dataset.from_list(rows)
    DatasetDict({"train": dataset, "validation": dataset}).save_to_disk(tmp_path / "saved")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset.to_parquet(tmp_path / "rows.parquet")
    for name in ("rows.json", "rows.jsonl", "rows.parquet"):
        assert load_records(str(tmp_path / name))["train"].to_list() == rows
    saved = load_records(str(tmp_path / "saved"))
    assert set(saved) == {"train", "validation"}
    assert saved["validation"].to_list() == rows
    assert list(load_records(str(tmp_path / "rows.jsonl"), streaming=True)["train"]) == rows


def test_mistakes_are_named(tmp_path, records):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, records(2))))
    (tmp_path / "broken.jsonl").write_text('{"prompt": "Next:", ')
    (tmp_path / "rows.txt").write_text("Next:")
    with pytest.raises(ValueError, match=r"template` 'choose' has no use"):
        load_records(str(tmp_path / "rows.jsonl"), template="choose")
    with pytest.raises(ValueError, match=r"rows.txt: the end of the name is none of \['.json'"):
        load_records(str(tmp_path / "rows.txt"))
    with pytest.raises(ValueError, match=r"broken.jsonl' cannot be read"):
        load_records(str(tmp_path / "broken.jsonl"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_records(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no split 'test', only \['train'\]. Pass one of them as --x"):
        select_split({"train": None}, "test", "--x", "mine")


def test_a_mistyped_path_is_told_without_asking_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("trl_sdpo.pipeline.datasets.load_dataset", lambda *args, **options: pytest.fail("asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("data/mnie", "./mine", "outputs/mine.jsonl", "a/b/c", str(tmp_path / "mine")):
        with pytest.raises(FileNotFoundError, match="no such file or directory, and no name of a dataset"):
            load_records(name)


def test_words_that_pandas_takes_for_missing_are_titles(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected1,rejected2\nNext:,NA,null,\nNext:,None,Ran,nan\n")
    records = load_records(str(tmp_path / "rows.csv"))["train"]
    assert records["chosen"] == ["NA", "None"]
    assert records["rejected"] == [["null"], ["Ran", "nan"]]


def test_ranked_lists_become_records(tmp_path):
    rows = [{"prompt": "Next:", "ranked": [" A", " B", " C"]}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (row,) = load_records(str(tmp_path / "train.jsonl"))["train"]
    expected = {"prompt": "Next:", "chosen": " A", "rejected": [" B", " C"], "chosen_score": 2.0}
    assert row == {**expected, "rejected_scores": [1.0, 0.0]}
