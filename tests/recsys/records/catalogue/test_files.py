"""A large catalogue is a Parquet file, and nobody who reads it can tell."""

import json
import pickle

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.prepared_data import make_interactions
from trl_sdpo import (
    Catalogue,
    RecommenderConfig,
    RecommenderFiles,
    copy_recommender_files,
    load_recommender_files,
    save_recommender_files,
)
from trl_sdpo.recsys import Interactions, get_template, load_prepared, prepare
from trl_sdpo.recsys.records.catalogue import files
from trl_sdpo.recsys.records.catalogue.columns import ParquetColumn, TextRows


CONFIG = RecommenderConfig([get_template("watched")])
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(str.strip)
VALUES = st.one_of(
    *[
        st.lists(st.none() | kind, min_size=6, max_size=6)
        for kind in (
            TEXTS,
            st.integers(-(2**70), 2**70),
            st.integers(-5, 5),
            st.floats(allow_nan=False, allow_infinity=False),
            st.booleans(),
            st.lists(TEXTS, max_size=3),
            st.lists(st.integers(0, 9) | TEXTS, max_size=3),
            st.booleans() | st.integers(0, 9) | TEXTS,
        )
    ]
)


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(files, "PARQUET_FROM", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("catalogue")


@settings(deadline=None, max_examples=60)
@given(
    ids=st.lists(NAMES, min_size=6, max_size=6, unique=True),
    titles=st.lists(NAMES, min_size=6, max_size=6, unique=True),
    counts=st.none() | st.lists(st.integers(0, 2**40), min_size=6, max_size=6),
    attributes=st.dictionaries(NAMES.filter(lambda name: name not in ("item_id", "title")), VALUES, max_size=3),
)
def test_it_comes_back_as_it_was(folder, ids, titles, counts, attributes):
    catalogue = Catalogue(ids, titles, counts, attributes)
    found = files.read_catalogue(files.write_catalogue(folder / "catalogue.parquet", catalogue))
    assert found == catalogue
    assert json.dumps([*found.attributes.values()], default=list) == json.dumps([*catalogue.attributes.values()])
    assert found.titles[1:3] == catalogue.titles[1:3]
    assert found.titles[::-2] == catalogue.titles[::-2]
    assert found.titles[-1] == catalogue.titles[-1]
    assert pickle.loads(pickle.dumps(found)) == catalogue
    assert found.add(["new " * 3], ["a new title"]).titles == (*titles, "a new title")
    rows = TextRows(found.titles)
    assert [rows.get(title) for title in titles] == [*range(6)]
    assert rows.get("no title of these") is None


def test_columns_are_read_when_they_are_asked_for(tmp_path):
    path = tmp_path / "catalogue.parquet"
    files.write_catalogue(path, Catalogue(["1", "2"], ["A", "B"], [3, 4], {"year": [1995, 1985]}))
    found = files.read_catalogue(path)
    assert found.attributes["year"]._read is found.train_counts._read is None
    # another file in its place changes nothing of what was read, or was not yet
    files.write_catalogue(path, Catalogue(["1", "2"], ["C", "D"], [5, 6], {"year": [1, 2]}))
    assert found.attributes["year"] == (1995, 1985)
    assert found.train_counts == (3, 4)
    assert found.titles == ("A", "B") != files.read_catalogue(path).titles
    with pytest.raises(IndexError, match="no place 2"):
        found.titles[2]


def test_the_form_is_chosen_by_size_and_there_is_one(tmp_path, large):
    small, big = Catalogue(["1"], ["A"]), Catalogue(["1", "2"], ["A", "B"], [3, 4])
    written = save_recommender_files(tmp_path, CONFIG, big)
    assert [path.name for path in written] == ["recommender.json", "catalogue.parquet"]
    assert isinstance(load_recommender_files(tmp_path).catalogue.titles, ParquetColumn)
    assert load_recommender_files(tmp_path) == RecommenderFiles(CONFIG, big)
    save_recommender_files(tmp_path, CONFIG, small)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalogue.json", "recommender.json"]
    save_recommender_files(tmp_path / "model", CONFIG, big)
    copied = copy_recommender_files(tmp_path, tmp_path / "model")
    assert sorted(copied) == sorted((tmp_path / "model").iterdir())
    save_recommender_files(tmp_path, CONFIG, big)
    copied = copy_recommender_files(tmp_path, tmp_path / "model")
    assert sorted(copied) == sorted((tmp_path / "model").iterdir())
    assert load_recommender_files(tmp_path / "model") == RecommenderFiles(CONFIG, big)
    # what was read from a file is written as what it is
    loaded = load_recommender_files(tmp_path).catalogue
    files.PARQUET_FROM = 3  # the fixture puts it back
    save_recommender_files(tmp_path / "other", CONFIG, loaded)
    assert json.loads((tmp_path / "other" / "catalogue.json").read_text())["titles"] == ["A", "B"]


def test_what_is_wrong_is_named(tmp_path, large):
    save_recommender_files(tmp_path, CONFIG, Catalogue(["1", "2"], ["A", "B"]))
    path = tmp_path / "catalogue.parquet"
    table = pq.read_table(path)
    (tmp_path / "catalogue.json").write_text('{"format_version": 1, "item_ids": ["1"], "titles": ["A"]}')
    with pytest.raises(ValueError, match=r"has both catalogue\.json and catalogue\.parquet"):
        load_recommender_files(tmp_path)
    (tmp_path / "catalogue.json").unlink()
    pq.write_table(table.set_column(1, "title", [["A", "A"]]), path)
    with pytest.raises(ValueError, match=r"catalogue\.parquet: .*row 1, titles: 'A' stands in row 0 already"):
        load_recommender_files(tmp_path)
    pq.write_table(table.drop_columns(["title"]), path)
    with pytest.raises(ValueError, match=r"catalogue\.parquet: there is no column 'title'"):
        load_recommender_files(tmp_path)
    later = json.dumps({"format_version": 2}).encode()
    pq.write_table(table.replace_schema_metadata({b"trl_sdpo.catalogue": later}), path)
    with pytest.raises(ValueError, match=r"catalogue\.parquet: format_version is 2, where .* reads up to 1"):
        load_recommender_files(tmp_path)
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"catalogue\.parquet: no Parquet file"):
        load_recommender_files(tmp_path)
    with pytest.raises(ValueError, match="an attribute is called 'title'"):
        files.write_catalogue(path, Catalogue(["1"], ["A"], attributes={"title": ["B"]}))


@pytest.mark.parametrize("form", ["text", "ids"])
def test_a_prepared_data_set_has_one_file_for_records_and_recommenders(tmp_path, monkeypatch, form):
    monkeypatch.setattr("trl_sdpo.recsys.records.preparation.plot_report", lambda *args: False)  # takes a second
    interactions = make_interactions()
    born = pl.date_range(pl.date(1990, 1, 1), pl.date(1990, 1, 30), eager=True)
    genres = [["Drama", "War"] if number % 2 else None for number in range(interactions.items.height)]
    items = interactions.items.with_columns(genres=pl.Series(genres), train_counts=pl.int_range(30), born=born)
    interactions = Interactions(interactions.events, items, "tiny")
    options = {"num_candidates": 5, "num_workers": 1, "form": form}
    prepare(interactions, tmp_path / "small", **options)
    monkeypatch.setattr(files, "PARQUET_FROM", 20)
    prepare(interactions, tmp_path / "large", **options)
    assert not (tmp_path / "large" / "catalogue.json").exists()
    small, large = (load_recommender_files(tmp_path / name) for name in ("small", "large"))
    assert isinstance(large.catalogue.titles, ParquetColumn)
    assert large == small
    assert large.catalogue.attributes["born"][1] == "1990-01-02"
    one, other = (load_prepared(tmp_path / name)["test"] for name in ("small", "large"))
    assert [*one] == [*other]
    assert isinstance(one[0]["chosen"], str)
