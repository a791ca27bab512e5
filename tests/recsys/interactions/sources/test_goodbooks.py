import re
import zipfile

import pytest

from trl_sdpo.recsys import load_goodbooks, load_source


# Made up, in the format of the publisher.
V1_RATINGS = "book_id,user_id,rating\n1,314,5\n1,439,3\n2,314,4\n3,314,1\n9,314,1\n"
V1_BOOKS = (
    "id,book_id,authors,original_publication_year,title\n"
    '1,2767052,A. Author,1962.0,"Night Harbour (The Coast, #1)"\n'
    "2,3,B. Author,,Winter  Light\n"
    "3,41865,C. Author,-720.0,Poems\n"
    "4,5,D. Author,1999.0,Poems\n"
    "5,6,D. Author,1999.0, \n"
    "6,7,A. Author,1970.0,Night Harbour\n"
)
V2_RATINGS = "user_id,book_id,rating\n314,1,5\n439,1,3\n314,2,4\n314,3,1\n314,9,1\n"
V2_BOOKS = V1_BOOKS.replace("id,book_id,", "book_id,goodreads_book_id,", 1)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "goodbooks"
    folder.mkdir()
    (folder / "ratings.csv").write_text(V1_RATINGS)
    (folder / "books.csv").write_text(V1_BOOKS)
    return folder


def test_first_version(folder):
    interactions = load_goodbooks(folder)
    assert not interactions.has_time
    assert interactions.items.rows() == [
        (1, "Night Harbour (The Coast, #1)"),
        (2, "Winter Light"),
        (3, "Poems (-720)"),
        (4, "Poems (1999)"),
        (6, "Night Harbour"),
    ]
    assert interactions.events.rows()[:2] == [(314, 1, 5.0, None), (439, 1, 3.0, None)]
    assert interactions.report["items_without_title"] == 1
    assert interactions.report["events_without_title"] == 1


def test_second_version_reads_the_same(folder):
    expected = load_goodbooks(folder)
    (folder / "ratings.csv").write_text(V2_RATINGS)
    (folder / "books.csv").write_text(V2_BOOKS)
    interactions = load_source("goodbooks-10k", folder)
    assert interactions.items.equals(expected.items)
    assert interactions.events.equals(expected.events)


def test_series_can_be_cut_off(folder):
    items = load_goodbooks(folder, series=False).items
    assert items["title"].to_list()[0] == "Night Harbour (1962)"


def test_zip(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "g.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"goodbooks-10k/{file.name}")
    assert load_goodbooks(tmp_path / "g.zip").events.height == 4


BAD = [
    ("ratings.csv", "", "ratings.csv: line 1: the file is empty"),
    ("ratings.csv", "userId,movieId,rating,timestamp\n", "ratings.csv: line 1: the header is ['userId', 'movieId'"),
    ("ratings.csv", V1_RATINGS + "1,2\n", "ratings.csv: line 7: 2 fields instead of 3"),
    ("ratings.csv", V1_RATINGS + "1,2,6\n", "ratings.csv: line 7, column 'rating': '6' is not from 1 to 5"),
    ("ratings.csv", V1_RATINGS + "1,x,5\n", "ratings.csv: line 7, column 'user_id': 'x' is not a whole number"),
    ("books.csv", "", "books.csv: line 1: the file is empty"),
    ("books.csv", "id,book_id,authors\n", "books.csv: line 1: no column ['title', 'original_publication_year']"),
    ("books.csv", V1_BOOKS + "x,1,A,,T\n", "books.csv: line 8, column 'id': 'x' is not a whole number"),
    ("books.csv", V1_BOOKS + "1,1,A,,T\n", "books.csv: line 8, column 'id': 1 is in an earlier line"),
    ("books.csv", V1_BOOKS + "8,1,A,old,T\n", "line 8, column 'original_publication_year': 'old' is not a year"),
    ("books.csv", V1_BOOKS + "8,1,A,inf,T\n", "line 8, column 'original_publication_year': 'inf' is not a year"),
    ("books.csv", "id,title,original_publication_year,title\n", "books.csv: column 'title' is there 2 times"),
    ("books.csv", V1_BOOKS + "8,1,A,T\n", "books.csv: line 8: 4 fields instead of 5"),
    ("books.csv", V1_BOOKS + '8,1,A,1,"T\n', "books.csv: line 8: unexpected end of data"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_a_bad_line_is_named(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_goodbooks(folder)
