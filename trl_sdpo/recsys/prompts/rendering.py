"""Prompts and completions of many records at once, as Arrow arrays: no Python string is made."""

import string
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .templates import PromptTemplate


class Renderer:
    """
    Renders one template.

    A prompt is a row of pieces (words of the template, titles, separators, numbers), so a chunk of prompts is one
    gather of pieces, cut at the ends of the rows.

    Args:
        template ([`PromptTemplate`]):
            The template.
        titles (`pyarrow.StringArray`):
            What is shown of an item, by row of the catalogue.
        history_size (`int`), num_candidates (`int`):
            The longest history, and the length of a list.
        answers (`pyarrow.StringArray`, *optional*):
            What completions say of an item. By default the titles.
    """

    def __init__(
        self,
        template: PromptTemplate,
        titles: pa.StringArray,
        history_size: int,
        num_candidates: int,
        answers: pa.StringArray | None = None,
    ) -> None:
        self.template = template
        words = [template.history_separator, template.candidate_separator, str(num_candidates)]
        first_number = len(titles) + len(words)
        words += [str(number) for number in range(history_size + 1)]
        # The fields of the text, each with the row of the words before it.
        self._fields = []
        for literal, field, _, _ in string.Formatter().parse(template.text):
            self._fields.append((len(titles) + len(words), field))
            words.append(literal)
        self._pieces = pa.concat_arrays([titles, pa.array(words, pa.string())])
        self._separators = len(titles), len(titles) + 1
        self._num_candidates, self._first_number = len(titles) + 2, first_number
        affixes = template.completion_prefix, template.completion_suffix
        self.answers = titles if answers is None else answers
        self.completions = pa.array(
            [f"{affixes[0]}{one}{affixes[1]}" for one in self.answers.to_pylist()], pa.string()
        )

    @property
    def longest(self) -> int:
        """Bytes of the longest text of an item."""
        return max(
            pc.max(pc.binary_length(texts)).as_py() for texts in (self._pieces[: self._separators[0]], self.answers)
        )

    def prompts(self, histories: np.ndarray, candidates: np.ndarray) -> pa.StringArray:
        """
        The prompts.

        Args:
            histories (`numpy.ndarray`):
                Rows of the catalogue of shape `(n, history_size)`, the last one at the right; -1 where there is none.
            candidates (`numpy.ndarray`):
                Rows of the catalogue of shape `(n, num_candidates)`.

        Returns:
            `pyarrow.StringArray`: Of length `n`.
        """
        lengths = (histories >= 0).sum(axis=1)
        parts = []
        for word, field in self._fields:
            parts.append(np.full((len(histories), 1), word))
            if field == "history":
                parts.append(_between(histories, self._separators[0]))
            elif field == "candidates":
                parts.append(_between(candidates, self._separators[1]))
            elif field == "num_candidates":
                parts.append(np.full((len(histories), 1), self._num_candidates))
            elif field == "num_history":
                parts.append(self._first_number + lengths[:, None])
        return join_pieces(self._pieces, np.concatenate(parts, axis=1))


def _between(codes: np.ndarray, separator: int) -> np.ndarray:
    """Titles with a separator between two of them."""
    count, width = codes.shape
    result = np.full((count, 2 * width - 1), separator)
    result[:, ::2] = codes
    result[:, 1::2][codes[:, :-1] < 0] = -1
    return result


def join_pieces(pieces: pa.StringArray, rows: np.ndarray) -> pa.StringArray:
    """
    Strings of pieces, one behind the other.

    Args:
        pieces (`pyarrow.StringArray`):
            The pieces.
        rows (`numpy.ndarray`):
            Their places, of shape `(n, m)`; -1 for none.

    Returns:
        `pyarrow.StringArray`: Of length `n`.
    """
    there = rows >= 0
    gathered = pieces.take(pa.array(rows[there]))
    _, offsets, data = gathered.buffers()
    ends = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    offsets = np.frombuffer(offsets, dtype=np.int32)[gathered.offset :][ends]
    return pa.StringArray.from_buffers(len(rows), pa.py_buffer(np.ascontiguousarray(offsets)), data)


def lists(values: pa.Array, lengths: np.ndarray | int, count: int) -> pa.ListArray:
    """Cut an array into lists: of one length, or of those given."""
    offsets = (
        np.arange(count + 1) * cast(int, lengths)
        if np.isscalar(lengths)
        else np.concatenate([[0], np.cumsum(lengths)])
    )
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def message(role: str, content: pa.Array) -> pa.ListArray:
    """Every text as a conversation of one message."""
    roles = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(content), np.int32)), pa.array([role]))
    return lists(pa.StructArray.from_arrays([roles, content], ["role", "content"]), 1, len(content))


def plain(array: pa.Array) -> pa.Array:
    """An array with its dictionaries replaced by what they stand for."""
    if pa.types.is_dictionary(array.type):
        return array.dictionary_decode()
    if array.null_count == len(array):  # lists that are not there have nothing to replace, and stay nulls
        return array
    if pa.types.is_list(array.type):
        return pa.ListArray.from_arrays(array.offsets, plain(array.values))
    if pa.types.is_struct(array.type):
        names = [field.name for field in array.type]
        return pa.StructArray.from_arrays([plain(array.field(name)) for name in names], names)
    return array
