"""What the steps of one partition need to know of all of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from ....files import writing
from ...interactions.codes import encode, sorted_catalogue
from ...interactions.interactions import ITEM_ID, TIMESTAMP, USER_ID
from ...negatives.cooccurrence import nearest_of_parts
from ...negatives.strategies import HARD, parse_negatives
from ...negatives.target_seeded import TargetSeededSampler
from ..phases import OFF, arrivals_after
from ..rows import RecordBuilder, record_builder, sampler_class
from ..sequences import check_core_left, check_events_left, counts_training
from ..splits import (
    BY_USER,
    LEAVE_ONE_OUT,
    SPLIT,
    TEMPORAL,
    check_counts,
    check_left_out,
    splits_of_users,
    temporal_cuts,
)
from . import steps
from .counting import core_of_parts, value_at
from .partitions import Partitions, added, read_facts


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Runs a step over all partitions, those that are not done yet: the name of the step, a function of a number, and whether
# every partition leaves facts.
Run = Callable[[str, Callable[[int], None]], None]


@dataclass
class Shared:
    """
    What was counted over all partitions.

    Args:
        partitions ([`Partitions`]):
            The partitions.
        events (`str`):
            The step that left the events with their splits.
        report (`dict`):
            Counts of the sequences.
        leaks (`dict[str, int]`):
            See [`split_leaks`].
        begins (`list[int | None]`):
            When validation and test begin.
        counts (`dict[str, numpy.ndarray]`):
            Events of every item for `train` and for `evaluation`, of shape `(items,)`.
        loaded (`dict[str, int]`):
            The report of the loader.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer.
    """

    partitions: Partitions
    events: str
    report: dict
    leaks: dict
    begins: list[int | None]
    counts: dict[str, np.ndarray]
    loaded: dict[str, int]
    processing_class: "PreTrainedTokenizerBase | None" = None

    @cached_property
    def there(self) -> np.ndarray:
        """Which of the items have an event left."""
        return (self.counts["train"] + self.counts["evaluation"]) > 0

    @cached_property
    def train_counts(self) -> np.ndarray:
        """Training events of every item of the catalogue."""
        return self.counts["train"][self.there]

    @cached_property
    def catalogue(self) -> pl.DataFrame:
        """The items with events left, sorted."""
        return sorted_catalogue(self.partitions.items.filter(pl.Series(self.there)))

    @cached_property
    def builder(self) -> RecordBuilder:
        """What makes records, without the events of any user."""
        config, partitions, catalogue = self.partitions.config, self.partitions, self.catalogue
        nothing = partitions.source(0)[0].clear().select(USER_ID, ITEM_ID, TIMESTAMP)
        sampler = sampler_class(config)(
            nothing,
            catalogue,
            seed=config.seed,
            popularity_alpha=config.popularity_alpha,
            available_from=self._available_from(),
        )
        sampler.use_counts(self.train_counts, self._neighbours())
        if isinstance(sampler, TargetSeededSampler):
            sampler.number_items(partitions.item_ids.gather(self._first_seen()))
        return record_builder(nothing, catalogue, sampler, config, self.processing_class)

    @cached_property
    def _firsts(self) -> pl.DataFrame:
        """The items of the source with the time of their first event, see [`first_events`]."""
        never, ids = np.iinfo(np.int64).max, self.partitions.item_ids
        times = np.full(len(ids), never)
        for _, facts in _all_facts(self.partitions, steps.SEQUENCES, ["first_items", "first_times"]):
            items = facts["first_items"]
            times[items] = np.minimum(times[items], facts["first_times"])
        met = np.flatnonzero(times < never)
        return pl.DataFrame({ITEM_ID: ids.gather(met), "time": times[met]})

    @property
    def first_met(self) -> dict | None:
        """The second of the first event of every item, see [`RecordPlan`]."""
        if not self.partitions.has_time:
            return None
        seconds = pl.col("time") // (10**9 if self.partitions.in_nanoseconds else 1)
        return dict(self._firsts.select(ITEM_ID, seconds).iter_rows())

    def _available_from(self) -> np.ndarray | None:
        existence = self.partitions.config.resolved_existence
        if existence == OFF:
            return None
        return arrivals_after(self._firsts, self.catalogue, existence, in_nanoseconds=self.partitions.in_nanoseconds)

    def _neighbours(self) -> np.ndarray | None:
        config, folder = self.partitions.config, self.partitions.folder
        if not any(HARD in parse_negatives(one) for one in (config.negatives, config.eval_negatives)):
            return None
        path = folder / "neighbours.npy"
        if not path.is_file():
            neighbours = nearest_of_parts(self._train_parts, self.train_counts)
            with writing(path) as temporary, open(temporary, "wb") as file:
                np.save(file, neighbours)
        return np.load(path, mmap_mode="r")

    def _train_parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rows = np.cumsum(self.there, dtype=np.int32) - 1
        for number in range(len(self.partitions)):
            events = pl.scan_parquet(steps.events_path(self.partitions, self.events, number))
            train = events.filter(pl.col(SPLIT) == "train").select(USER_ID, ITEM_ID).collect()
            yield train[USER_ID].to_numpy().astype(np.int32), rows[train[ITEM_ID].to_numpy()]

    def _first_seen(self) -> np.ndarray:
        seen, order = np.zeros(len(self.there), dtype=bool), []
        for _, facts in _all_facts(self.partitions, self.events, ["first_seen"]):
            new = facts["first_seen"][~seen[facts["first_seen"]]]
            seen[new] = True
            order.append(new)
        return np.concatenate(order)


def count_all(partitions: Partitions, run: Run, processing_class: "PreTrainedTokenizerBase | None" = None) -> Shared:
    """
    Order, filter and split the events of all partitions.

    Args:
        partitions ([`Partitions`]):
            The events.
        run (`Callable`):
            Runs a step over the partitions that it is not done for.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            See [`build_preference_dataset`].

    Returns:
        [`Shared`]: What was counted.

    Raises:
        ValueError: see [`build_preference_dataset`].
    """
    config = partitions.config
    run(steps.SEQUENCES, lambda number: steps.order_partition(partitions, number))
    ordered = added([counts for counts, _ in _all_facts(partitions, steps.SEQUENCES, [])])
    of_training, core = counts_training(config), None
    if config.min_interactions > 1 and not of_training:
        core = _core(partitions, steps.SEQUENCES)
    cuts, user_splits = _cuts(partitions, core), None
    if config.split not in (TEMPORAL, LEAVE_ONE_OUT):
        user_splits = _user_splits(partitions, core)
    run(steps.EVENTS, lambda number: steps.split_partition(partitions, number, core, cuts, user_splits))
    shared = _gather(partitions, steps.EVENTS, ordered)
    left = (
        (config.min_rating, 1, 1) if of_training else (config.min_rating, config.min_interactions, config.min_length)
    )
    check_events_left(partitions.name, shared.report, *left)
    _check_split(partitions, cuts, shared.report)
    if of_training:
        core, before = _core(partitions, steps.EVENTS), sum(_split_counts(partitions, steps.EVENTS).values())
        run(steps.KNOWN, lambda number: steps.keep_known_events(partitions, number, core))
        shared = _gather(partitions, steps.KNOWN, ordered)
        check_core_left(before, shared.report, config.min_interactions, config.min_length)
    shared.processing_class = processing_class
    return shared


def _all_facts(partitions: Partitions, step: str, names: list[str]) -> Iterator[tuple[dict, dict]]:
    for number in range(len(partitions)):
        yield read_facts(steps.facts_path(partitions, step, number), names)


def _core(partitions: Partitions, step: str) -> tuple[np.ndarray, np.ndarray]:
    config = partitions.config

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number in range(len(partitions)):
            events = pl.scan_parquet(steps.events_path(partitions, step, number))
            if step == steps.EVENTS:
                events = events.filter(pl.col(SPLIT) == "train")
            rows = events.select(USER_ID, ITEM_ID).collect()
            yield rows[USER_ID].to_numpy(), rows[ITEM_ID].to_numpy()

    once = config.k_core == "once"
    return core_of_parts(parts, partitions.begins[-1], len(partitions.item_ids), config.min_interactions, once=once)


def _cuts(partitions: Partitions, core: tuple | None) -> tuple[int, int] | None:
    config = partitions.config
    if config.split != TEMPORAL:
        return None
    bounds = np.concatenate([facts["times"] for _, facts in _all_facts(partitions, steps.SEQUENCES, ["times"])])
    whole = core is None and (config.min_length == 1 or counts_training(config))

    def times() -> Iterator[np.ndarray]:
        for number in range(len(partitions)):
            yield steps.times_of(partitions, number, core, whole)

    count = sum(len(part) for part in times())
    if not count:
        return 0, 0  # which is said when all is counted
    lowest, highest = int(bounds.min()), int(bounds.max())
    return temporal_cuts(count, config.ratios, lambda place: value_at(times, place, lowest, highest))


def _user_splits(partitions: Partitions, core: tuple | None) -> np.ndarray:
    """The split of every user as its number."""
    config, splits = partitions.config, np.zeros(partitions.begins[-1], dtype=np.uint8)
    users = pl.concat([steps.users_of_partition(partitions, number, core) for number in range(len(partitions))])
    if not users.height:
        return splits
    ids = pl.read_parquet(partitions.folder / "users.parquet")[USER_ID]
    named = users.with_columns(ids.gather(users[USER_ID]).alias(USER_ID))
    told = splits_of_users(named, config.ratios, config.seed if config.split == BY_USER else None)
    splits[encode(told[USER_ID], ids)] = told[SPLIT].to_physical().to_numpy()
    return splits


def _split_counts(partitions: Partitions, step: str) -> dict[str, int]:
    return added([counts["splits"] for counts, _ in _all_facts(partitions, step, [])])


def _check_split(partitions: Partitions, cuts: tuple[int, int] | None, report: dict) -> None:
    counts = _split_counts(partitions, steps.EVENTS)
    if cuts is not None:
        check_counts(counts, partitions.config.ratios, cuts, in_nanoseconds=partitions.in_nanoseconds)
    elif partitions.config.split == LEAVE_ONE_OUT:
        check_left_out(counts, report["users"])


def _gather(partitions: Partitions, step: str, ordered: dict) -> Shared:
    """What a step that splits events left, of all partitions together."""
    counts = {name: np.zeros(len(partitions.item_ids), dtype=np.int64) for name in ("train", "evaluation")}
    reports: list[dict] = []
    begins: list[list[int]] = [[], []]
    together = 0
    names = [f"{name}_{kind}" for name in counts for kind in ("items", "counts")]
    for found, facts in _all_facts(partitions, step, names):
        for name, total in counts.items():
            total[facts[f"{name}_items"]] += facts[f"{name}_counts"]
        reports.append(found["report"])
        together += found["shared_users"]
        for number, begin in enumerate(found["begins"]):
            begins[number] += [] if begin is None else [begin]
    report = {name: ordered[name] for name in ("events", "events_below_min_rating", "events_repeated")}
    report |= added(reports)
    report["items"] = int(((counts["train"] + counts["evaluation"]) > 0).sum())
    if not partitions.has_time:
        report["events_tied_in_time"] = None
    unseen = int(((counts["evaluation"] > 0) & (counts["train"] == 0)).sum())
    leaks: dict[str, int | None] = {"train_events_after_evaluation_begins": None}
    leaks |= {"users_in_train_and_evaluation": together, "evaluation_items_without_train_event": unseen}
    merges = ("events_remapped", "events_dropped_by_merge")
    loaded = partitions.loaded
    loaded = loaded | {name: loaded[name] + ordered[name] for name in merges if name in loaded}
    return Shared(partitions, step, report, leaks, [min(part, default=None) for part in begins], counts, loaded)
