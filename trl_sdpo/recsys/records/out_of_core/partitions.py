"""The events of a source in files of some users each, with whole numbers for ids, and what is known of all of them."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from ....files import write_text, writing, writing_directory
from ...interactions.interactions import ITEM_ID, NANOSECOND, RATING, TIMESTAMP, USER_ID
from ...interactions.streams import EventStream
from ...interactions.titles import merge_items
from ..config import RecordConfig


logger = logging.getLogger(__name__)

# Of so many events the steps take a few hundred megabytes.
EVENTS_PER_PARTITION = 1 << 21
_ROW, _PARTITION = "row", "partition"
# Fast to write and to read, and gone in the end.
COMPRESSION: Literal["lz4"] = "lz4"


@dataclass
class Partitions:
    """
    Files of some users each, in a folder that [`write_partitions`] made.

    The users of a partition are neighbours in the order of ids: so the records of the partitions, one behind the other,
    stand in the order in which the way in memory makes them.

    Args:
        folder (`Path`):
            The folder.
        config ([`RecordConfig`]):
            The options of the records.
        name (`str`), has_time (`bool`):
            See [`Interactions`].
        loaded (`dict[str, int]`):
            The report of the loader.
        begins (`list[int]`):
            The first user of each partition, and the number of users.
    """

    folder: Path
    config: RecordConfig
    name: str
    has_time: bool
    loaded: dict[str, int]
    begins: list[int]

    def __len__(self) -> int:
        return len(self.begins) - 1

    @cached_property
    def ids(self) -> pl.Series:
        """The items of the source, sorted, those whose title is that of another one as well."""
        return pl.read_parquet(self.folder / "ids.parquet")[ITEM_ID]

    @cached_property
    def items(self) -> pl.DataFrame:
        """The items that stay, sorted."""
        return pl.read_parquet(self.folder / "items.parquet")

    @cached_property
    def item_ids(self) -> pl.Series:
        """Their ids."""
        return pl.read_parquet(self.folder / "items.parquet", columns=[ITEM_ID])[ITEM_ID]

    @cached_property
    def groups(self) -> pl.DataFrame:
        """Items of one title, see [`titles_to_merge`]."""
        return pl.read_parquet(self.folder / "groups.parquet")

    @cached_property
    def in_nanoseconds(self) -> bool:
        """Whether times are finer than seconds."""
        files = self.folder / "source" / f"{_PARTITION}=0" / "*.parquet"
        return NANOSECOND in pl.scan_parquet(files, hive_partitioning=False).collect_schema()

    def users(self, number: int) -> pl.Series:
        """The ids of the users of a partition, sorted."""
        begin, end = self.begins[number : number + 2]
        return pl.scan_parquet(self.folder / "users.parquet").slice(begin, end - begin).collect()[USER_ID]

    def source(self, number: int) -> tuple[pl.DataFrame, dict[str, int]]:
        """The events of a partition as the loader gives them, in order, and what merging titles did to them."""
        frame = pl.read_parquet(
            self.folder / "source" / f"{_PARTITION}={number}" / "*.parquet", hive_partitioning=False
        )
        if not frame[_ROW].is_sorted():
            frame = frame.sort(_ROW)
        events = frame.select(
            self.users(number).gather(frame[USER_ID] - self.begins[number]).alias(USER_ID),
            self.ids.gather(frame[ITEM_ID]).alias(ITEM_ID),
            pl.exclude(_ROW, USER_ID, ITEM_ID),
        )
        merged, remapped = merge_items(events, self.groups)
        return merged, {"events_remapped": remapped, "events_dropped_by_merge": events.height - merged.height}

    def decode(self, events: pl.DataFrame, number: int) -> pl.DataFrame:
        """Events with ids in place of whole numbers."""
        users = self.users(number).gather(events[USER_ID] - self.begins[number])
        return events.with_columns(users.alias(USER_ID), self.item_ids.gather(events[ITEM_ID]).alias(ITEM_ID))


def write_partitions(stream: EventStream, folder: Path, config: RecordConfig) -> Partitions:
    """
    Write the events of a source to a folder, or open it where that is done.

    Args:
        stream ([`EventStream`]):
            The source.
        folder (`Path`):
            The folder.
        config ([`RecordConfig`]):
            The options of the records.

    Returns:
        [`Partitions`]: The partitions.
    """
    ids = pl.concat([stream.items[ITEM_ID], stream.groups[ITEM_ID]]).unique().sort()
    for name, table in (("ids", ids.to_frame()), ("items", stream.items.sort(ITEM_ID)), ("groups", stream.groups)):
        _write(table, folder / f"{name}.parquet")
    users = stream.events.group_by(USER_ID).len().collect(engine="streaming").sort(USER_ID)
    _write(users, folder / "users.parquet")
    begins = _cut(users["len"].to_numpy(), EVENTS_PER_PARTITION)
    numbers = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
    codes = users.select(
        USER_ID, pl.int_range(pl.len(), dtype=pl.Int32).alias("code"), pl.Series(_PARTITION, numbers, dtype=pl.Int32)
    )
    columns = [name for name in (RATING, TIMESTAMP, NANOSECOND) if name in stream.events.collect_schema().names()]
    places = pl.DataFrame({ITEM_ID: ids, "place": np.arange(len(ids), dtype=np.int32)})
    events = stream.events.with_row_index(_ROW).join(codes.lazy(), on=USER_ID, how="inner")
    events = events.join(places.lazy(), on=ITEM_ID, how="inner")
    events = events.select(_ROW, pl.col("code").alias(USER_ID), pl.col("place").alias(ITEM_ID), *columns, _PARTITION)
    shutil.rmtree(folder / "source", ignore_errors=True)
    with writing_directory(folder / "source") as stage:
        target = pl.PartitionBy(stage, key=_PARTITION, include_key=False)
        events.sink_parquet(target, compression=COMPRESSION, mkdir=True, statistics=False)
    logger.info(
        "%s: %d events of %d users in %d files", stream.name, users["len"].sum(), users.height, len(begins) - 1
    )
    about: dict[str, Any] = {
        "name": stream.name,
        "has_time": stream.has_time,
        "loaded": stream.report,
        "begins": begins,
    }
    write_text(folder / "partitions.json", json.dumps(about))
    return Partitions(folder, config, **about)


def open_partitions(folder: Path, config: RecordConfig) -> Partitions | None:
    """The partitions that [`write_partitions`] made, `None` where it did not come to its end."""
    path = folder / "partitions.json"
    return Partitions(folder, config, **json.loads(path.read_text("utf-8"))) if path.is_file() else None


def _cut(lengths: np.ndarray, size: int) -> list[int]:
    """Where to cut users, so that those between two cuts have about so many events."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    count = max(1, -(-total // size))
    cuts = np.searchsorted(ends, np.arange(1, count) * (total / count), side="left") + 1
    return [int(cut) for cut in np.unique([0, *cuts.clip(max=len(lengths)), len(lengths)])]


def _write(table: pl.DataFrame, path: Path) -> None:
    with writing(path) as temporary:
        table.write_parquet(temporary, compression=COMPRESSION)


def write_events(events: pl.DataFrame, path: Path) -> None:
    """Write events of a partition."""
    path.parent.mkdir(exist_ok=True)
    _write(events, path)


def write_facts(path: Path, counts: dict, arrays: dict[str, np.ndarray]) -> None:
    """Write what a step found out of a partition."""
    path.parent.mkdir(exist_ok=True)
    with writing(path) as temporary, open(temporary, "wb") as file:
        named: dict[str, Any] = {"counts": np.frombuffer(json.dumps(counts).encode(), dtype=np.uint8), **arrays}
        np.savez(file, **named)


def read_facts(path: Path, names: Sequence[str] | None = None) -> tuple[dict, dict[str, np.ndarray]]:
    """Read what a step found out of a partition: counts, and the arrays of these names, or all."""
    with np.load(path) as facts:
        wanted = [name for name in facts.files if name != "counts"] if names is None else names
        return json.loads(facts["counts"].tobytes()), {name: facts[name] for name in wanted}


def added(counts: list[dict]) -> dict:
    """The sums of counts by name, `None` where one is not known."""
    return {
        name: None if any(one[name] is None for one in counts) else sum(one[name] for one in counts)
        for name in counts[0]
    }
