import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trl_sdpo import Recommendation
from trl_sdpo.recommender import bulk
from trl_sdpo.recommender.bulk import recommend_file


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(bulk, "CHUNK_SIZE", 16)


@pytest.fixture
def histories(tmp_path):
    """150 histories in row groups that are no multiples of a chunk."""
    rng = random.Random(0)
    table = pa.table(
        {
            "user_id": [f"u{row}" for row in range(150)],
            "history": [[f"t{rng.randrange(9)}" for _ in range(rng.randint(1, 4))] for _ in range(150)],
            "other": range(150),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=37)
    return table


def last_first(rows):
    return [[Recommendation(str(row["row"]), title, -1.0) for title in reversed(row["history"])] for row in rows]


def test_every_row_has_its_list(histories, tmp_path):
    assert recommend_file(tmp_path / "in.parquet", tmp_path / "out.parquet", last_first, {}) == 150
    found = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert found["user_id"] == histories["user_id"].to_pylist()
    assert found["titles"] == [history[::-1] for history in histories["history"].to_pylist()]
    assert [ids[0] for ids in found["item_ids"]] == [str(row) for row in range(150)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


def test_what_was_ended_goes_on_and_ends_with_the_same_bytes(histories, tmp_path):
    recommend_file(tmp_path / "in.parquet", tmp_path / "whole.parquet", last_first, {"top_k": 3})
    calls = []

    def killed(rows):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(rows)
        return last_first(rows)

    with pytest.raises(KeyboardInterrupt):
        recommend_file(tmp_path / "in.parquet", tmp_path / "out.parquet", killed, {"top_k": 3})
    assert not (tmp_path / "out.parquet").exists()
    assert recommend_file(tmp_path / "in.parquet", tmp_path / "out.parquet", last_first, {"top_k": 3}) == 150 - 4 * 16
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


@pytest.mark.parametrize("changed", ["settings", "histories"])
def test_parts_of_another_run_are_not_taken(histories, tmp_path, changed):
    def killed(rows):
        if rows[0]["row"]:
            raise KeyboardInterrupt
        return last_first(rows)

    with pytest.raises(KeyboardInterrupt):
        recommend_file(tmp_path / "in.parquet", tmp_path / "out.parquet", killed, {"top_k": 3})
    if changed == "histories":
        pq.write_table(histories.slice(1), tmp_path / "in.parquet")
    settings = {"top_k": 4 if changed == "settings" else 3}
    count = recommend_file(tmp_path / "in.parquet", tmp_path / "out.parquet", last_first, settings)
    assert count == (150 if changed == "settings" else 149)


def test_processes_share_the_chunks(histories, tmp_path):
    seen = {0: [], 1: []}

    def of(rank):
        return lambda rows: seen[rank].extend(row["row"] for row in rows) or last_first(rows)

    class StopError(Exception):
        pass

    def stop():
        raise StopError

    # the second process computes its part, and the first waits for it before it joins the parts
    (tmp_path / "out.parquet.parts").mkdir()
    barriers = iter([lambda: None, stop])
    with pytest.raises(StopError):
        recommend_file(
            tmp_path / "in.parquet", tmp_path / "out.parquet", of(1), {}, rank=1, world_size=2,
            barrier=lambda: next(barriers)(),
        )  # fmt: skip
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out.parquet.parts").iterdir()}
    barriers = iter(
        [lambda: [(tmp_path / "out.parquet.parts" / n).write_bytes(b) for n, b in kept.items()], *[lambda: None] * 2]
    )
    recommend_file(
        tmp_path / "in.parquet", tmp_path / "out.parquet", of(0), {}, rank=0, world_size=2,
        barrier=lambda: next(barriers)(),
    )  # fmt: skip
    assert sorted(seen[0] + seen[1]) == list(range(150))
    assert set(seen[0]) & set(seen[1]) == set()
    assert pq.read_table(tmp_path / "out.parquet")["user_id"].to_pylist() == histories["user_id"].to_pylist()


@pytest.mark.parametrize(
    ("columns", "words"),
    [({"titles": [["a"]]}, "no column history"), ({"history": ["a, b"]}, "column 'history': is of type string")],
)
def test_a_file_without_lists_is_refused(tmp_path, columns, words):
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    with pytest.raises(ValueError, match=words):
        recommend_file(tmp_path / "in.parquet", tmp_path / "out.parquet", last_first, {})
