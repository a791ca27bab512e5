import logging
import re

import pytest

from trl_sdpo.recsys import load_movielens, load_recbole


INTER = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "7\t1\t5\t881250949\n8\t2\t3\t881250950\n7\t4\t4\t881250940\n8\t3\t1\t881250951\n"
)
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tHarbour, The\t1994\tDrama War\n"
    "2\tÉté à Paris (1991)\tV\tDrama\n"
    "3\tunkonwn\tunkonwn\tunknown\n"
    "4\tHarbour, The\t1964\tDrama\n"
)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "tiny.inter").write_text(INTER, encoding="utf-8")
    (folder / "tiny.item").write_text(ITEM, encoding="utf-8")
    return folder


def test_titles_get_their_year_and_equal_ones_are_told_apart_by_it(folder):
    interactions = load_recbole(folder)
    assert interactions.name == "tiny"
    assert interactions.items.rows() == [
        (1, "The Harbour (1994)"),
        (2, "Été à Paris (1991)"),
        (3, "unknown"),
        (4, "The Harbour (1964)"),
    ]
    assert interactions.events.rows()[2] == (7, 4, 4.0, 881250940)
    assert interactions.report == {
        "events_read": 4,
        "items_read": 4,
        "years_unreadable": 2,
        "titles_corrected": 1,
        "items_without_title": 0,
        "items_unknown": 0,
        "events_without_title": 0,
        "items_disambiguated": 2,
        "items_merged": 0,
        "events_remapped": 0,
        "events_dropped_by_merge": 0,
    }


@pytest.mark.parametrize("year", ["94", "19944", "c. 1994"])
def test_what_is_no_year_of_four_digits_is_counted_and_left_out(folder, year):
    (folder / "tiny.item").write_text(ITEM.replace("1994", year), encoding="utf-8")
    interactions = load_recbole(folder)
    assert interactions.report["years_unreadable"] == 3
    assert interactions.items["title"].to_list()[0] == "The Harbour"


def test_equal_titles_of_one_year_are_merged(folder):
    (folder / "tiny.item").write_text(ITEM.replace("1964", "1994"), encoding="utf-8")
    interactions = load_recbole(folder / "tiny.inter")
    assert interactions.items["item_id"].to_list() == [1, 2, 3]
    assert interactions.events.rows() == [(8, 2, 3.0, 881250950), (7, 1, 4.0, 881250940), (8, 3, 1.0, 881250951)]


def test_the_copy_reads_as_the_original(folder, tmp_path):
    flags = "|".join(["0"] * 19)
    titles = ["Harbour, The (1994)", "Été à Paris (1991)", "unknown", "Harbour, The (1964)"]
    original = tmp_path / "original"
    original.mkdir()
    lines = [f"{number}|{title}||||{flags}\n" for number, title in enumerate(titles, start=1)]
    (original / "u.item").write_text("".join(lines), encoding="latin-1")
    (original / "u.data").write_text(INTER.split("\n", 1)[1])
    ours, theirs = load_recbole(folder), load_movielens(original)
    assert ours.items.equals(theirs.items)
    assert ours.events.equals(theirs.events)


def test_tokens_that_are_no_numbers_stay_strings(folder):
    (folder / "tiny.inter").write_text(INTER.replace("\n8\t", "\n08\t").replace("\t4\t4\t", "\tx4\t4\t"))
    (folder / "tiny.item").write_text(ITEM.replace("\n4\t", "\nx4\t"), encoding="utf-8")
    interactions = load_recbole(folder)
    assert interactions.events["user_id"].to_list() == ["7", "08", "7", "08"]
    assert interactions.events["item_id"].to_list() == ["1", "2", "x4", "3"]


def test_other_columns_order_and_title_names(folder):
    (folder / "tiny.inter").write_text(
        "timestamp:float\tnote:token_seq\titem_id:token\tuser_id:token\n10.9\t\ta\tu\n20\tsome words\tb\tu\n"
    )
    (folder / "tiny.item").write_text("name:token_seq\titem_id:token\nBand, The\ta\nBand\tb\n")
    interactions = load_recbole(folder)
    assert interactions.events.rows() == [("u", "a", 10), ("u", "b", 20)]
    assert interactions.items["title"].to_list() == ["The Band", "Band"]


def test_times_keep_their_digits(folder):
    """A float has not as many as they have."""
    times = ["1714720000.1234568", "1714720000.1234567", "10.5", "-1.25"]
    rows = "".join(f"u\t{item}\t{time}\n" for item, time in zip("abcd", times, strict=True))
    (folder / "tiny.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + rows)
    (folder / "tiny.item").unlink()
    events = load_recbole(folder).events
    assert events["nanosecond"].to_list() == [123_456_800, 123_456_700, 500_000_000, 750_000_000]
    assert events["timestamp"].to_list() == [1714720000, 1714720000, 10, -2]
    rows = "u\ta\t1714720000\nu\tb\t1714720000.000000001\n"
    (folder / "tiny.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + rows)
    assert load_recbole(folder).events["nanosecond"].to_list() == [0, 1]


@pytest.mark.parametrize("first", [True, False])
def test_a_mark_inside_a_file_is_named(folder, first):
    rows = ["1\t7\n", "\ufeff1\t8\n"][:: -1 if first else 1]
    (folder / "tiny.inter").write_text("user_id:token\titem_id:token\n" + "".join(rows), encoding="utf-8")
    with pytest.raises(ValueError, match=f"line {2 if first else 3}, column 'user_id': .* holds a byte order mark"):
        load_recbole(folder)


def test_without_time(folder):
    (folder / "tiny.inter").write_text("user_id:token\titem_id:token\n1\t1\n1\t2\n")
    interactions = load_recbole(folder)
    assert not interactions.has_time
    assert interactions.events["timestamp"].to_list() == [None, None]


def test_without_item_file_the_ids_are_titles_and_a_warning_says_so(folder, caplog):
    (folder / "tiny.item").unlink()
    with caplog.at_level(logging.WARNING):
        interactions = load_recbole(folder)
    assert interactions.items.rows() == [(1, "1"), (2, "2"), (4, "4"), (3, "3")]
    assert interactions.report["items_titled_by_id"] == 4
    assert "4 items go by their ids" in caplog.text


def test_items_without_title_are_dropped_and_counted(folder):
    (folder / "tiny.item").write_text(ITEM.replace("unkonwn\tun", "\tun"), encoding="utf-8")
    (folder / "tiny.inter").write_text(INTER + "8\t9\t1\t1\n8\t9\t1\t2\n")
    interactions = load_recbole(folder)
    assert interactions.items["item_id"].to_list() == [1, 2, 4]
    assert interactions.events["item_id"].to_list() == [1, 2, 4]
    assert {name: interactions.report[name] for name in ("items_without_title", "items_unknown")} == {
        "items_without_title": 1,
        "items_unknown": 1,
    }
    assert interactions.report["events_without_title"] == 3


def test_titles_of_another_column_and_kept_apart(folder):
    (folder / "tiny.item").write_text(ITEM.replace("movie_title", "label").replace("1964", "1994"), encoding="utf-8")
    items = load_recbole(folder, title="label", merge_titles=False).items
    assert items["title"].to_list()[::3] == ["The Harbour (1994)", "The Harbour (1994) #4"]


def test_missing_and_several_files_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file"):
        load_recbole(folder / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no \.inter file in it"):
        load_recbole(tmp_path)
    with pytest.raises(ValueError, match=r"tiny\.item: not an \.inter file"):
        load_recbole(folder / "tiny.item")
    (folder / "more.inter").write_text(INTER)
    with pytest.raises(ValueError, match=r"several \.inter files: \['more\.inter', 'tiny\.inter'\]"):
        load_recbole(folder)


BAD = [
    ("tiny.inter", "", "tiny.inter: line 1: the file is empty"),
    ("tiny.inter", INTER.replace("user_id:token", "user_id"), "tiny.inter: line 1: 'user_id' is not 'name:type'"),
    ("tiny.inter", INTER.replace("user_id:token", "user_id:int"), "line 1: 'user_id:int' is not 'name:type'"),
    ("tiny.inter", INTER.replace("user_id", "item_id"), "tiny.inter: line 1: column 'item_id' occurs twice"),
    ("tiny.inter", INTER.replace("user_id", "uid"), "tiny.inter: line 1: no column 'user_id' in ['uid', 'item_id'"),
    ("tiny.inter", INTER + "8\t1\n", "tiny.inter: line 6: 2 fields instead of 4"),
    ("tiny.inter", INTER.replace("\t3\t88", "\tok\t88"), "tiny.inter: line 3, column 'rating': 'ok' is not a finite"),
    (
        "tiny.inter",
        INTER.replace("881250951", "881250951000"),
        "tiny.inter: line 5, column 'timestamp': '881250951000' is not from -99999999999 to 99999999999 seconds",
    ),
    ("tiny.inter", INTER.replace("\n8\t2", "\n\t2"), "tiny.inter: line 3, column 'user_id': '' is empty"),
    ("tiny.inter", INTER.split("\n")[0] + "\n", "tiny.inter: line 2: no data lines"),
    ("tiny.item", "", "tiny.item: line 1: the file is empty"),
    ("tiny.item", ITEM.replace("movie_title", "label"), "tiny.item: line 1: needs 'item_id' and one of movie_title"),
    ("tiny.item", ITEM + "5\tHalf\n", "tiny.item: line 6: 2 fields instead of 4"),
    ("tiny.item", ITEM.replace("\n3\t", "\n\t"), "tiny.item: line 4, column 'item_id': '' is missing"),
    ("tiny.item", ITEM.replace("\n4\t", "\n1\t"), "tiny.item: line 5, column 'item_id': '1' is in an earlier line"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_a_bad_line_is_named(folder, name, content, message):
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_recbole(folder)


def test_a_line_that_ends_in_a_column_nobody_wants_is_named_too(folder):
    header = INTER.split("\n")[0] + "\tnote:token_seq\n"
    (folder / "tiny.inter").write_text(header + "7\t1\t5\t881250949\t\n8\t1\t5\t88125\n")
    with pytest.raises(ValueError, match=r"tiny\.inter: line 3: 4 fields instead of 5"):
        load_recbole(folder)


def test_a_byte_that_is_not_utf8_is_named(folder):
    (folder / "tiny.item").write_bytes(ITEM.encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape("tiny.item: line 3: byte b'\\xc9")):
        load_recbole(folder)
