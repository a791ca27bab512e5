"""Data sets by name, from a local server in place of the publishers, and from a path."""

import gzip
import hashlib
import json
import logging
from dataclasses import replace

import pytest

from trl_sdpo.recsys import load_source
from trl_sdpo.recsys.interactions import published
from trl_sdpo.recsys.interactions import registry as sources


RATINGS = "userId,movieId,rating,timestamp\r\n1,7,4.0,964982703\r\n2,7,0.5,964981247\r\n"
MOVIES = 'movieId,title,genres\r\n7,"Harbour, The (1994)",Drama\r\n'
EVENT = {"user_id": "a", "book_id": "3", "is_read": True, "rating": 4, "read_at": "Thu Aug 17 15:15:28 -0700 2017"}
BOOK = {"book_id": "3", "title": "Night Harbour", "title_without_series": "Night Harbour"}


@pytest.fixture(autouse=True)
def fresh(sealed):
    published.show_terms.cache_clear()


@pytest.fixture
def publish(monkeypatch, server):
    """Puts the files of a data set on the local server, with the checksum of their content or another."""

    def publish(name, files, checksum=None):
        urls = {server.add(f"/{file}", body): checksum for file, body in files.items()}
        monkeypatch.setitem(published.SOURCES, name, replace(published.SOURCES[name], files=urls))

    return publish


@pytest.fixture
def archive(zipped):
    return zipped({"ml-x/ratings.csv": RATINGS, "ml-x/movies.csv": MOVIES})


def zipped_lines(record):
    return gzip.compress(json.dumps(record).encode() + b"\n")


def test_an_archive_is_downloaded_unpacked_and_cached(publish, server, archive, tmp_path):
    publish("movielens-25m", {"ml-25m.zip": archive}, f"md5:{hashlib.md5(archive).hexdigest()}")
    for _ in range(2):
        interactions = load_source("movielens-25m")
        assert interactions.items["title"].to_list() == ["The Harbour (1994)"]
        assert interactions.events.height == 2
    assert server.seen == ["/ml-25m.zip"] * 2
    names = {path.name for path in (tmp_path / "cache").rglob("*") if path.suffix != ".lock"}
    assert names == {"movielens-25m", "ml-x", "ratings.csv", "movies.csv"}


def test_an_archive_of_another_content(publish, archive):
    publish("movielens-25m", {"ml-25m.zip": archive}, "md5:0123")
    with pytest.raises(ValueError, match=r"ml-25m\.zip is not the expected file: its MD5 is not 0123"):
        load_source("movielens-25m")


def test_an_archive_that_would_write_elsewhere(publish, zipped, tmp_path):
    publish("movielens-25m", {"ml-25m.zip": zipped({"../ratings.csv": RATINGS})})
    with pytest.raises(
        ValueError, match=r"member '\.\./ratings\.csv' points outside the archive, nothing was unpacked"
    ):
        load_source("movielens-25m")
    assert not list(tmp_path.rglob("ratings.csv"))


@pytest.mark.parametrize("text", ["MD5 (ml-latest.zip) = {}\n", "{}  ml-latest.zip\n"])
def test_the_checksum_of_a_file_that_changes_is_the_publishers(publish, server, archive, text):
    publish("movielens-latest", {"ml-latest.zip": archive}, published.PUBLISHED_MD5)
    server.add("/ml-latest.zip.md5", text.format("0" * 32).encode())
    with pytest.raises(ValueError, match="its MD5 is not 0000"):
        load_source("movielens-latest")
    server.add("/ml-latest.zip.md5", text.format(hashlib.md5(archive).hexdigest()).encode())
    assert load_source("movielens-latest").events.height == 2


def test_a_checksum_that_cannot_be_had_is_said(publish, server, archive, caplog):
    publish("movielens-latest", {"ml-latest.zip": archive}, published.PUBLISHED_MD5)
    assert load_source("movielens-latest").events.height == 2
    assert "ml-latest.zip.md5 cannot be had (HTTP Error 404" in caplog.text


def test_a_page_in_place_of_the_checksum(publish, server, archive):
    publish("movielens-latest", {"ml-latest.zip": archive}, published.PUBLISHED_MD5)
    server.add("/ml-latest.zip.md5", b"<html>please log in</html>")
    with pytest.raises(ValueError, match=r"md5 holds '<html>please log in</html>' instead of a checksum"):
        load_source("movielens-latest")


def test_several_files_are_downloaded_beside_each_other(publish, server):
    files = {
        "goodreads_interactions_poetry.json.gz": zipped_lines(EVENT),
        "goodreads_books_poetry.json.gz": zipped_lines(BOOK),
    }
    publish("goodreads-poetry", files)
    for _ in range(2):
        interactions = load_source("goodreads-poetry", time="read_at")
        assert interactions.events.rows() == [("a", 3, 4.0, 1503008128)]
    assert len(server.seen) == 4


def test_the_terms_are_shown_once_and_for_local_files_too(tmp_path, caplog):
    (tmp_path / "ratings.csv").write_text(RATINGS)
    (tmp_path / "movies.csv").write_text(MOVIES)
    for _ in range(2):
        load_source("movielens-32m", tmp_path)
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [published.MOVIELENS_CSV_TERMS]


def test_every_source_that_is_downloaded_has_terms_and_the_docstring_names_it():
    for name, source in published.SOURCES.items():
        assert source.terms or not source.files, name
        short = name.removeprefix("movielens").removeprefix("goodreads-")
        short = "amazon-CATEGORY" if name.startswith("amazon-") else short
        assert any(f"`{text}`" in sources.load_source.__doc__ for text in (name, short)), name
        for url, checksum in source.files.items():
            assert url.startswith("https://")
            assert url.endswith(".zip") == bool(source.main)
            assert checksum is None or checksum == published.PUBLISHED_MD5 or checksum.startswith(("md5:", "sha256:"))


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (
            "movielens-1n",
            {},
            ValueError,
            "source 'movielens-1n' is not known. Did you mean 'movielens-1m'? Pass one of movi",
        ),
        ("sdpo-json", {}, ValueError, "S-DPO json holds records and no interactions: read it with `load_sdpo_json`"),
        ("recbole", {}, ValueError, "source 'recbole' has nothing to download. Pass the path of your files"),
        ("movielens", {}, ValueError, "source 'movielens' has nothing to download"),
        (
            "lastfm",
            {"evens": "tags"},
            TypeError,
            "source 'lastfm' has no option 'evens', but ['events', 'attributes']",
        ),
        (
            "movielens-100k",
            {"events": "tags"},
            TypeError,
            "source 'movielens-100k' has no option 'events', but ['merge_titles', 'attributes']",
        ),
    ],
)
def test_what_cannot_be_loaded_is_named(source, options, error, message):
    with pytest.raises(error) as caught:
        load_source(source, **options)
    assert message in str(caught.value)


def test_options_reach_the_loader(tmp_path):
    flags = "|".join("0" * 19)
    (tmp_path / "u.data").write_text("1\t7\t5\t100\n2\t8\t3\t50\n")
    (tmp_path / "u.item").write_text("".join(f"{item}|Red River (1948)||||{flags}\n" for item in (7, 8)))
    assert load_source("movielens-100k", tmp_path).items.height == 1
    for value, count in ((False, 2), ("false", 2), ("True", 1)):
        assert load_source("movielens-100k", tmp_path, merge_titles=value).items.height == count
    with pytest.raises(ValueError, match="option 'merge_titles': 'no' is neither true nor false"):
        load_source("movielens-100k", tmp_path, merge_titles="no")


def test_recbole_with_its_options(tmp_path):
    (tmp_path / "tiny.inter").write_text("user_id:token\titem_id:token\n1\t1\n1\t2\n")
    assert load_source("recbole", tmp_path).events.height == 2
