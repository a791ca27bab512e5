"""What publishers tell of items beside their titles, kept for those who ask for it."""

import json

import pandas as pd
import polars as pl
import pytest
from datasets import Dataset

from trl_sdpo.recsys import (
    load_goodbooks,
    load_goodreads,
    load_lastfm,
    load_movielens,
    load_recbole,
    load_source,
    load_table,
)


def columns(interactions, *names):
    return interactions.items.select("item_id", *names).rows()


class TestMovieLens:
    @pytest.fixture
    def release(self, tmp_path):
        (tmp_path / "ratings.csv").write_text(
            "userId,movieId,rating,timestamp\n1,7,4.0,100\n1,8,5.0,200\n2,9,3.0,300\n"
        )
        (tmp_path / "movies.csv").write_text(
            'movieId,title,genres\n7,"Harbour, The (1994)",Drama|War\n8,Ran,(no genres listed)\n9,Emma (1996),Comedy\n'
        )
        (tmp_path / "tags.csv").write_text(
            'userId,movieId,tag,timestamp\n1,7,Sea,100\n2,7,sea ,200\n3,7,fog,1\n4,7,Anchor,1\n1,8,"war, again",5\n1,77,x,5\n'
        )
        return tmp_path

    def test_csv(self, release):
        interactions = load_movielens(release, attributes=["genres", "year", "tags"])
        assert interactions.items.columns == ["item_id", "title", "genres", "year", "tags"]
        assert columns(interactions, "genres", "year", "tags") == [
            (7, ["Drama", "War"], 1994, ["sea", "anchor", "fog"]),
            (8, None, None, ["war, again"]),
            (9, ["Comedy"], 1996, None),
        ]
        assert interactions.items.select("item_id", "title").equals(load_movielens(release).items)
        assert load_movielens(release).items.columns == ["item_id", "title"]

    def test_text_as_from_a_command(self, release):
        assert load_source("movielens-25m", release, attributes="year, genres").items.columns[2:] == ["year", "genres"]

    def test_older_releases(self, tmp_path):
        flags = ["0"] * 19
        flags[8] = flags[17] = "1"
        (tmp_path / "u.data").write_text("1\t1\t5\t100\n1\t2\t3\t50\n")
        unknown = "|".join(["1", *["0"] * 18])
        (tmp_path / "u.item").write_text(
            f"1|Harbour, The (1994)|01-Feb-1995||x|{'|'.join(flags)}\n2|unknown|01-Jan-1997||x|{unknown}\n"
        )
        interactions = load_movielens(tmp_path, attributes="genres,year")
        assert columns(interactions, "genres", "year") == [(1, ["Drama", "War"], 1994), (2, None, 1997)]
        with pytest.raises(FileNotFoundError, match=r"none of tags\.csv, tags\.dat beside u\.data"):
            load_movielens(tmp_path, attributes="tags")

    def test_tags_of_ten_millions(self, tmp_path):
        (tmp_path / "ratings.dat").write_text("1::7::5::100\n")
        (tmp_path / "movies.dat").write_text("7::Harbour, The (1994)::Drama|War\n")
        (tmp_path / "tags.dat").write_text("1::7::Sea::100\n2::7::sea::1\n2::7::fog::1\n")
        interactions = load_movielens(tmp_path, attributes="tags,genres")
        assert columns(interactions, "tags", "genres") == [(7, ["sea", "fog"], ["Drama", "War"])]

    def test_merged_items_have_those_of_the_one_that_stays(self, release):
        (release / "movies.csv").write_text("movieId,title,genres\n7,Ran (1985),War\n8,Ran (1985),Drama\n9,Emma,X\n")
        assert columns(load_movielens(release, attributes="genres"), "genres") == [(7, ["War"]), (9, ["X"])]

    def test_what_there_is_not(self, release):
        with pytest.raises(ValueError, match="movielens: attributes='author' is none of genres, year, tags"):
            load_movielens(release, attributes="author")
        (release / "tags.csv").write_text("userId,movieId,tag,timestamp\n1,x,Sea,100\n")
        with pytest.raises(ValueError, match=r"tags\.csv: line 2, column 'item_id': 'x' is not a whole number"):
            load_movielens(release, attributes="tags")
        (release / "tags.csv").write_text("movieId,tag\n1,Sea\n")
        with pytest.raises(ValueError, match=r"tags\.csv: line 1: the header is"):
            load_movielens(release, attributes="tags")


def test_goodbooks(tmp_path):
    (tmp_path / "ratings.csv").write_text("user_id,book_id,rating\n1,7,5\n2,8,3\n")
    (tmp_path / "books.csv").write_text(
        'book_id,goodreads_book_id,authors,original_publication_year,title,language_code\n7,1,"Ann Lee, Bo  Ek",1984.0,Sea,eng\n'
        "8,2,,,Fog,\n"
    )
    interactions = load_goodbooks(tmp_path, attributes="authors,year,language")
    assert columns(interactions, "authors", "year", "language") == [
        (7, ["Ann Lee", "Bo Ek"], 1984, "eng"),
        (8, *[None] * 3),
    ]
    assert interactions.items.select("item_id", "title").equals(load_goodbooks(tmp_path).items)


class TestLastfm:
    @pytest.fixture
    def release(self, tmp_path):
        (tmp_path / "artists.dat").write_text("id\tname\turl\tpictureURL\n7\tEmma\tx\t\n8\tRan\tx\t\n9\tIda\tx\t\n")
        rows = ["1\t7\t1", "2\t7\t1", "2\t7\t2", "3\t8\t2", "3\t8\t99"]
        log = "".join(f"{row}\t1\t4\t2009\r\n" for row in rows)
        (tmp_path / "user_taggedartists.dat").write_text(f"userID\tartistID\ttagID\tday\tmonth\tyear\r\n{log}")
        (tmp_path / "tags.dat").write_bytes("tagID\ttagValue\r\n1\tété\r\n2\tMetal\r\n".encode("latin-1"))
        (tmp_path / "user_artists.dat").write_text("userID\tartistID\tweight\n1\t7\t3\n1\t9\t4\n")
        return tmp_path

    def test_tags(self, release):
        expected = [(7, ["été", "metal"]), (8, ["metal"]), (9, None)]
        assert columns(load_lastfm(release, attributes="tags"), "tags") == expected
        assert columns(load_lastfm(release, events="plays", attributes="tags"), "tags") == expected
        assert load_lastfm(release).items.columns == ["item_id", "title"]

    def test_files_that_are_not_there(self, release):
        (release / "tags.dat").unlink()
        with pytest.raises(FileNotFoundError, match=r"user_taggedartists\.dat and tags\.dat are needed for 'tags'"):
            load_lastfm(release, attributes="tags")


class TestGoodreads:
    @pytest.fixture
    def folder(self, tmp_path):
        event = {"user_id": "a", "is_read": True, "rating": 4, "read_at": "Thu Aug 17 15:15:28 -0700 2017"}
        events = [event | {"book_id": "3"}, event | {"book_id": "4"}]
        shelves = [{"count": "9", "name": "to-read"}, {"count": "2", "name": "poetry"}]
        book = {
            "title_without_series": "",
            "authors": [{"author_id": "12", "role": ""}, {"author_id": "99", "role": ""}],
        }
        books = [
            {**book, "book_id": "3", "title": "Sea", "popular_shelves": shelves, "language_code": "eng",
             "description": "A  ship\nleaves.", "publication_year": "1984"},
            {**book, "book_id": "4", "title": "Fog", "popular_shelves": [], "language_code": "", "description": "",
             "publication_year": "", "authors": []},
        ]  # fmt: skip
        for name, rows in (
            ("interactions_poetry", events),
            ("books_poetry", books),
            ("book_authors", [{"author_id": "12", "name": "Ann Lee"}]),
        ):
            (tmp_path / f"goodreads_{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    def test_books(self, folder):
        names = ["authors", "shelves", "language", "description", "year"]
        interactions = load_goodreads(folder, attributes=names)
        assert columns(interactions, *names) == [
            (3, ["Ann Lee"], ["to-read", "poetry"], "eng", "A ship leaves.", 1984),
            (4, *[None] * 5),
        ]
        assert load_goodreads(folder, attributes="year").items.columns == ["item_id", "title", "year"]

    def test_names_of_authors_have_a_file_of_their_own(self, folder):
        (folder / "goodreads_book_authors.json").unlink()
        assert columns(load_goodreads(folder, attributes="language"), "language") == [(3, "eng"), (4, None)]
        with pytest.raises(
            FileNotFoundError, match=r"goodreads_book_authors\.json\.gz: no such file, so authors have no"
        ):
            load_goodreads(folder, attributes="authors")


def test_recbole(tmp_path):
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\n1\t7\n1\t8\n1\t9\n")
    (tmp_path / "x.item").write_text(
        "item_id:token\tname:token_seq\tclass:token_seq\tprice:float\tyear:token\n7\tA\tDrama War\t1.5\t1999\n8\tB\t\t\t\n9.0\tC\tX\t2\t\n"
    )
    interactions = load_recbole(tmp_path, attributes="class,price")
    assert columns(interactions, "class", "price") == [(7, ["Drama", "War"], 1.5), (8, None, None), (9, ["X"], 2.0)]
    with pytest.raises(ValueError, match=r"x\.item: line 1: attributes='brand' is none of"):
        load_recbole(tmp_path, attributes="brand")


class TestTables:
    ROWS = [
        {"uid": 1, "sku": "a", "label": "Emma", "brand": "", "tags": ["x", " y"], "price": 1.5},
        {"uid": 1, "sku": "b", "label": "Ran", "brand": None, "tags": None, "price": None},
        {"uid": 2, "sku": "a", "label": "Emma", "brand": "Acme", "tags": ["z"], "price": 2},
    ]
    NAMES = {"user": "uid", "item": "sku", "title": "label"}

    @pytest.mark.parametrize("kind", ["polars", "pandas", "parquet", "jsonl", "dataset"])
    def test_columns_beside_the_titles(self, kind, tmp_path):
        frame = pl.DataFrame(self.ROWS)
        if kind == "jsonl":
            (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.ROWS))
        frame.write_parquet(tmp_path / "log.parquet")
        data = {
            "polars": lambda: frame, "pandas": lambda: pd.DataFrame(self.ROWS), "parquet": lambda: tmp_path / "log.parquet",
            "jsonl": lambda: tmp_path / "log.jsonl", "dataset": lambda: Dataset.from_list(self.ROWS),
        }[kind]()  # fmt: skip
        interactions = load_table(data, **self.NAMES, attributes=["brand", "tags", "price"])
        found = [(item, brand, tags, None if price is None else float(price)) for item, brand, tags, price in
                 columns(interactions, "brand", "tags", "price")]  # fmt: skip
        assert found == [("a", "Acme", ["x", "y"], 1.5), ("b", None, None, None)]
        assert load_table(data, **self.NAMES).items.columns == ["item_id", "title"]

    def test_of_a_table_of_items_in_text(self, tmp_path):
        (tmp_path / "log.csv").write_text("uid,sku\n1,7\n1,8\n")
        (tmp_path / "items.csv").write_text("sku,label,genres,year\n7.0,Emma,Drama|War,1996\n8.0,Ran,,\n")
        options = {**self.NAMES, "attributes": "genres,year"}
        interactions = load_table(tmp_path / "log.csv", tmp_path / "items.csv", **options)
        assert columns(interactions, "genres", "year") == [(7, "Drama|War", "1996"), (8, None, None)]

    def test_what_is_no_attribute(self):
        frame = pl.DataFrame(self.ROWS)
        with pytest.raises(ValueError, match="no column 'colour'"):
            load_table(frame, **self.NAMES, attributes="colour")
        with pytest.raises(ValueError, match="attributes='title' is no attribute"):
            load_table(frame, **self.NAMES, attributes="title")
        with pytest.raises(TypeError, match="column 'tags' is Struct"):
            load_table(frame.with_columns(tags=pl.struct("uid")), **self.NAMES, attributes="tags")


def test_a_list_in_lines_of_json_is_refused_elsewhere(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"user_id": 1, "item_id": 7, "title": ["A"], "tags": [["x"]]}\n')
    with pytest.raises(ValueError, match=r"line 1, column 'title': .* is neither a number nor a text"):
        load_table(path, title="title", attributes="tags")
    with pytest.raises(ValueError, match=r"line 1, column 'tags': .* is neither a number nor a text"):
        load_table(path, attributes="tags")
