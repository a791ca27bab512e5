import re
import zipfile

import pytest

from trl_sdpo.recsys import load_lastfm, load_source


# Made up, in the format of the publisher: LF in artists.dat, CRLF elsewhere.
ARTISTS = (
    "id\tname\turl\tpictureURL\n"
    "1\tRed Harbour\thttp://example.org/1\thttp://example.org/1.jpg\n"
    "2\tÉté   Blanc\thttp://example.org/2\t\n"
    '3\t"Odd" Quote\thttp://example.org/3\thttp://example.org/3.jpg\n'
    "4\tÉté Blanc\thttp://example.org/4\thttp://example.org/4.jpg\n"
    "5\t \thttp://example.org/5\t\n"
    "6\t\thttp://example.org/6\t\n"
    "7\tHarbour, The\thttp://example.org/7\t\n"
)
DATES = (
    "userID\tartistID\ttagID\tday\tmonth\tyear\r\n"
    "9\t3\t13\t1\t4\t2009\r\n"
    "9\t3\t15\t1\t4\t2009\r\n"
    "9\t3\t15\t1\t5\t2009\r\n"
    "9\t4\t15\t1\t2\t2008\r\n"
    "2\t2\t15\t1\t1\t1956\r\n"
    "2\t77\t15\t29\t2\t2008\r\n"
    "2\t5\t15\t1\t1\t2008\r\n"
    "2\t6\t15\t1\t1\t2008\r\n"
)
TIMES = "userID\tartistID\ttagID\ttimestamp\r\n9\t3\t13\t1238536800000\r\n9\t3\t14\t1238536800000\r\n2\t2\t1\t-5\r\n"
PLAYS = "userID\tartistID\tweight\r\n9\t3\t13883\r\n9\t1\t12\r\n2\t1\t7\r\n"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "hetrec"
    folder.mkdir()
    for name, content in {"artists.dat": ARTISTS, "user_taggedartists.dat": DATES, "user_artists.dat": PLAYS}.items():
        (folder / name).write_text(content, encoding="utf-8", newline="")
    return folder


def test_dates(folder):
    interactions = load_lastfm(folder)
    assert interactions.name == "hetrec"
    assert interactions.has_time
    # Nothing is moved in a name, and the two that are equal up to white space are one artist.
    assert interactions.items.rows() == [(1, "Red Harbour"), (2, "Été Blanc"), (3, '"Odd" Quote'), (7, "Harbour, The")]
    assert interactions.events.rows() == [
        (9, 3, 1238544000),
        (9, 3, 1241136000),
        (9, 2, 1201824000),
        (2, 2, -441849600),
    ]
    assert interactions.report == {
        "events_read": 8,
        "items_read": 7,
        "events_repeated": 1,
        "items_without_title": 2,
        "items_unknown": 1,
        "events_without_title": 3,
        "items_disambiguated": 0,
        "items_merged": 1,
        "events_remapped": 1,
        "events_dropped_by_merge": 0,
    }


def test_times_are_preferred_and_in_milliseconds(folder):
    (folder / "user_taggedartists-timestamps.dat").write_text(TIMES, newline="")
    assert load_lastfm(folder).events.rows() == [(9, 3, 1238536800), (2, 2, -1)]


def test_plays_have_no_time(folder):
    interactions = load_lastfm(folder, events="plays")
    assert not interactions.has_time
    assert interactions.events.rows() == [(9, 3, None, 13883.0), (9, 1, None, 12.0), (2, 1, None, 7.0)]


def test_zip_and_folder_above(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "hetrec.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    expected = load_lastfm(folder)
    for path in (tmp_path, tmp_path / "hetrec.zip"):
        assert load_lastfm(path).events.equals(expected.events)
        assert load_source("lastfm", path).items.equals(expected.items)


def test_another_kind_of_events_is_named(folder):
    with pytest.raises(ValueError, match="events='friends' is neither 'tags' nor 'plays'"):
        load_lastfm(folder, events="friends")


def test_missing_files_are_named(folder):
    (folder / "artists.dat").unlink()
    with pytest.raises(FileNotFoundError, match=r"artists\.dat: missing beside user_taggedartists\.dat"):
        load_lastfm(folder)
    (folder / "user_taggedartists.dat").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"none of user_taggedartists-timestamps\.dat, user_taggedartists\.dat"
    ):
        load_lastfm(folder)


BAD = [
    ("user_taggedartists.dat", "", "user_taggedartists.dat: line 1: the file is empty"),
    ("user_taggedartists.dat", DATES.split("\n")[0] + "\n", "user_taggedartists.dat: line 2: no data lines"),
    (
        "user_taggedartists.dat",
        DATES.split("\n", 1)[1],
        "user_taggedartists.dat: line 1: the header is ['9', '3', '13'",
    ),
    ("user_taggedartists.dat", DATES + "2\t1\t1\r\n", "user_taggedartists.dat: line 10: 3 fields instead of 6"),
    ("user_taggedartists.dat", DATES.replace("\t2009\r\n9\t4", "\t2009\t1\r\n9\t4"), "line 4: 7 fields instead of 6"),
    (
        "user_taggedartists.dat",
        DATES.replace("\r\n2\t2\t", "\r\nx2\t2\t"),
        "line 6, column 'userID': 'x2' is not a whole",
    ),
    (
        "user_taggedartists.dat",
        DATES.replace("\t5\t2009", "\t13\t2009"),
        "line 4, column 'month': '13' is not from 1 to 12",
    ),
    (
        "user_taggedartists.dat",
        DATES.replace("\t29\t", "\t30\t"),
        "data line 6, column 'day': 30 is not a day of 2008-02",
    ),
    ("artists.dat", "", "artists.dat: line 1: the file is empty"),
    ("artists.dat", ARTISTS.replace("Red Harbour", "Red\tHarbour"), "artists.dat: line 2: 5 fields instead of 4"),
    ("artists.dat", ARTISTS.replace("\n3\t", "\nthree\t"), "artists.dat: line 4, column 'id': 'three' is not a whole"),
    (
        "artists.dat",
        ARTISTS.replace("\n3\t", "\n1\t"),
        "hetrec items: row 2 (counted from 0), column 'item_id': 1 occurs",
    ),
    ("artists.dat", ARTISTS.encode("latin-1"), "artists.dat: line 3: byte b'\\xc9t\\xe9 ' is not utf-8"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_a_bad_line_is_named(folder, name, content, message):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=re.escape(message)):
        load_lastfm(folder)


def test_no_titles_at_all(folder):
    (folder / "artists.dat").write_text("id\tname\turl\tpictureURL\n8\tOther\t\t\n")
    with pytest.raises(ValueError, match="hetrec events: no rows"):
        load_lastfm(folder)
