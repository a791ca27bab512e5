"""
What a publisher's files hold, its loader gives, or counts as dropped: rows read = events + every kind of drop.

Files are written from generated rows in the publisher's form, by Python's `csv` and `json`, and read back by Python alone.
"""

import calendar
import csv
import json
import time
from collections import Counter

import pytest
from hypothesis import strategies as st

from trl_sdpo.recsys import (
    load_amazon,
    load_goodbooks,
    load_goodreads,
    load_lastfm,
    load_lastfm_1k,
    load_movielens,
    load_steam,
)


DROPS = (
    "events_without_title",
    "events_dropped_by_merge",
    "events_repeated",
    "events_without_time",
    "events_not_read",
)
WORDS = st.text(st.sampled_from("aB7é,;\"'.&#- \u2028\x85"), min_size=1, max_size=8).filter(
    lambda text: text.strip(" .\u2028\x85")
)
IDS = st.integers(1, 40)
SECONDS = st.integers(0, 2_000_000_000)


def events(*columns, most=25):
    return st.lists(st.tuples(IDS, IDS, *columns), min_size=1, max_size=most)


def titles_of(ids, words):
    """A title for each id, told apart by its number, in one form whatever white space it holds."""
    return {item: " ".join(f"{word} no{item}".split()) for item, word in zip(sorted(ids), words, strict=True)}


def add_up(interactions):
    report = interactions.report
    assert report["events_read"] == interactions.events.height + sum(report.get(name, 0) for name in DROPS)


def triples(interactions):
    """(user, title, time) as often as they are there."""
    names = dict(interactions.items.select("item_id", "title").rows())
    return Counter(
        (user, names[item], time)
        for user, item, time in interactions.events.select("user_id", "item_id", "timestamp").rows()
    )


@st.composite
def with_titles(draw, *columns):
    rows = draw(events(*columns))
    ids = {row[1] for row in rows}
    return rows, titles_of(ids, draw(st.lists(WORDS, min_size=len(ids), max_size=len(ids))))


class TestMovieLens:
    inputs = 3400

    @pytest.mark.parametrize("form", ["u.data", "ratings.dat", "ratings.csv"])
    def test_ratings(self, form, tmp_path, holds):
        def check(drawn):
            rows, names = drawn
            names = {item: f"{name.replace('|', '').replace('::', '')} (1999)" for item, name in names.items()}
            folder = tmp_path / "ml"
            folder.mkdir(exist_ok=True)
            {"u.data": hundred_k, "ratings.dat": million, "ratings.csv": csv_release}[form](folder, rows, names)
            interactions = load_movielens(folder)
            add_up(interactions)
            assert interactions.report["events_read"] == len(rows)
            assert triples(interactions) == Counter((user, names[item], time) for user, item, time in rows)

        holds(check, with_titles(SECONDS))


def hundred_k(folder, rows, names):
    (folder / "u.data").write_text("".join(f"{user}\t{item}\t4\t{time}\n" for user, item, time in rows))
    flags = "|".join(["0"] * 19)
    lines = [f"{item}|{name}|01-Jan-1999||http://x|{flags}\n" for item, name in names.items()]
    (folder / "u.item").write_bytes("".join(lines).encode("utf-8"))


def million(folder, rows, names):
    (folder / "ratings.dat").write_text("".join(f"{user}::{item}::4::{time}\n" for user, item, time in rows))
    (folder / "movies.dat").write_bytes("".join(f"{item}::{name}::Drama\n" for item, name in names.items()).encode())


def csv_release(folder, rows, names):
    with open(folder / "ratings.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("userId", "movieId", "rating", "timestamp"), *((u, i, 4.0, t) for u, i, t in rows)]
        )
    with open(folder / "movies.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("movieId", "title", "genres"), *((i, n, "Drama") for i, n in names.items())])


class TestGoodbooks:
    inputs = 10_000

    def test_ratings(self, tmp_path, holds):
        """Books may be missing, or have no title: their ratings are counted drops."""

        def check(drawn, gone, blank):
            rows, names = drawn
            titles = {item: "" if item in blank else name for item, name in names.items() if item not in gone}
            if not any(titles.get(item) for _, item in rows):
                return
            with open(tmp_path / "ratings.csv", "w", newline="") as file:
                csv.writer(file).writerows(
                    [("user_id", "book_id", "rating"), *((user, item, 5) for user, item in rows)]
                )
            header = ("book_id", "goodreads_book_id", "original_publication_year", "title")
            with open(tmp_path / "books.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([header, *((i, i, 1999, n) for i, n in titles.items())])
            interactions = load_goodbooks(tmp_path)
            add_up(interactions)
            wanted = Counter((user, titles[item], None) for user, item in rows if titles.get(item))
            assert triples(interactions) == wanted
            assert interactions.report["events_without_title"] == len(rows) - wanted.total()

        holds(check, with_titles(), st.sets(IDS, max_size=8), st.sets(IDS, max_size=8))


class TestLastfm:
    inputs = 5000

    def test_tags(self, tmp_path, holds):
        """Several tags of an artist at one time are one event; artists without a line are counted drops."""

        def check(drawn, gone):
            rows, names = drawn
            known = {item: name for item, name in names.items() if item not in gone}
            if not any(item in known for _, item, *_ in rows):
                return
            lines = [
                "userID\tartistID\ttagID\tday\tmonth\tyear",
                *("\t".join(map(str, (u, i, n, 1, m, y))) for n, (u, i, m, y) in enumerate(rows)),
            ]
            (tmp_path / "user_taggedartists.dat").write_bytes("\r\n".join([*lines, ""]).encode())
            artists = ["id\tname\turl\tpictureURL", *(f"{item}\t{name}\thttp://x\t" for item, name in known.items())]
            (tmp_path / "artists.dat").write_bytes("\n".join([*artists, ""]).encode())
            interactions = load_lastfm(tmp_path)
            add_up(interactions)
            assert interactions.report["events_read"] == len(rows)
            wanted = {(u, known[i], calendar.timegm((y, m, 1, 0, 0, 0))) for u, i, m, y in rows if i in known}
            assert triples(interactions) == Counter(wanted)

        months, years = st.integers(1, 12), st.integers(2002, 2012)
        holds(check, with_titles(months, years), st.sets(IDS, max_size=8))

    def test_milliseconds(self, tmp_path, holds):
        def check(drawn):
            rows, names = drawn
            lines = [
                "userID\tartistID\ttagID\ttimestamp",
                *(f"{u}\t{i}\t{n}\t{at}" for n, (u, i, at) in enumerate(rows)),
            ]
            (tmp_path / "user_taggedartists-timestamps.dat").write_bytes("\r\n".join([*lines, ""]).encode())
            artists = ["id\tname\turl\tpictureURL", *(f"{item}\t{name}\thttp://x\t" for item, name in names.items())]
            (tmp_path / "artists.dat").write_bytes("\n".join([*artists, ""]).encode())
            interactions = load_lastfm(tmp_path)
            add_up(interactions)
            events = interactions.events
            rest = events["nanosecond"].to_list() if "nanosecond" in events.columns else [None] * events.height
            found = {
                (user, item, 1000 * at + (0 if behind is None else behind // 1_000_000))
                for (user, item, at), behind in zip(
                    events.select("user_id", "item_id", "timestamp").rows(), rest, strict=True
                )
            }
            if None in rest:  # no two events of one second differ in them
                assert found == {(user, item, at // 1000 * 1000) for user, item, at in rows}
            else:
                assert found == set(rows)

        holds(check, with_titles(st.integers(1_000_000_000_000, 1_000_000_003_000)))


class TestGoodreads:
    inputs = 10_000

    def test_interactions(self, tmp_path, holds):
        """An event has the time of its reading, else of its last change, else of its first; without any it is a drop."""

        def check(drawn, gone):
            rows, names = drawn
            known = {item: name for item, name in names.items() if item not in gone}
            if not any(item in known and any(times) for _, item, *times in rows):
                return
            shelf = [
                {
                    "user_id": f"{user:032x}", "book_id": str(item), "review_id": "r", "is_read": True, "rating": 3,
                    "review_text_incomplete": "", "date_added": date(added), "date_updated": date(updated),
                    "read_at": date(read), "started_at": "",
                }
                for user, item, read, updated, added in rows
            ]  # fmt: skip
            (tmp_path / "goodreads_interactions_poetry.json").write_text(
                "".join(json.dumps(one) + "\n" for one in shelf)
            )
            books = [
                {"book_id": str(item), "title": name, "title_without_series": name} for item, name in known.items()
            ]
            (tmp_path / "goodreads_books_poetry.json").write_text("".join(json.dumps(one) + "\n" for one in books))
            interactions = load_goodreads(tmp_path)
            add_up(interactions)
            assert interactions.report["events_read"] == len(rows)
            wanted = Counter(
                (f"{user:032x}", known[item], read or updated or added)
                for user, item, read, updated, added in rows
                if item in known and (read or updated or added)
            )
            assert triples(interactions) == wanted

        moment = st.one_of(st.just(0), st.integers(978_307_200, 1_600_000_000))
        holds(check, with_titles(moment, moment, moment), st.sets(IDS, max_size=8))


def date(seconds):
    """As Goodreads prints it, in a time zone seven hours behind; nothing for 0."""
    import datetime

    if not seconds:
        return ""
    zone = datetime.timezone(datetime.timedelta(hours=-7))
    return datetime.datetime.fromtimestamp(seconds, zone).strftime("%a %b %d %H:%M:%S %z %Y")


class TestNewerSources:
    def test_amazon(self, tmp_path, holds):
        def check(drawn, gone):
            rows, names = drawn
            known = {item: name for item, name in names.items() if item not in gone}
            if not any(item in known for _, item, _ in rows):
                return
            (tmp_path / "Books.jsonl").write_text(
                "".join(
                    json.dumps({"user_id": f"A{u}", "parent_asin": f"B{i}", "rating": 4.0, "timestamp": at}) + "\n"
                    for u, i, at in rows
                )
            )
            (tmp_path / "meta_Books.jsonl").write_text(
                "".join(
                    json.dumps({"parent_asin": f"B{i}", "title": n, "store": "s", "main_category": None}) + "\n"
                    for i, n in known.items()
                )
            )
            interactions = load_amazon(tmp_path)
            add_up(interactions)
            wanted = Counter((f"A{u}", known[i], at // 1000) for u, i, at in rows if i in known)
            assert triples(interactions) == wanted

        holds(check, with_titles(st.integers(1_500_000_000_000, 1_500_000_002_000)), st.sets(IDS, max_size=8))

    def test_lastfm_1k(self, tmp_path, holds):
        def check(drawn):
            rows, names = drawn
            lines = [
                f"user_{u:06}\t{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(at))}\t\t{names[i]}\t\tx\n"
                for u, i, at in rows
            ]
            path = tmp_path / "plays.tsv"
            path.write_bytes("".join(lines).encode())
            interactions = load_lastfm_1k(path)
            add_up(interactions)
            assert triples(interactions) == Counter((f"user_{u:06}", names[i], at) for u, i, at in rows)

        holds(check, with_titles(SECONDS))

    def test_steam(self, tmp_path, holds):
        def check(drawn, gone):
            rows, names = drawn
            known = {item: name for item, name in names.items() if item not in gone}
            if not any(item in known for _, item, _ in rows):
                return
            day = [time.strftime("%Y-%m-%d", time.gmtime(at)) for _, _, at in rows]
            reviews = [
                {"username": f"n{u}", "product_id": str(i), "date": on}
                for (u, i, _), on in zip(rows, day, strict=True)
            ]
            (tmp_path / "steam_reviews.json").write_text("".join(f"{one!r}\n" for one in reviews), encoding="utf-8")
            games = [{"id": str(i), "title": None, "app_name": n} for i, n in known.items()]
            (tmp_path / "steam_games.json").write_text("".join(f"{one!r}\n" for one in games), encoding="utf-8")
            interactions = load_steam(tmp_path)
            add_up(interactions)
            wanted = Counter((f"@n{u}", known[i], at // 86400 * 86400) for u, i, at in rows if i in known)
            assert triples(interactions) == wanted

        holds(check, with_titles(SECONDS), st.sets(IDS, max_size=8))
