"""The steps of records for the users of one partition: those of the way in memory, given what was counted over all."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl
import pyarrow as pa

from ....files import writing
from ...interactions.codes import encode
from ...interactions.interactions import (
    ITEM_ID,
    NANOSECOND,
    TIMESTAMP,
    USER_ID,
    Interactions,
    instants,
    time_columns,
)
from ..config import RecordConfig
from ..dataset import wanted_splits
from ..phases import consumed_before, first_events, phase_begins, touched_before
from ..rows import ROW, RecordBuilder, facts_of_targets
from ..sequences import keep_known, number_events, order_events, ties_are_sets
from ..sequences import order_options as order_options_of
from ..splits import (
    LEAVE_ONE_OUT,
    SPLIT,
    SPLIT_TYPE,
    SPLITS,
    TEMPORAL,
    first_times,
    split_at,
    split_counts,
    without_last_ones,
)
from ..targets import choose_rows, smallest_rows, subsampling_numbers, target_options, with_enough_left
from .partitions import Partitions, write_events, write_facts


if TYPE_CHECKING:
    from .shared import Shared

# What is left after filters, with its split; and of these what the core of the training events knows.
SEQUENCES, EVENTS, KNOWN, NUMBERS, RECORDS = "sequences", "events", "known", "numbers", "records"
_RECORDS_AT_ONCE = 1 << 14
TOKENS, PLACE = "tokens", "place"


@dataclass
class _Part:
    """What the steps ask of [`Interactions`], without its checks: the whole passed them."""

    events: pl.DataFrame
    name: str
    has_time: bool


def facts_path(partitions: Partitions, step: str, number: int) -> Path:
    """Where a step leaves what it found out of a partition, when it is done."""
    return partitions.folder / step / f"{number:06d}.npz"


def events_path(partitions: Partitions, step: str, number: int) -> Path:
    """Where a step leaves the events of a partition."""
    return partitions.folder / step / f"{number:06d}.parquet"


def order_partition(partitions: Partitions, number: int) -> None:
    """Put the events of each user in order, without repeats."""
    source, merges = partitions.source(number)
    config = partitions.config
    part = _Part(source, partitions.name, partitions.has_time)
    ordered, report = order_events(cast(Interactions, part), **order_options_of(config, partitions.has_time))
    users = encode(ordered[USER_ID], partitions.users(number)) + partitions.begins[number]
    items = encode(ordered[ITEM_ID], partitions.item_ids)
    coded = ordered.select(
        pl.Series(USER_ID, users, dtype=pl.Int64), pl.Series(ITEM_ID, items, dtype=pl.Int64), *time_columns(ordered)
    )
    write_events(coded, events_path(partitions, SEQUENCES, number))
    facts = {}
    if partitions.has_time:
        times = instants(ordered)
        facts["times"] = np.array([times.min(), times.max()] if len(times) else [], dtype=np.int64)
        firsts = first_events(source)
        facts["first_items"] = encode(firsts[ITEM_ID], partitions.item_ids)
        facts["first_times"] = firsts["time"].to_numpy()
    write_facts(facts_path(partitions, SEQUENCES, number), report | merges, facts)


def kept_events(partitions: Partitions, number: int, core: tuple[np.ndarray, np.ndarray] | None) -> tuple:
    """What filters leave of the ordered events of a partition, numbered, and counts."""
    ordered = pl.read_parquet(events_path(partitions, SEQUENCES, number))
    of_core, config = ordered, partitions.config
    if core is not None:
        users, items = (flags[ordered[name].to_numpy()] for flags, name in zip(core, (USER_ID, ITEM_ID), strict=True))
        of_core = ordered.filter(pl.Series(users & items))
    min_length = 1 if config.core_period == "train" and config.min_interactions > 1 else config.min_length
    return number_events(ordered, of_core, min_length, ties_are_sets=ties_are_sets(config, partitions.has_time))


def users_of_partition(partitions: Partitions, number: int, core: tuple | None) -> pl.DataFrame:
    """The users with events left, and their first times."""
    return first_times(kept_events(partitions, number, core)[0])


def split_partition(
    partitions: Partitions,
    number: int,
    core: tuple | None,
    cuts: tuple[int, int] | None,
    user_splits: np.ndarray | None,
) -> None:
    """Tell training, validation and test apart."""
    kept, report = kept_events(partitions, number, core)
    if partitions.config.split == TEMPORAL:
        events = split_at(kept, cuts)
    elif partitions.config.split == LEAVE_ONE_OUT:
        events = without_last_ones(kept) if kept.height else kept.with_columns(pl.lit(None, SPLIT_TYPE).alias(SPLIT))
    else:
        events = kept.with_columns(pl.Series(SPLIT, SPLITS, SPLIT_TYPE).gather(user_splits[kept[USER_ID].to_numpy()]))
    _leave(partitions, EVENTS, number, events, report)


def keep_known_events(partitions: Partitions, number: int, core: tuple[np.ndarray, np.ndarray]) -> None:
    """Keep what the core of the training events knows."""
    events = pl.read_parquet(events_path(partitions, EVENTS, number))
    users, items = (pl.Series(np.flatnonzero(flags)) for flags in core)
    tied = ties_are_sets(partitions.config, partitions.has_time)
    kept, report = keep_known(events, users, items, partitions.config.min_length, ties_are_sets=tied)
    _leave(partitions, KNOWN, number, kept, report)


def _leave(partitions: Partitions, step: str, number: int, events: pl.DataFrame, report: dict) -> None:
    write_events(events, events_path(partitions, step, number))
    train = (events[SPLIT] == "train").to_numpy()
    items, users = events[ITEM_ID].to_numpy(), events[USER_ID]
    both = np.intersect1d(users.filter(train).unique().to_numpy(), users.filter(~train).unique().to_numpy())
    facts = {"first_seen": events[ITEM_ID].unique(maintain_order=True).to_numpy()}
    for name, some in (("train", items[train]), ("evaluation", items[~train])):
        facts[f"{name}_items"], facts[f"{name}_counts"] = np.unique(some, return_counts=True)
    begins = phase_begins(events) if partitions.has_time else [None, None]
    counts = {"report": report, "splits": split_counts(events), "shared_users": len(both), "begins": begins}
    write_facts(facts_path(partitions, step, number), counts, facts)


def _sequences(partitions: Partitions, number: int, shared: "Shared") -> pl.DataFrame:
    return partitions.decode(pl.read_parquet(events_path(partitions, shared.events, number)), number)


def number_targets(partitions: Partitions, number: int, shared: "Shared") -> None:
    """The numbers by which the targets of splits with a limit are drawn, the smallest of them."""
    events, facts = _sequences(partitions, number, shared), {}
    builder = shared.builder.over(events, shared.builder.sampler)
    for split, limit in limits_of(partitions.config).items():
        rows, _ = choose_rows(events, split, **target_options(events, split, partitions.config, builder))
        numbers = subsampling_numbers(events, rows, partitions.config.seed)
        facts[split] = np.partition(numbers, limit - 1)[:limit] if limit < len(numbers) else numbers
    write_facts(facts_path(partitions, NUMBERS, number), {}, facts)


def limits_of(config: RecordConfig) -> dict[str, int]:
    """The most records of the splits that have such a limit."""
    limits = {split: getattr(config, f"max_{split}_records") for split in wanted_splits(config)}
    return {split: limit for split, limit in limits.items() if limit is not None}


def make_records(partitions: Partitions, number: int, shared: "Shared", limits: dict[str, list[int]]) -> None:
    """The records of a partition as rows of the catalogue."""
    config, has_time = partitions.config, partitions.has_time
    source, events = partitions.source(number)[0], _sequences(partitions, number, shared).with_row_index(ROW)
    touched, phases = touched_before(source, events, config, has_time, shared.begins)
    sampler = shared.builder.sampler.over(
        touched,
        phases=phases,
        ratings=source if config.scores or config.low_rating is not None else None,
        low_rating=config.low_rating,
        first_user=partitions.begins[number],
    )
    builder = shared.builder.over(events, sampler)
    builder.as_codes = True
    targets: dict[str, pl.DataFrame] = {}
    counts: dict[str, Any] = {}
    facts: dict[str, np.ndarray] = {}
    for split in wanted_splits(config):
        limit = limits[split][number] if split in limits else None
        targets[split], counts[split] = _targets(events, split, config, builder, limit)
        counts[split]["record_facts"] = facts_of_targets(events, targets[split], shared.train_counts, builder)
        facts[split] = np.unique(builder.event_items[targets[split][ROW].to_numpy().astype(np.int64)])
    builder.consumed = consumed_before(source, targets, builder, config, has_time)
    for split, some in targets.items():
        counts[split] |= _write_records(records_path(partitions, split, number), some, split, config, builder)
    first = min((time for time in shared.begins if time is not None), default=None)
    late = None
    if has_time:
        late = 0 if first is None else int(((events[SPLIT] == "train") & (instants(events) >= first)).sum())
    counts |= {"filled": sampler.filled_uniformly, "late": late}
    write_facts(facts_path(partitions, RECORDS, number), counts, facts)


def records_path(partitions: Partitions, split: str, number: int) -> Path:
    """Where the records of a partition are."""
    return partitions.folder / RECORDS / f"{split}-{number:06d}.arrow"


def _targets(
    events: pl.DataFrame, split: str, config: RecordConfig, builder: RecordBuilder, limit: int | None
) -> tuple[pl.DataFrame, dict]:
    rows, report = choose_rows(events, split, **target_options(events, split, config, builder))
    chosen = rows if limit is None else smallest_rows(events, rows, limit, config.seed)
    report["dropped_by_subsampling"] = len(rows) - len(chosen)
    targets = events[chosen]
    kept = with_enough_left(targets, split, config, builder) if targets.height else targets
    report |= {"records": kept.height, "users": kept[USER_ID].n_unique(), "items": 0}
    if not builder.sampler.arrivals.always:
        report["dropped_small_catalogue"] = targets.height - kept.height
    return kept, report


def _write_records(
    path: Path, targets: pl.DataFrame, split: str, config: RecordConfig, builder: RecordBuilder
) -> dict[str, int]:
    """Write records with their place among the targets, and their tokens where these are counted."""
    path.parent.mkdir(exist_ok=True)
    counts = {"dropped_too_long": 0, "histories_shortened": 0, "made": 0}
    pool_size = config.num_negatives_of(split)
    shares = config.shares_of(split)
    if not targets.height:
        return counts
    with writing(path) as temporary, _Writer(temporary) as writer:
        for begin in range(0, targets.height, _RECORDS_AT_ONCE):
            chunk = builder.build(targets[begin : begin + _RECORDS_AT_ONCE], pool_size, shares)
            places = np.arange(len(chunk.rows)) if chunk.kept is None else chunk.kept
            table = chunk.table.append_column(PLACE, pa.array(begin + places, pa.int64()))
            if chunk.tokens is not None:
                table = table.append_column(TOKENS, pa.array(chunk.tokens, pa.int64()))
            writer.write(table)
            counts["dropped_too_long"] += chunk.dropped
            counts["histories_shortened"] += chunk.shortened
            counts["made"] += table.num_rows
    return counts


class _Writer:
    """Tables one behind the other in an Arrow file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: pa.ipc.RecordBatchFileWriter | None = None

    def __enter__(self) -> "_Writer":
        return self

    def write(self, table: pa.Table) -> None:
        if self.file is None:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self.file = pa.ipc.new_file(self.path, table.schema, options=options)
        self.file.write_table(table)

    def __exit__(self, *error: object) -> None:
        if self.file is not None:
            self.file.close()


def times_of(partitions: Partitions, number: int, core: tuple | None, whole: bool) -> np.ndarray:
    """The times of the events that filters leave; without filters of all, which takes no numbering."""
    if not whole:
        return instants(kept_events(partitions, number, core)[0]).to_numpy()
    path = events_path(partitions, SEQUENCES, number)
    names = [name for name in (TIMESTAMP, NANOSECOND) if name in pl.read_parquet_schema(path)]
    return instants(pl.read_parquet(path, columns=names)).to_numpy()
