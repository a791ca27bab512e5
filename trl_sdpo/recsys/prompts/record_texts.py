"""What records say, of whole numbers: prompts, completions and ids are rendered from rows of the catalogue."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from ..interactions.interactions import ITEM_ID, TITLE
from .rendering import Renderer, lists, message
from .templates import PromptTemplate


CONSUMED = "consumed_item_ids"
# Columns that are whole numbers until they are rendered: places among the items, or among the completions.
OF_ITEMS = (ITEM_ID, "rejected_item_ids", "history_item_ids", CONSUMED)
OF_COMPLETIONS = ("chosen", "rejected")
OF_ANSWERS = ("candidates",)
CODED = ("prompt", *OF_COMPLETIONS, *OF_ITEMS, *OF_ANSWERS)


class RecordTexts:
    """
    Renders records that hold rows of the catalogue.

    Args:
        catalogue (`polars.DataFrame`):
            The items, sorted by `item_id`, with `title` and the attributes that templates show.
        templates (`Sequence[PromptTemplate]`):
            The wordings.
        history_size (`int`), num_candidates (`int`):
            The longest history, and the length of a list.
        conversational (`bool`, *optional*, defaults to `False`):
            Whether texts become messages.

    Raises:
        ValueError: the templates differ in what completions say of an item, or an attribute is missing.
    """

    def __init__(
        self,
        catalogue: pl.DataFrame,
        templates: Sequence[PromptTemplate],
        history_size: int,
        num_candidates: int,
        conversational: bool = False,
    ) -> None:
        self.history_size, self.num_candidates, self.conversational = history_size, num_candidates, conversational
        self.item_ids = text_or_number(catalogue[ITEM_ID])
        self._renderers = [_renderer(one, catalogue, history_size, num_candidates) for one in templates]
        self._shows_list = any(one.style == "candidates" for one in templates)
        # What completions say of every item: wordings differ in what stands around it.
        self.answers = self._renderers[0].answers
        if any(one.completion_format != templates[0].completion_format for one in templates):
            raise ValueError("templates differ in completion_format. Give all of them the same.")
        completions = [self.answers] if conversational else [one.completions for one in self._renderers]
        # Wordings may share completions. In a dictionary that holds one twice, Parquet would write the texts themselves.
        encoded = pa.concat_arrays(completions).dictionary_encode()
        self._completions, self._completion_codes = encoded.dictionary, encoded.indices.to_numpy()

    @property
    def longest(self) -> int:
        """Bytes of the longest text of an item."""
        return max(one.longest for one in self._renderers)

    @property
    def code_type(self) -> pa.DataType:
        """The smallest type that holds every whole number of a record."""
        most = max(len(self.item_ids), len(self._completions), len(self._renderers))
        return pa.uint16() if most <= 1 << 16 else pa.int32()

    def mean_length(self) -> float:
        """Bytes of a completion, the mean over items."""
        return pc.mean(pc.binary_length(self._completions)).as_py()

    def prompt_codes(self, wording: np.ndarray, histories: np.ndarray, shown: np.ndarray) -> pa.ListArray:
        """For each prompt its wording, the items of its history and those of its list, if it shows one."""
        parts = [wording[:, None], histories, *([shown] if self._shows_list else [])]
        codes = np.concatenate(parts, axis=1)
        return lists(pa.array(codes[codes >= 0]), (codes >= 0).sum(axis=1), len(codes))

    def completion_codes(self, wording: np.ndarray, items: np.ndarray) -> pa.Array:
        """Places among the completions, one behind the other; of bare texts where they become messages."""
        return pa.array(
            self._completion_codes[items if self.conversational else wording * len(self.answers) + items].ravel()
        )

    def prompts(self, wording: np.ndarray, histories: np.ndarray, shown: np.ndarray) -> pa.StringArray:
        """Prompts as text, see [`Renderer.prompts`]."""
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

    def render(self, columns: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
        """
        Render columns, those that there are.

        Args:
            columns (`Mapping[str, pyarrow.Array]`):
                Columns of whole numbers by name, and others, which stay.

        Returns:
            `dict[str, pyarrow.Array]`: Texts, messages and ids. Texts that occur again and again are dictionaries of those
            that occur.
        """
        rendered = dict(columns)
        for name in set(CODED) & set(columns):
            values = columns[name]
            if name == "prompt":
                texts = self._prompts_of(values)
                rendered[name] = message("user", texts) if self.conversational else texts
            else:
                rendered[name] = _over(values, self._renders(name))
        return rendered

    def _renders(self, name: str) -> Callable[[pa.Array], pa.Array]:
        if name in OF_ITEMS:
            return self.item_ids.take
        if name in OF_ANSWERS:
            return lambda codes: _used(codes, self.answers)
        if self.conversational:
            return lambda codes: message("assistant", _used(codes, self._completions))
        return lambda codes: _used(codes, self._completions)

    def _prompts_of(self, values: pa.ListArray) -> pa.StringArray:
        flat, lengths = values.flatten().to_numpy(zero_copy_only=False).astype(np.int64), _lengths(values)
        ends = np.cumsum(lengths)
        begins = ends - lengths  # of no rows, none
        wording = flat[begins]
        width = self.num_candidates if self._shows_list else 0
        shown = flat[ends[:, None] - np.arange(width, 0, -1)]
        back = np.arange(self.history_size, 0, -1)
        places = ends[:, None] - width - back
        there = places > begins[:, None]
        histories = np.where(there, flat[np.where(there, places, 0)], -1)
        return self.prompts(wording, histories, shown)


def narrowed(columns: Mapping[str, pa.Array], code_type: pa.DataType) -> dict[str, pa.Array]:
    """Columns of whole numbers in the smallest type that holds them."""
    return {
        name: _over(values, lambda codes: codes.cast(code_type)) if name in CODED else values
        for name, values in columns.items()
    }


def text_or_number(ids: pl.Series) -> pa.Array:
    """Ids as Arrow has them: text with offsets of 32 bits, or numbers."""
    array = ids.to_arrow()
    return array.cast(pa.string()) if ids.dtype == pl.String else array


def _renderer(template: PromptTemplate, catalogue: pl.DataFrame, history_size: int, num_candidates: int) -> Renderer:
    titles = catalogue[TITLE].to_list()
    attributes = {name: catalogue[name].to_list() for name in template.attributes if name in catalogue.columns}
    shown, answers = template.shown(titles, attributes), template.answers(titles, attributes)
    return Renderer(
        template, pa.array(shown, pa.string()), history_size, num_candidates, pa.array(answers, pa.string())
    )


def _over(values: pa.Array, function: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """A function of an array applied to it, or to what its lists hold; lists that are missing stay so."""
    if not pa.types.is_list(values.type):
        return function(values)
    inner = function(values.flatten())
    if not values.null_count:
        return lists(inner, _lengths(values), len(values))
    offsets = np.append(0, np.cumsum(_lengths(values)))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), inner, mask=values.is_null())


def _lengths(values: pa.ListArray) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _used(codes: pa.Array, texts: pa.StringArray) -> pa.DictionaryArray:
    """Texts as a dictionary of those that occur, in their order."""
    rows = codes.to_numpy(zero_copy_only=False)
    there = np.zeros(len(texts), dtype=bool)
    there[rows] = True
    places = np.cumsum(there) - 1
    return pa.DictionaryArray.from_arrays(
        pa.array(places[rows], pa.int32()), texts.take(pa.array(np.flatnonzero(there)))
    )
