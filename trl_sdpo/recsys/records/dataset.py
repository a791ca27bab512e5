"""From interactions to multi-preference records: prompt, chosen, and a list of rejected."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
from datasets import Dataset, DatasetDict

from ..interactions.codes import sorted_catalogue
from ..interactions.interactions import ITEM_ID, RATING, TIMESTAMP, USER_ID, Interactions
from ..negatives.strategies import COLD, parse_negatives
from ..negatives.target_seeded import TargetSeededSampler
from ..prompts.rendering import plain
from .config import RecordConfig
from .phases import OFF, available_from, consumed_before, held_back, touched_before
from .rows import CHUNK_SIZE, ROW, Chunk, RecordBuilder, facts_of_targets, record_builder, sampler_class
from .sequences import (
    build_sequences_with_report,
    counts_training,
    in_words,
    keep_core_of_training,
    order_options,
    ties_are_sets,
)
from .splits import (
    BY_ITEM,
    BY_USER,
    BY_USER_IN_TIME,
    LEAVE_ONE_OUT,
    SPLIT,
    SPLITS,
    TEMPORAL,
    check_last_known,
    check_times,
    held_out_items,
    item_split,
    leave_one_out_split,
    split_leaks,
    temporal_split,
    user_split,
    users_to_learn_from,
)
from .targets import check_enough_left, select_targets, target_options, with_enough_left


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
        check_fits(counts["records"], targets.height, split, self.config)
        self.report[split] |= counts if self.builder.budget is not None else {}

    @property
    def sizes(self) -> dict[str, int]:
        """Targets of every split."""
        return {split: targets.height for split, targets in self.targets.items()}

    def release(self) -> None:
        """Let go of what only the making of records needs: the events as the sampler and the builder know them."""
        self.targets = {}
        self.builder.event_items, self.builder.consumed = np.empty(0, dtype=np.int32), None
        self.builder.sampler.release()


def check_fits(records: int, targets: int, split: str, config: RecordConfig) -> None:
    """Raise if no record of a split is short enough."""
    if not records:
        raise ValueError(
            f"split '{split}': none of {targets} records fits max_length={config.max_length} with a "
            "history of one item. Pass a larger one, fewer candidates, or prompt_style='history'."
        )


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
    check_source(
        interactions.name, interactions.events.columns, interactions.has_time, interactions.events.height, config
    )
    if config.max_length is not None and processing_class is None:
        raise ValueError(f"max_length={config.max_length} needs a tokenizer to count with. Pass processing_class.")
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
    for split in wanted_splits(config):
        targets[split], report[split] = _select(events, train, split, config, builder)
        report[split]["record_facts"] = facts_of_targets(events, targets[split], train_counts, builder)
    builder.consumed = consumed_before(interactions.events, targets, builder, config, interactions.has_time)
    plan = RecordPlan(config, targets, builder, catalogue, train_counts, report)
    if interactions.has_time:
        plan.first_met = dict(interactions.events.group_by(ITEM_ID).agg(pl.col(TIMESTAMP).min()).iter_rows())
    return plan


def _split_events(
    interactions: Interactions, config: RecordConfig
) -> tuple[pl.DataFrame, pl.DataFrame, pl.Series | None, dict]:
    """The events with their split; what says which items there are; those that are held out, if any; and counts."""
    of_training = counts_training(config)
    sequences, source_report = build_sequences_with_report(
        interactions,
        min_interactions=1 if of_training else config.min_interactions,
        k_core=config.k_core,
        min_length=1 if of_training else config.min_length,
        with_rating=False,
        **order_options(config, interactions.has_time),
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
        tied = ties_are_sets(config, interactions.has_time)
        events, counts = keep_core_of_training(events, ties_are_sets=tied, **options)
        source_report |= counts
    return events, events if known is None else known, held, source_report


def check_source(name: str, columns: Sequence[str], has_time: bool, height: int, config: RecordConfig) -> None:
    """Raise if the options ask for what the events of a source do not have, before any of them is put in order."""
    if not has_time and config.split == TEMPORAL:
        check_times(height, height)
    if not has_time and config.split == LEAVE_ONE_OUT:
        check_last_known(height, height, config.file_order)
    by_time = config.split in (TEMPORAL, BY_ITEM)  # which say themselves what they need
    if config.resolved_existence != OFF and not has_time and not by_time:
        raise ValueError(
            f"{name}: existence={config.existence!r} needs times, which the source does not have. Pass 'off'."
        )
    if (config.scores or config.low_rating is not None) and RATING not in columns:
        raise ValueError(f"{name}: scores and low_rating need a column '{RATING}', which it has not. Leave them out.")


def _make_builder(
    interactions: Interactions,
    events: pl.DataFrame,
    train: np.ndarray,
    catalogue: pl.DataFrame,
    held: pl.Series | None,
    config: RecordConfig,
    processing_class: "PreTrainedTokenizerBase | None",
) -> RecordBuilder:
    touched, phases = touched_before(interactions.events, events, config, interactions.has_time)
    available = available_from(interactions.events, catalogue, config.resolved_existence)
    sampler = sampler_class(config)(
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
    return record_builder(events, catalogue, sampler, config, processing_class)


def wanted_splits(config: RecordConfig) -> list[str]:
    """The splits that get records."""
    return [
        split for split, ratio in zip(SPLITS, config.ratios, strict=True) if ratio > 0 or config.split == LEAVE_ONE_OUT
    ]


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
    limit = getattr(config, f"max_{split}_records")
    options = target_options(events, split, config, builder, None if config.max_train_users is None else learned)
    targets, report = select_targets(events, split, seed=config.seed, limit=limit, **options)
    kept = with_enough_left(targets, split, config, builder)
    cold = config.eval_candidates == COLD and split != "train"
    if builder.sampler.arrivals.always and not cold:
        return kept, report
    check_enough_left(targets.height, kept.height, split, config)
    reason = "dropped_few_cold" if cold else "dropped_small_catalogue"
    report |= {reason: targets.height - kept.height, "records": kept.height}
    return kept, report | {"users": kept[USER_ID].n_unique(), "items": kept[ITEM_ID].n_unique()}
