import re

import pytest

from trl_sdpo import Catalogue, Recommendation
from trl_sdpo.serving.histories import AS_IT_IS, SHUFFLED, WITHOUT, TitleSearch, vary
from trl_sdpo.serving.lists_html import list_html, percent, probabilities


NASTY = '<b onclick="x()">{{y}} ${z} & "q"</b>'
CATALOGUE = Catalogue(
    ["1", "2", "3"], [NASTY, "Heat (1995)", "Ran (1985)"], [5, 0, 1200],
    {"genres": [["Drama", "<i>"], None, ["War"]], "year": [1999, 1995, None]},
)  # fmt: skip
ITEMS = [
    Recommendation("3", "Ran (1985)", -1.0),
    Recommendation("1", NASTY, -2.0),
    Recommendation("2", "Heat (1995)", -40.0),
]


def test_no_text_becomes_markup():
    page = list_html("<s>", ITEMS, CATALOGUE)
    assert not re.search(r"<(b|s|i)\b", page)
    assert "&lt;b onclick=" in page


def test_a_list_says_what_is_known_of_an_item():
    page = list_html("s-dpo", ITEMS, CATALOGUE, against=[ITEMS[1], ITEMS[0]], truth="1")
    rows = re.findall(r"<tr>.*?</tr>", page)[1:]
    assert "1,200" in rows[0]
    assert "36.8 %" in rows[0]
    assert "▲ from 2" in rows[0]
    assert "Drama, &lt;i&gt; · 1999" in rows[1]
    assert "came next" in rows[1]
    assert "new item" in rows[2]
    assert "not in the list before" in rows[2]
    assert re.findall(r"width:([\d.]+)%", page) == ["100.0", "36.8", "0.0"]


def test_nothing_left_is_said():
    assert "Nothing is left" in list_html("s-dpo", [], CATALOGUE)


@pytest.mark.parametrize(("value", "text"), [(0.5, "50.0 %"), (0.00123, "0.1 %"), (0.00012, "0.01 %"), (0.0, "0 %")])
def test_percent(value, text):
    assert percent(value) == text


def test_a_probability_is_none_above_one():
    assert probabilities([0.0, 1e-9, -1.0])[:2] == [1.0, 1.0]


def test_histories_are_varied():
    history = ["a", "b", "c", "d"]
    assert vary(history, AS_IT_IS) == history
    assert vary(history, WITHOUT, "b") == ["a", "c", "d"]
    assert sorted(vary(history, SHUFFLED)) == history
    assert vary(history, SHUFFLED, seed=1) == vary(history, SHUFFLED, seed=1) != history


def test_the_most_known_titles_stand_first():
    assert TitleSearch(CATALOGUE).find("") == ["3", "1", "2"]
    assert TitleSearch(CATALOGUE).find("heat 19") == ["2"]
    assert TitleSearch(CATALOGUE).find("nothing") == []
