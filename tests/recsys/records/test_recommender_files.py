import dataclasses
import json

import polars as pl
import pytest

from helpers.prepared_data import make_interactions
from trl_sdpo import (
    Catalogue,
    RecommenderConfig,
    RecommenderFiles,
    copy_recommender_files,
    load_recommender_files,
    save_recommender_files,
)
from trl_sdpo.recsys import Interactions, PromptTemplate, get_template, prepare
from trl_sdpo.recsys.records.recommender_files import check_model


CONFIG = RecommenderConfig(
    [
        get_template("lines"),
        PromptTemplate("mine", "history", "Gesehen: {history}. Nächster:", history_separator=" → "),
    ],
    history_size=5,
    append_eos=False,
    max_length=128,
    domain="movies",
    source="tiny",
)
CATALOGUE = Catalogue([7, "b"], ["Amélie (2001)", 'The "Best" <Film>'], [3, 0])


def test_what_is_saved_is_loaded(tmp_path):
    written = save_recommender_files(tmp_path / "new" / "model", CONFIG, CATALOGUE)
    assert [path.name for path in written] == ["recommender.json", "catalogue.json"]
    assert load_recommender_files(tmp_path / "new" / "model") == RecommenderFiles(CONFIG, CATALOGUE)
    assert CATALOGUE.item_ids == ("7", "b")
    assert "Amélie" in (tmp_path / "new" / "model" / "catalogue.json").read_text(encoding="utf-8")


def test_a_catalogue_stays_when_only_the_wording_is_saved_again(tmp_path):
    save_recommender_files(tmp_path, CONFIG, CATALOGUE)
    other = dataclasses.replace(CONFIG, history_size=3)
    save_recommender_files(tmp_path, other)
    assert load_recommender_files(tmp_path) == RecommenderFiles(other, CATALOGUE)


def test_a_directory_without_files_has_none(tmp_path):
    assert load_recommender_files(tmp_path) == RecommenderFiles(None, None)
    assert copy_recommender_files(tmp_path, tmp_path / "other") == []
    assert not (tmp_path / "other").exists()


def test_files_are_copied_to_a_model(tmp_path):
    save_recommender_files(tmp_path / "data", CONFIG, CATALOGUE)
    written = copy_recommender_files(tmp_path / "data", tmp_path / "model")
    assert sorted(written) == sorted((tmp_path / "model").iterdir())
    assert load_recommender_files(tmp_path / "model") == RecommenderFiles(CONFIG, CATALOGUE)
    assert copy_recommender_files(tmp_path / "data", tmp_path / "data") == []
    assert load_recommender_files(tmp_path / "data") == RecommenderFiles(CONFIG, CATALOGUE)


def test_no_catalogue_of_other_data_stays_beside_a_model(tmp_path):
    save_recommender_files(tmp_path / "model", CONFIG, CATALOGUE)
    save_recommender_files(tmp_path / "data", dataclasses.replace(CONFIG, history_size=3))
    copy_recommender_files(tmp_path / "data", tmp_path / "model")
    assert load_recommender_files(tmp_path / "model").catalogue is None


def test_a_write_that_fails_leaves_the_file_before_it(tmp_path, monkeypatch):
    save_recommender_files(tmp_path, CONFIG, CATALOGUE)

    def no_space(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        save_recommender_files(tmp_path, dataclasses.replace(CONFIG, history_size=3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalogue.json", "recommender.json"]
    assert load_recommender_files(tmp_path) == RecommenderFiles(CONFIG, CATALOGUE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"recommender\.json: no JSON object .* Copy the file again\. Make it with `trl_sdpo\.save_recommender_files"),
        ("[]", r"recommender\.json: no JSON object"),
        ('{"templates": []}', r"format_version is None, so this is another kind of file"),
        ('{"format_version": 2, "templates": []}', r"format_version 2 is of a later version of trl-sdpo"),
        ('{"format_version": 1, "templates": []}', r"templates is empty\. Pass at least one"),
        ('{"format_version": 1, "templates": [], "colour": 1}', r"unexpected keyword argument 'colour'"),
        ('{"format_version": 1, "templates": [{"name": "a", "style": "history", "text": "x"}]}', r"text lacks {history}"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, text, message):
    (tmp_path / "recommender.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recommender_files(tmp_path)
    with pytest.raises(ValueError, match=message):
        copy_recommender_files(tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([], []), "no items"),
        (([1, 2], ["A"]), "2 item_ids and 1 titles"),
        (([1, 2], ["A", "B"], [1]), "2 item_ids and 1 train_counts"),
        (([1, "1"], ["A", "B"]), "row 1, item_ids: '1' stands in row 0 already"),
        (([1, 2, 3], ["A", "B", "A"]), "row 2, titles: 'A' stands in row 0 already"),
        (([1, 2], ["A", " "]), "row 1, titles: ' ' is no text"),
        (([1, 2], ["A", None]), "row 1, titles: None is no text"),
    ],
)
def test_a_catalogue_is_checked(columns, message):
    with pytest.raises(ValueError, match=message):
        Catalogue(*columns)


def test_a_configuration_is_checked():
    with pytest.raises(ValueError, match="history_size=0 is no whole number from 1"):
        RecommenderConfig([get_template("lines")], history_size=0)
    with pytest.raises(ValueError, match=r"templates\[0\] is 'lines'"):
        RecommenderConfig(["lines"])


def test_an_id_that_nobody_knows(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(OSError, match=r"no such directory here, and recommender\.json could neither be fetched"):
        load_recommender_files("nobody/nothing", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="neither a directory nor the id of a repository"):
        load_recommender_files("outputs/of/mine")


def test_json_is_plain(tmp_path):
    """Other programs read it: columns of the catalogue, fields of the templates."""
    save_recommender_files(tmp_path, CONFIG, CATALOGUE)
    assert json.loads((tmp_path / "catalogue.json").read_text(encoding="utf-8")) == {
        "format_version": 1,
        "item_ids": ["7", "b"],
        "titles": ["Amélie (2001)", 'The "Best" <Film>'],
        "train_counts": [3, 0],
    }
    content = json.loads((tmp_path / "recommender.json").read_text(encoding="utf-8"))
    assert content["templates"][0]["completion_suffix"] == "\n"
    assert content["append_eos"] is False


def test_attributes_of_items_travel(tmp_path):
    catalogue = Catalogue(
        ["1", "2"], ["Heat (1995)", "Ran (1985)"], attributes={"genres": [["Crime"], None], "year": [1995, 1985]}
    )
    save_recommender_files(tmp_path, RecommenderConfig([get_template("watched")]), catalogue)
    assert load_recommender_files(tmp_path).catalogue.attributes == {"genres": (["Crime"], None), "year": (1995, 1985)}
    with pytest.raises(ValueError, match="2 item_ids and 1 year"):
        Catalogue(["1", "2"], ["a", "b"], attributes={"year": [1]})


def test_other_columns_of_the_items_are_attributes_of_the_catalogue(tmp_path):
    interactions = make_interactions()
    genres = [["Drama", "War"] if number % 2 else None for number in range(interactions.items.height)]
    items = interactions.items.with_columns(genres=pl.Series(genres), year=pl.int_range(pl.len()))
    prepare(
        Interactions(interactions.events, items.reverse(), "tiny"), tmp_path / "set", num_candidates=5, num_workers=1
    )
    catalogue = load_recommender_files(tmp_path / "set").catalogue
    years = dict(zip(catalogue.item_ids, catalogue.attributes["year"], strict=True))
    assert years == {str(row["item_id"]): row["year"] for row in items.to_dicts()}
    assert catalogue.attributes["genres"][:2] == (None, ["Drama", "War"])


class TestAModelThatIsNotThere:
    def test_a_name_with_a_typo_names_the_nearest_folder(self, tmp_path, monkeypatch):
        (tmp_path / "outputs" / "mine").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(OSError, match="Did you mean 'outputs/mine'"):
            check_model("outptus/mine")
        with pytest.raises(ValueError, match="neither a directory nor the id of a repository"):
            check_model("outputs/mine/s-dpo")

    def test_a_folder_says_what_it_is(self, tmp_path):
        with pytest.raises(ValueError, match="is no model"):
            check_model(tmp_path)
        (tmp_path / "report.json").write_text("{}")
        with pytest.raises(ValueError, match="is a prepared data set"):
            check_model(tmp_path)

    @pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
    def test_a_model_passes(self, tmp_path, name):
        (tmp_path / name).write_text("{}")
        check_model(tmp_path)
