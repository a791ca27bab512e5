"""
Tokens of multi-preference records: each prompt once and each distinct completion once, with the tokens that TRL gives
prompt + completion together, and whether a model has rows for them.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl.data_utils import is_conversational

from .data_utils import (
    _tokenize_completions,
    check_multi_preference,
    readable_records,
    rendered_columns,
    template_kwargs,
    tokenized_record,
)


_LETTER, _DIGIT = re.compile(r"[^\W\d_]"), re.compile(r"\d")
_SPACES = (" ", "\n")
_CONTEXT = 32  # characters of a prompt that its end is judged by
_START = 4  # characters of a completion that its start is judged by
# keywords of `apply_chat_template` that say something of the tokens, not of the text
_OF_TOKENIZATION = {
    *(
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
    ),
    *("tokenizer_kwargs", "sanitize_control_tokens", "continue_final_message", "add_generation_prompt"),
}
_OF_MESSAGES = {"role", "content"}
_KEPT = 1_000_000  # completions, before they are forgotten and made anew


class CompletionTokenizer:
    """
    Tokenizes the completions of prompts as [`~trl.DPOTrainer`] does, prompt and completion together, at the price of each
    prompt once and each distinct completion once. What a chat template puts behind a rendered prompt is the completion of a
    conversation, see [`ConversationRenderer`].

    Every text that [`TailTokenizer`] does not cut is tokenized wholly, as TRL does: those of tokenizers that are not fast or
    whose pieces cross, and conversations that begin otherwise than their prompt does alone.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        eos_token (`str` or `None`):
            Token to end the completions of a standard record with, empty for none.
    """

    def __init__(self, processing_class: PreTrainedTokenizerBase, eos_token: str | None) -> None:
        self.processing_class, self.eos_token = processing_class, eos_token
        # templates write special tokens themselves
        self._tails = {
            is_chat: TailTokenizer(processing_class, add_special_tokens=not is_chat) for is_chat in (False, True)
        }
        self._render = ConversationRenderer(processing_class)

    def __getstate__(self) -> dict[str, Any]:
        # what `map` hashes, and sends to its processes
        return {"processing_class": self.processing_class, "eos_token": self.eos_token}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # of the same class: pickle made it

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Iterator[tuple[list[int], list[list[int]]]]:
        """
        Tokenize records.

        Args:
            examples (`Sequence[dict]`):
                Records with `prompt`, `chosen` and `rejected`, standard or conversational.

        Returns:
            `Iterator` of the tokens of each prompt, and of its completions, the chosen one first.
        """
        is_chat = [isinstance(example["prompt"], list) for example in examples]
        rendered = iter(self._render([example for example, chat in zip(examples, is_chat, strict=True) if chat]))
        texts = [
            next(rendered) if chat else self._texts(example) for example, chat in zip(examples, is_chat, strict=True)
        ]
        cut: dict[bool, Iterator] = {}
        for kind, tails in self._tails.items():
            some = [text for text, chat in zip(texts, is_chat, strict=True) if text is not None and chat == kind]
            cut[kind] = iter(tails(some))
        for example, text, chat in zip(examples, texts, is_chat, strict=True):
            tokens = None if text is None else next(cut[chat])
            yield tokens or _tokenize_completions(example, self.processing_class, self.eos_token)

    def _texts(self, example: dict[str, Any]) -> tuple[str, list[str]] | None:
        """Prompt, and completions with their ends, or `None` for what is left to TRL's way."""
        prompt, eos_token = example["prompt"], self.eos_token
        if not isinstance(prompt, str) or not prompt or eos_token is None or not self.processing_class.is_fast:
            return None
        completions = [example["chosen"], *example["rejected"]]
        return prompt, [text if text.endswith(eos_token) else text + eos_token for text in completions]


# A prompt with its completions, as text; `None` for what is left to TRL's way.
_Texts: TypeAlias = "tuple[str, list[str]] | None"
# Messages as a dict can hold them
_Key: TypeAlias = tuple[tuple[str, str], ...]


class ConversationRenderer:
    """
    What a chat template makes of prompts and completions: each prompt once, and each distinct completion once.

    A completion is what stands behind the rendered prompt when both are rendered together. That is the same behind every
    prompt of as many messages of the same roles, unless a template looks at the words of one message to write another. So
    one completion, the first that there was, is rendered with every prompt; where it differs, all are, from then on.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer with the template.
    """

    def __init__(self, processing_class: PreTrainedTokenizerBase) -> None:
        self.processing_class = processing_class
        self._is_fast = getattr(processing_class, "is_fast", False)
        # by the roles of a prompt: tails of completions, `None` for one that does not go on from it, and the first of them
        self._tails: dict[tuple, dict[_Key, str | None]] = {}
        self._first: dict[tuple, list[dict]] = {}
        self._looks_at_words: set[tuple] = set()

    def __call__(self, examples: Sequence[dict[str, Any]]) -> list[_Texts]:
        """
        Render records.

        Args:
            examples (`Sequence[dict]`):
                Conversations with `prompt`, `chosen` and `rejected`.

        Returns:
            `list`: Of each the rendered prompt and what its completions go on with; `None` for what is left to TRL's way.
        """
        kinds = [self._kind(example) for example in examples]
        simple = [place for place, kind in enumerate(kinds) if kind is not None and kind not in self._looks_at_words]
        starts = self._render([examples[place]["prompt"] for place in simple], add_generation_prompt=True)
        keys: dict[int, list[_Key]] = {}
        asked: list[tuple[int, list[dict]]] = []
        asked_of: dict[tuple, set[_Key]] = {}
        for place in simple:
            example, kind = examples[place], kinds[place]
            completions = [example["chosen"], *example["rejected"]]
            keys[place] = [*map(_key, completions)]
            tails, once = self._tails.setdefault(kind, {}), asked_of.setdefault(kind, set())
            pairs = zip(keys[place], completions, strict=True)
            new = {key: one for key, one in pairs if key not in tails and key not in once}
            first = self._first.setdefault(kind, completions[0])
            asked += [(place, one) for one in {_key(first): first, **new}.values()]
            once.update(new)
        whole = self._render([examples[place]["prompt"] + completion for place, completion in asked])
        start_of = dict(zip(simple, starts, strict=True))
        for (place, completion), text in zip(asked, whole, strict=True):
            start, tails = start_of[place], self._tails[kinds[place]]
            goes_on = bool(start) and text.startswith(start) and text != start
            tail = text[len(start) :] if goes_on else None
            if tails.setdefault(_key(completion), tail) != tail:
                self._looks_at_words.add(kinds[place])
        found: list[_Texts] = []
        for place, example in enumerate(examples):
            kind = kinds[place]
            if kind is None or kind in self._looks_at_words:
                found.append(self._whole(example))
                continue
            tails_of = [self._tails[kind][key] for key in keys[place]]
            found.append(None if None in tails_of else (start_of[place], tails_of))
        self._forget()
        return found

    def _kind(self, example: dict[str, Any]) -> tuple | None:
        """The roles of the messages of a prompt; `None` if a record holds more than roles and texts."""
        messages = [example["prompt"], example["chosen"], *example["rejected"]]
        plain = all(
            type(message) is dict and message.keys() == _OF_MESSAGES and type(message["content"]) is str
            for one in messages
            for message in one
        )
        if not plain or not example["prompt"] or not self._is_fast or template_kwargs(example) != {"tools": None}:
            return None
        return tuple(message["role"] for message in example["prompt"])

    def _whole(self, example: dict[str, Any]) -> _Texts:
        """All completions of a record with its prompt."""
        prompt, kwargs = example["prompt"], template_kwargs(example)
        if not is_conversational({"prompt": prompt}) or not self._is_fast or kwargs.keys() & _OF_TOKENIZATION:
            return None
        (start,) = self._render([prompt], add_generation_prompt=True, **kwargs)
        whole = self._render(
            [prompt + completion for completion in [example["chosen"], *example["rejected"]]], **kwargs
        )
        if not start or not all(text.startswith(start) and text != start for text in whole):
            return None
        return start, [text[len(start) :] for text in whole]

    def _render(self, conversations: list[list[dict]], **kwargs) -> list[str]:
        return (
            self.processing_class.apply_chat_template(conversations, tokenize=False, **kwargs) if conversations else []
        )

    def _forget(self) -> None:
        if sum(map(len, self._tails.values())) > _KEPT:
            # what is compared stays
            self._tails = {
                kind: {_key(self._first[kind]): tails[_key(self._first[kind])]} for kind, tails in self._tails.items()
            }


def _key(messages: list[dict[str, str]]) -> _Key:
    return tuple([(message["role"], message["content"]) for message in messages])


class TailTokenizer:
    """
    Tokens of texts that begin with a prompt, cut behind it.

    A text may be cut where no piece of the vocabulary can lie across: between white space and something else, if no piece
    holds the two characters side by side. There, what is left and right of the cut has tokens of its own, but for what a
    tokenizer splits its text by first. So for every kind of junction (the characters around the cut by their class) the
    tokens are compared with those of the whole text on the first record that has it. Tokens that a tokenizer puts behind
    every text are put behind every completion, and taken from the prompt.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Fast tokenizer.
        add_special_tokens (`bool`):
            Whether it adds its special tokens to a text.
    """

    def __init__(self, processing_class: PreTrainedTokenizerBase, add_special_tokens: bool) -> None:
        self.processing_class, self.add_special_tokens = processing_class, add_special_tokens
        self._end_of_text: list[int] | None = None  # tokens behind every text
        self._pairs: set[str] | None = None  # characters side by side in a piece
        self._separable: dict[tuple[str, str], bool] = {}  # kinds of junctions
        # tokens of a completion behind a kind of end, `None` where text is tokenized wholly
        self._tails: dict[tuple[str, str], list[int] | None] = {}

    def __call__(self, texts: Sequence[tuple[str, list[str]]]) -> Iterator[tuple[list[int], list[list[int]]] | None]:
        """
        Tokenize prompts with their completions.

        Args:
            texts (`Sequence[tuple[str, list[str]]]`):
                Prompts, none of them empty, each with its completions.

        Returns:
            `Iterator` of the tokens of each prompt and of its completions, `None` where a text cannot be cut.
        """
        if not texts:
            return
        prompts = list(dict.fromkeys(prompt for prompt, _ in texts))
        prompt_ids = dict(zip(prompts, self._ids(prompts), strict=True))
        self._prepare(texts)
        for prompt, completions in texts:
            end = _end(prompt)
            tails = [self._tails[end, completion] for completion in completions]
            yield None if None in tails else (prompt_ids[prompt], tails)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Tokens without those that stand behind every text."""
        if self._end_of_text is None:
            self._end_of_text = _behind_every_text(self.processing_class) if self.add_special_tokens else []
        if not texts:
            return []
        rows = self.processing_class(text=texts, add_special_tokens=self.add_special_tokens)["input_ids"]
        size = len(self._end_of_text)
        return [ids[:-size] if size and ids[-size:] == self._end_of_text else ids for ids in rows]

    def _prepare(self, texts: Sequence[tuple[str, list[str]]]) -> None:
        """Tokenize the completions that are new in one call, and find out the junctions that are."""
        if len(self._tails) > _KEPT:
            self._tails.clear()
        new: dict[tuple[str, str], str] = {}
        kinds: dict[tuple[str, str], tuple[str, str]] = {}
        for prompt, completions in texts:
            end = _end(prompt)
            for completion in completions:
                if (end, completion) in self._tails or (end, completion) in new:
                    continue
                kind = (end, _classes(completion[:_START]))
                if kind not in self._separable:
                    kinds.setdefault(kind, (prompt, completion))
                new[end, completion] = prompt[-_CONTEXT:]
        self._judge(kinds)
        contexts = list(dict.fromkeys(new.values()))
        alone = dict(zip(contexts, self._ids(contexts), strict=True))
        together = self._ids([context + completion for (_, completion), context in new.items()])
        for ((end, completion), context), ids in zip(new.items(), together, strict=True):
            prefix, tail = alone[context], ids[len(alone[context]) :]
            # unknown characters side by side are one token, and what stands behind a prompt would be common to both
            is_cut = self._separable[end, _classes(completion[:_START])] and ids[: len(prefix)] == prefix
            others = (self.processing_class.unk_token_id, *self._end_of_text[:1])
            is_cut = is_cut and bool(tail) and tail[0] not in others
            self._tails[end, completion] = tail + self._end_of_text if is_cut else None

    def _judge(self, kinds: dict[tuple[str, str], tuple[str, str]]) -> None:
        """Compare, of each kind, one record's tokens in two parts with those of the whole."""
        for kind, (prompt, completion) in kinds.items():
            self._separable[kind] = False
            if self._may_cross(prompt[-1], completion[0]):
                continue
            context = prompt[-_CONTEXT:]
            alone, whole, short, short_whole = self._ids([prompt, prompt + completion, context, context + completion])
            tail = short_whole[len(short) :]
            self._separable[kind] = short_whole[: len(short)] == short and bool(tail) and whole == alone + tail

    def _may_cross(self, left: str, right: str) -> bool:
        """Whether a piece may lie across two characters: both or neither white space, or side by side in a piece."""
        if (left in _SPACES) == (right in _SPACES):
            return True
        if self._pairs is None:
            pieces = [*self.processing_class.get_vocab(), *map(str, self.processing_class.get_added_vocab())]
            self._pairs = {piece[i : i + 2] for piece in pieces for i in range(len(piece) - 1)}
        bytes_of = _byte_characters()
        as_bytes = bytes_of[left.encode()[-1]] + bytes_of[right.encode()[0]]
        as_metaspace = (left + right).replace(" ", "\u2581")
        return any(pair in self._pairs for pair in (left + right, as_bytes, as_metaspace))


def _behind_every_text(processing_class: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that a tokenizer puts behind a text, such as an EOS; none if that cannot be told."""
    plain, special = (processing_class("a", add_special_tokens=add)["input_ids"] for add in (False, True))
    for start in range(len(special) - len(plain) + 1):
        if special[start : start + len(plain)] == plain:
            return special[start + len(plain) :]
    return []


def _end(prompt: str) -> str:
    """The kind of a prompt's end: its last characters by their class, white space and the last one as they are."""
    return _classes(prompt[-_CONTEXT // 4 : -1]) + prompt[-1]


def _classes(text: str) -> str:
    """Letters, digits and other characters by what tokenizers split by; ASCII punctuation and white space stay."""
    return _LETTER.sub("a", _DIGIT.sub("0", text))


def _byte_characters() -> dict[int, str]:
    """The characters that byte-level tokenizers write bytes as (`bytes_to_unicode` of GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def tokenize_records(
    examples: dict[str, list], indices: list[int], tokenizer: CompletionTokenizer, stream: bool = False
) -> dict[str, list]:
    """
    [`tokenize_multi_preference`] for many records at once, for `map(..., batched=True, with_indices=True)`.

    Args:
        examples (`dict[str, list]`):
            Columns of the records.
        indices (`list[int]`):
            Row numbers.
        tokenizer ([`CompletionTokenizer`]):
            Keeps the tokens of completions from one call to the next.
        stream (`bool`, *optional*, defaults to `False`):
            See [`tokenize_multi_preference`].

    Returns:
        `dict[str, list]`: `prompt_ids`, `chosen_ids`, `rejected_ids`, `record_id` and `length`.
    """
    rows = [dict(zip(examples, values, strict=True)) for values in zip(*examples.values(), strict=True)]
    for row, index in zip(rows, indices, strict=True):
        check_multi_preference(row, index)
    texts = [row for row in rows if "rejected_ids" not in row]
    tokens = tokenizer(texts)
    records = [
        tokenized_record(row, index, next(tokens) if "rejected_ids" not in row else None, stream)
        for row, index in zip(rows, indices, strict=True)
    ]
    return {name: [record[name] for record in records] for name in records[0]} if records else {}


def tokenize_dataset(
    dataset: Dataset | IterableDataset,
    processing_class: PreTrainedTokenizerBase,
    eos_token: str | None,
    **map_kwargs,
) -> Dataset | IterableDataset:
    """
    Check and tokenize the records of a dataset, see [`tokenize_multi_preference`].

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Records, standard, conversational or tokenized, of any format. Of a stream no record is read ahead.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        eos_token (`str` or `None`):
            Token to end the completions of a standard record with, empty for none.
        **map_kwargs:
            Passed on to `map`.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`]: The records, with their tokens, and without the texts of
        those that are rows of a catalogue, which would take ten times the place of the rows.
    """
    stream = not isinstance(dataset, Dataset)
    dataset = readable_records(dataset)
    if rendered := rendered_columns(dataset):
        map_kwargs["remove_columns"] = list(dict.fromkeys([*map_kwargs.get("remove_columns", []), *rendered]))
    fn_kwargs = {"tokenizer": CompletionTokenizer(processing_class, eos_token), "stream": stream}
    batch_size = 1 if stream else 1_000
    tokenized = dataset.map(
        tokenize_records, with_indices=True, batched=True, batch_size=batch_size, fn_kwargs=fn_kwargs, **map_kwargs
    )
    return tokenized if stream else tokenized.with_format(None)


def column_lengths(dataset: Dataset, column: str) -> np.ndarray:
    """Lengths of the lists of a column, of shape `(rows,)`, by Arrow: no list becomes one of Python."""
    table = dataset.select_columns([column]).with_format("arrow")
    return np.concatenate([pc.list_value_length(batch[column]).to_numpy() for batch in table.iter(10_000)])


def inner_lengths(dataset: Dataset, column: str) -> np.ndarray:
    """Lengths of the lists in the lists of a column, those of all rows one after the other."""
    table = dataset.select_columns([column]).with_format("arrow")
    return np.concatenate(
        [pc.list_value_length(batch[column].combine_chunks().flatten()).to_numpy() for batch in table.iter(10_000)]
    )


def largest_token(dataset: Dataset) -> int:
    """The largest token id of tokenized multi-preference records."""
    columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
    table, largest = dataset.select_columns(columns).with_format("arrow"), 0
    for batch in table.iter(10_000):
        for column in columns:
            values = batch[column].combine_chunks()
            while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
                values = values.flatten()
            largest = max(largest, pc.max(values).as_py() or 0)
    return largest


def check_tokens_have_embeddings(
    model: torch.nn.Module,
    processing_class: PreTrainedTokenizerBase,
    datasets: dict[str, Dataset | IterableDataset],
    name: str = "model",
) -> None:
    """
    Refuse tokens that the model has no row for, which would be an index error in the midst of a pass.

    Args:
        model (`torch.nn.Module`):
            Policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer, whose pad token counts too.
        datasets (`dict[str, Dataset | IterableDataset]`):
            Tokenized records by name. Of streams only the tokenizer is looked at.
        name (`str`, *optional*, defaults to `"model"`):
            What the model is, for the message.

    Raises:
        `ValueError`: If a token is outside of the embeddings. The message names it and the remedy.
    """
    embeddings = model.get_input_embeddings()
    size = getattr(embeddings, "num_embeddings", None)
    if size is None:
        return
    remedy = "Call `model.resize_token_embeddings(len(tokenizer))`, or take the tokenizer of the model."
    if processing_class.pad_token_id is not None and processing_class.pad_token_id >= size:
        raise ValueError(
            f"The pad token {processing_class.pad_token!r} of the tokenizer has id {processing_class.pad_token_id}, and the "
            f"{name} has embeddings for {size} tokens (ids from 0). Set `tokenizer.pad_token = tokenizer.eos_token`. {remedy}"
        )
    for data, dataset in datasets.items():
        if isinstance(dataset, Dataset) and "rejected_ids" in dataset.column_names and len(dataset):
            largest = largest_token(dataset)
            if largest >= size:
                token = processing_class.convert_ids_to_tokens(largest)
                raise ValueError(
                    f"The {data} dataset holds the token {token!r} of id {largest}, and the {name} has embeddings for {size} "
                    f"tokens (ids from 0). {remedy}"
                )
