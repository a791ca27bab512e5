"""The files that the commands and snippets of the pages speak of: small, made up, in the publishers' formats."""

import gzip
import json
import time
import zipfile
from pathlib import Path


USERS, ITEMS, EVENTS = range(1, 31), range(1, 61), 20
# Names on the Hub under which a page asks for a model: a directory of that name goes before the Hub.
MODELS = ("model", "HuggingFaceTB/SmolLM2-135M-Instruct")
# What a clone has, and a page may name.
OF_THE_CLONE = ("benchmarks", "constraints.txt", "docs", "examples", "README.md", "setup.cfg", "tests")


def title(item: int) -> str:
    return f"Film {item} ({1950 + item})"


def interactions() -> list[tuple[int, int, int, int]]:
    """User, item, rating and time in seconds; in time, the users take turns."""
    return [
        (user, (7 * user + 11 * step) % len(ITEMS) + 1, 1 + (user + step) % 5, 978300000 + 86400 * step + user)
        for user in USERS
        for step in range(EVENTS)
    ]


def preference_records(num: int) -> list[dict]:
    return [
        {
            "prompt": f"This user has watched {title(index + 1)}, {title(index + 2)}. Next:",
            "chosen": f" {title(index + 3)}",
            "rejected": [f" {title(index + 3 + step)}" for step in range(1, 5)],
        }
        for index in range(num)
    ]


def _write_json_lines(path: Path, rows: list[dict]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def write_movielens(folder: Path) -> None:
    """MovieLens-1M and -100k as they are unpacked in the cache, and as zips."""
    dat = "".join(f"{user}::{item}::{rating}::{time}\n" for user, item, rating, time in interactions())
    movies = "".join(f"{item}::{title(item)}::Drama\n" for item in ITEMS)
    one_million = folder / "cache" / "movielens-1m" / "ml-1m"
    one_million.mkdir(parents=True)
    (one_million / "ratings.dat").write_text(dat)
    (one_million / "movies.dat").write_text(movies)
    with zipfile.ZipFile(folder / "ml-1m.zip", "w") as archive:
        for name in ("ratings.dat", "movies.dat"):
            archive.write(one_million / name, f"ml-1m/{name}")
    one_hundred_thousand = folder / "cache" / "movielens-100k" / "ml-100k"
    one_hundred_thousand.mkdir(parents=True)
    rows = [f"{user}\t{item}\t{rating}\t{time}\n" for user, item, rating, time in interactions()]
    (one_hundred_thousand / "u.data").write_text("".join(rows))
    genres = "|".join(["0"] * 19)
    rows = [f"{item}|{title(item)}|01-Jan-{1950 + item}||http://example.org|{genres}\n" for item in ITEMS]
    (one_hundred_thousand / "u.item").write_text("".join(rows))
    with zipfile.ZipFile(folder / "ml-100k.zip", "w") as archive:
        for name in ("u.data", "u.item"):
            archive.write(one_hundred_thousand / name, f"ml-100k/{name}")


def write_goodreads(folder: Path) -> None:
    """One genre."""
    shelves = [
        {
            "user_id": f"user{user}",
            "book_id": str(item),
            "is_read": True,
            "rating": rating,
            "read_at": "",
            "date_updated": time.strftime("%a %b %d %H:%M:%S +0000 %Y", time.gmtime(at)),
            "date_added": time.strftime("%a %b %d %H:%M:%S +0000 %Y", time.gmtime(at)),
        }
        for user, item, rating, at in interactions()
    ]
    _write_json_lines(folder / "downloads" / "goodreads_interactions_poetry.json.gz", shelves)
    books = [{"book_id": str(item), "title": title(item), "title_without_series": title(item)} for item in ITEMS]
    _write_json_lines(folder / "downloads" / "goodreads_books_poetry.json.gz", books)


def write_tables(folder: Path) -> None:
    """A log of one's own: milliseconds, names of columns that are nobody's."""
    rows = [f"{user},{item},{1000 * time},{title(item)}\n" for user, item, _, time in interactions()]
    (folder / "log.csv").write_text("uid,sku,at,label\n" + "".join(rows))


def write_all(folder: Path, clone: Path, model, tokenizer) -> None:
    """
    Everything that a page may find in its working directory.

    Args:
        folder (`Path`):
            The directory, empty.
        clone (`Path`):
            Root of the repository, of which the directory shows a part.
        model ([`~transformers.PreTrainedModel`]), tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            What every name of a model stands for.
    """
    for name in OF_THE_CLONE:
        (folder / name).symlink_to(clone / name)
    for name in MODELS:
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    records = preference_records(12)
    _write_json_lines(folder / "preferences.jsonl", records)
    _write_json_lines(folder / "records" / "train.jsonl", records[:8])
    _write_json_lines(folder / "records" / "test.jsonl", records[8:])
    write_movielens(folder)
    write_goodreads(folder)
    write_tables(folder)
