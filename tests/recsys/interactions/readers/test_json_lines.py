import json
import re

import pytest

from trl_sdpo.recsys import load_table


NAMES = {"user": "u", "item": "i", "timestamp": "at", "title": "t"}
ROW = {"u": 1, "i": 7, "at": 5, "t": "Ran"}


def load(path, *lines):
    (path / "log.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return load_table(path / "log.jsonl", **NAMES)


def line(**values):
    return json.dumps(ROW | values)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, "2"], [1, 2]),
        ([2**60 + 1, 5.0], [2**60 + 1, 5]),
        ([2**64 - 1, 5], ["18446744073709551615", "5"]),
        ([7, "guest"], ["7", "guest"]),
        (["\U0001f600", "b\u2028"], ["\U0001f600", "b\u2028"]),
    ],
)
def test_ids_are_not_rounded(tmp_path, ids, expected):
    events = load(tmp_path, *(line(u=one) for one in ids)).events
    assert events["user_id"].to_list() == expected


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line(price=float("nan")), "line 3: NaN is no JSON. Write null"),
        (line(at=float("inf")), "line 3: Infinity is no JSON"),
        ('{"u": 1, "i": 7, "at": 5, "t": "Ran", "u": 2}', "line 3: the key 'u' is there twice"),
        (line(u=2.0**60), "line 3, column 'u': 1.152921504606847e+18 is a float"),
        (line(t="\ud83d"), "line 3, column 't': '\\ud83d' holds half of a surrogate pair"),
        (line(t=["Ran"]), "line 3, column 't': ['Ran'] is neither a number nor a text"),
        (line(u=True), "line 3, column 'u': True is neither a number nor a text"),
        (line(u=" "), "line 3, column 'u': None is missing"),
        (line(u=None), "line 3, column 'u': None is missing"),
        ("[1, 2]", "line 3: '[1, 2]' is not a JSON object"),
        ('{"u": 1} {"u": 2}', "line 3: not a JSON object (Extra data"),
        ('{"u": 1', "line 3: not a JSON object"),
    ],
)
def test_a_bad_line_is_named(tmp_path, bad, message):
    with pytest.raises(ValueError, match=re.escape(f"log.jsonl: {message}")):
        load(tmp_path, line(), "", bad)


def test_a_title_that_looks_like_something_else(tmp_path):
    found = load(tmp_path, line(t="[REC]"), line(i=8, t="true"), line(i=9, t=1984)).items["title"].to_list()
    assert found == ["[REC]", "true", "1984"]


def test_a_key_that_is_nowhere_is_named(tmp_path):
    with pytest.raises(ValueError, match=re.escape("no column 't', only ['u', 'i', 'at']")):
        load(tmp_path, '{"u": 1, "i": 7, "at": 5}')
    assert load(tmp_path, line(), '{"u": 1, "i": 7, "at": 6}').events.height == 2
