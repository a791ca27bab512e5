import numpy as np
import polars as pl
import pytest
from datasets import Dataset

from trl_sdpo.recsys import read_scores, score_records, write_scores


@pytest.fixture
def dataset():
    """Three records with two, one and three negatives."""
    return Dataset.from_dict(
        {
            "history_item_ids": [[1, 2], [], [3]],
            "item_id": [10, 20, 30],
            "rejected_item_ids": [[11, 12], [21], [31, 32, 33]],
        }
    )


def by_number(histories, candidates):
    return [
        [float(item) + 100 * len(history) for item in row] for history, row in zip(histories, candidates, strict=True)
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_target_is_scored_first(dataset, batch_size):
    seen = []

    def scorer(histories, candidates):
        seen.extend(zip(histories, candidates, strict=True))
        return by_number(histories, candidates)

    scores = score_records(scorer, dataset, batch_size=batch_size)
    assert [row.tolist() for row in scores] == [[210, 211, 212], [20, 21], [130, 131, 132, 133]]
    assert all(row.dtype == np.float64 for row in scores)
    assert seen[0] == (["1", "2"], ["10", "11", "12"])


def test_what_a_scorer_may_not_return(dataset):
    with pytest.raises(ValueError, match="scores for 1 records of 2, from record 0"):
        score_records(lambda histories, candidates: [[0.0] * 3], dataset, batch_size=2)
    with pytest.raises(ValueError, match=r"shape \(3,\) for record 1, which has 2 candidates"):
        score_records(lambda histories, candidates: [[0.0] * 3 for _ in candidates], dataset)
    with pytest.raises(ValueError, match="NaN for record 2, candidate '31'"):
        score_records(
            lambda histories, candidates: [[np.nan if item == "31" else 0.0 for item in row] for row in candidates],
            dataset,
            batch_size=1,
        )


def test_records_that_cannot_be_scored(dataset):
    with pytest.raises(ValueError, match="no column 'history_item_ids'"):
        score_records(by_number, dataset.remove_columns("history_item_ids"))
    with pytest.raises(ValueError, match=r"record 1, column 'rejected_item_ids': \[\] holds nothing"):
        score_records(by_number, dataset.to_dict() | {"rejected_item_ids": [[1], [], [2]]})
    with pytest.raises(ValueError, match="record 2, column 'item_id': None"):
        score_records(by_number, dataset.to_dict() | {"item_id": [1, 2, None]})
    with pytest.raises(ValueError, match="no records"):
        score_records(by_number, dataset.select([]))


class TestFile:
    def test_round_trip(self, dataset, tmp_path):
        scores = score_records(by_number, dataset)
        scores[0][1] = -np.inf
        write_scores(scores, tmp_path / "new" / "scores.parquet")
        back = read_scores(tmp_path / "new" / "scores.parquet", num_records=3)
        assert [row.tolist() for row in back] == [row.tolist() for row in scores]
        assert pl.read_parquet(tmp_path / "new" / "scores.parquet").schema == {"scores": pl.List(pl.Float64)}
        assert [file.name for file in (tmp_path / "new").iterdir()] == ["scores.parquet"]

    def test_a_failed_write_leaves_the_former_file(self, tmp_path, monkeypatch):
        path = tmp_path / "scores.parquet"
        write_scores([[1.0, 2.0]], path)

        def fail(table, where):
            where.write_bytes(b"half")
            raise OSError("disk full")

        monkeypatch.setattr("trl_sdpo.recsys.baselines.scores.pq.write_table", fail)
        with pytest.raises(OSError, match="disk full"):
            write_scores([[3.0, 4.0]], path)
        assert [row.tolist() for row in read_scores(path)] == [[1.0, 2.0]]
        assert [file.name for file in tmp_path.iterdir()] == ["scores.parquet"]

    def test_errors(self, tmp_path):
        path = tmp_path / "scores.parquet"
        for rows, message in (
            ([], "no records"),
            ([[1.0], []], "record 1: "),
            ([[1.0], [np.nan]], "record 1: "),
        ):
            with pytest.raises(ValueError, match=message):
                write_scores(rows, path)
        assert not path.exists()
        with pytest.raises(FileNotFoundError):
            read_scores(path)
        write_scores([[1.0, 2.0]], path)
        with pytest.raises(ValueError, match="scores of 1 records, but there are 2"):
            read_scores(path, num_records=2)
        pl.DataFrame({"score": [[1.0]]}).write_parquet(path)
        with pytest.raises(ValueError, match="no column 'scores'"):
            read_scores(path)
        pl.DataFrame({"scores": [[1.0, None]]}).write_parquet(path)
        with pytest.raises(ValueError, match=r"record 0: .*nan"):
            read_scores(path)
        path.write_text("no parquet")
        with pytest.raises(ValueError, match="no Parquet file"):
            read_scores(path)
