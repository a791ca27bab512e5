"""Multi-preference records as Arrow tables, chunk by chunk."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from ..interactions.codes import encode
from ..interactions.interactions import ITEM_ID, TIMESTAMP, TITLE, USER_ID
from ..interactions.random_streams import TEMPLATE_STREAM
from ..negatives.candidates import CandidateSampler, history_codes, history_ends, shown_candidates
from ..negatives.strategies import NUM_EARLIER, POSITION, TargetRows
from ..prompts.rendering import Renderer, lists, message
from ..prompts.templates import PromptTemplate
from ..prompts.token_budget import TokenBudget
from .consumed import Consumed
from .splits import SPLIT, SPLITS


ROW = "row"
CONSUMED = "consumed_item_ids"
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
    """

    table: pa.Table
    rows: TargetRows
    pool: np.ndarray
    tokens: np.ndarray | None = None
    shortened: int = 0
    dropped: int = 0


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
        self.conversational, self.scores, self.budget = conversational, scores, budget
        # What users had before: of validation and test records, see `plan_records`.
        self.consumed: Consumed | None = None
        self.event_items = encode(events[ITEM_ID], sampler.ids).astype(np.int32)
        self._item_ids = _ids(catalogue[ITEM_ID])
        self._renderers = [_renderer(one, catalogue, history_size, num_candidates) for one in templates]
        # What completions say of every item: wordings differ in what stands around it.
        self.answers = self._renderers[0].answers
        if any(one.completion_format != templates[0].completion_format for one in templates):
            raise ValueError("templates differ in completion_format. Give all of them the same.")
        completions = [self.answers] if conversational else [one.completions for one in self._renderers]
        # Wordings may share completions. In a dictionary that holds one twice, Parquet would write the texts themselves.
        encoded = pa.concat_arrays(completions).dictionary_encode()
        self._completions, self._completion_codes = encoded.dictionary, encoded.indices.to_numpy()
        if budget is not None:
            budget.measure_completions(templates, self.answers.to_pylist(), conversational)

    def rows(self, targets: pl.DataFrame) -> TargetRows:
        """Targets with `row`, their place among the events, as whole numbers with their histories."""
        ends = history_ends(targets, targets[ROW].to_numpy().astype(np.int64))
        histories = history_codes(self.event_items, *ends, self.history_size)
        return self.sampler.rows(targets, histories, targets[SPLIT].to_physical().to_numpy())

    def largest_chunk(self, pool_size: int) -> int:
        """Records whose texts are sure to fit into one array of strings, however long titles and histories are."""
        longest = max(one.longest for one in self._renderers)
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
        tokens, shortened, dropped = None, 0, 0
        if self.budget is not None:
            completions = np.column_stack([rows.items, pool])
            histories, tokens = self.budget.fit(
                lambda some, histories: self._prompts(wording[some], histories, shown[some]),
                rows.histories,
                self.budget.longest_completion(wording, completions),
            )
            shortened = int(((histories != rows.histories).any(axis=1) & (tokens > 0)).sum())
            fits = np.flatnonzero(tokens > 0)
            dropped = len(rows) - len(fits)
            rows = dataclasses.replace(rows, histories=histories)[fits]
            pool, shown, wording, tokens = pool[fits], shown[fits], wording[fits], tokens[fits]
            targets = targets[fits]
        table = self._table(targets, rows, pool, shown, wording)
        return Chunk(table, rows, pool, tokens, shortened, dropped)

    def _table(
        self, targets: pl.DataFrame, rows: TargetRows, pool: np.ndarray, shown: np.ndarray, wording: np.ndarray
    ) -> pa.Table:
        count = len(rows)
        prompts = self._prompts(wording, rows.histories, shown)
        chosen = self._texts(wording, rows.items)
        rejected = self._texts(wording[:, None], pool)
        if self.conversational:
            prompts, chosen = message("user", prompts), message("assistant", chosen)
            rejected = message("assistant", rejected)
        titles = pa.DictionaryArray.from_arrays(pa.array(shown.ravel(), pa.int32()), self.answers)
        there = rows.histories >= 0
        columns = {
            "prompt": prompts,
            "chosen": chosen,
            "rejected": lists(rejected, pool.shape[1], count),
            USER_ID: _ids(targets[USER_ID]),
            ITEM_ID: _ids(targets[ITEM_ID]),
            "rejected_item_ids": lists(self._item_ids.take(pa.array(pool.ravel())), pool.shape[1], count),
            "history_item_ids": lists(self._item_ids.take(pa.array(rows.histories[there])), there.sum(axis=1), count),
            "candidates": lists(titles, shown.shape[1], count),
            TIMESTAMP: targets[TIMESTAMP].to_arrow(),
            POSITION: targets[POSITION].to_arrow(),
            NUM_EARLIER: targets[NUM_EARLIER].to_arrow(),
            CONSUMED: self._consumed(targets),
        }
        if self.scores:
            grades = self.sampler.grades
            columns["chosen_score"] = _scores(grades.of_targets(rows))
            columns["rejected_scores"] = lists(_scores(grades.of(rows, pool)), pool.shape[1], count)
        return pa.table(columns)

    def _consumed(self, targets: pl.DataFrame) -> pa.Array:
        """All that the users had before, of validation and test records; nulls of those for training, who have no use."""
        if self.consumed is None or not targets.height or targets[SPLIT][0] == SPLITS[0]:
            return pa.nulls(targets.height, pa.list_(self._item_ids.type))
        lengths, items = self.consumed(targets)
        return lists(self._item_ids.take(pa.array(items)), lengths, targets.height)

    def _prompts(self, wording: np.ndarray, histories: np.ndarray, shown: np.ndarray) -> pa.StringArray:
        if len(self._renderers) == 1:
            return self._renderers[0].prompts(histories, shown)
        order = np.argsort(wording, kind="stable")
        parts = []
        for number, renderer in enumerate(self._renderers):
            some = order[wording[order] == number]
            parts.append(renderer.prompts(histories[some], shown[some]))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.concat_arrays(parts).take(pa.array(back))

    def _texts(self, wording: np.ndarray, items: np.ndarray) -> pa.DictionaryArray:
        """Completions, or bare titles of messages, as rows of a dictionary."""
        codes = self._completion_codes[items if self.conversational else wording * len(self.answers) + items]
        return pa.DictionaryArray.from_arrays(pa.array(codes.ravel(), pa.int32()), self._completions)


def _renderer(template: PromptTemplate, catalogue: pl.DataFrame, history_size: int, num_candidates: int) -> Renderer:
    titles = catalogue[TITLE].to_list()
    attributes = {name: catalogue[name].to_list() for name in template.attributes if name in catalogue.columns}
    shown, answers = template.shown(titles, attributes), template.answers(titles, attributes)
    return Renderer(
        template, pa.array(shown, pa.string()), history_size, num_candidates, pa.array(answers, pa.string())
    )


def _words(template: PromptTemplate) -> tuple[str, ...]:
    """What may stand around a title."""
    separators = template.history_separator, template.candidate_separator
    return (*separators, template.completion_prefix, template.completion_suffix)


def _length(text: str) -> int:
    return len(text.encode())


def _scores(ratings: np.ndarray) -> pa.Array:
    return pa.array(ratings.ravel(), mask=np.isnan(ratings.ravel()))


def _ids(ids: pl.Series) -> pa.Array:
    array = ids.to_arrow()
    return array.cast(pa.string()) if ids.dtype == pl.String else array
