import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from trl_sdpo.recsys import popularity_scorer, read_lists, read_scores, write_lists, write_scores
from trl_sdpo.recsys.baselines.identity import check_same_records, record_identity
from trl_sdpo.recsys.baselines.scores import read_identity


ROWS = {"user_id": [5, 7], "position": [3, 4], "item_id": [1, 2], "rejected_item_ids": [[2, 3], [3, 1]]}


def changed(**columns):
    return record_identity(ROWS | columns)


def test_the_same_records_are_the_same_in_any_form(tmp_path):
    as_text = {**ROWS, "item_id": ["1", "2"], "rejected_item_ids": [["2", "3"], ["3", "1"]], "user_id": ["5", "7"]}
    assert record_identity(ROWS) == record_identity(as_text) == record_identity(Dataset.from_dict(ROWS))
    assert check_same_records(changed(), changed(), "x") == ["user_id", "position", "candidates"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": [5, 8]}, r"x: record 1 was of user 8, where the records at hand have one of user 7"),
        ({"position": [2, 4]}, r"x: record 0 was at position 2, where the records at hand have one at position 3"),
        ({"item_id": [2, 2], "rejected_item_ids": [[1, 3], [3, 1]]}, r"record 0 was of candidates with the digest"),
        ({"rejected_item_ids": [[2, 3], [1, 3]]}, r"record 1 was of candidates with the digest"),
        ({"rejected_item_ids": [[23], [3, 1]]}, r"record 0 was of candidates with the digest"),
    ],
)
def test_what_differs_is_named(columns, message):
    with pytest.raises(ValueError, match=message):
        check_same_records(changed(**columns), changed(), "x")


def test_texts_where_there_are_no_ids():
    rows = {"prompt": ["a"], "chosen": [" A"], "rejected": [[" B"]]}
    messages = {"prompt": [[{}]], "chosen": [[{"content": "A"}]], "rejected": [[[{"content": "B"}]]]}
    assert list(record_identity(rows)) == list(record_identity(messages)) == ["candidates"]
    with pytest.raises(ValueError, match="record 0"):
        check_same_records(record_identity({**rows, "chosen": [" C"]}), record_identity(rows), "x")
    assert record_identity({"item_id": [1]}) == {}
    assert check_same_records({}, changed(), "x") == []


def test_it_travels_with_scores_and_lists(tmp_path):
    scores, lists = [[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]], [["3", "1"], []]
    write_scores(scores, tmp_path / "new" / "scores.parquet", ROWS)
    write_lists(lists, tmp_path / "lists.parquet", Dataset.from_dict(ROWS))
    assert [row.tolist() for row in read_scores(tmp_path / "new" / "scores.parquet", 2)] == scores
    assert read_lists(tmp_path / "lists.parquet") == lists
    for name in ("new/scores.parquet", "lists.parquet"):
        assert read_identity(tmp_path / name) == changed()
    write_scores(scores, tmp_path / "alone.parquet")
    assert read_identity(tmp_path / "alone.parquet") == {}
    with pytest.raises(ValueError, match="1 rows of scores for 2 records"):
        write_scores(scores[:1], tmp_path / "a.parquet", ROWS)
    with pytest.raises(ValueError, match="1 lists for 2 records"):
        write_lists(lists[:1], tmp_path / "a.parquet", ROWS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.parquet", "lists.parquet", "new"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"items": [["1"]]}, r"no column 'item_ids', only \['items'\]"),
        ({"item_ids": [["1"], None]}, "record 1: None is no list of distinct item ids"),
        ({"item_ids": [["1", None]]}, "record 0: .* is no list of distinct item ids"),
        ({"item_ids": [["1", "1"]]}, "record 0: .* is no list of distinct item ids"),
    ],
)
def test_lists_of_other_programs(columns, message, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "lists.parquet")
    with pytest.raises(ValueError, match=message):
        read_lists(tmp_path / "lists.parquet")
    pq.write_table(pa.table({"item_ids": [[1, 2]]}), tmp_path / "lists.parquet")
    assert read_lists(tmp_path / "lists.parquet") == [["1", "2"]]
    (tmp_path / "lists.parquet").write_text("item_ids")
    with pytest.raises(ValueError, match="no Parquet file"):
        read_lists(tmp_path / "lists.parquet")


def test_popularity_is_counted_once(monkeypatch):
    events = pl.DataFrame({"user_id": [1, 1, 2, 2], "item_id": ["a", "b", "b", "c"]})
    scorer = popularity_scorer(events)
    monkeypatch.setattr(pl.Series, "value_counts", None)
    monkeypatch.setattr(pl.DataFrame, "group_by", None)
    for _ in range(2):
        assert [row.tolist() for row in scorer([[], []], [["b", "x"], ["c"]])] == [[2, 0], [1]]
