import gzip
import json
import re

import pytest

from trl_sdpo.recsys import load_goodreads, load_source


AUGUST, MAY = "Thu Aug 17 15:15:28 -0700 2017", "Sun May 07 00:00:01 +0000 2017"
AUGUST_S, MAY_S = 1503008128, 1494115201


def event(user, book, **fields):
    """Made up, in the format of the publisher."""
    defaults = {"user_id": user * 32, "book_id": str(book), "review_id": "0" * 32, "is_read": True, "rating": 4}
    times = {"date_added": MAY, "date_updated": AUGUST, "read_at": "", "started_at": ""}
    return defaults | {"review_text_incomplete": ""} | times | fields


def book(number, title, bare=None):
    bare = title if bare is None else bare
    nested = {"series": ["9"], "authors": [{"author_id": "3", "role": ""}], "ratings_count": "5", "isbn": ""}
    return {"book_id": str(number), "title": title, "title_without_series": bare, **nested}


EVENTS = [
    event("b", 3, read_at=MAY),
    event("b", 1, is_read=False, rating=0),
    event("a", 1, read_at="Sat Jan 01 00:00:00 -0800 12", date_updated=""),
    event("a", 2, read_at="", date_updated="", date_added=""),
    event("a", 4, read_at="Sat Jan 01 00:00:00 -0800 1724"),
    event("a", 8),
    event("a", 77),
    event("c", 3),
]
BOOKS = [
    book(3, "Night  Harbour (The Coast, #2)", "Night Harbour"),
    book(1, "Été à Paris"),
    book(2, "Winter Light (Seven Doors, #1-2)"),
    book(4, "Night Harbour (The Coast, #2)", "Night Harbour (The Coast, #2)"),
    book(8, ""),
]


def lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "goodreads_interactions_poetry.json.gz", lines(EVENTS))
    write(tmp_path / "goodreads_books_poetry.json.gz", lines(BOOKS))
    return tmp_path


@pytest.fixture
def csv_folder(tmp_path):
    """The last number is not in the map, but the id of another book."""
    rows = ["user_id,book_id,is_read,rating,is_reviewed", "0,12,1,5,0", "0,10,0,0,0", "1,12,1,3,1", "1,2,1,3,0"]
    write(tmp_path / "goodreads_interactions.csv", "\n".join(rows) + "\n")
    write(tmp_path / "book_id_map.csv", "book_id_csv,book_id\n10,3\n11,2\n12,1\n")
    write(tmp_path / "goodreads_books.json.gz", lines(BOOKS))
    return tmp_path


def test_times_titles_and_counts(folder):
    interactions = load_goodreads(folder)
    assert interactions.name == "goodreads_poetry"
    a, b, c = ("a" * 32, "b" * 32, "c" * 32)
    assert interactions.events.rows() == [
        (b, 3, 4.0, MAY_S),
        (b, 1, 0.0, AUGUST_S),
        (a, 1, 4.0, MAY_S),
        (a, 3, 4.0, AUGUST_S),
        (c, 3, 4.0, AUGUST_S),
    ]
    assert interactions.events.columns == ["user_id", "item_id", "rating", "timestamp"]
    assert interactions.items.rows() == [
        (3, "Night Harbour (The Coast, #2)"),
        (1, "Été à Paris"),
        (2, "Winter Light (Seven Doors, #1-2)"),
    ]
    assert interactions.report == {
        "items_read": 5,
        "events_read": 8,
        "events_not_read": 0,
        "events_without_time": 1,
        "times_unreadable": 2,
        "times_from_read_at": 1,
        "times_from_date_updated": 5,
        "times_from_date_added": 1,
        "items_without_title": 1,
        "items_unknown": 1,
        "events_without_title": 2,
        "items_disambiguated": 0,
        "items_merged": 1,
        "events_remapped": 1,
        "events_dropped_by_merge": 0,
    }


@pytest.mark.parametrize(
    ("time", "expected"),
    [("date_updated", [AUGUST_S, AUGUST_S, MAY_S, AUGUST_S, AUGUST_S]), ("date_added", [MAY_S] * 5)],
)
def test_another_time(folder, time, expected):
    assert load_goodreads(folder, time=time).events["timestamp"].to_list() == expected


def test_what_was_not_read_can_be_left_out(folder):
    interactions = load_goodreads(folder, read_only=True)
    assert interactions.events["item_id"].to_list() == [3, 1, 3, 3]
    assert interactions.report["events_not_read"] == 1
    assert interactions.report["times_from_date_updated"] == 4


def test_series_can_be_cut_off(folder):
    items = load_goodreads(folder, series=False).items
    assert items["title"].to_list() == ["Night Harbour", "Été à Paris", "Winter Light"]


def test_file_folder_and_unzipped_read_the_same(folder):
    expected = load_goodreads(folder)
    by_file = load_source("goodreads-poetry", folder / "goodreads_interactions_poetry.json.gz")
    assert by_file.events.equals(expected.events)
    for kind, records in (("interactions", EVENTS), ("books", BOOKS)):
        (folder / f"goodreads_{kind}_poetry.json.gz").unlink()
        write(folder / f"goodreads_{kind}_poetry.json", lines(records))
    assert load_goodreads(folder).events.equals(expected.events)


def test_the_whole_takes_the_whole_list_of_books(tmp_path):
    write(tmp_path / "goodreads_interactions_dedup.json.gz", lines(EVENTS))
    write(tmp_path / "goodreads_books.json.gz", lines(BOOKS))
    assert load_goodreads(tmp_path).events.height == 5


def test_csv_has_no_time_and_maps_its_books(csv_folder):
    interactions = load_goodreads(csv_folder)
    assert not interactions.has_time
    assert interactions.events.rows() == [(0, 1, 5.0, None), (0, 3, 0.0, None), (1, 1, 3.0, None)]
    assert interactions.report["items_unknown"] == 1
    assert interactions.report["events_without_title"] == 1
    assert load_goodreads(csv_folder, read_only=True).events.height == 2


def test_csv_maps_its_users_where_the_map_is(csv_folder):
    write(csv_folder / "user_id_map.csv", f"user_id_csv,user_id\n0,{'b' * 32}\n1,{'a' * 32}\n")
    assert load_goodreads(csv_folder).events["user_id"].to_list() == ["b" * 32, "b" * 32, "a" * 32]


def test_a_user_who_is_not_in_the_map_is_named(csv_folder):
    write(csv_folder / "user_id_map.csv", f"user_id_csv,user_id\n0,{'b' * 32}\n")
    with pytest.raises(ValueError, match=r"row 2 .*column 'user_id': None is null"):
        load_goodreads(csv_folder)


BAD_JSON = [
    ("interactions", "", "interactions_poetry.json.gz: line 1: no records"),
    ("interactions", lines(EVENTS)[:-20], "interactions_poetry.json.gz: line 8: not a JSON object"),
    ("interactions", lines(EVENTS) + "[1]\n", "interactions_poetry.json.gz: line 9: '[1]' is not a JSON object"),
    ("interactions", lines([event("a", "x1")]), "line 1, key 'book_id': 'x1' is not a whole number"),
    ("interactions", lines([*EVENTS, event("", 1)]), "line 9, key 'user_id': '' is empty"),
    (
        "interactions",
        lines([*EVENTS, event("a", 1, rating=6)]),
        "line 9, key 'rating': 6 is not a whole number from 0 to 5",
    ),
    ("interactions", lines([*EVENTS, event("a", 1, rating="good")]), "line 9, key 'rating': 'good' is not a whole"),
    ("interactions", lines([*EVENTS, event("a", 1, is_read=None)]), "line 9, key 'is_read': None is neither true nor"),
    ("interactions", lines([*EVENTS, {"user_id": "a", "book_id": "1"}]), "line 9, key 'is_read': None is missing"),
    ("interactions", lines(EVENTS) + '{"user_id": "é"}\n', None),
    ("books", "", "books_poetry.json.gz: line 1: no records"),
    (
        "books",
        lines([*BOOKS, book("x", "A")]),
        "books_poetry.json.gz: line 6, key 'book_id': 'x' is not a whole number",
    ),
    (
        "books",
        lines([*BOOKS, book(3, "A")]),
        "books_poetry.json.gz: item_id 3 is in several lines",
    ),
]


@pytest.mark.parametrize(("kind", "content", "message"), BAD_JSON)
def test_a_bad_line_is_named(folder, kind, content, message):
    if message is None:
        content, message = content.encode("latin-1"), "interactions_poetry.json.gz: line 9: byte b'\\xe9"
    write(folder / f"goodreads_{kind}_poetry.json.gz", content)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_goodreads(folder)


@pytest.mark.parametrize(
    ("user", "title", "message"),
    [
        (["a"], "T", "line 1, key 'user_id': ['a'] is neither a number nor a text"),
        (True, "T", "line 1, key 'user_id': True is neither a number nor a text"),
        (9007199254740993.0, "T", "line 1, key 'user_id': 9007199254740992.0 is a float"),
        (" ", "T", "line 1, key 'user_id': ' ' is empty"),
        ("a", ["T"], "line 1, key 'title': ['T'] is neither a number nor a text"),
        ("a", {"en": "T"}, "line 1, key 'title': {'en': 'T'} is neither a number nor a text"),
        ("a", False, "line 1, key 'title': False is neither a number nor a text"),
        ("a", "\ud83d", "line 1, key 'title': '\\ud83d' holds half of a surrogate pair"),
    ],
)
def test_values_that_are_no_text(tmp_path, user, title, message):
    """The fast reader makes text of them."""
    write(tmp_path / "goodreads_interactions_poetry.json.gz", json.dumps(event("x", 1, user_id=user)) + "\n")
    write(tmp_path / "goodreads_books_poetry.json.gz", json.dumps(book(1, title)) + "\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_goodreads(tmp_path)


@pytest.mark.parametrize("title", ["[REC]", "[1984]", "{x}", "true", "1234567890123456", "\x00", "\ufffd"])
def test_titles_that_look_like_json_are_titles(tmp_path, title):
    write(tmp_path / "goodreads_interactions_poetry.json.gz", lines([event("1", 1)]))
    write(tmp_path / "goodreads_books_poetry.json.gz", lines([book(1, title)]))
    interactions = load_goodreads(tmp_path)
    assert interactions.items["title"].to_list() == [title]
    assert interactions.events["user_id"].to_list() == ["1" * 32]


@pytest.mark.parametrize("kind", ["interactions", "books"])
def test_a_damaged_archive_is_named(folder, kind):
    path = folder / f"goodreads_{kind}_poetry.json.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 12])
    with pytest.raises(ValueError, match=rf"{kind}_poetry\.json\.gz: damaged after line \d+ .*Fetch the file again"):
        load_goodreads(folder)
    path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=rf"{kind}_poetry\.json\.gz: damaged after line 0 \(Not a gzipped file"):
        load_goodreads(folder)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{kind}_poetry\.json\.gz: line 1: the file is empty"):
        load_goodreads(folder)


BAD_CSV = [
    ("goodreads_interactions.csv", "", "goodreads_interactions.csv: line 1: the file is empty"),
    ("goodreads_interactions.csv", "0,12,1,5,0\n", "goodreads_interactions.csv: line 1: the header is ['0'"),
    ("goodreads_interactions.csv", "+\n0,12,1\n", "goodreads_interactions.csv: line 2: 3 fields instead of 5"),
    ("goodreads_interactions.csv", "+\n0,12,1,5,0,7\n", "goodreads_interactions.csv: line 2: 6 fields instead of 5"),
    (
        "goodreads_interactions.csv",
        "+\n0,12,1,5,0\nu,1,1,1,1\n",
        "line 3, column 'user_id': 'u' is not a whole number",
    ),
    ("goodreads_interactions.csv", "+\n0,12,1,9,0\n", "line 2, column 'rating': '9' is not from 0 to 5"),
    ("goodreads_interactions.csv", "+\n", "goodreads_interactions.csv: line 2: no data lines"),
    ("book_id_map.csv", "a,b\n1,2\n", "book_id_map.csv: line 1: the header is ['a', 'b']"),
    ("book_id_map.csv", "book_id_csv,book_id\n1,x\n", "book_id_map.csv: line 2, column 'book_id': 'x' is not a whole"),
    ("book_id_map.csv", "book_id_csv,book_id\n1,2\n1,3\n", "book_id_map.csv: book_id_csv 1 is in several lines"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_CSV)
def test_a_bad_line_of_the_csv_is_named(csv_folder, name, content, message):
    write(csv_folder / name, content.replace("+", "user_id,book_id,is_read,rating,is_reviewed"))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_goodreads(csv_folder)


def test_missing_and_several_files_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match="time='started_at' is not one of read_at, date_updated, date_added"):
        load_goodreads(folder, time="started_at")
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        load_goodreads(folder / "nowhere")
    with pytest.raises(ValueError, match=r"books_poetry\.json\.gz: neither goodreads_interactions"):
        load_goodreads(folder / "goodreads_books_poetry.json.gz")
    write(folder / "goodreads_interactions_romance.json.gz", lines(EVENTS))
    with pytest.raises(ValueError, match=r"several files of interactions: \['goodreads_interactions_poetry"):
        load_goodreads(folder)
    with pytest.raises(FileNotFoundError, match=r"goodreads_books_romance\.json\.gz: missing beside goodreads_inter"):
        load_goodreads(folder / "goodreads_interactions_romance.json.gz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: no goodreads_interactions_\*\.json\.gz and no"):
        load_goodreads(tmp_path / "empty")


def test_a_missing_map_is_named(csv_folder):
    (csv_folder / "book_id_map.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"book_id_map\.csv: missing beside goodreads_interactions\.csv"):
        load_goodreads(csv_folder)
