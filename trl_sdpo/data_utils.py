"""
The multi-preference format: `prompt`, `chosen` and `rejected`, the latter a *list* of completions.

| column | standard | conversational | tokenized |
| --- | --- | --- | --- |
| `prompt` | `str` | list of messages | `prompt_ids` |
| `chosen` | `str` | list of messages | `chosen_ids` |
| `rejected` | list of `str` | list of lists of messages | `rejected_ids`: list of lists of `int` |

A `rejected` that is a single completion is the preference format of TRL.
"""

import ast
import hashlib
import json
import re
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging
from trl.data_utils import _tokenize, common_prefix_length, is_conversational


logger = logging.get_logger(__name__)

_FLAT_REJECTED = re.compile(r"^(?:rejected|negative)_?(\d+)$")
_REMEDY = (
    "A multi-preference record has a `prompt`, a `chosen` and a list of `rejected` completions, all of them texts or "
    "all of them lists of messages."
)


def is_multi_preference(example: dict[str, Any], features: Features | None = None) -> bool:
    """
    Check if an example holds a list of rejected completions, as text, messages or tokens.

    Args:
        example (`dict[str, Any]`):
            A single data entry of a dataset.
        features ([`~datasets.Features`], *optional*):
            Types of the columns, which say more than one entry does: its value may be missing.

    Returns:
        `bool`: `True` if there is a list of rejected completions, `False` for a single one, which is TRL's own format,
        and for every other format.

    Example:

    ```python
    >>> from trl_sdpo import is_multi_preference

    >>> is_multi_preference({"prompt": "Next:", "chosen": " Heat (1995)", "rejected": [" Fargo (1996)", " Big (1988)"]})
    True
    >>> is_multi_preference({"prompt": "Next:", "chosen": " Heat (1995)", "rejected": " Fargo (1996)"})
    False
    ```
    """
    column = "rejected_ids" if "rejected_ids" in example else "rejected"
    inner = getattr((features or {}).get(column), "feature", None)
    if isinstance(inner, (List, Value)):
        return not (isinstance(inner, Value) and "int" in inner.dtype)
    if column == "rejected_ids":
        rejected = example["rejected_ids"]
        return isinstance(rejected, list) and (not rejected or isinstance(rejected[0], list))
    rejected = example.get("rejected")
    # a list of messages is one completion
    return isinstance(rejected, list) and not (rejected and isinstance(rejected[0], dict))


def _fail(index: int, column: str, value: Any, problem: str, remedy: str = _REMEDY) -> None:
    shown = repr(value)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}…"
    raise ValueError(f"Row {index}, column `{column}`: {problem}, got {shown}. {remedy}")


def _check_messages(messages: Any, index: int, column: str) -> None:
    if not isinstance(messages, list):
        _fail(index, column, messages, "expected a list of messages, as the prompt is")
    for message in messages:
        if not isinstance(message, dict) or "role" not in message:
            _fail(index, column, message, "expected a message with `role` and `content`")
    if not any(_has_content(message) for message in messages):
        _fail(index, column, messages, "empty completion", "Remove it, or fill in the content.")


def _has_content(message: dict[str, Any]) -> bool:
    content = message.get("content")
    return bool(content.strip() if isinstance(content, str) else content) or bool(message.get("tool_calls"))


def _check_text(text: Any, index: int, column: str) -> None:
    if not isinstance(text, str):
        _fail(index, column, text, "expected a text, as the prompt is")
    if not text.strip():
        _fail(index, column, text, "empty completion", "Remove it, or fill in the text.")


def _check_tokens(ids: Any, index: int, column: str) -> None:
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        _fail(index, column, ids, "expected a list of token ids")
    # the prompt alone may be empty
    if not ids and column != "prompt_ids":
        _fail(index, column, ids, "empty completion", "Remove it, or fill in the tokens.")


def check_no_list_as_text(example: dict[str, Any]) -> None:
    """
    Refuse lists of completions that were written as one text, as CSV files hold them: they would train as one completion.

    Args:
        example (`dict[str, Any]`):
            The first record of a dataset.

    Raises:
        `ValueError`: If `rejected` is such a text. The message says how to read it.
    """
    rejected = example.get("rejected")
    if not isinstance(rejected, str) or not rejected.strip().startswith("["):
        return
    for parse, name in ((json.loads, "json.loads"), (ast.literal_eval, "ast.literal_eval")):
        try:
            parsed = parse(rejected)
        except (ValueError, SyntaxError):
            continue
        if isinstance(parsed, list) and parsed and all(isinstance(text, str) for text in parsed):
            remedy = f'Read it with `dataset.map(lambda row: {{"rejected": {name}(row["rejected"])}})`, or save the data as JSON.'
            _fail(0, "rejected", rejected, f"a list of {len(parsed)} completions that was written as a text", remedy)


def check_multi_preference(example: dict[str, Any], index: int) -> None:
    """
    Check a multi-preference record, standard, conversational or tokenized.

    Args:
        example (`dict[str, Any]`):
            Record to check.
        index (`int`):
            Row number, for the error.

    Raises:
        `ValueError`: If a column is missing or of the wrong type, there is no rejected completion, a rejected
            completion equals the chosen one, or a completion is empty. The message names row, column, value and remedy.
    """
    suffix = "_ids" if "rejected_ids" in example else ""
    for column in (f"prompt{suffix}", f"chosen{suffix}", f"rejected{suffix}"):
        if example.get(column) is None:
            _fail(index, column, example.get(column), "missing value")
    prompt, chosen, rejected = (example[f"{name}{suffix}"] for name in ("prompt", "chosen", "rejected"))
    if not isinstance(rejected, list):
        _fail(index, f"rejected{suffix}", rejected, "expected a list of completions")
    if not rejected:
        _fail(index, f"rejected{suffix}", rejected, "no rejected completion", "Remove the record, or add negatives.")
    if suffix:
        check = _check_tokens
        check(prompt, index, "prompt_ids")
    elif isinstance(prompt, list):
        check = _check_messages
        check(prompt, index, "prompt")
    elif isinstance(prompt, str):
        check = _check_text
    else:
        _fail(index, "prompt", prompt, "expected a text or a list of messages")
    check(chosen, index, f"chosen{suffix}")
    for number, completion in enumerate(rejected):
        check(completion, index, f"rejected{suffix}[{number}]")
        if completion == chosen:
            _fail_equal(index, f"rejected{suffix}[{number}]", completion)


def _fail_equal(index: int, column: str, completion: Any, how: str = "") -> None:
    remedy = "Remove it: a record that rejects its own choice teaches nothing."
    _fail(index, column, completion, f"rejected completion equal to the chosen{how}", remedy)


def _record_id(example: dict[str, Any], index: int, stream: bool) -> int:
    """Identity of a record: its own, its row, or for a stream, whose rows may be shuffled, a hash of its content."""
    own = example.get("record_id")
    if own is not None:
        if not isinstance(own, int) or own < 0:
            _fail(index, "record_id", own, "expected an integer from 0", "Leave the column out to have one made.")
        return own
    if not stream:
        return index
    # after a prompt's tokens the completions still tell records apart, so all of them count
    content = json.dumps([example[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")])
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big") >> 1


def tokenize_multi_preference(
    example: dict[str, Any],
    index: int,
    processing_class: PreTrainedTokenizerBase,
    eos_token: str,
    stream: bool = False,
) -> dict[str, Any]:
    """
    Check and tokenize a multi-preference record as [`~trl.DPOTrainer`] tokenizes its pairs: an EOS token ends the
    completions of a standard record, and the completions start where the tokenized prompt and prompt + completion
    diverge, over all 1 + K of them.

    Args:
        example (`dict[str, Any]`):
            Record, standard, conversational or already tokenized.
        index (`int`):
            Row number, for errors and as the identity of the record.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        eos_token (`str`):
            Token to end the completions of a standard record with.
        stream (`bool`, *optional*, defaults to `False`):
            Whether the record comes from a stream, in which row numbers are no identity.

    Returns:
        `dict[str, Any]`: `prompt_ids`, `chosen_ids`, `rejected_ids`, `record_id`, and `length`, the number of tokens of
        the record in a shared-prefix row.

    Raises:
        `ValueError`: If the record is malformed, see [`check_multi_preference`]; if a rejected completion has the tokens
            of the chosen one; or if the tokenizer has no EOS token for a standard record.
    """
    check_multi_preference(example, index)
    tokens = None if "rejected_ids" in example else _tokenize_completions(example, processing_class, eos_token)
    return tokenized_record(example, index, tokens, stream)


def tokenized_record(
    example: dict[str, Any], index: int, tokens: tuple[list[int], list[list[int]]] | None, stream: bool
) -> dict[str, Any]:
    """What [`tokenize_multi_preference`] returns, of the tokens of prompt and completions, `None` where they are there."""
    if tokens is None:
        prompt_ids, completions = example["prompt_ids"], [example["chosen_ids"], *example["rejected_ids"]]
    else:
        prompt_ids, completions = tokens
        _check_tokenized(example, index, completions)
    if len(set(map(tuple, completions))) < len(completions):
        logger.warning_once(
            "There are records that have the same rejected completion more than once: it counts as often in their loss. "
            'Leave the others out with `dataset.map(lambda row: {"rejected": list(dict.fromkeys(row["rejected"]))})` if that '
            "is not meant. This warning is shown once."
        )
    output = {"prompt_ids": prompt_ids, "chosen_ids": completions[0], "rejected_ids": completions[1:]}
    output["record_id"] = _record_id({**example, **output}, index, stream)
    output["length"] = len(prompt_ids) + sum(map(len, completions)) + len(completions) - 1
    return output


def _check_tokenized(example: dict[str, Any], index: int, completions: list[list[int]]) -> None:
    """What the model sees decides: a chat template strips white space, and an EOS token may be there already."""
    for number, completion in enumerate(completions):
        column = "chosen" if number == 0 else f"rejected[{number - 1}]"
        value = example["chosen"] if number == 0 else example["rejected"][number - 1]
        if not completion:
            _fail(index, column, value, "completion without a token of its own", "Check the chat template.")
        if number and completion == completions[0]:
            _fail_equal(index, column, value, " once it is tokenized")


def template_kwargs(example: dict[str, Any]) -> dict[str, Any]:
    """What a record hands to its chat template besides its messages."""
    tools = example.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    return {"tools": tools, **(example.get("chat_template_kwargs") or {})}


def _tokenize_completions(
    example: dict[str, Any], processing_class: PreTrainedTokenizerBase, eos_token: str
) -> tuple[list[int], list[list[int]]]:
    prompt, completions = example["prompt"], [example["chosen"], *example["rejected"]]
    # TRL asks for the first of a set of keys; on a list of completions its answer would depend on the hash seed
    if is_conversational({"prompt": prompt}):
        apply_chat_template_kwargs = template_kwargs(example)
        prompt_ids = _tokenize(processing_class, prompt, add_generation_prompt=True, **apply_chat_template_kwargs)
        prompt_ids = prompt_ids["input_ids"]
        prompt_completion_ids = [
            _tokenize(processing_class, prompt + completion, **apply_chat_template_kwargs)["input_ids"]
            for completion in completions
        ]
    else:
        if eos_token is None:
            raise ValueError(
                "The tokenizer has no EOS token, which ends a completion: without it a title that begins another one has "
                "no end. Set `tokenizer.eos_token`, for example to its `pad_token` or to the token that ends a turn of its "
                "chat template."
            )
        completions = [text if text.endswith(eos_token) else text + eos_token for text in completions]
        # one call for all, which the tokenizer runs in parallel
        texts = [prompt, *(prompt + text for text in completions)]
        prompt_ids, *prompt_completion_ids = processing_class(text=texts)["input_ids"]

    prompt_len = min(common_prefix_length(prompt_ids, ids) for ids in prompt_completion_ids)
    if prompt_len < len(prompt_ids):
        logger.warning_once(
            "The tokenized prompt is not a prefix of the tokenized prompt+completion, usually because the chat "
            "template renders the prompt alone differently or because tokens merge across the boundary. The "
            "completion starts where they diverge, and this end of the prompt is left out of the training sequence: "
            f"{processing_class.decode(prompt_ids[prompt_len:])!r}. To avoid it, end the prompt on a token boundary: "
            "no space at its end, one at the start of each completion. This warning is shown once."
        )
    return prompt_ids[:prompt_len], [ids[prompt_len:] for ids in prompt_completion_ids]


def plain_records(dataset: Dataset | IterableDataset, **map_kwargs) -> Dataset | IterableDataset:
    """
    Records as Python values: without a format (`torch`, `numpy`, `arrow`, ...), and with what a transform renders when a
    row is read (`Dataset.with_transform`) in columns of its own. These are written to the cache of `datasets`: what goes
    through the records once, in a `map`, takes [`readable_records`].

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Dataset. A transform is called once for each row, in the order of the rows.
        **map_kwargs:
            Passed on to `map`, where there is a transform.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`]: The same records.
    """
    if not isinstance(dataset, Dataset) or dataset.format["type"] != "custom":
        return dataset.with_format(None)
    # a transform that says so takes many rows at a time
    batched = getattr(dataset.format["format_kwargs"]["transform"], "batched", False)
    map_kwargs |= {"remove_columns": dataset.column_names, "desc": "Rendering records"}
    return dataset.map(dict, batched=batched, **map_kwargs).with_format(None)


def readable_records(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """
    As [`plain_records`], but records that are rows of a catalogue stay so, and are rendered whenever they are read: nothing
    is written. A `map` over them has to drop [`rendered_columns`], which it would copy as they are on disk.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Dataset.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`]: The same records.
    """
    return dataset if rendered_columns(dataset) else plain_records(dataset)


def rendered_columns(dataset: Dataset | IterableDataset) -> list[str]:
    """
    The columns that are other on disk than what is read of them, by a transform that says so (its `renders`), as that of
    [`~trl_sdpo.recsys.load_prepared`] does: it shows the same however often a row is read.
    """
    if not isinstance(dataset, Dataset) or dataset.format["type"] != "custom":
        return []
    renders = getattr(dataset.format["format_kwargs"]["transform"], "renders", ())
    return [name for name in dataset.column_names if name in renders]


class _FitsLength:
    """Whether a record fits. Of a stream, whose end may never come, what is dropped is said at 1, 10, 100, ... of them."""

    def __init__(self, max_length: int, dataset_name: str, stream: bool) -> None:
        self.max_length, self.dataset_name, self.stream = max_length, dataset_name, stream
        self.read = self.dropped = 0

    def __call__(self, example: dict[str, Any]) -> bool:
        longest = max(len(completion) for completion in [example["chosen_ids"], *example["rejected_ids"]])
        fits = len(example["prompt_ids"]) + longest <= self.max_length
        if self.stream:
            self.read += 1
            self.dropped += not fits
            if not fits and self.dropped == 10 ** (len(str(self.dropped)) - 1):
                logger.warning(
                    f"{self.dropped} of {self.read} records read so far from the stream of the {self.dataset_name} dataset "
                    f"have a prompt and longest completion of more than `max_length={self.max_length}` tokens, and are "
                    "dropped. Raise `max_length`, or shorten the prompts, to keep them."
                )
        return fits


def drop_too_long(
    dataset: Dataset | IterableDataset, max_length: int, dataset_name: str, **map_kwargs
) -> Dataset | IterableDataset:
    """
    Drop the tokenized records that exceed a length, and say how many. A completion is never cut: a title without its
    end is another title, or none.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Tokenized multi-preference dataset. A stream is filtered, and counted, as it is read.
        max_length (`int`):
            Most tokens that the prompt and the longest completion of a record may have together.
        dataset_name (`str`):
            Name for the messages.
        **map_kwargs:
            Passed on to `filter`.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`]: The records that fit.

    Raises:
        `ValueError`: If no record is left.
    """
    stream = not isinstance(dataset, Dataset)
    kept = dataset.filter(_FitsLength(max_length, dataset_name, stream), **map_kwargs)
    if isinstance(dataset, Dataset) and len(kept) < len(dataset):
        message = (
            f"{len(dataset) - len(kept)} of {len(dataset)} records of the {dataset_name} dataset have a prompt and "
            f"longest completion of more than `max_length={max_length}` tokens"
        )
        if len(kept) == 0:
            raise ValueError(f"{message}, so none is left. Raise `max_length`.")
        logger.warning(f"{message}, and are dropped. Raise `max_length`, or shorten the prompts, to keep them.")
    return kept


def flat_rejected_columns(columns: list[str]) -> list[str]:
    numbered = [(int(match.group(1)), column) for column in columns if (match := _FLAT_REJECTED.match(column))]
    return [column for _, column in sorted(numbered)]


def from_flat_columns(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """
    Convert flat columns to the multi-preference format: `rejected1..K` or `rejected_1..K`, as published S-DPO data
    have them, and `anchor`, `positive`, `negative_1..n`, the n-tuples of sentence-transformers.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Dataset with one column per rejected completion. A missing value (`None` or an empty text) is left out, so
            that records may have fewer than K.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`]: The dataset with `prompt`, `chosen` and `rejected`.

    Raises:
        `ValueError`: If there are no such columns.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from trl_sdpo import from_flat_columns

    >>> dataset = Dataset.from_dict({"prompt": ["Next:"], "chosen": [" A"], "rejected1": [" B"], "rejected2": [" C"]})
    >>> from_flat_columns(dataset)[0]
    {'prompt': 'Next:', 'chosen': ' A', 'rejected': [' B', ' C']}
    ```
    """
    columns = list(dataset.column_names or next(iter(dataset)))
    flat = flat_rejected_columns(columns)
    if flat and "rejected" in columns:
        raise ValueError(
            f"The dataset has both a column `rejected` and {flat}, and it is not clear which to keep. Remove either."
        )
    if not flat:
        raise ValueError(
            f"The dataset has no columns `rejected1..K`, `rejected_1..K` or `negative_1..n`, only {columns}. {_REMEDY}"
        )

    def gather(example: dict[str, Any]) -> dict[str, list]:
        return {"rejected": [example[column] for column in flat if example[column]]}

    renamed = {old: new for old, new in {"anchor": "prompt", "positive": "chosen"}.items() if old in columns}
    return dataset.map(gather, remove_columns=flat).rename_columns(renamed)


def to_preference_pairs(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """
    Convert multi-preference records to preference data of TRL: one row for each pair of the chosen with a rejected
    completion, as `DPOTrainer` takes them.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Multi-preference dataset.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`]: The dataset with K rows per record, other columns
        repeated; of `rejected_scores` each row has its own, as `rejected_score`.
    """

    def unroll(batch: dict[str, list]) -> dict[str, list]:
        counts = [len(rejected) for rejected in batch["rejected"]]
        rows = {
            column: [value for value, count in zip(values, counts, strict=True) for _ in range(count)]
            for column, values in batch.items()
        }
        if scores := rows.pop("rejected_scores", None):  # one for each pair, as the completions
            places = [place for count in counts for place in range(count)]
            rows["rejected_score"] = [row and row[place] for row, place in zip(scores, places, strict=True)]
        return {**rows, "rejected": [text for rejected in batch["rejected"] for text in rejected]}

    # the type of `rejected` changes, which a map in place does not allow
    columns = list(dataset.column_names or next(iter(dataset)))
    return dataset.map(unroll, batched=True, remove_columns=columns)


def to_prompt_completion(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """
    Convert multi-preference records to prompt-completion data of TRL, with the chosen completion, for a stage of
    supervised fine-tuning with [`~trl.SFTTrainer`] on the same tokens.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Multi-preference dataset.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`]: The dataset with `prompt` and `completion` alone.
    """
    columns = list(dataset.column_names or next(iter(dataset)))
    others = [column for column in columns if column not in ("prompt", "chosen")]
    return dataset.remove_columns(others).rename_column("chosen", "completion")
