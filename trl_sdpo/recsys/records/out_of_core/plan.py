"""A plan of records that are made a partition at a time, with the face of [`RecordPlan`]."""

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ...._progress import progress
from ...interactions.interactions import ITEM_ID
from ...negatives.strategies import TargetRows
from ..dataset import check_fits, wanted_splits
from ..phases import OFF
from ..rows import CHUNK_SIZE, Chunk
from ..targets import check_enough_left, check_records_left
from . import steps
from .counting import shares_of_smallest
from .partitions import Partitions, added, read_facts
from .shared import Shared, count_all


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_RULED = (steps.PLACE, steps.TOKENS)


def run_here(partitions: Partitions, step: str, function: Callable[[int], None]) -> None:
    """Run a step over the partitions that it is not done for, one after the other."""
    paths = [steps.facts_path(partitions, step, number) for number in range(len(partitions))]
    for number, path in enumerate(progress(paths, desc=f"Partitions, {step}", unit="partitions")):
        if not path.is_file():
            function(number)


class DiskPlan:
    """
    Records that are on disk as rows of the catalogue, see [`plan_on_disk`], and what [`RecordPlan`] says of them.

    Args:
        shared ([`Shared`]):
            What was counted.
        report (`dict`):
            The report.
        counts (`list[dict]`):
            What making the records left of each partition.
    """

    def __init__(self, shared: Shared, report: dict, counts: list[dict]) -> None:
        self.config, self.builder, self.report = shared.partitions.config, shared.builder, report
        self.catalogue, self.train_counts = shared.catalogue, shared.train_counts
        self.first_met = shared.first_met
        self.partitions, self.counts, self.loaded = shared.partitions, counts, shared.loaded
        self.sizes = {split: report[split]["records"] for split in wanted_splits(self.config)}
        self.builder.sampler.filled_uniformly = sum(one["filled"] for one in counts)

    def chunks(self, split: str, num_workers: int = 1) -> Iterator[Chunk]:
        """The records of a split in order, see [`RecordPlan.chunks`]."""
        size = min(CHUNK_SIZE, self.builder.largest_chunk(self.config.num_negatives_of(split)))
        made = sum(one[split]["made"] for one in self.counts)
        check_fits(made, self.sizes[split], split, self.config)
        if self.builder.budget is not None:
            names = ("dropped_too_long", "histories_shortened")
            self.report[split] |= {name: sum(one[split][name] for one in self.counts) for name in names}
            self.report[split]["records"] = made
        waiting: list[pa.Table] = []
        begin = 0
        for table, place in self._tables(split):
            while place is None or place[-1] >= begin + size:
                end = len(table) if place is None else int(np.searchsorted(place, begin + size))
                waiting.append(table[:end])
                targets = min(size, self.sizes[split] - begin)
                yield self._chunk(pa.concat_tables(waiting), targets)
                begin, waiting = begin + size, []
                table, place = table[end:], None if place is None else place[end:]
                if begin >= self.sizes[split]:
                    return
            waiting.append(table)

    def _tables(self, split: str) -> Iterator[tuple[pa.Table, np.ndarray | None]]:
        """The records of the partitions with their places among all targets of the split; in the end an empty table."""
        before, schema = 0, None
        for number, counts in enumerate(self.counts):
            path = steps.records_path(self.partitions, split, number)
            if path.is_file():
                with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
                    for part in range(file.num_record_batches):
                        table = pa.Table.from_batches([file.get_batch(part)])
                        schema = table.schema
                        if len(table):
                            yield table, table[steps.PLACE].to_numpy() + before
            before += counts[split]["records"]
        while schema is not None:
            yield schema.empty_table(), None

    def _chunk(self, table: pa.Table, targets: int) -> Chunk:
        tokens = table[steps.TOKENS].to_numpy() if steps.TOKENS in table.column_names else None
        columns = {name: table[name].combine_chunks() for name in table.column_names if name not in _RULED}
        count, items = len(table), _whole(columns[ITEM_ID])
        pool = _whole(columns["rejected_item_ids"].flatten()).reshape(count, -1)
        lengths = columns["history_item_ids"].value_lengths().to_numpy(zero_copy_only=False)
        there = np.arange(self.builder.history_size)[::-1] < lengths[:, None]
        histories = np.full(there.shape, -1)
        histories[there] = _whole(columns["history_item_ids"].flatten())
        nothing = np.zeros(count, dtype=np.int64)
        rows = TargetRows(nothing, nothing, nothing, items, histories, nothing, nothing)
        if not self.builder.as_codes:
            rendered = self.builder.texts.render(columns)
            columns = {name: rendered[name] for name in columns}
        return Chunk(pa.table(columns), rows, pool, tokens, 0, targets - count)

    def release(self) -> None:
        """As [`RecordPlan.release`]; there is nothing of events here."""


def _whole(codes: pa.Array) -> np.ndarray:
    return codes.to_numpy(zero_copy_only=False).astype(np.int64)


def plan_on_disk(
    partitions: Partitions,
    processing_class: "PreTrainedTokenizerBase | None" = None,
    run: Callable[[Partitions, str, Callable[[int], None]], None] = run_here,
) -> DiskPlan:
    """
    Make the records of all partitions.

    Args:
        partitions ([`Partitions`]):
            The events.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            See [`build_preference_dataset`].
        run (`Callable`, *optional*):
            Runs a step over the partitions that it is not done for.

    Returns:
        [`DiskPlan`]: The plan.

    Raises:
        ValueError: see [`build_preference_dataset`].
    """
    config = partitions.config
    shared = count_all(partitions, lambda step, function: run(partitions, step, function), processing_class)
    limits = _limits(partitions, shared, run)
    run(partitions, steps.RECORDS, lambda number: steps.make_records(partitions, number, shared, limits))
    found = [read_facts(steps.facts_path(partitions, steps.RECORDS, number)) for number in range(len(partitions))]
    counts = [one for one, _ in found]
    late = added([{"late": one["late"]} for one in counts])["late"]
    shared.leaks["train_events_after_evaluation_begins"] = late
    report: dict[str, Any] = {"source": partitions.name, "seed": config.seed, **shared.report}
    report |= {"split": config.split, "leaks": shared.leaks}
    for split in wanted_splits(config):
        items = np.unique(np.concatenate([arrays[split] for _, arrays in found]))
        report[split] = _report_of_split([one[split] for one in counts], len(items), split, partitions)
    return DiskPlan(shared, report, counts)


def _limits(partitions: Partitions, shared: Shared, run: Callable) -> dict[str, list[int]]:
    """How many targets each partition has of the splits that have a limit."""
    limits = steps.limits_of(partitions.config)
    if not limits:
        return {}
    run(partitions, steps.NUMBERS, lambda number: steps.number_targets(partitions, number, shared))
    paths = [steps.facts_path(partitions, steps.NUMBERS, number) for number in range(len(partitions))]
    return {
        split: shares_of_smallest((read_facts(path, [split])[1][split] for path in paths), limit)
        for split, limit in limits.items()
    }


def _report_of_split(counts: list[dict], items: int, split: str, partitions: Partitions) -> dict:
    """The counts of the partitions together, in the order of [`RecordPlan`]; what does not fit is counted later."""
    kinds = {name for name, value in counts[0].items() if isinstance(value, int)}
    kinds -= {"made", "dropped_too_long", "histories_shortened"}
    together = added([{name: one[name] for name in counts[0] if name in kinds} for one in counts])
    facts = added([one["record_facts"] for one in counts])
    chosen = together["records"] + together.get("dropped_small_catalogue", 0)
    said = {name: value for name, value in together.items() if name.startswith(("targets", "dropped"))}
    said.pop("dropped_small_catalogue", None)
    check_records_left(chosen, split, said, partitions.config.min_history)
    if partitions.config.resolved_existence != OFF:
        check_enough_left(chosen, together["records"], split, partitions.config)
    return together | {"items": items, "record_facts": facts}
