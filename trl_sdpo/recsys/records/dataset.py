"""From interactions to multi-preference records: prompt, chosen, and a list of rejected."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
from datasets import Dataset, DatasetDict

from ..interactions.codes import sorted_catalogue
from ..interactions.interactions import ITEM_ID, RATING, TIMESTAMP, USER_ID, Interactions, instants
from ..negatives.candidates import CandidateSampler
from ..negatives.strategies import COLD, parse_negatives
from ..negatives.target_seeded import TargetSeededSampler
from ..prompts.rendering import plain
from ..prompts.token_budget import TokenBudget
from .config import RecordConfig
from .phases import EVER, OFF, Consumed, ConsumedInOrder, ConsumedInTime, available_from, held_back, touched_by_phase
from .rows import CHUNK_SIZE, ROW, Chunk, RecordBuilder
from .sequences import (
    IN_FILE,
    IN_FILE_UNCHECKED,
    IN_TIME,
    TRAINING,
    build_sequences_with_report,
    in_words,
    keep_core_of_training,
)
from .splits import (
    BY_ITEM,
    BY_USER,
    BY_USER_IN_TIME,
    LEAVE_ONE_OUT,
    SPLIT,
    SPLITS,
    TEMPORAL,
    held_out_items,
    item_split,
    leave_one_out_split,
    split_leaks,
    temporal_split,
    user_split,
    users_to_learn_from,
)
from .targets import select_targets, time_facts


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def build_preference_dataset(
    interactions: Interactions,
    *,
    seed: int,
    processing_class: "PreTrainedTokenizerBase | None" = None,
    num_workers: int = 1,
    **options,
) -> tuple[DatasetDict, dict]:
    """
    Turn interactions into records of a history, the item that came next, and items that the user never took.

    The steps are those of the modules beside this one: [`build_sequences`], [`temporal_split`],
    [`sample_negatives`], [`PromptTemplate`]; what they promise and leak is said there. A history is the user's own
    events before the target, from whichever split. Negatives come from the items that have an event left after the
    filters, without any item that the user ever touched, filtered or not. The setting of the S-DPO paper
    (https://huggingface.co/papers/2406.09215) is `prompt_style="candidates"` with the defaults here.

    All records are in memory. [`prepare`] writes them to disk as they are made, with a report.

    Args:
        interactions ([`Interactions`]):
            The source.
        seed (`int`):
            The seed of everything that is drawn.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer to count tokens with, for `max_length`, and to check with that prompts end where a token ends.
        num_workers (`int`, *optional*, defaults to `1`):
            Threads. The records do not depend on it.
        **options:
            The fields of [`RecordConfig`], such as `prompt_style`, `template`, `history_size`, `min_history`,
            `num_candidates`, `pool_size`, `negatives`, `split`, `ratios`, `max_train_records`, `conversational`.

    Returns:
        `tuple[DatasetDict, dict]`: The data set, in order of user and position, with the columns `prompt`, `chosen`,
        `rejected`, `user_id`, `item_id` (of the target), `rejected_item_ids`, `history_item_ids` (oldest first),
        `candidates` (titles in the order of the list, as completions name them), `timestamp`, `position` (the target's place among the
        user's events) and `num_earlier` (how many of these are before its time: the history is the last of them) and, but for training, `consumed_item_ids` (all that the user had before the target's time,
        also what filters left out of the sequences); and a report that counts, per split,
        targets, what was dropped and why, records, users and items.

    Raises:
        ValueError: an option is out of range, the source has no time, a split comes out empty, or a user has too few
            items to draw from.

    Example:
        ```python
        from trl_sdpo.recsys import build_preference_dataset, load_movielens

        dataset, report = build_preference_dataset(load_movielens("ml-100k.zip"), seed=0)
        dataset["train"][0]["chosen"]
        ```
    """
    plan = plan_records(interactions, RecordConfig(seed=seed, **options), processing_class)
    dataset = DatasetDict()
    for split in plan.targets:
        tables = [pa.table(_plain_columns(chunk.table)) for chunk in plan.chunks(split, num_workers)]
        dataset[split] = Dataset(pa.concat_tables(tables))
        counts = {name: value for name, value in plan.report[split].items() if name.startswith(("targets", "dropped"))}
        logger.info("%s, %s: %s records of %s.", interactions.name, split, dataset[split].num_rows, in_words(counts))
    return dataset, plan.report


def _plain_columns(table: pa.Table) -> dict[str, pa.Array]:
    return {
        name: plain(column.combine_chunks()) for name, column in zip(table.column_names, table.columns, strict=True)
    }


@dataclass
class RecordPlan:
    """
    All that is decided before the first record is made.

    Args:
        config ([`RecordConfig`]):
            The options.
        targets (`dict[str, polars.DataFrame]`):
            The targets by split.
        builder ([`RecordBuilder`]):
            Makes records of them.
        catalogue (`polars.DataFrame`):
            The items, sorted.
        train_counts (`numpy.ndarray`):
            Training events of every item of the catalogue.
        first_met (`dict`, *optional*):
            Of cold candidates the time of the first event of every item, for leak probes.
        report (`dict`):
            Counts. What is known only after the last record of a split is added by [`RecordPlan.chunks`].
    """

    config: RecordConfig
    targets: dict[str, pl.DataFrame]
    builder: RecordBuilder
    catalogue: pl.DataFrame
    train_counts: np.ndarray
    report: dict
    first_met: dict | None = None

    def chunks(self, split: str, num_workers: int = 1) -> Iterator[Chunk]:
        """
        The records of a split in order, in chunks whose size does not depend on the number of threads.

        Raises:
            ValueError: no record of the split fits `max_length`.
        """
        targets, pool_size = self.targets[split], self.config.num_negatives_of(split)
        shares = self.config.shares_of(split)
        size = min(CHUNK_SIZE, self.builder.largest_chunk(pool_size))
        parts = [targets[begin : begin + size] for begin in range(0, targets.height, size)]
        counts = {"dropped_too_long": 0, "histories_shortened": 0, "records": 0}
        for chunk in _in_order(lambda part: self.builder.build(part, pool_size, shares), parts, num_workers):
            counts["dropped_too_long"] += chunk.dropped
            counts["histories_shortened"] += chunk.shortened
            counts["records"] += chunk.table.num_rows
            yield chunk
        if not counts["records"]:
            raise ValueError(
                f"split '{split}': none of {targets.height} records fits max_length={self.config.max_length} with a "
                "history of one item. Pass a larger one, fewer candidates, or prompt_style='history'."
            )
        self.report[split] |= counts if self.builder.budget is not None else {}

    def release(self) -> None:
        """Let go of what only the making of records needs: the events as the sampler and the builder know them."""
        self.targets = {}
        self.builder.event_items, self.builder.consumed = np.empty(0, dtype=np.int32), None
        self.builder.sampler.release()


def _in_order(function: Callable[[Any], Any], parts: list, num_workers: int) -> Iterator:
    """Map over parts in threads, holding no more results than there are threads."""
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers} is below 1. Pass the number of threads.")
    if num_workers == 1:
        yield from map(function, parts)
        return
    with ThreadPoolExecutor(num_workers) as executor:
        waiting = []
        for part in parts:
            waiting.append(executor.submit(function, part))
            if len(waiting) > num_workers:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()


def plan_records(
    interactions: Interactions, config: RecordConfig, processing_class: "PreTrainedTokenizerBase | None" = None
) -> RecordPlan:
    """
    Filter, order, split, and decide on targets: all steps of [`build_preference_dataset`] but the records themselves.

    Args:
        interactions ([`Interactions`]):
            The source.
        config ([`RecordConfig`]):
            The options.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            See [`build_preference_dataset`].

    Returns:
        [`RecordPlan`]: The plan.

    Raises:
        ValueError: see [`build_preference_dataset`].
    """
    if config.max_length is not None and processing_class is None:
        raise ValueError(f"max_length={config.max_length} needs a tokenizer to count with. Pass processing_class.")
    _check_times(interactions, config)
    if (config.scores or config.low_rating is not None) and RATING not in interactions.events.columns:
        raise ValueError(
            f"{interactions.name}: scores and low_rating need a column '{RATING}', which it has not. Leave them out."
        )
    events, known, held, source_report = _split_events(interactions, config)
    report: dict[str, Any] = {"source": interactions.name, "seed": config.seed, **source_report}
    report |= {"split": config.split, "leaks": split_leaks(events)}
    catalogue = sorted_catalogue(interactions.items.join(known, on=ITEM_ID, how="semi"))
    events = events.with_row_index(ROW)
    train = (events[SPLIT] == "train").to_numpy()
    if config.max_train_users is not None:
        train = users_to_learn_from(events, config.max_train_users, config.seed)
    builder = _make_builder(interactions, events, train, catalogue, held, config, processing_class)
    train_counts = np.bincount(builder.event_items[train], minlength=catalogue.height)
    if config.eval_candidates == COLD:
        builder.sampler.prepare_cold(train_counts)
    targets = {}
    for split, ratio in zip(SPLITS, config.ratios, strict=True):
        if ratio > 0 or config.split == LEAVE_ONE_OUT:
            targets[split], report[split] = _select(events, train, split, config, builder)
            rows = targets[split][ROW].to_numpy().astype(np.int64)
            cold = int((train_counts[builder.event_items[rows]] == 0).sum())
            report[split]["record_facts"] = time_facts(events, rows, config.history_size)
            report[split]["record_facts"]["targets_without_train_event"] = cold
    builder.consumed = _consumed(interactions, targets, builder, config)
    plan = RecordPlan(config, targets, builder, catalogue, train_counts, report)
    if config.eval_candidates == COLD and interactions.has_time:
        plan.first_met = dict(interactions.events.group_by(ITEM_ID).agg(pl.col(TIMESTAMP).min()).iter_rows())
    return plan


def _split_events(
    interactions: Interactions, config: RecordConfig
) -> tuple[pl.DataFrame, pl.DataFrame, pl.Series | None, dict]:
    """The events with their split; what says which items there are; those that are held out, if any; and counts."""
    of_training = config.core_period == TRAINING and config.min_interactions > 1
    sequences, source_report = build_sequences_with_report(
        interactions,
        min_rating=config.min_rating,
        min_interactions=1 if of_training else config.min_interactions,
        k_core=config.k_core,
        min_length=1 if of_training else config.min_length,
        merge_repeats=config.merge_repeats,
        # leaving one out of a source without time takes the order of its rows by the option's very name
        order=IN_FILE if config.file_order and not interactions.has_time else config.order,
        seed=config.seed,
        with_rating=False,
    )
    events, held = _split(sequences, config), None
    if config.split == BY_ITEM:
        held = held_out_items(sequences[ITEM_ID], config.held_out_items, config.seed)
        left_out = {"events_of_held_out_items": sequences.height - events.height}
        source_report |= left_out | {"users": events[USER_ID].n_unique()}
    # Items that have no event left when others are held out stay in the catalogue: that they have none is of the future.
    known = None if held is None else sequences.select(pl.col(ITEM_ID).unique())
    del sequences
    if of_training:
        options = {name: getattr(config, name) for name in ("min_interactions", "k_core", "min_length")}
        tied = interactions.has_time and config.order == IN_TIME
        events, counts = keep_core_of_training(events, ties_are_sets=tied, **options)
        source_report |= counts
    return events, events if known is None else known, held, source_report


def _consumed(
    interactions: Interactions, targets: dict[str, pl.DataFrame], builder: RecordBuilder, config: RecordConfig
) -> Consumed:
    if not interactions.has_time or config.order != IN_TIME:
        return ConsumedInOrder(builder.event_items)
    users = [rows[USER_ID] for split, rows in targets.items() if split != "train"]
    users = pl.concat(users) if users else interactions.events[USER_ID].clear()
    return ConsumedInTime(interactions.events, users, builder.sampler.ids)


def _check_times(interactions: Interactions, config: RecordConfig) -> None:
    by_time = config.split in (TEMPORAL, BY_ITEM)  # which say themselves what they need
    if config.resolved_existence != OFF and not interactions.has_time and not by_time:
        raise ValueError(
            f"{interactions.name}: existence={config.existence!r} needs times, which the source does not have. Pass "
            "'off'."
        )


def _make_builder(
    interactions: Interactions,
    events: pl.DataFrame,
    train: np.ndarray,
    catalogue: pl.DataFrame,
    held: pl.Series | None,
    config: RecordConfig,
    processing_class: "PreTrainedTokenizerBase | None",
) -> RecordBuilder:
    touched, phases = interactions.events, None
    if config.exclude_seen != EVER:
        in_time = interactions.has_time and config.order != IN_FILE_UNCHECKED
        touched, phases = touched_by_phase(interactions.events, events, config.split, in_time)
    available = available_from(interactions.events, catalogue, config.resolved_existence)
    sampler = (TargetSeededSampler if config.candidate_seed == "target" else CandidateSampler)(
        touched,
        catalogue,
        seed=config.seed,
        train_events=events.lazy().filter(pl.lit(pl.Series(train))).select(USER_ID, ITEM_ID),
        popularity_alpha=config.popularity_alpha,
        phases=phases,
        available_from=available if held is None else held_back(available, events, catalogue, held),
        ratings=interactions.events if config.scores or config.low_rating is not None else None,
        low_rating=config.low_rating,
    )
    sampler.prepare([*parse_negatives(config.negatives), *parse_negatives(config.eval_negatives)])
    sampler.train_events = None  # counted by now, and large
    if isinstance(sampler, TargetSeededSampler):
        sampler.number_items(events[ITEM_ID])
    return RecordBuilder(
        events,
        catalogue,
        sampler,
        config.templates,
        history_size=config.history_size,
        num_candidates=config.num_candidates,
        conversational=config.conversational,
        scores=config.scores,
        budget=None if processing_class is None else TokenBudget(processing_class, config.max_length),
    )


def _split(sequences: pl.DataFrame, config: RecordConfig) -> pl.DataFrame:
    if config.split == LEAVE_ONE_OUT:
        return leave_one_out_split(sequences, file_order=config.file_order)
    if config.split in (BY_USER, BY_USER_IN_TIME):
        return user_split(sequences, config.ratios, seed=config.seed if config.split == BY_USER else None)
    if config.split == BY_ITEM:
        return item_split(sequences, config.ratios, config.held_out_items, seed=config.seed)
    return temporal_split(sequences, config.ratios)


def _select(
    events: pl.DataFrame, learned: np.ndarray, split: str, config: RecordConfig, builder: RecordBuilder
) -> tuple[pl.DataFrame, dict[str, int]]:
    train, arrivals, times = split == "train", builder.sampler.arrivals, instants(events)
    pool_size, cold = config.num_negatives_of(split), builder.sampler.cold

    def exists(rows: np.ndarray) -> np.ndarray:
        there = arrivals.count(times.gather(rows).to_numpy(), len(rows))
        return arrivals.places[builder.event_items[rows]] < there

    conditions = {} if arrivals.always else {"dropped_first_of_item": exists}
    if train and config.max_train_users is not None:
        conditions["dropped_other_user"] = lambda rows: learned[rows]
    if cold is not None and not train:
        conditions["dropped_not_cold"] = lambda rows: cold[builder.event_items[rows]]
    targets, report = select_targets(
        events,
        split,
        min_history=config.min_history,
        seed=config.seed,
        stride=config.train_stride if train else 1,
        windows=config.windows if train else config.eval_windows,
        limit=getattr(config, f"max_{split}_records"),
        conditions=conditions,
    )
    return _with_enough_to_draw(targets, report, split, pool_size, builder, cold is not None and not train)


def _with_enough_to_draw(
    targets: pl.DataFrame, report: dict[str, int], split: str, pool_size: int, builder: RecordBuilder, cold: bool
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The targets that leave so many (cold) negatives, and the report with those that do not."""
    rows = builder.rows(targets)
    if builder.sampler.arrivals.always and not cold:
        builder.sampler.check_enough(targets, rows, pool_size)
        return targets, report
    # Early in a source there are too few items to draw from, which is nobody's mistake.
    enough = builder.sampler.num_left(rows, pool_size, cold) >= pool_size
    kept = targets.filter(enough)
    if kept.is_empty():
        which = "items without a training event" if cold else "items"
        raise ValueError(
            f"split '{split}': none of {targets.height} targets has {pool_size} {which} that existed by then to draw "
            "negatives from. Draw fewer negatives, use more items, or pass existence='off'."
        )
    reason = "dropped_few_cold" if cold else "dropped_small_catalogue"
    report |= {reason: targets.height - kept.height, "records": kept.height}
    return kept, report | {"users": kept[USER_ID].n_unique(), "items": kept[ITEM_ID].n_unique()}
