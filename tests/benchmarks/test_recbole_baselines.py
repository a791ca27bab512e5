import importlib.util
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from trl_sdpo.recsys import Interactions, events_of_records, prepare, read_scores


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "baselines" / "recbole_baselines.py"


def load():
    spec = importlib.util.spec_from_file_location("recbole_baselines", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared data set of users who walk through the items in a circle."""
    generator = np.random.default_rng(0)
    rows = [
        (user, (start + place) % 30, 100 * place + user)
        for user, start in enumerate(generator.integers(30, size=40).tolist())
        for place in range(14)
    ]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    items = pl.DataFrame({"item_id": range(30), "title": [f"Item {item}" for item in range(30)]})
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare(Interactions(events, items, "made up"), folder, seed=0, num_candidates=5)
    return folder


def test_what_recbole_reads(data, tmp_path):
    """The part that needs no RecBole."""
    script = load()
    records = script.read_records(data, "train")
    script.write_atomic_file(records, tmp_path)
    lines = (tmp_path / "records" / "records.train.inter").read_text().splitlines()
    assert lines[0] == "user_id:token\titem_id_list:token_seq\titem_id:token"
    assert len(lines) == 1 + len(records["item_id"])
    user, history, item = lines[1].split("\t")
    events = events_of_records({**pl.read_parquet(data / "data" / "train-*.parquet").to_dict(as_series=False)})
    own = events.filter(pl.col("user_id") == int(user))["item_id"].to_list()
    assert [*history.split(" "), item] == own[: len(history.split(" ")) + 1]
    script.write_scores([[1.0, 2.0], [3.0]], tmp_path / "scores.parquet")
    assert [row.tolist() for row in read_scores(tmp_path / "scores.parquet", 2)] == [[1, 2], [3]]
    assert script.hit_rate([[1.0, 0.5], [1.0, 1.0], [0.0, 1.0]]) == pytest.approx(1 / 3)
    with pytest.raises(SystemExit, match=r"no data/test-\*\.parquet"):
        script.read_records(tmp_path, "test")
