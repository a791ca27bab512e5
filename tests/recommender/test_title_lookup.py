import pytest

from trl_sdpo import Catalogue
from trl_sdpo.recommender.title_lookup import TitleLookup
from trl_sdpo.recsys import ItemId, Title


@pytest.fixture
def lookup():
    # names of real artists and books, some of them the ids of others
    return TitleLookup(Catalogue(["311", "1984", "2666", "7", "8"], ["1984", "2666", "(V)", "!!!", "..."]))


def test_who_knows_what_it_is_says_so(lookup):
    assert lookup.find(ItemId("1984"), "history") == (1, "2666")
    assert lookup.find(Title("1984"), "history") == (0, "1984")
    assert lookup.find(1984, "history") == (1, "2666")
    with pytest.raises(ValueError, match=r"history: '1984' is the id of '2666' and the title .*ItemId\('1984'\)"):
        lookup.find("1984", "history")


def test_what_is_said_is_not_guessed(lookup):
    with pytest.raises(ValueError, match=r"in\.csv: line 2: !!! is no id of the 5 items"):
        lookup.find(ItemId("!!!", "in.csv: line 2"), "history")
    with pytest.raises(ValueError, match="'311' is no title"):
        lookup.find(Title("311"), "history")
    assert lookup.find(Title("311"), "history", unknown="keep") == (None, "311")


@pytest.mark.parametrize("title", ["(V)", "!!!", "..."])
def test_titles_of_which_nothing_is_left_are_found(lookup, title):
    assert lookup.find(title, "history")[1] == title
    for other in ("(TV)", "?", "\u200b", "(1990)"):
        with pytest.raises(ValueError, match="is no title"):
            lookup.find(other, "history")


def test_a_title_that_may_be_two_is_nobodys():
    """To the letter each is found; without case both could be meant, and neither is taken."""
    lookup = TitleLookup(Catalogue(["1", "2", "3"], ["The Ring", "THE RING", "Heat"]))
    assert lookup.find("The Ring", "history")[0] == 0
    assert lookup.find("THE RING", "history")[0] == 1
    assert lookup.find("heat", "history")[0] == 2
    with pytest.raises(ValueError, match="'the ring' is no title"):
        lookup.find("the ring", "history")
