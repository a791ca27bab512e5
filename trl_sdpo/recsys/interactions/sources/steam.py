"""Steam as of W.-C. Kang and J. McAuley: https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data."""

import ast
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ...._progress import progress
from ..attributes import wanted_attributes
from ..interactions import ITEM_ID, TIMESTAMP, TITLE, USER_ID, Interactions
from ..readers.text_files import TextFile
from ..readers.times import read_times
from ..titles import drop_untitled, plain_titles, resolve_duplicate_titles


logger = logging.getLogger(__name__)

_REVIEWS, _GAMES = "steam_reviews.json", "steam_games.json"
_USERS = ("user_id", "username")
_REVIEW_KEYS = ("username", "user_id", "product_id", "date")
_GAME_KEYS, _ATTRIBUTES = ("id", "title", "app_name"), ("developer", "genres")


def load_steam(path: str | Path, users: str = "user_id", *, attributes: str | Sequence[str] = ()) -> Interactions:
    """
    Read the reviews of games on Steam (`steam_reviews.json.gz` with `steam_games.json.gz`).

    An event is that a user reviewed a game; its time is a day. The lines of the files are Python literals and no JSON.
    A review has the name of its user, which several may share, and only some have the number of the account besides.

    Args:
        path (`str` or `Path`):
            The folder with both files, also unzipped. The whole, 7.8 million reviews, takes some minutes.
        users (`str`, *optional*, defaults to `"user_id"`):
            What tells users apart. `"user_id"` takes the number of the account where there is one, else the name with
            an `@` before it, which no number has. `"username"` takes the name always, as SASRec's code does: users of
            one name are one then.
        attributes (`str` or `Sequence[str]`, *optional*):
            What the items keep beside their title: `"developer"`, `"genres"`.

    Returns:
        [`Interactions`]: The report counts what was read, dropped and
        merged, and `events_by_username`, of users that are known by name alone.

    Raises:
        FileNotFoundError: there is no such path, or a file is missing in it.
        ValueError: `users` is another word, or a file is empty, damaged or not in its format. The message names file,
            line, key and value.

    Example:
        ```python
        from trl_sdpo.recsys import load_steam

        interactions = load_steam("steam")
        ```
    """
    if users not in _USERS:
        raise ValueError(f"users={users!r} is neither 'user_id' nor 'username'. Pass one of them.")
    wanted = wanted_attributes(attributes, _ATTRIBUTES, "steam")
    path = Path(path)
    reviews = _read(_find(path, _REVIEWS), _REVIEW_KEYS, ("username", "product_id", "date"))
    games = _read(_find(path, _GAMES), (*_GAME_KEYS, *wanted), ())
    by_name = reviews["user_id"].is_null() if users == "user_id" else pl.repeat(True, reviews.height, eager=True)
    report = {"events_read": reviews.height, "events_by_username": int(by_name.sum()), "items_read": games.height}
    events = _events(reviews, users, _find(path, _REVIEWS))
    titled = games.drop_nulls("id")
    report["items_without_id"] = games.height - titled.height
    items = titled.select(
        pl.col("id").alias(ITEM_ID),
        pl.coalesce(plain_titles("title"), plain_titles("app_name")).alias(TITLE),
        *(plain_titles(name) for name in wanted),
    ).unique(ITEM_ID, keep="first", maintain_order=True)
    report["items_repeated"] = titled.height - items.height
    events, items, dropped = drop_untitled(events, items)
    events, items, merges = resolve_duplicate_titles(events, items)
    return Interactions(events, items, "steam", report=report | dropped | merges)


def _find(path: Path, name: str) -> Path:
    for file in (path / f"{name}.gz", path / name):
        if file.is_file():
            return file
    raise FileNotFoundError(f"{path / name}.gz: no such file. Pass the folder with {_REVIEWS}.gz and {_GAMES}.gz.")


def _read(path: Path, keys: tuple[str, ...], required: tuple[str, ...]) -> pl.DataFrame:
    """The keys of all lines as text; a list as its words with commas."""
    columns: dict[str, list[str | None]] = {key: [] for key in keys}
    for where, record in _records(path):
        for key, column in columns.items():
            value = _text(record.get(key))
            if value is None and key in required:
                raise ValueError(f"{where}, key '{key}': {record.get(key)!r} is missing or blank. Remove the line.")
            column.append(value)
    return pl.DataFrame(columns, schema=dict.fromkeys(keys, pl.String))


def _text(value: Any) -> str | None:
    text = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return text if text.strip() else None


def _records(path: Path) -> Iterator[tuple[str, dict]]:
    file = TextFile(path)
    for number, line in progress(file.lines(), desc=path.name, unit="lines", delay=2):
        if not line.strip():
            continue
        where = f"{file.label}: line {number}"
        try:
            record = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(f"{where}: no Python literal ({error}): {line[:80]!r}. Fetch the file again.") from error
        if not isinstance(record, dict):
            raise ValueError(f"{where}: {line[:80]!r} is no record. Correct or remove the line.")
        yield where, record


def _events(reviews: pl.DataFrame, users: str, path: Path) -> pl.DataFrame:
    def fail(row: int, problem: str) -> None:
        raise ValueError(f"{path}: review {row + 1}, key 'date': {reviews['date'][row]!r} {problem}")

    seconds, _ = read_times(reviews["date"], "s", "%Y-%m-%d", fail)
    user = pl.coalesce("user_id", pl.format("@{}", "username")) if users == "user_id" else pl.col("username")
    return reviews.select(user.alias(USER_ID), pl.col("product_id").alias(ITEM_ID), seconds.alias(TIMESTAMP))
