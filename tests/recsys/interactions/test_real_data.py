"""
The loaders on the files of the publishers, which may not be passed on with the tests.

`TRL_SDPO_DATA` is the folder in which `ml-100k`, `ml-latest-small`, `hetrec2011-lastfm-2k`, `goodbooks-10k-v1` and
`goodreads` lie, `TRL_SDPO_RECBOLE` the wheel of RecBole 1.2.1. What is not there is not asked for. Run by
`python -m pytest -m real_data`; the same loaders on made-up files are in tests/recsys/interactions/sources.
"""

import os
import shutil
import zipfile
from pathlib import Path

import polars as pl
import pytest

from trl_sdpo.recsys import load_goodbooks, load_goodreads, load_lastfm, load_movielens, load_recbole, load_sdpo_json
from trl_sdpo.recsys.interactions.movielens_100k import RECBOLE_MOVIELENS_100K


DATA, WHEEL = (
    Path(os.environ[name]) if os.environ.get(name) else None for name in ("TRL_SDPO_DATA", "TRL_SDPO_RECBOLE")
)


pytestmark = pytest.mark.real_data


def at_hand(*names):
    missing = [name for name in names if DATA is None or not (DATA / name).exists()]
    return pytest.mark.skipif(bool(missing), reason=f"TRL_SDPO_DATA does not hold {', '.join(missing)}")


def size(interactions):
    users, items = (interactions.events[column].n_unique() for column in ("user_id", "item_id"))
    return interactions.events.height, users, items, interactions.items.height


@at_hand("ml-100k")
def test_movielens_100k():
    interactions = load_movielens(DATA / "ml-100k")
    assert size(interactions) == (99_693, 943, 1664, 1664)
    assert interactions.report["items_merged"] == 18
    assert size(load_movielens(DATA / "ml-100k", merge_titles=False)) == (100_000, 943, 1682, 1682)


@at_hand("ml-latest-small")
def test_movielens_latest_small():
    interactions = load_movielens(DATA / "ml-latest-small")
    assert interactions.report["events_read"] == 100_836
    assert interactions.report["items_read"] == 9_742
    assert interactions.report["items_merged"] == 5
    assert interactions.events["user_id"].n_unique() == 610


@at_hand("ml-1m/ratings.sample.dat")
def test_movielens_1m(tmp_path):
    """All of its titles, and the few lines of its ratings that are at hand."""
    shutil.copy(DATA / "ml-1m" / "movies.dat", tmp_path)
    shutil.copy(DATA / "ml-1m" / "ratings.sample.dat", tmp_path / "ratings.dat")
    interactions = load_movielens(tmp_path)
    assert interactions.report["items_read"] == 3_883
    assert interactions.items["title"].str.contains(r" \(\d{4}\)$").all()
    assert interactions.events.rows()[0] == (1, 1193, 5.0, 978300760)


@at_hand("ml-100k")
@pytest.mark.skipif(WHEEL is None, reason="TRL_SDPO_RECBOLE is not set")
def test_the_copies_of_movielens_100k_agree_on_all_titles(tmp_path):
    with zipfile.ZipFile(WHEEL) as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if name.startswith(RECBOLE_MOVIELENS_100K)])
    for merge_titles, count in ((False, 1682), (True, 1664)):
        ours = load_movielens(DATA / "ml-100k", merge_titles=merge_titles)
        theirs = load_recbole(tmp_path / RECBOLE_MOVIELENS_100K, merge_titles=merge_titles)
        assert ours.items.height == count
        assert ours.items.sort("item_id").equals(theirs.items.sort("item_id"))
        order = ["user_id", "timestamp", "item_id"]
        assert ours.events.sort(order).equals(theirs.events.select(ours.events.columns).sort(order))


@at_hand("hetrec2011-lastfm-2k")
def test_lastfm_tags():
    interactions = load_lastfm(DATA / "hetrec2011-lastfm-2k")
    report = interactions.report
    assert (report["events_read"], report["items_read"], report["items_unknown"]) == (186_479, 17_632, 390)
    # One user tagged nobody but artists without a name.
    assert interactions.events["user_id"].n_unique() == 1_891
    # Five rows of 1956 to 1979, two of them by one user for one artist at one time
    assert (interactions.events["timestamp"] < 10 * 365 * 86_400).sum() == 4


@at_hand("hetrec2011-lastfm-2k/user_taggedartists-timestamps.DERIVED.dat")
def test_lastfm_timestamps_are_the_dates_to_the_day(tmp_path):
    source = DATA / "hetrec2011-lastfm-2k"
    shutil.copy(source / "artists.dat", tmp_path)
    shutil.copy(source / "user_taggedartists-timestamps.DERIVED.dat", tmp_path / "user_taggedartists-timestamps.dat")
    times, dates = load_lastfm(tmp_path).events, load_lastfm(source).events
    assert times.select("user_id", "item_id").equals(dates.select("user_id", "item_id"))
    assert ((times["timestamp"] - dates["timestamp"]).abs() < 86_400).all()


@at_hand("hetrec2011-lastfm-2k")
def test_lastfm_plays():
    interactions = load_lastfm(DATA / "hetrec2011-lastfm-2k", events="plays")
    assert interactions.report["events_read"] == 92_834
    assert interactions.events["user_id"].n_unique() == 1_892


@at_hand("goodbooks-10k-v1")
def test_goodbooks():
    interactions = load_goodbooks(DATA / "goodbooks-10k-v1")
    assert size(interactions) == (981_756, 53_424, 10_000, 10_000)
    assert interactions.items["title"][0] == "The Hunger Games (The Hunger Games, #1)"


@at_hand("goodreads/goodreads_interactions.head.csv")
def test_goodreads_csv(tmp_path):
    """The first 20,000 rows, with a map and books that are made up."""
    text = (DATA / "goodreads" / "goodreads_interactions.head.csv").read_text()
    (tmp_path / "goodreads_interactions.csv").write_text(text)
    rows = pl.read_csv(tmp_path / "goodreads_interactions.csv")
    books = rows["book_id"].unique().sort()
    pl.DataFrame({"book_id_csv": books, "book_id": books + 1000}).write_csv(tmp_path / "book_id_map.csv")
    titles = pl.format("Book {}", "book_id")
    catalogue = pl.DataFrame({"book_id": (books + 1000).cast(pl.String)}).with_columns(titles.alias("title"))
    catalogue.with_columns(title_without_series="title").write_ndjson(tmp_path / "goodreads_books.json")
    interactions = load_goodreads(tmp_path)
    assert interactions.events.height == rows.height == 20_000
    assert interactions.events["item_id"].to_list() == (rows["book_id"] + 1000).to_list()
    read = load_goodreads(tmp_path, read_only=True)
    assert read.events.height == rows["is_read"].sum()
    assert read.report["events_not_read"] == rows.height - read.events.height


@at_hand("lastfm-sdpo-json/lastfm-val.json", "lastfm-sdpo-json/lastfm-test.json")
def test_published_records():
    for name, count in (("val", 2_767), ("test", 2_495)):
        assert len(load_sdpo_json(DATA / "lastfm-sdpo-json" / f"lastfm-{name}.json")) == count
