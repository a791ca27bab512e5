"""
`report.json` adds up, for every source: rows read = events + every kind of drop, and events = records + every kind.

Files are made up in each publisher's form, with rows that have to be dropped; how many were written is counted here.
"""

import csv
import datetime
import gzip
import json
import random

import pandas as pd
import polars as pl
import pytest
from datasets import Dataset

from trl_sdpo import cli
from trl_sdpo.recsys import load_sdpo_json, load_source, prepare
from trl_sdpo.recsys.interactions.published import SOURCES


LOADER_DROPS = {
    "events_without_title",
    "events_dropped_by_merge",
    "events_repeated",
    "events_without_time",
    "events_not_read",
}
# what a loader counts beside its drops
LOADER_COUNTS = {
    *("events_read", "items_read", "items_without_title", "items_unknown", "items_disambiguated", "items_merged"),
    *("events_remapped", "events_by_username", "items_titled_by_id", "items_numbered", "items_without_id"),
    *("items_repeated", "years_unreadable", "titles_corrected", "times_unreadable"),
    *("times_from_read_at", "times_from_date_updated", "times_from_date_added"),
}
SEQUENCE_DROPS = (
    *("events_below_min_rating", "events_repeated", "events_below_min_interactions", "events_below_min_length"),
    "events_of_held_out_items",
)
SPLITS = ("train", "validation", "test")
# A title twice, so that items are merged; one that is blank where a publisher may leave it so.
NAMES = {item: f"Film {item} (1999)" for item in range(1, 31)} | {30: "Film 29 (1999)"}
BEGIN = 1_000_000_000


def make_rows(seed=0):
    """User, item, rating, time: some twice, and some of items that nobody knows (31 to 33)."""
    draw = random.Random(seed)
    rows = [
        (user, item, draw.randint(1, 5), BEGIN + 86_400 * draw.randint(0, 900))
        for user in range(1, 26)
        for item in draw.sample(range(1, 34), 20)
    ]
    rows += draw.sample(rows, 15)
    draw.shuffle(rows)
    return rows


ROWS = make_rows()
KNOWN = [row for row in ROWS if row[1] in NAMES]


def write_csv(path, header, rows, **options):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, **options).writerows([header, *rows])


def movielens_csv(folder):
    write_csv(folder / "ratings.csv", ("userId", "movieId", "rating", "timestamp"), KNOWN)
    write_csv(folder / "movies.csv", ("movieId", "title", "genres"), [(i, n, "Drama") for i, n in NAMES.items()])
    return "movielens", folder, {}, len(KNOWN)


def movielens_100k(folder):
    (folder / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in KNOWN))
    flags = "|".join("0" * 19)
    (folder / "u.item").write_text("".join(f"{i}|{n}|01-Jan-1999||x|{flags}\n" for i, n in NAMES.items()))
    return "movielens", folder, {}, len(KNOWN)


def movielens_1m(folder):
    (folder / "ratings.dat").write_text("".join("::".join(map(str, row)) + "\n" for row in KNOWN))
    (folder / "movies.dat").write_text("".join(f"{i}::{n}::Drama\n" for i, n in NAMES.items()))
    return "movielens", folder, {}, len(KNOWN)


def date(seconds):
    zone = datetime.timezone(datetime.timedelta(hours=-7))
    return datetime.datetime.fromtimestamp(seconds, zone).strftime("%a %b %d %H:%M:%S %z %Y")


def goodreads_books(path, blank=()):
    books = [
        {"book_id": str(i), "title": "" if i in blank else n, "title_without_series": n} for i, n in NAMES.items()
    ]
    path.write_bytes(gzip.compress("".join(json.dumps(book) + "\n" for book in books).encode()))


def goodreads(folder):
    shelf = [
        {
            "user_id": f"{user:032x}", "book_id": str(item), "is_read": number % 9 != 0, "rating": rating,
            "read_at": "" if number % 3 else date(time), "date_updated": "",
            "date_added": "" if number % 7 == 1 else date(time) if number % 11 else "Thu Aug 17 15:15:28 PST 2017",
        }
        for number, (user, item, rating, time) in enumerate(ROWS)
    ]  # fmt: skip
    text = "".join(json.dumps(one) + "\n" for one in shelf)
    (folder / "goodreads_interactions_poetry.json.gz").write_bytes(gzip.compress(text.encode()))
    goodreads_books(folder / "goodreads_books_poetry.json.gz", blank=(3,))
    return "goodreads-poetry", folder, {"loader_options": {"read_only": True}}, len(ROWS)


def goodreads_csv(folder):
    header = ("user_id", "book_id", "is_read", "rating", "is_reviewed")
    write_csv(
        folder / "goodreads_interactions.csv", header, [(u, i, n % 4 > 0, r, 0) for n, (u, i, r, _) in enumerate(ROWS)]
    )
    text = (folder / "goodreads_interactions.csv").read_text().replace("True", "1").replace("False", "0")
    (folder / "goodreads_interactions.csv").write_text(text)
    write_csv(folder / "book_id_map.csv", ("book_id_csv", "book_id"), [(i, i) for i in NAMES])
    goodreads_books(folder / "goodreads_books.json.gz")
    options = {"split": "user", "existence": "off", "loader_options": {"read_only": True}}
    return "goodreads-csv", folder, options, len(ROWS)


def goodbooks(folder, key="book_id", header=("user_id", "book_id", "rating")):
    values = [dict(zip(("user_id", "book_id", "rating"), row, strict=False)) for row in ROWS]
    write_csv(folder / "ratings.csv", header, [[row[name] for name in header] for row in values])
    books = [(i, 1999, "" if i == 3 else n) for i, n in NAMES.items()]
    write_csv(folder / "books.csv", (key, "original_publication_year", "title"), books)
    return "goodbooks-10k", folder, {"split": "user", "existence": "off"}, len(ROWS)


def goodbooks_first_version(folder):
    return goodbooks(folder, "id", ("book_id", "user_id", "rating"))


def lastfm_artists(folder):
    lines = ["id\tname\turl\tpictureURL", *(f"{i}\t{'' if i == 3 else n}\thttp://x\t" for i, n in NAMES.items())]
    (folder / "artists.dat").write_text("\n".join([*lines, ""]))


def lastfm_times(folder):
    lines = ["userID\tartistID\ttagID\ttimestamp", *(f"{u}\t{i}\t{r}\t{1000 * t}" for u, i, r, t in ROWS)]
    (folder / "user_taggedartists-timestamps.dat").write_text("\r\n".join([*lines, ""]))
    lastfm_artists(folder)
    return "lastfm", folder, {}, len(ROWS)


def lastfm_dates(folder):
    lines = ["userID\tartistID\ttagID\tday\tmonth\tyear"]
    lines += [f"{u}\t{i}\t{r}\t1\t{1 + t // 86_400 % 12}\t{2005 + u % 4}" for u, i, r, t in ROWS]
    (folder / "user_taggedartists.dat").write_text("\r\n".join([*lines, ""]))
    lastfm_artists(folder)
    return "lastfm-hetrec2011", folder, {}, len(ROWS)


def lastfm_plays(folder):
    lines = ["userID\tartistID\tweight", *(f"{u}\t{i}\t{r}" for u, i, r, _ in ROWS)]
    (folder / "user_artists.dat").write_text("\n".join([*lines, ""]))
    lastfm_artists(folder)
    options = {"split": "user", "existence": "off", "loader_options": {"events": "plays"}}
    return "lastfm", folder, options, len(ROWS)


def recbole(folder):
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    lines += ["\t".join(map(str, row)) for row in ROWS]
    (folder / "x.inter").write_text("\n".join([*lines, ""]))
    lines = ["item_id:token\tmovie_title:token_seq\trelease_year:token"]
    lines += [f"{i}\t{'' if i == 3 else n}\tV" for i, n in NAMES.items()]
    (folder / "x.item").write_text("\n".join([*lines, ""]))
    return "recbole", folder, {}, len(ROWS)


def amazon(folder, kind="jsonl"):
    header = ("user_id", "parent_asin", "rating", "timestamp")
    rows = [(f"U{u}", f"B{i:03}", float(r), 1000 * t) for u, i, r, t in ROWS]
    if kind == "csv":
        write_csv(folder / "Toys.csv", header, rows)
    else:
        lines = [json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows]
        (folder / "Toys.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode()))
    meta = [{"parent_asin": f"B{i:03}", "title": "" if i == 3 else n, "store": "S"} for i, n in NAMES.items()]
    (folder / "meta_Toys.jsonl").write_text("".join(json.dumps(one | {"main_category": None}) + "\n" for one in meta))
    return "amazon", folder, {}, len(rows)


def amazon_csv(folder):
    return amazon(folder, "csv")


def steam(folder):
    days = [datetime.date.fromordinal(730_000 + t // 86_400 % 900).isoformat() for _, _, _, t in ROWS]
    reviews = [
        {"username": f"N{u}", "product_id": str(i), "date": day} | ({"user_id": str(u)} if u % 2 else {})
        for (u, i, _, _), day in zip(ROWS, days, strict=True)
    ]
    (folder / "steam_reviews.json").write_text("".join(f"{one!r}\n" for one in reviews))
    games = [{"id": str(i), "app_name": n, "genres": ["Indie"]} for i, n in NAMES.items() if i != 3]
    games += [games[0], {"app_name": "Nameless"}]
    (folder / "steam_games.json").write_text("".join(f"{one!r}\n" for one in games))
    return "steam", folder, {}, len(ROWS)


def lastfm_1k(folder):
    moments = [datetime.datetime.fromtimestamp(t, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for *_, t in ROWS]
    lines = [
        f"user_{u:06}\t{at}\t\t{NAMES.get(i, '') if i != 3 else ''}\t\tTrack {i}\n"
        for (u, i, _, _), at in zip(ROWS, moments, strict=True)
    ]
    (folder / "userid-timestamp-artid-artname-traid-traname.tsv").write_text("".join(lines))
    return "lastfm-1k", folder, {}, len(ROWS)


TABLE = {"user": "who", "item": "what", "rating": "stars", "timestamp": "at", "title": "called"}


def table_rows():
    """With blank titles, and times that are not known."""
    for number, (user, item, rating, time) in enumerate(ROWS):
        title = NAMES.get(item, "") if item != 3 else ""
        yield {"who": user, "what": item, "stars": rating, "at": None if number % 13 == 0 else time, "called": title}


def table(kind):
    def write(folder):
        rows, path = list(table_rows()), folder / f"log.{kind}"
        frame = pl.DataFrame(rows)
        if kind == "csv":
            frame.write_csv(path)
        elif kind == "tsv.gz":
            path.write_bytes(gzip.compress(frame.write_csv(separator="\t").encode()))
        elif kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif kind == "parquet":
            frame.write_parquet(path)
        elif kind == "pandas":
            path = pd.DataFrame(rows)
        else:
            Dataset.from_polars(frame).save_to_disk(path)
        return "table", path, {"loader_options": TABLE}, len(rows)

    write.__name__ = f"table_{kind}"
    return write


MAKERS = [
    *(movielens_csv, movielens_100k, movielens_1m, goodreads, goodreads_csv, goodbooks, goodbooks_first_version),
    *(lastfm_times, lastfm_dates, lastfm_plays, lastfm_1k, amazon, amazon_csv, steam, recbole),
    *map(table, ("csv", "tsv.gz", "jsonl", "parquet", "pandas", "folder")),
]
# What filters, thins out and cuts, so that every kind of drop may occur.
OPTIONS = {
    "few": {},
    "filtered": {"min_interactions": 4, "min_length": 3, "min_history": 3, "train_stride": 2},
    "held out": {"split": "items", "held_out_items": 0.5, "max_train_users": 5},
    "thinned": {"windows": 3, "eval_windows": "last", "max_train_records": 20, "min_history": 2},
}


def add_up(report, written):
    loader = report["loader"]
    assert set(loader) <= LOADER_DROPS | LOADER_COUNTS, "a count that this test does not know"
    assert loader["events_read"] == written
    assert written == report["events"] + sum(loader.get(name, 0) for name in LOADER_DROPS)
    in_splits = sum(report[split]["targets"] for split in SPLITS if split in report)
    assert report["events"] == in_splits + sum(report.get(name, 0) for name in SEQUENCE_DROPS)
    for split in (split for split in SPLITS if split in report):
        counts = report[split]
        dropped = sum(value for name, value in counts.items() if name.startswith("dropped_"))
        assert counts["targets"] == counts["records"] + dropped


def records_on_disk(folder):
    return {
        split: pl.scan_parquet(folder / "data" / f"{split}-*.parquet").select(pl.len()).collect().item()
        for split in SPLITS
    }


@pytest.fixture(autouse=True)
def no_figure(monkeypatch):
    monkeypatch.setattr("trl_sdpo.recsys.records.preparation.plot_report", lambda *args: False)  # takes a second


def test_every_source_is_here(tmp_path):
    """A new loader needs rows of its publisher's form here."""
    made = set()
    for number, maker in enumerate(MAKERS):
        (tmp_path / str(number)).mkdir()
        made.add(SOURCES[maker(tmp_path / str(number))[0]].load)
    assert made == {source.load for source in SOURCES.values()}


def test_every_kind_of_drop_occurs(tmp_path):
    counted = dict.fromkeys(LOADER_DROPS, 0)
    for number, maker in enumerate(MAKERS):
        (tmp_path / str(number)).mkdir()
        source, path, own, _ = maker(tmp_path / str(number))
        report = load_source(source, path, **own.get("loader_options", {})).report
        counted = {name: count + report.get(name, 0) for name, count in counted.items()}
    assert all(counted.values()), counted


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_report(maker, options, tmp_path):
    (tmp_path / "raw").mkdir()
    source, path, own, written = maker(tmp_path / "raw")
    options = {"num_candidates": 4, "min_history": 1, **OPTIONS[options], **own}
    has_rating = source not in ("lastfm-1k", "steam") and ("lastfm" not in source or own)
    report = prepare(
        source, tmp_path / "out", path=path, min_rating=2 if has_rating else None, num_workers=1, **options
    )
    add_up(report, written)
    on_disk = json.loads((tmp_path / "out" / "report.json").read_text())
    assert on_disk == report
    assert records_on_disk(tmp_path / "out") == {split: report[split]["records"] for split in SPLITS}


def test_report_of_the_command(tmp_path, tokenizer, capsys):
    """With a tokenizer, so that records may be too long."""
    (tmp_path / "raw").mkdir()
    source, path, _, written = recbole(tmp_path / "raw")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    words = ["prepare", source, "--path", str(path), "--output", str(tmp_path / "out"), "--num_candidates", "4"]
    words += ["--min_rating", "2", "--tokenizer", str(tmp_path / "tokenizer"), "--max_length", "63"]
    assert cli.main(words) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    add_up(report, written)
    assert records_on_disk(tmp_path / "out") == {split: report[split]["records"] for split in SPLITS}
    assert sum(report[split]["dropped_too_long"] for split in SPLITS) > 0


def test_records_of_json_are_all_there(tmp_path):
    """S-DPO's json holds records and no events: each becomes one, or the file is refused."""
    names = list(dict.fromkeys(NAMES.values()))
    rows = [
        {"historyList": "::".join(names[n : n + 3]), "itemList": names[n : n + 5], "trueSelection": names[n]}
        for n in range(20)
    ]
    (tmp_path / "records.json").write_text(json.dumps(rows))
    assert len(load_sdpo_json(tmp_path / "records.json")) == len(rows)
