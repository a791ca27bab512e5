"""Amazon Reviews 2023, on made-up rows in the form of its files."""

import gzip
import json

import pytest

from trl_sdpo.recsys import load_amazon, load_source


def review(user, item, rating, time, **more):
    return {
        "rating": rating, "title": "Great", "text": 'a "very" long\ntext', "images": [], "asin": f"{item}X",
        "parent_asin": item, "user_id": user, "timestamp": time, "helpful_vote": 0, "verified_purchase": True, **more,
    }  # fmt: skip


def product(item, title, store="Acme"):
    return {
        "main_category": "All Beauty", "title": title, "average_rating": 4.8, "rating_number": 10, "features": [],
        "description": [], "price": None, "images": [], "videos": [{"title": "A film", "url": "u"}], "store": store,
        "categories": [], "details": {"Brand": "Acme"}, "parent_asin": item, "bought_together": None,
    }  # fmt: skip


REVIEWS = [
    review("AE2", "B01", 5.0, 1588687728923),
    review("AE2", "0123456789", 1.0, 1588687728924),
    review("AG7", "B02", 3.0, 1588687728000),
    review("AG7", "B03", 4.0, 1588687729000),
    review("AG7", "B04", 4.0, 1588687730000),
]
PRODUCTS = [
    product("B01", "Howard  Oil "), product("0123456789", "A Book", store=None), product("B02", ""),
    product("B03", "Howard Oil"),
]  # fmt: skip


def write(path, records):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "All_Beauty.jsonl.gz", REVIEWS)
    write(tmp_path / "meta_All_Beauty.jsonl.gz", PRODUCTS)
    return tmp_path


def test_reviews(folder):
    """Ids stay text, milliseconds stay; items without a title or a line are counted, equal titles merged."""
    interactions = load_amazon(folder, attributes="store, main_category")
    assert load_amazon(folder).items.columns == ["item_id", "title"]
    assert interactions.name == "amazon-All_Beauty"
    assert interactions.events.select("user_id", "item_id", "rating", "timestamp", "nanosecond").rows() == [
        ("AE2", "B01", 5.0, 1588687728, 923_000_000),
        ("AE2", "0123456789", 1.0, 1588687728, 924_000_000),
        ("AG7", "B01", 4.0, 1588687729, 0),
    ]
    assert sorted(interactions.items.select("item_id", "title", "store", "main_category").rows()) == [
        ("0123456789", "A Book", None, "All Beauty"),
        ("B01", "Howard Oil", "Acme", "All Beauty"),
    ]
    report = interactions.report
    assert report["events_read"] == 5
    assert report["items_read"] == 4
    assert (report["items_without_title"], report["items_unknown"], report["events_without_title"]) == (1, 1, 2)
    assert (report["items_merged"], report["events_remapped"]) == (1, 1)


@pytest.mark.parametrize("name", ["All_Beauty.csv", "All_Beauty.csv.gz"])
def test_ratings_alone(folder, name):
    (folder / "All_Beauty.jsonl.gz").unlink()
    lines = "user_id,parent_asin,rating,timestamp\nAE2,B01,5.0,1588687728923\nAG7,0123456789,1.0,1588687728924\n"
    path = folder / name
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    interactions = load_source("amazon", folder)
    assert interactions.events["item_id"].to_list() == ["B01", "0123456789"]
    assert interactions.events["nanosecond"].to_list() == [923_000_000, 924_000_000]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rating": 0.0}, r"All_Beauty.jsonl.gz: record 2, column 'rating': '0' is not from 1 to 5"),
        ({"user_id": " "}, r"record 2, column 'user_id': ' ' is blank"),
        ({"parent_asin": None}, r"record 2, column 'parent_asin': None is blank"),
        ({"timestamp": None}, r"record 2, column 'timestamp': None is missing"),
        ({"timestamp": "yesterday"}, r"record 2, column 'timestamp': 'yesterday' is not a number"),
    ],
)
def test_bad_reviews_are_named(folder, change, message):
    write(folder / "All_Beauty.jsonl.gz", [REVIEWS[0], REVIEWS[1] | change])
    with pytest.raises(ValueError, match=message):
        load_amazon(folder)


def test_bad_files_are_named(folder):
    write(folder / "meta_All_Beauty.jsonl.gz", [*PRODUCTS, PRODUCTS[0]])
    with pytest.raises(ValueError, match=r"record 5, column 'parent_asin': 'B01' is in an earlier record"):
        load_amazon(folder)
    write(folder / "meta_All_Beauty.jsonl.gz", [{**PRODUCTS[0], "parent_asin": ""}])
    with pytest.raises(ValueError, match="record 1, column 'parent_asin': is blank"):
        load_amazon(folder)
    with pytest.raises(ValueError, match="Keep the publisher's names"):
        load_amazon(folder / "meta_All_Beauty.jsonl.gz")
    (folder / "meta_All_Beauty.jsonl.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"meta_All_Beauty.jsonl.gz: missing"):
        load_amazon(folder)
    write(folder / "Books.jsonl", REVIEWS)
    with pytest.raises(FileNotFoundError, match=r"there is .*All_Beauty.jsonl.gz.*Books.jsonl"):
        load_amazon(folder)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_amazon(folder / "nothing")
