"""Multi-preference records as Arrow tables, chunk by chunk."""

import copy
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa

from ..interactions.codes import encode
from ..interactions.interactions import ITEM_ID, TIMESTAMP, USER_ID
from ..interactions.random_streams import TEMPLATE_STREAM
from ..negatives.candidates import CandidateSampler, shown_candidates
from ..negatives.histories import history_codes, history_ends
from ..negatives.strategies import NUM_EARLIER, POSITION, TargetRows
from ..negatives.target_seeded import TargetSeededSampler
from ..prompts.record_texts import CONSUMED, RecordTexts, narrowed, text_or_number
from ..prompts.rendering import lists
from ..prompts.templates import PromptTemplate
from ..prompts.token_budget import TokenBudget
from .phases import Consumed
from .splits import SPLIT, SPLITS
from .targets import time_facts


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .config import RecordConfig


ROW = "row"
COLUMNS = ("prompt", "chosen", "rejected", USER_ID, ITEM_ID, "rejected_item_ids", "history_item_ids", "candidates")
COLUMNS += (TIMESTAMP, POSITION, NUM_EARLIER, CONSUMED)
# The records of a chunk, which is also a row group on disk: part of what makes the bytes of a file.
CHUNK_SIZE = 1 << 15
# Arrow's strings of an array have 32-bit offsets.
_LARGEST_TEXT = 2**31 - 1


@dataclass(frozen=True)
class Chunk:
    """
    Records and what the report says of them.

    Args:
        table (`pyarrow.Table`):
            The records. Titles are dictionaries: an index per title instead of its text.
        rows ([`TargetRows`]):
            Users, targets and histories as whole numbers.
        pool (`numpy.ndarray`):
            Rows of the negatives in the catalogue, of shape `(n, pool_size)`.
        tokens (`numpy.ndarray`, *optional*):
            Tokens of the prompt with its longest completion, where a tokenizer was given.
        shortened (`int`), dropped (`int`):
            Records whose history was shortened, and records that did not fit even so.
        kept (`numpy.ndarray`, *optional*):
            The places of the records among the targets, where some may be dropped.
    """

    table: pa.Table
    rows: TargetRows
    pool: np.ndarray
    tokens: np.ndarray | None = None
    shortened: int = 0
    dropped: int = 0
    kept: np.ndarray | None = None


class RecordBuilder:
    """
    Turns targets into records.

    Args:
        events (`polars.DataFrame`):
            Sequences: the events of a user one after the other.
        catalogue (`polars.DataFrame`):
            The items, sorted by `item_id`, with `title` and the attributes that templates show.
        sampler ([`CandidateSampler`]):
            Where negatives come from.
        templates (`tuple[PromptTemplate, ...]`):
            Drawn from by (seed, user, position).
        history_size (`int`), num_candidates (`int`):
            See [`build_preference_dataset`].
        conversational (`bool`, *optional*, defaults to `False`):
            Whether texts become messages.
        scores (`bool`, *optional*, defaults to `False`):
            Whether records say how the user rated the target and the negatives.
        budget ([`TokenBudget`], *optional*):
            Shortens histories to a number of tokens.
    """

    def __init__(
        self,
        events: pl.DataFrame,
        catalogue: pl.DataFrame,
        sampler: CandidateSampler,
        templates: tuple[PromptTemplate, ...],
        *,
        history_size: int,
        num_candidates: int,
        conversational: bool = False,
        scores: bool = False,
        budget: TokenBudget | None = None,
    ) -> None:
        self.sampler, self.templates = sampler, templates
        self.history_size, self.num_candidates = history_size, num_candidates
        self.scores, self.budget = scores, budget
        # Whether tables hold rows of the catalogue instead of texts, see `compact`.
        self.as_codes = False
        # What users had before: of validation and test records, see `plan_records`.
        self.consumed: Consumed | None = None
        self.event_items = encode(events[ITEM_ID], sampler.ids).astype(np.int32)
        self.texts = RecordTexts(catalogue, templates, history_size, num_candidates, conversational)
        if budget is not None:
            budget.measure_completions(templates, self.texts.answers.to_pylist(), conversational)

    def over(self, events: pl.DataFrame, sampler: CandidateSampler) -> "RecordBuilder":
        """The same builder for the sequences of some users, with a sampler for them."""
        other = copy.copy(self)
        other.sampler, other.consumed = sampler, None
        other.event_items = encode(events[ITEM_ID], sampler.ids).astype(np.int32)
        return other

    def rows(self, targets: pl.DataFrame) -> TargetRows:
        """Targets with `row`, their place among the events, as whole numbers with their histories."""
        ends = history_ends(targets, targets[ROW].to_numpy().astype(np.int64))
        histories = history_codes(self.event_items, *ends, self.history_size)
        return self.sampler.rows(targets, histories, targets[SPLIT].to_physical().to_numpy())

    def largest_chunk(self, pool_size: int) -> int:
        """Records whose texts are sure to fit into one array of strings, however long titles and histories are."""
        longest = self.texts.longest
        affixes = max(sum(map(_length, _words(template))) for template in self.templates)
        titles = self.history_size + self.num_candidates + pool_size + 1
        return max(
            1, _LARGEST_TEXT // (titles * (longest + affixes) + max(_length(one.text) for one in self.templates))
        )

    def build(self, targets: pl.DataFrame, pool_size: int, shares: dict[str, float]) -> Chunk:
        """
        The records of targets.

        Args:
            targets (`polars.DataFrame`):
                Rows of the events, with `row`.
            pool_size (`int`):
                Negatives of a record.
            shares (`dict[str, float]`):
                See [`parse_negatives`].

        Returns:
            [`Chunk`]: The records in the order of the targets.
        """
        rows = self.rows(targets)
        pool = self.sampler.draw(rows, self.num_candidates - 1, pool_size, shares)
        shown = shown_candidates(self.sampler, rows, pool, self.num_candidates - 1)
        wording = rows.numbers(self.sampler.seed, TEMPLATE_STREAM, 1)[:, 0] % np.uint64(len(self.templates))
        wording = wording.astype(np.int64)
        tokens, kept, shortened, dropped = None, None, 0, 0
        if self.budget is not None:
            completions = np.column_stack([rows.items, pool])
            histories, tokens = self.budget.fit(
                lambda some, histories: self.texts.prompts(wording[some], histories, shown[some]),
                rows.histories,
                self.budget.longest_completion(wording, completions),
            )
            shortened = int(((histories != rows.histories).any(axis=1) & (tokens > 0)).sum())
            kept = fits = np.flatnonzero(tokens > 0)
            dropped = len(rows) - len(fits)
            rows = dataclasses.replace(rows, histories=histories)[fits]
            pool, shown, wording, tokens = pool[fits], shown[fits], wording[fits], tokens[fits]
            targets = targets[fits]
        table = self._table(targets, rows, pool, shown, wording)
        return Chunk(table, rows, pool, tokens, shortened, dropped, kept)

    def _table(
        self, targets: pl.DataFrame, rows: TargetRows, pool: np.ndarray, shown: np.ndarray, wording: np.ndarray
    ) -> pa.Table:
        count, there = len(rows), rows.histories >= 0
        consumed = None
        # All that the users had before, of validation and test records; those for training have no use of it.
        if self.consumed is not None and targets.height and targets[SPLIT][0] != SPLITS[0]:
            consumed = self.consumed(targets)
        coded = {
            "prompt": self.texts.prompt_codes(wording, rows.histories, shown),
            "chosen": self.texts.completion_codes(wording, rows.items),
            "rejected": lists(self.texts.completion_codes(wording[:, None], pool), pool.shape[1], count),
            ITEM_ID: pa.array(rows.items),
            "rejected_item_ids": lists(pa.array(pool.ravel()), pool.shape[1], count),
            "history_item_ids": lists(pa.array(rows.histories[there]), there.sum(axis=1), count),
            "candidates": lists(pa.array(shown.ravel()), shown.shape[1], count),
            CONSUMED: pa.nulls(count, pa.list_(pa.int64()))
            if consumed is None
            else lists(pa.array(consumed[1]), consumed[0], count),
        }
        columns = narrowed(coded, self.texts.code_type) if self.as_codes else self.texts.render(coded)
        columns[USER_ID] = text_or_number(targets[USER_ID])
        columns |= {name: targets[name].to_arrow() for name in (TIMESTAMP, POSITION, NUM_EARLIER)}
        columns = {name: columns[name] for name in COLUMNS}
        if self.scores:
            grades = self.sampler.grades
            columns["chosen_score"] = _scores(grades.of_targets(rows))
            columns["rejected_scores"] = lists(_scores(grades.of(rows, pool)), pool.shape[1], count)
        return pa.table(columns)


def _words(template: PromptTemplate) -> tuple[str, ...]:
    """What may stand around a title."""
    separators = template.history_separator, template.candidate_separator
    return (*separators, template.completion_prefix, template.completion_suffix)


def _length(text: str) -> int:
    return len(text.encode())


def _scores(ratings: np.ndarray) -> pa.Array:
    return pa.array(ratings.ravel(), mask=np.isnan(ratings.ravel()))


def facts_of_targets(
    events: pl.DataFrame, targets: pl.DataFrame, train_counts: np.ndarray, builder: RecordBuilder
) -> dict[str, int | None]:
    """The `record_facts` of the report."""
    rows = targets[ROW].to_numpy().astype(np.int64)
    facts = time_facts(events, rows, builder.history_size)
    return facts | {"targets_without_train_event": int((train_counts[builder.event_items[rows]] == 0).sum())}


def sampler_class(config: "RecordConfig") -> type[CandidateSampler]:
    """What draws negatives."""
    return TargetSeededSampler if config.candidate_seed == "target" else CandidateSampler


def record_builder(
    events: pl.DataFrame,
    catalogue: pl.DataFrame,
    sampler: CandidateSampler,
    config: "RecordConfig",
    processing_class: "PreTrainedTokenizerBase | None",
) -> RecordBuilder:
    """What makes the records of events."""
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
