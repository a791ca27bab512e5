"""Steam, on made-up lines in the form of its files: Python literals, as they were printed by Python 2."""

import gzip

import pytest

from trl_sdpo.recsys import load_source, load_steam


REVIEWS = (
    "{u'username': u'Chaos', u'hours': 0.1, u'products': 41, u'product_id': u'10', u'page_order': 0, "
    "u'date': u'2017-12-17', u'text': u'It\\'s \\u2665', u'early_access': False, u'page': 1}\n"
    "{u'username': u'Chaos', u'user_id': u'76561198000000001', u'product_id': u'10', u'date': u'2017-12-18'}\n"
    "{u'username': u'Chaos', u'user_id': u'76561198000000002', u'product_id': u'20', u'date': u'2017-12-19'}\n"
    "{u'username': u'76561198000000001', u'product_id': u'20', u'date': u'2017-12-20'}\n"
    "{u'username': u'Ann', u'product_id': u'77', u'date': u'2017-12-20'}\n"
)
GAMES = (
    "{u'publisher': u'K', u'genres': [u'Action', u'Indie'], u'app_name': u'Lost Kitty', u'title': u'Lost  Kitty', "
    "u'id': u'10', u'developer': u'K', u'price': 4.99}\n"
    "{u'app_name': u'Ironbound', u'price': u'Free To Play', u'id': u'20'}\n"
    "{u'app_name': u'Nameless', u'price': 1.0}\n"
    "{u'app_name': u'Ironbound again', u'id': u'20'}\n"
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "steam_reviews.json.gz").write_bytes(gzip.compress(REVIEWS.encode()))
    (tmp_path / "steam_games.json").write_text(GAMES, encoding="utf-8")
    return tmp_path


def test_users_of_one_name_stay_apart(folder):
    interactions = load_source("steam", folder, attributes=["developer", "genres"])
    assert load_steam(folder).items.columns == ["item_id", "title"]
    assert interactions.events.rows() == [
        ("@Chaos", "10", 1513468800),
        ("76561198000000001", "10", 1513555200),
        ("76561198000000002", "20", 1513641600),
        ("@76561198000000001", "20", 1513728000),
    ]
    assert interactions.items.rows() == [("10", "Lost Kitty", "K", "Action, Indie"), ("20", "Ironbound", None, None)]
    report = interactions.report
    assert (report["events_read"], report["events_by_username"], report["events_without_title"]) == (5, 3, 1)
    assert (report["items_read"], report["items_without_id"], report["items_repeated"]) == (4, 1, 1)


def test_by_name(folder):
    interactions = load_steam(folder, users="username")
    assert interactions.events["user_id"].to_list() == ["Chaos", "Chaos", "Chaos", "76561198000000001"]
    assert interactions.report["events_by_username"] == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{u'username': u'A', u'product_id': u'1', u'date': u'soon'}\n", "review 6, key 'date': 'soon' is not a time"),
        ("{u'username': u'A', u'date': u'2017-12-20'}\n", "line 6, key 'product_id': None is missing"),
        ('{"username": null}\n', "line 6: no Python literal"),
        ("[1, 2]\n", "line 6: .* is no record"),
        ("{u'username': u'A', u'produ", "line 6: no Python literal"),
    ],
)
def test_bad_lines_are_named(folder, line, message):
    (folder / "steam_reviews.json.gz").write_bytes(gzip.compress((REVIEWS + line).encode()))
    with pytest.raises(ValueError, match=message):
        load_steam(folder)


def test_bad_arguments(folder):
    with pytest.raises(ValueError, match="neither 'user_id' nor 'username'"):
        load_steam(folder, users="name")
    (folder / "steam_games.json").unlink()
    with pytest.raises(FileNotFoundError, match="steam_games"):
        load_steam(folder)
