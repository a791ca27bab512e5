import json
import re

import pytest

from trl_sdpo.recsys.interactions.readers.histories import ItemId, Title, read_histories


def read(path, text, name="in.jsonl", encoding="utf-8"):
    (path / name).write_bytes(text.encode(encoding))
    return [(query.key, query.history) for query in read_histories(path / name)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x1e", "\x0c", "\xa0"])
def test_only_line_ends_end_lines(tmp_path, odd, encoding):
    rows = [{"user_id": "ann", "history": [f"Ran{odd}1985", 7]}, {"user_id": f"b{odd}", "history": ["Emma"]}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    assert read(tmp_path, text, encoding=encoding) == [("ann", [f"Ran{odd}1985", 7]), (f"b{odd}", ["Emma"])]


def test_keys(tmp_path):
    rows = [{"history": ["a"]}, {"user_id": None, "history": ["a"]}, {"user_id": 7.0, "history": ["a"]}, ["a"]]
    text = "".join(json.dumps(row) + "\n\n" for row in rows)
    assert [key for key, _ in read(tmp_path, text)] == ["1", "3", "7", "7"]


def test_ids_said_to_be_ids(tmp_path):
    ((_, history),) = read(tmp_path, '{"history_item_ids": [7, "8", 9.0]}\n')
    assert history == ["7", "8", "9"]
    assert all(isinstance(one, ItemId) for one in history)
    ((_, history),) = read(tmp_path, "user_id,item_id\na,7.0\na,8\n", "in.csv")
    assert history == ["7", "8"]
    assert all(isinstance(one, ItemId) for one in history)
    ((_, history),) = read(tmp_path, 'user_id,title\na,"311"\n', "in.csv")
    assert isinstance(history[0], Title)


def test_events_of_a_csv_are_ordered_as_finely_as_they_are(tmp_path):
    times = ["1714720000.3", "1714720000.000000001", "1714720000", "5"]
    rows = "".join(f"a,{title},{time}\n" for title, time in zip("WXYZ", times, strict=True))
    assert read(tmp_path, "user_id,title,timestamp\n" + rows, "in.csv") == [("a", ["Z", "Y", "X", "W"])]
    assert read(tmp_path, "user_id,title\n" + "a,W\nb,Z\na,X\n", "in.csv") == [("a", ["W", "X"]), ("b", ["Z"])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user_id,title,x\na,Moby Dick; or, The Whale,1\n", "line 2: 4 fields instead of 3"),
        ("user_id,title,x\na,Emma\n", "line 2: 2 fields instead of 3"),
        ("user_id,title\na,Emma\n , Emma\n", "line 3, column 'user_id': None is missing"),
        ("user_id,title,timestamp\na,Emma,nan\n", "line 2, column 'timestamp': 'nan' is not a number"),
        ("user_id,title,timestamp\na,Emma,\n", "line 2, column 'timestamp': None is missing"),
        ("user_id,title,title\na,Emma,Ran\n", "column 'title' is there 2 times"),
        ("user_id,title\na,Emma\nuser_id,title\n", "line 3, column 'user_id': 'user_id' is the header again"),
        ("user_id,item_id\na,nan\n", "line 2, column 'item_id': 'nan' is a value that is missing"),
    ],
)
def test_a_bad_line_of_a_csv_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path, text, "in.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"history_item_ids": "123"}', "line 1, 'history_item_ids': '123' is no list"),
        ('{"history_item_ids": [9007199254740993.0]}', "line 1, 'history_item_ids': 9007199254740992.0 is a float"),
        ('{"history_item_ids": [null]}', "line 1, 'history_item_ids': None is missing"),
        ('{"history": [["a"]]}', "line 1, 'history': ['a'] is neither a number nor a text"),
        ('{"history": ["a"], "candidates": [true]}', "line 1, 'candidates': True is neither a number nor a text"),
        ('{"user_id": 1.5, "history": ["a"]}', "line 1, 'user_id': 1.5 is no whole number"),
        ('{"history": [NaN]}', "line 1: NaN is no JSON"),
        ('{"history": ["a"], "history": ["b"]}', "line 1: the key 'history' is there twice"),
        ('{"history_item_ids": []}', "line 1, 'history': None is no list"),
        ('"Emma"', "line 1, 'history': 'Emma' is no list"),
        ("", "holds no history"),
    ],
)
def test_a_bad_line_of_json_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path, text)
