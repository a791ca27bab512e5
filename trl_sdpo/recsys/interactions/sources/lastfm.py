"""Last.fm as published for HetRec 2011: https://grouplens.org/datasets/hetrec-2011/."""

import logging
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ..attributes import most_frequent, wanted_attributes, with_attributes
from ..interactions import (
    ITEM_ID,
    LATEST,
    NANOSECOND,
    RATING,
    TIMESTAMP,
    TITLE,
    USER_ID,
    Interactions,
    with_nanoseconds,
)
from ..readers.delimited import Columns, check_header, read_table
from ..readers.release_files import open_release
from ..readers.text_files import decode
from ..titles import drop_untitled, plain_titles, resolve_duplicate_titles


logger = logging.getLogger(__name__)

_ARTISTS, _TAGS = "artists.dat", "tags.dat"
_TIMES, _DATES, _PLAYS = "user_taggedartists-timestamps.dat", "user_taggedartists.dat", "user_artists.dat"
_LAYOUTS = {"tags": ((_TIMES, _ARTISTS), (_DATES, _ARTISTS)), "plays": ((_PLAYS, _ARTISTS),)}
_IDS = {"userID": pl.Int64, "artistID": pl.Int64}
_COLUMNS: dict[str, Columns] = {
    _TIMES: {**_IDS, "tagID": pl.Null, "timestamp": pl.Int64},
    _DATES: {**_IDS, "tagID": pl.Null, "day": pl.Int64, "month": pl.Int64, "year": pl.Int64},
    _PLAYS: {**_IDS, "weight": pl.Float64},
    _ARTISTS: {"id": pl.Int64, "name": pl.String, "url": pl.Null, "pictureURL": pl.Null},
}
# Last.fm began in 2002, but five rows of the published file say 1956 to 1979.
_LIMITS: dict[str, dict[str, tuple[float, float]]] = {
    _TIMES: {"timestamp": (-1000 * LATEST, 1000 * LATEST)},
    _DATES: {"day": (1, 31), "month": (1, 12), "year": (1900, 2100)},
    _PLAYS: {"weight": (0, float(LATEST))},
}


def load_lastfm(path: str | Path, events: str = "tags", attributes: str | Sequence[str] = ()) -> Interactions:
    """
    Read the Last.fm data of HetRec 2011 (`hetrec2011-lastfm-2k`).

    An event is that a user tagged an artist (`events="tags"`): several tags at one time are one event. The time is
    that of `user_taggedartists-timestamps.dat` (milliseconds, none of which is lost) or, where that file is
    missing, the date in `user_taggedartists.dat`, at midnight UTC; in both, nearly all times are the first of a month.
    Rows keep the order of the file, which is by user and artist. With `events="plays"` an event is that a user
    listened to an artist (`user_artists.dat`): it has no time, and the number of plays is its `rating`.

    The title of an artist is the name with white space single and stripped. Names that differ by case alone stay
    apart. Events of artists that are not in `artists.dat`, or have no name there, are dropped and counted.

    Args:
        path (`str` or `Path`):
            The folder with the files, the folder above it, or the zip archive as published.
        events (`str`, *optional*, defaults to `"tags"`):
            `"tags"`, or `"plays"` for the number of plays, which have no time.
        attributes (`str` or `Sequence[str]`, *optional*):
            `"tags"` for a column of that name, a list of what users tagged an artist with, the most frequent first
            (`tags.dat`). They are the events themselves, also those of the validation and the test: with
            `events="tags"` the words of an artist tell how often it is a target, and of what.

    Returns:
        [`Interactions`]: Its report counts what was read, dropped and merged.

    Raises:
        FileNotFoundError: there is no such path, or a file is missing in it.
        ValueError: `events` is another word, or a file is empty, damaged or not in its format. The message names
            file, line, column and value.

    Example:
        ```python
        from trl_sdpo.recsys import load_lastfm

        interactions = load_lastfm("hetrec2011-lastfm-2k.zip")
        ```
    """
    if events not in _LAYOUTS:
        raise ValueError(f"events={events!r} is neither 'tags' nor 'plays'. Pass one of them.")
    wanted = wanted_attributes(attributes, ("tags",), "lastfm")
    name, files = open_release(path, _LAYOUTS[events], (_TAGS, _TIMES, _DATES) if wanted else ())
    (log, (log_label, log_file)), (_, (artists_label, artists_file)), *_ = files.items()
    rows = _read(log, log_file, log_label)
    artists = _read(_ARTISTS, artists_file, artists_label)
    report = {"events_read": rows.height, "items_read": artists.height}
    if log == _DATES:
        _check_dates(rows, log_label)
    table = _events(log, rows)
    report["events_repeated"] = rows.height - table.height
    items = artists.select(pl.col("id").alias(ITEM_ID), plain_titles("name").alias(TITLE))
    table, items, dropped = drop_untitled(table, items)
    table, items, merges = resolve_duplicate_titles(table, items)
    if wanted:
        items = with_attributes(items, _artist_tags(files, path))
    logger.info("%s: %d rows of %s and %d artists read", name, report["events_read"], log, report["items_read"])
    return Interactions(table, items, name, has_time=log != _PLAYS, report=report | dropped | merges)


def _read(name: str, source: Path | bytes, label: str) -> pl.DataFrame:
    columns = _COLUMNS[name]
    check_header(source, label, "\t", list(columns))
    return read_table(source, label, "\t", columns, header_lines=1, limits=_LIMITS.get(name), optional=("name",))


def _artist_tags(files: dict[str, tuple[str, Path | bytes]], path: str | Path) -> pl.DataFrame:
    """For every artist the words of its tags. Of the files of tags the one with times is as good as that with dates."""
    log = next((name for name in (_TIMES, _DATES) if name in files), None)
    if log is None or _TAGS not in files:
        raise FileNotFoundError(f"{path}: {_DATES} and {_TAGS} are needed for 'tags'. Fetch the whole release.")
    (label, source), columns = files[log], {**_COLUMNS[log], "tagID": pl.Int64}
    check_header(source, label, "\t", list(columns))
    given = read_table(source, label, "\t", columns, header_lines=1).select("artistID", "tagID")
    label, source = files[_TAGS]
    text = decode(source if isinstance(source, bytes) else source.read_bytes(), label, ("utf-8", "latin-1"))
    check_header(text.encode(), label, "\t", ["tagID", "tagValue"])
    types = {"tagID": pl.Int64, "tagValue": pl.String}
    words = read_table(text.encode(), label, "\t", types, header_lines=1, optional=("tagValue",))
    pairs = given.join(words.unique("tagID", keep="first"), on="tagID").rename(
        {"artistID": ITEM_ID, "tagValue": "tags"}
    )
    return most_frequent(pairs.drop_nulls("tags"), "tags")


def _check_dates(rows: pl.DataFrame, label: str) -> None:
    last = pl.date("year", "month", 1).dt.month_end().dt.day()
    bad = rows.with_row_index("row").filter(pl.col("day") > last)
    if bad.height:
        row = bad.row(0, named=True)
        raise ValueError(
            f"{label}: data line {row['row'] + 1}, column 'day': {row['day']} is not a day of {row['year']}-"
            f"{row['month']:02d} ({bad.height} such lines). Correct or remove the line."
        )


def _events(log: str, rows: pl.DataFrame) -> pl.DataFrame:
    time = {
        _TIMES: pl.col("timestamp") // 1000,
        _DATES: pl.datetime("year", "month", "day").dt.epoch("s"),
        _PLAYS: pl.lit(None, dtype=pl.Int64),
    }[log]
    columns = [pl.col("userID").alias(USER_ID), pl.col("artistID").alias(ITEM_ID), time.alias(TIMESTAMP)]
    if log == _PLAYS:
        columns.append(pl.col("weight").alias(RATING))
    if log != _TIMES:
        return rows.select(columns).unique([USER_ID, ITEM_ID, TIMESTAMP], keep="first", maintain_order=True)
    rest = rows["timestamp"] % 1000 * 1_000_000
    events = rows.select(columns).with_columns(rest.alias(NANOSECOND))
    events = events.unique([USER_ID, ITEM_ID, TIMESTAMP, NANOSECOND], keep="first", maintain_order=True)
    # kept where events of one second differ in it, which those of the published file, at midnight, do not
    return with_nanoseconds(events.drop(NANOSECOND), events[NANOSECOND])
