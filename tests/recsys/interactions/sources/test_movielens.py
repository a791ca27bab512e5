import logging
import re
import zipfile

import pytest

from trl_sdpo.recsys import load_movielens


FLAGS = "|".join(["0"] * 19)
# Made up, in the format of the publisher: latin-1, no header, a title twice, one without year and date, a space behind.
U_ITEM = "".join(
    [
        f"1|Harbour, The (1994)|01-Jan-1994||http://example.org/1|{FLAGS}\n",
        f"2|Été à Paris (1991)|01-Jan-1991||http://example.org/2|{FLAGS}\n",
        f"3|unknown||||{FLAGS}\n",
        f"4|Harbour, The (1994) |01-Jan-1994||http://example.org/4|{FLAGS}\n",
    ]
)
U_DATA = "7\t1\t5\t881250949\n8\t2\t3\t881250950\n7\t4\t4\t881250940\n8\t3\t1\t881250951\n"
RATINGS_DAT = "1::1193::5::978300760\n1::661::3.5::978302109\n2::1193::4::978300275\n"
MOVIES_DAT = "661::Café, Le(1996)::Drama\n1193::Wood & Wire (1975)::Drama|War\n"
RATINGS_CSV = "userId,movieId,rating,timestamp\r\n1,1,4.0,964982703\r\n2,3,0.5,964981247\r\n"
MOVIES_CSV = (
    "movieId,title,genres\r\n"
    '1,"Lantern, The (Laterne, Die) (1960)",Drama\r\n'
    '3,"He Said ""Yes"", She Said 本 (1999)",Comedy|Drama\r\n'
    "4,Half Moon,(no genres listed)\r\n"
)


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture
def ml_100k(tmp_path):
    return write(
        tmp_path / "ml-100k", {"u.data": U_DATA, "u.item": U_ITEM.encode("latin-1"), "u.user": "1|24|M|x|1\n"}
    )


@pytest.fixture
def ml_1m(tmp_path):
    return write(tmp_path / "ml-1m", {"ratings.dat": RATINGS_DAT, "movies.dat": MOVIES_DAT.encode("latin-1")})


@pytest.fixture
def ml_csv(tmp_path):
    return write(tmp_path / "ml-latest-small", {"ratings.csv": RATINGS_CSV, "movies.csv": MOVIES_CSV})


def test_u_data(ml_100k):
    interactions = load_movielens(ml_100k)
    assert interactions.name == "ml-100k"
    assert interactions.items.rows() == [(1, "The Harbour (1994)"), (2, "Été à Paris (1991)"), (3, "unknown")]
    # User 7 had both copies of The Harbour, the higher id first.
    assert interactions.events.columns == ["user_id", "item_id", "rating", "timestamp"]
    assert interactions.events.rows() == [(8, 2, 3.0, 881250950), (7, 1, 4.0, 881250940), (8, 3, 1.0, 881250951)]
    assert interactions.report == {
        "events_read": 4,
        "items_read": 4,
        "items_disambiguated": 0,
        "items_merged": 1,
        "events_remapped": 1,
        "events_dropped_by_merge": 1,
    }


def test_titles_may_stay_apart(ml_100k):
    interactions = load_movielens(ml_100k, merge_titles=False)
    assert interactions.items["title"].to_list()[::3] == ["The Harbour (1994)", "The Harbour (1994) #4"]
    assert interactions.events.height == 4
    assert interactions.report == {"events_read": 4, "items_read": 4, "items_numbered": 1}


def test_dat(ml_1m):
    interactions = load_movielens(ml_1m)
    assert interactions.items.rows() == [(661, "Le Café (1996)"), (1193, "Wood & Wire (1975)")]
    assert interactions.events.rows()[1] == (1, 661, 3.5, 978302109)


def test_dat_in_utf8_as_in_ml_10m(ml_1m):
    (ml_1m / "movies.dat").write_bytes(MOVIES_DAT.encode("utf-8"))
    assert load_movielens(ml_1m).items["title"][0] == "Le Café (1996)"


def test_csv(ml_csv):
    interactions = load_movielens(ml_csv)
    assert interactions.items.rows() == [
        (1, "The Lantern (Die Laterne) (1960)"),
        (3, 'He Said "Yes", She Said 本 (1999)'),
        (4, "Half Moon"),
    ]
    assert interactions.events.rows() == [(1, 1, 4.0, 964982703), (2, 3, 0.5, 964981247)]


@pytest.mark.parametrize("fixture", ["ml_100k", "ml_1m", "ml_csv"])
def test_zip_and_folder_above_read_the_same(fixture, request, tmp_path):
    folder = request.getfixturevalue(fixture)
    archive = tmp_path / "release.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for member in folder.iterdir():
            file.write(member, f"{folder.name}/{member.name}")
    expected = load_movielens(folder)
    for path in (archive, str(archive), tmp_path):
        interactions = load_movielens(path)
        assert interactions.name == folder.name
        assert interactions.events.equals(expected.events)
        assert interactions.items.equals(expected.items)


def test_no_path_no_release_and_a_missing_partner_are_named(tmp_path, ml_100k):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        load_movielens(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"none of u\.data, ratings\.dat, ratings\.csv"):
        load_movielens(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"neither a folder nor a whole \.zip"):
        load_movielens(ml_100k / "u.data")
    (ml_100k / "u.item").unlink()
    with pytest.raises(FileNotFoundError, match=r"u\.item: missing beside u\.data"):
        load_movielens(ml_100k)


def test_two_releases_in_one_folder_are_named(tmp_path, ml_100k, ml_1m):
    with pytest.raises(ValueError, match=r"several releases: \['ml-100k', 'ml-1m'\]"):
        load_movielens(tmp_path)


def test_a_damaged_zip_is_named(tmp_path, ml_100k):
    archive = tmp_path / "ml.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for member in ("u.data", "u.item"):
            file.write(ml_100k / member, member)
    data = archive.read_bytes()
    archive.write_bytes(data.replace(b"881250949", b"881250948"))
    with pytest.raises(ValueError, match=r"ml\.zip: u\.data: damaged .*CRC"):
        load_movielens(archive)
    archive.write_bytes(data[:-30])
    with pytest.raises(ValueError, match=r"neither a folder nor a whole \.zip"):
        load_movielens(archive)


BAD_RATINGS = [
    ("u.data", U_DATA + "9\t1\n", "u.data: line 5: 2 fields instead of 4"),
    ("u.data", U_DATA + "9\t1\t5\t88\t7\n", "u.data: line 5: 5 fields instead of 4"),
    ("u.data", U_DATA.replace("8\t2\t3", "8\t2\tgood"), "u.data: line 2, column 'rating': 'good' is not a finite"),
    ("u.data", U_DATA.replace("8\t2\t3", "8\t2\tnan"), "u.data: line 2, column 'rating': 'nan' is not a finite"),
    ("u.data", U_DATA.replace("8\t2\t3", "8\tx2\t3"), "u.data: line 2, column 'item_id': 'x2' is not a whole number"),
    ("u.data", U_DATA.replace("8\t3\t1", "\t3\t1"), "u.data: line 4, column 'user_id': '' is empty"),
    ("u.data", U_DATA.replace("881250940", "8812.5"), "u.data: line 3, column 'timestamp': '8812.5' is not a whole"),
    ("u.data", U_DATA.replace("8\t2\t3", "8\t2\t6"), "u.data: line 2, column 'rating': '6' is not from 0.5 to 5"),
    ("u.data", U_DATA.replace("8\t2\t3", "8\t2\t0"), "u.data: line 2, column 'rating': '0' is not from 0.5 to 5"),
    (
        "u.data",
        U_DATA.replace("881250940", "881250940000"),
        "u.data: line 3, column 'timestamp': '881250940000' is not from 0 to 99999999999 seconds since 1970 (milliseconds",
    ),
    ("u.data", U_DATA.replace("\t881250940", "\t"), "u.data: line 3, column 'timestamp': '' is empty"),
    ("u.data", U_DATA.replace("\t", ","), "u.data: line 1: 1 fields instead of 4"),
    ("u.data", U_DATA.encode("utf-16"), "u.data: line 1: "),
    ("u.data", "", "u.data: line 1: the file is empty"),
    ("u.data", "\n\n", "u.data: line 1: no data lines"),
    ("u.data", U_DATA + "8\t77\t3\t1\n", "ml-100k events: row 3 (counted from 0), column 'item_id': 77 is not among"),
    ("u.item", "", "u.item: line 1: the file is empty"),
    ("u.item", U_ITEM[:-20], "u.item: line 4: 15 fields instead of 24"),
    ("u.item", U_ITEM.replace("Harbour, The", "Harbour | The"), "u.item: line 1: 25 fields instead of 24"),
    ("u.item", U_ITEM.replace("2|Été", "two|Été"), "u.item: line 2, column 'item_id': 'two' is not a whole number"),
    ("u.item", U_ITEM.replace("2|Été", "1|Été"), "u.item: line 2, column 'item_id': 1 is in line 1 already"),
    ("u.item", U_ITEM.replace("unknown", " "), "u.item: line 3, column 'title': ' ' is empty"),
    ("u.item", "\n", "u.item: line 1: no items"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_RATINGS)
def test_a_bad_line_of_ml_100k_is_named(ml_100k, name, content, message):
    write(ml_100k, {name: content.encode("latin-1") if isinstance(content, str) else content})
    with pytest.raises(ValueError, match=re.escape(message)):
        load_movielens(ml_100k)


BAD_DAT = [
    ("ratings.dat", RATINGS_DAT + "3::661::4\n", "ratings.dat: line 4: 3 fields instead of 4"),
    ("ratings.dat", RATINGS_DAT + "3::661::4::5::6\n", "ratings.dat: line 4: 5 fields instead of 4"),
    ("ratings.dat", RATINGS_DAT.replace("3.5", "three"), "ratings.dat: line 2, column 'rating': 'three' is not"),
    ("movies.dat", MOVIES_DAT.replace("Wood &", "Wood ::"), "movies.dat: line 2: 4 fields instead of 3"),
    ("movies.dat", "661::Half\n", "movies.dat: line 1: 2 fields instead of 3"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_DAT)
def test_a_bad_line_of_ml_1m_is_named(ml_1m, name, content, message):
    (ml_1m / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_movielens(ml_1m)


BAD_CSV = [
    ("ratings.csv", RATINGS_CSV.replace("userId", "user"), "ratings.csv: line 1: the header is ['user', 'movieId"),
    ("ratings.csv", RATINGS_CSV + "3,1,4.0\r\n", "ratings.csv: line 4: 3 fields instead of 4"),
    ("ratings.csv", RATINGS_CSV.replace("0.5", "half"), "ratings.csv: line 3, column 'rating': 'half' is not"),
    ("ratings.csv", RATINGS_CSV[:33], "ratings.csv: line 2: no data lines"),
    (
        "movies.csv",
        MOVIES_CSV.replace("title", "name"),
        "movies.csv: line 1: the header is ['movieId', 'name', 'genres']",
    ),
    ("movies.csv", MOVIES_CSV + "9,Half\r\n", "movies.csv: line 5: 2 fields instead of 3"),
    ("movies.csv", MOVIES_CSV + '9,"Half', "movies.csv: line 5: unexpected end of data"),
    (
        "movies.csv",
        MOVIES_CSV.encode() + "9,Café,X\r\n".encode("latin-1"),
        "movies.csv: line 5: byte b'\\xe9,X\\r' is",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_CSV)
def test_a_bad_line_of_the_csv_releases_is_named(ml_csv, name, content, message):
    write(ml_csv, {name: content})
    with pytest.raises(ValueError, match=re.escape(message)):
        load_movielens(ml_csv)


def test_blank_lines_hold_nothing(ml_100k):
    expected = load_movielens(ml_100k)
    (ml_100k / "u.data").write_text("\n" + U_DATA.replace("\n", "\n\n", 1) + "\n")
    assert load_movielens(ml_100k).events.equals(expected.events)


def test_a_file_that_may_be_cut_off_in_its_last_value_gets_a_warning(ml_100k, caplog):
    (ml_100k / "u.data").write_text(U_DATA[:-3])
    with caplog.at_level(logging.WARNING):
        load_movielens(ml_100k)
    assert "u.data: no line break at the end" in caplog.text
