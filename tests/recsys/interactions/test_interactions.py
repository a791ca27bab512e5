import re

import polars as pl
import pytest

from trl_sdpo.recsys import Interactions, canonical_title, resolve_duplicate_titles


def make_events(**columns):
    data = {"user_id": [1, 1, 2], "item_id": [7, 8, 7], "timestamp": [10, 20, 30], "rating": [3.0, 4.0, 5.0]}
    return pl.DataFrame(data | columns)


def make_items(**columns):
    return pl.DataFrame({"item_id": [7, 8], "title": ["Heat (1995)", "Ran (1985)"]} | columns)


CANONICAL = [
    ("Usual Suspects, The (1995)", "The Usual Suspects (1995)"),
    ("American in Paris, An (1951)", "An American in Paris (1951)"),
    ("Single Girl, A (Fille seule, La) (1995)", "A Single Girl (La Fille seule) (1995)"),
    ("Postman, The (Postino, Il) (1994)", "The Postman (Il Postino) (1994)"),
    ("Eye of Vichy, The (Oeil de Vichy, L') (1993)", "The Eye of Vichy (L'Oeil de Vichy) (1993)"),
    ("Black Sabbath (Tre volti della paura, I) (1963)", "Black Sabbath (I Tre volti della paura) (1963)"),
    ("Convent, The (Convento, O) (1995)", "The Convent (O Convento) (1995)"),
    ("Boot, Das (1981)", "Das Boot (1981)"),
    ("Good, the Bad, The (Buono, il brutto, Il) (1966)", "The Good, the Bad (Il Buono, il brutto) (1966)"),
    ("City (a.k.a. Gates, The) (Paura, La) (1980)", "City (a.k.a. The Gates) (La Paura) (1980)"),
    ("Crow: City of Angels, The (1996)", "The Crow: City of Angels (1996)"),
    # A word behind a comma that is no article stays.
    ("Paris, Texas (1984)", "Paris, Texas (1984)"),
    ("Girl, Interrupted (1999)", "Girl, Interrupted (1999)"),
    ("Not Love, Just Frenzy (Más que amor, frenesí) (1996)", "Not Love, Just Frenzy (Más que amor, frenesí) (1996)"),
    ("I, Robot (2004)", "I, Robot (2004)"),
    # How a film was released is not its title.
    ("Time of the Great Giving, The (1995) (V)", "The Time of the Great Giving (1995)"),
    ("Stand, The (TV) (1994)", "The Stand (1994)"),
    # White space and the year.
    ("  Two   Moon\tJunction (1988)  ", "Two Moon Junction (1988)"),
    ("Wicked Woman, A(1953)", "A Wicked Woman (1953)"),
    ("1984 (1984)", "1984 (1984)"),
    ("(500) Days of Summer (2009)", "(500) Days of Summer (2009)"),
    ("(Untitled) (2009)", "(Untitled) (2009)"),
    ("Desu (2006–2007)", "Desu (2006–2007)"),
    # what is no year of four digits is a part of the title
    ("Heat, The (95)", "The Heat (95)"),
    ("Heat, The (19955)", "The Heat (19955)"),
    ("unknown", "unknown"),
]


@pytest.mark.parametrize(("title", "expected"), CANONICAL)
def test_canonical_title(title, expected):
    assert canonical_title(title) == expected
    assert canonical_title(expected) == expected


def test_canonical_title_takes_the_year_of_a_column_only_where_the_title_has_none():
    assert canonical_title("Postman, The (Postino, Il)", 1994) == "The Postman (Il Postino) (1994)"
    assert canonical_title("Blade Runner 2049", 2017) == "Blade Runner 2049 (2017)"
    assert canonical_title("Heat (1995)", 1996) == "Heat (1995)"
    assert canonical_title("Heat (95)", 1995) == "Heat (95) (1995)"


@pytest.mark.parametrize("title", ["", "  \t"])
def test_canonical_title_refuses_an_empty_title(title):
    with pytest.raises(ValueError, match="is empty"):
        canonical_title(title)


@pytest.mark.parametrize("title", ["(V)", "(TV)", " (VG)  (V) "])
def test_a_title_of_a_format_alone_stays(title):
    assert canonical_title(title) == " ".join(title.split())
    assert canonical_title(canonical_title(title)) == canonical_title(title)


def test_interactions_hold_what_they_were_given():
    interactions = Interactions(make_events(), make_items(), "tiny")
    assert interactions.has_time
    assert interactions.report == {}
    assert interactions.events.height == 3


def test_string_ids_are_kept():
    events = make_events(user_id=["u", "u", "v"], item_id=["a", "b", "a"])
    interactions = Interactions(events, make_items(item_id=["a", "b"]), "tiny")
    assert interactions.events["user_id"].to_list() == ["u", "u", "v"]


BAD = [
    ({"item_id": [7, 9, 9]}, {}, "tiny events: row 1 (counted from 0), column 'item_id': 9 is not among the items"),
    ({"item_id": [7, 9, 9]}, {}, "(2 such rows)"),
    ({"user_id": [1, None, 2]}, {}, "row 1 (counted from 0), column 'user_id': None is null"),
    ({"item_id": [7, 8, None]}, {}, "row 2 (counted from 0), column 'item_id': None is null"),
    ({"timestamp": [1, None, 3]}, {}, "row 1 (counted from 0), column 'timestamp': None is null"),
    ({"rating": [1.0, float("nan"), 3.0]}, {}, "row 1 (counted from 0), column 'rating': nan is not a finite number"),
    ({"rating": [1.0, 2.0, None]}, {}, "row 2 (counted from 0), column 'rating': None is not a finite number"),
    ({}, {"item_id": [7, 7]}, "tiny items: row 1 (counted from 0), column 'item_id': 7 occurs in an earlier row"),
    ({}, {"title": ["Heat", "Heat"]}, "column 'title': 'Heat' occurs in an earlier row already (1 such rows). Merge"),
    ({}, {"title": ["Heat", " "]}, "row 1 (counted from 0), column 'title': ' ' is empty"),
    ({}, {"title": [None, "Heat"]}, "row 0 (counted from 0), column 'title': None is null"),
]


@pytest.mark.parametrize(("events", "items", "message"), BAD)
def test_a_bad_row_is_named(events, items, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Interactions(make_events(**events), make_items(**items), "tiny")


def test_missing_columns_wrong_types_and_empty_tables_are_named():
    with pytest.raises(ValueError, match="tiny events: no column 'timestamp'"):
        Interactions(make_events().drop("timestamp"), make_items(), "tiny")
    with pytest.raises(ValueError, match="tiny items: no column 'title'"):
        Interactions(make_events(), make_items().drop("title"), "tiny")
    with pytest.raises(TypeError, match="column 'timestamp' is Float64, not Int64"):
        Interactions(make_events(timestamp=[1.0, 2.0, 3.0]), make_items(), "tiny")
    with pytest.raises(TypeError, match="column 'rating' is Int64, not Float64"):
        Interactions(make_events(rating=[1, 2, 3]), make_items(), "tiny")
    with pytest.raises(TypeError, match="column 'item_id' is Int64, in the items it is String"):
        Interactions(make_events(), make_items(item_id=["7", "8"]), "tiny")
    with pytest.raises(ValueError, match="tiny events: no rows"):
        Interactions(make_events().clear(), make_items(), "tiny")
    with pytest.raises(ValueError, match="tiny items: no rows"):
        Interactions(make_events(), make_items().clear(), "tiny")


def test_a_source_without_time_has_no_times():
    timeless = make_events().with_columns(pl.lit(None, dtype=pl.Int64).alias("timestamp"))
    assert not Interactions(timeless, make_items(), "tiny", has_time=False).has_time
    with pytest.raises(ValueError, match="column 'timestamp': 10 is a time, but has_time=False"):
        Interactions(make_events(), make_items(), "tiny", has_time=False)


def test_times_in_milliseconds_are_named():
    with pytest.raises(ValueError, match=r"row 1 .*'timestamp': 881250949000 is after the year 5138 .*divide milli"):
        Interactions(make_events(timestamp=[10, 881250949000, 30]), make_items(), "tiny")


def test_equal_titles_are_merged_into_the_lowest_id_and_the_earlier_event_stays():
    titles = ["Chasing Amy (1997)", "Heat (1995)", "Chasing Amy (1997)", "Heat (1986)", "Chasing Amy (1997)"]
    items = pl.DataFrame({"item_id": [268, 1, 246, 2, 300], "title": titles})
    events = pl.DataFrame(
        {
            # User 1 has all three of the same title, user 2 only a higher id, user 3 none; user 4 ties in time.
            "user_id": [1, 1, 1, 2, 3, 4, 4],
            "item_id": [246, 268, 300, 268, 1, 268, 246],
            "timestamp": [30, 20, 40, 50, 60, 70, 70],
        }
    )
    events, items, report = resolve_duplicate_titles(events, items)
    assert items.rows() == [(1, "Heat (1995)"), (246, "Chasing Amy (1997)"), (2, "Heat (1986)")]
    assert events.rows() == [(1, 246, 20), (2, 246, 50), (3, 1, 60), (4, 246, 70)]
    assert report == {
        "items_disambiguated": 2,
        "items_merged": 2,
        "events_remapped": 2,
        "events_dropped_by_merge": 3,
    }


def test_repeated_events_of_one_item_are_not_the_business_of_merging():
    events = pl.DataFrame({"user_id": [1, 1], "item_id": [9, 9], "timestamp": [1, 2]})
    items = pl.DataFrame({"item_id": [7, 9], "title": ["A", "A"]})
    events, _, report = resolve_duplicate_titles(events, items)
    assert events.rows() == [(1, 7, 1), (1, 7, 2)]
    assert report["events_dropped_by_merge"] == 0


def test_equal_titles_are_told_apart_by_a_column_of_years():
    items = pl.DataFrame(
        {"item_id": [1, 2, 3, 4], "title": ["Heat", "Heat", "Ran", "Heat"], "year": [1995, 1986, 1985, 1986]}
    )
    events = pl.DataFrame({"user_id": [1], "item_id": [4], "timestamp": [1]})
    events, items, report = resolve_duplicate_titles(events, items)
    assert items.rows() == [(1, "Heat (1995)"), (2, "Heat (1986)"), (3, "Ran")]
    assert events["item_id"].to_list() == [2]
    assert report["items_merged"] == 1


def test_an_unknown_item_is_left_for_the_check_to_name():
    events = make_events(item_id=[7, 99, 8])
    events, items, _ = resolve_duplicate_titles(events, make_items())
    with pytest.raises(ValueError, match=r"row 1 .* 99 is not among the items"):
        Interactions(events, items, "tiny")
