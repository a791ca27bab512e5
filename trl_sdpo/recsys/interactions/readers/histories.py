"""Files of histories, which ask for recommendations: JSON lines, or a csv with a row per event."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from .any_table import AnyTable
from .ids import read_ids
from .json_lines import strict_record, value_problem
from .text_files import TextFile
from .times import read_times


class _Known(str):
    """A text of which it is known what it is, and where it stands, for messages."""

    where: str

    def __new__(cls, value: str, where: str = "") -> "_Known":
        known = super().__new__(cls, value)
        known.where = where
        return known


class ItemId(_Known):
    """An id, whatever titles there are."""


class Title(_Known):
    """A title, whatever ids there are."""


@dataclass
class HistoryQuery:
    """
    A history of a file.

    Args:
        key (`str`):
            What it is known by there: the user, or else the number of its line.
        history (`list`):
            Oldest first: [`ItemId`] or [`Title`] where the file says which it is; else a number, which is an id, or a
            text, which is either.
        candidates (`list`, *optional*):
            What to choose from.
    """

    key: str
    history: list[Any]
    candidates: list[Any] | None = None


def read_histories(path: str | Path) -> list[HistoryQuery]:
    """
    Read the histories of a file.

    Args:
        path (`str` or `Path`):
            A `.csv` with the columns `user_id`, `title` or `item_id` and, where rows are not in order, `timestamp`
            (seconds); or lines of JSON, each `{"history": [...]}` with titles or ids or `{"history_item_ids": [...]}`
            with ids, with `user_id` and `candidates` if there are any; or a list alone.

    Returns:
        `list[HistoryQuery]`: One for each user or line, in the order of the file.

    Raises:
        ValueError: there is none, or a line is not of this form. The message names line, column and value.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Correct the path.")
    queries = None
    if path.stat().st_size:
        queries = _read_csv(path) if path.suffix == ".csv" else _read_lines(path)
    if not queries:
        raise ValueError(f"{path}: holds no history. Write at least one.")
    return queries


def _read_lines(path: Path) -> list[HistoryQuery]:
    queries = []
    for number, line in TextFile(path).lines():
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        row = strict_record(line, where)
        row = row if isinstance(row, dict) else {"history": row}
        of_ids = row.get("history_item_ids") is not None and row["history_item_ids"] != []
        history = _list(row, "history_item_ids" if of_ids else "history", where)
        if of_ids:
            history = [ItemId(_plain(one, f"{where}, 'history_item_ids'"), where) for one in history]
        candidates = None if row.get("candidates") is None else _list(row, "candidates", where)
        user = row.get("user_id")
        blank = user is None or (isinstance(user, str) and not user.strip())
        key = str(number) if blank else _plain(user, f"{where}, 'user_id'")
        queries.append(HistoryQuery(key, history, candidates))
    return queries


def _list(row: dict, name: str, where: str) -> list:
    """The titles or ids under a key: at least one, and each a text or a number."""
    values = row.get(name)
    if not isinstance(values, list) or not values:
        raise ValueError(f"{where}, '{name}': {values!r} is no list of titles or ids. Give one.")
    for value in values:
        _plain(value, f"{where}, '{name}'")
    return [int(value) if isinstance(value, float) else value for value in values]


def _plain(value: Any, where: str) -> str:
    """A title or an id as text: a whole number that has become a float is one again."""
    problem = value_problem(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        problem = "is missing. Fill it or leave it out."
    elif isinstance(value, float) and not value.is_integer():
        problem = problem or "is no whole number. Ids are whole numbers or text."
    if problem:
        raise ValueError(f"{where}: {value!r} {problem}")
    return str(int(value)) if isinstance(value, float) else str(value)


def _read_csv(path: Path) -> list[HistoryQuery]:
    table = AnyTable(path, str(path))
    there = table.quoting.header(table.file)
    item = "title" if "title" in there else "item_id"
    for name in ("user_id", item):
        if name not in there:
            raise ValueError(f"{path}: no column '{name}', only {there}. It needs user_id, and title or item_id.")
    names = ["user_id", item, *(["timestamp"] if "timestamp" in there else [])]
    rows = table.read({name: name for name in names})
    for name in names:
        missing = rows[name].is_null().arg_true()
        if len(missing):
            table.raise_at(missing[0], name, None, "is missing. Fill it or remove the line.")
    columns = {name: _texts(table, rows[name]) for name in names[:2] if name != "title"}
    rows = rows.with_columns(**columns).with_columns(number=pl.Series(table.line_numbers()))
    if "timestamp" in names:
        times = rows["timestamp"]
        seconds, rest = read_times(times, "s", None, table.fail_at("timestamp", times))
        rows = rows.with_columns(seconds=seconds, rest=rest).sort("seconds", "rest", maintain_order=True)
    known = Title if item == "title" else ItemId
    histories: dict[str, list] = {user: [] for user in columns["user_id"].unique(maintain_order=True)}
    for user, value, number in rows.select("user_id", item, "number").iter_rows():
        histories[user].append(known(value, f"{path}: line {number}, {item}"))
    return [HistoryQuery(user, history) for user, history in histories.items()]


def _texts(table: AnyTable, ids: pl.Series) -> pl.Series:
    return read_ids(ids, f"{table.label}: column '{ids.name}'", table.fail_at(ids.name, ids)).cast(pl.String)
