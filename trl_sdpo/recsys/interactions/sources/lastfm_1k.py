"""Last.fm of a thousand users (O. Celma, 2010): http://ocelma.net/MusicRecommendationDataset/lastfm-1K.html."""

import logging
from pathlib import Path

import polars as pl

from ..interactions import ITEM_ID, TIMESTAMP, TITLE, USER_ID, Interactions
from ..readers.delimited import read_table
from ..readers.text_files import TextFile
from ..readers.times import read_times
from ..titles import drop_untitled, plain_titles, resolve_duplicate_titles


logger = logging.getLogger(__name__)

_PLAYS = "userid-timestamp-artid-artname-traid-traname.tsv"
_COLUMNS = {
    "userid": pl.String,
    "timestamp": pl.String,
    "artid": pl.Null,
    "artname": pl.String,
    "traid": pl.Null,
    "traname": pl.String,
}
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"
_ITEMS = ("artists", "tracks")


def load_lastfm_1k(path: str | Path, items: str = "artists") -> Interactions:
    """
    Read what a thousand users of Last.fm listened to, with times to the second (`lastfm-dataset-1K`).

    An event is that a user played a track. The same artist many times in a row is as many events, of which
    `merge_repeats` of the records keeps a user's first. Rows keep the order of the file, which is by user, latest first.

    An artist is a name with white space single and stripped: many have no MusicBrainz id, and some have one in a part
    of the rows only. A track is its name and that of its artist, titled `"Fall in Love Again? - The Dogs D'Amour"`; two
    of one title are merged and counted. Plays without the name are dropped and counted.

    Args:
        path (`str` or `Path`):
            The file `userid-timestamp-artid-artname-traid-traname.tsv`, also zipped by gzip, or the folder with it. The
            whole, 19 million plays, takes about 5 GB of memory while it is read.
        items (`str`, *optional*, defaults to `"artists"`):
            What the items are: `"artists"` or `"tracks"`.

    Returns:
        [`Interactions`]: Its report counts what was read, dropped and merged.

    Raises:
        FileNotFoundError: there is no such path, or the file is not in the folder.
        ValueError: `items` is another word, or the file is empty, damaged or not in its format. The message names file,
            line, column and value.

    Example:
        ```python
        from trl_sdpo.recsys import load_lastfm_1k

        interactions = load_lastfm_1k("lastfm-dataset-1K")
        ```
    """
    if items not in _ITEMS:
        raise ValueError(f"items={items!r} is neither 'artists' nor 'tracks'. Pass one of them.")
    path = _find_plays(Path(path))
    file = TextFile(path)
    rows = read_table(file.path, file.label, "\t", _COLUMNS, optional=("artname", "traname"))

    def fail(row: int, problem: str) -> None:
        value = rows["timestamp"][row]
        raise ValueError(f"{file.label}: play {row + 1}, column 'timestamp': {value!r} {problem}")

    seconds, _ = read_times(rows["timestamp"], "s", _TIME_FORMAT, fail)
    plays = rows.select(pl.col("userid").alias(USER_ID), seconds.alias(TIMESTAMP), *_names(items))
    catalogue = plays.select(ITEM_ID, TITLE).drop_nulls(ITEM_ID).unique(ITEM_ID, keep="first", maintain_order=True)
    report = {"events_read": rows.height, "items_read": catalogue.height}
    events = plays.select(USER_ID, ITEM_ID, TIMESTAMP)
    nameless = events[ITEM_ID].null_count()
    events, catalogue, dropped = drop_untitled(events.drop_nulls(ITEM_ID), catalogue)
    dropped["events_without_title"] += nameless
    events, catalogue, merges = resolve_duplicate_titles(events, catalogue)
    logger.info("%s: %d plays of %d %s read", path, report["events_read"], report["items_read"], items)
    return Interactions(events, catalogue, f"lastfm-1k-{items}", report=report | dropped | merges)


def _names(items: str) -> tuple[pl.Expr, pl.Expr]:
    artist, track = plain_titles("artname"), plain_titles("traname")
    if items == "artists":
        return artist.alias(ITEM_ID), artist.alias(TITLE)
    # No name holds a tab, so ids of two tracks are never the same.
    return pl.format("{}\t{}", artist, track).alias(ITEM_ID), pl.format("{} - {}", track, artist).alias(TITLE)


def _find_plays(path: Path) -> Path:
    if path.is_file():
        return path
    for name in (_PLAYS, f"{_PLAYS}.gz"):
        for folder in (path, path / "lastfm-dataset-1K"):
            if (folder / name).is_file():
                return folder / name
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder. Correct the path.")
    raise FileNotFoundError(f"{path}: no {_PLAYS} in it. Unpack lastfm-dataset-1K.tar.gz, and pass its folder.")
