import json

import polars as pl
import pytest

from trl_sdpo import Catalogue
from trl_sdpo.recommender.new_items import read_new_items


@pytest.fixture
def catalogue():
    attributes = {"genres": [["Crime"], None], "year": [1995, 1985], "brand": ["A", None]}
    return Catalogue(["1", "2"], ["Heat", "Ran"], [7, 5], attributes)


def test_items_are_added_behind(catalogue):
    more = catalogue.add([3, "n"], ["Tampopo", "Ikiru"], {"year": [1985, 1952]})
    assert more.item_ids == ("1", "2", "3", "n")
    assert more.titles == ("Heat", "Ran", "Tampopo", "Ikiru")
    assert more.train_counts == (7, 5, 0, 0)
    assert more.attributes == {
        "genres": (["Crime"], None, None, None), "year": (1995, 1985, 1985, 1952), "brand": ("A", None, None, None),
    }  # fmt: skip
    assert len(catalogue) == 2
    assert Catalogue(["1"], ["Heat"]).add(["2"], ["Ran"]).train_counts is None


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ((["1"], ["New"]), "row 2, item_ids: '1' stands in row 0 already"),
        ((["3"], ["Ran"]), "row 2, titles: 'Ran' stands in row 1 already"),
        ((["3"], [" "]), "row 2, titles: ' ' is no text"),
        ((["3"], ["A", "B"]), "new items: 1 item_ids and 2 titles"),
        ((["3"], ["A"], {"year": []}), "new items: 1 item_ids and 0 year"),
        (
            (["3"], ["A"], {"colour": ["red"]}),
            "'colour' is no attribute of the catalogue, which has genres, year, brand",
        ),
    ],
)
def test_what_cannot_be_added_is_named(catalogue, added, message):
    with pytest.raises(ValueError, match=message):
        catalogue.add(*added)


ROWS = [
    {"item_id": 3, "title": "Tampopo", "genres": ["Comedy", "Food"], "year": 1985, "more": 1},
    {"item_id": 4, "title": "Ikiru", "genres": None, "year": None, "more": 2},
]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_files(catalogue, kind, tmp_path):
    path = tmp_path / f"new.{kind}"
    if kind == "csv":
        path.write_text("item_id,title,genres,year,more\n3,Tampopo,Comedy|Food,1985,1\n4,Ikiru,,,2\n")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        pl.DataFrame(ROWS).write_parquet(path)
    more = read_new_items(path, catalogue)
    assert more.item_ids[2:] == ("3", "4")
    assert more.attributes["genres"][2:] == (["Comedy", "Food"], None)
    assert [None if year is None else float(year) for year in more.attributes["year"][2:]] == [1985.0, None]
    assert more.attributes["brand"][2:] == (None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item_id,title\n3,A\n2,B\n", "line 3, column 'item_id': '2' is there already"),
        ("item_id,title\n3,A\n4,Heat\n", "line 3, column 'title': 'Heat' is there already"),
        ("item_id,title\n3,A\n3,B\n", "line 3, column 'item_id': '3' is there already"),
        ("item_id,title\n3,\n", "line 2, column 'title': None is missing"),
        ("item_id,title\n,A\n", "line 2, column 'item_id': None is missing"),
        ("item_id,name\n3,A\n", "no column 'title', only"),
        ("item_id,title\n3,A,x\n", "line 2: 3 fields instead of 2"),
    ],
)
def test_a_bad_line_is_named(catalogue, text, message, tmp_path):
    (tmp_path / "new.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_new_items(tmp_path / "new.csv", catalogue)
