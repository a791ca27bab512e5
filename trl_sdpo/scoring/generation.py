"""Answers that a language model writes, and how often they name the target: the protocol of the S-DPO paper."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    StopStringCriteria,
)

from .._progress import progress
from ..prefix_sharing.masks import base_model
from ..recsys.metrics.columns import completion_text
from ..recsys.metrics.intervals import warn_of_seed, wilson_interval
from ..recsys.metrics.matching import match_title
from ..recsys.metrics.ranking import mean_per_group
from ..recsys.prompts.templates import PromptTemplate
from ..tokenization import tokenize_dataset


END_OF_TITLE = ("\n",)


@contextmanager
def generating(model: PreTrainedModel) -> Iterator[None]:
    """
    Set a model to evaluation, without gradients and without the generation options that it was published with, such as
    a repetition penalty, which would change scores and choices. It is left as it was.
    """
    owners, training = {id(one): one for one in (model, base_model(model))}.values(), model.training
    configs = [one.generation_config for one in owners]
    model.eval()
    for one in owners:
        one.generation_config = GenerationConfig()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        for one, config in zip(owners, configs, strict=True):
            one.generation_config = config


def end_tokens(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the EOS token of the tokenizer, and those that the model was published with."""
    published = base_model(model).generation_config.eos_token_id
    published = [published] if isinstance(published, int) else published or []
    return sorted({token for token in (processing_class.eos_token_id, *published) if token is not None})


def left_padded(
    prompt_ids: Sequence[Sequence[int]], processing_class: PreTrainedTokenizerBase, device: torch.device
) -> dict[str, torch.Tensor]:
    """Prompts of a batch as `input_ids` and `attention_mask` of shape `(B, L)`, all of them ending in the last column."""
    batch = {"input_ids": [list(ids) for ids in prompt_ids]}
    return dict(processing_class.pad(batch, padding_side="left", return_tensors="pt").to(device))


def check_prompts(
    prompt_ids: Sequence[Sequence[int]], processing_class: PreTrainedTokenizerBase, batch_size: int
) -> None:
    """Raise a `ValueError` if there is no prompt or an empty one, or nothing to pad with."""
    if len(prompt_ids) == 0:
        raise ValueError("There are no prompts. Pass at least one.")
    for row, ids in enumerate(prompt_ids):
        if len(ids) == 0:
            raise ValueError(f"Row {row}, column `prompt_ids`: the prompt has no token. Remove the record.")
    if processing_class.pad_token_id is None:
        raise ValueError("The tokenizer has no pad token. Set `tokenizer.pad_token`, for example to its `eos_token`.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is below 1. Pass at least 1.")


def generate_answers(
    model: PreTrainedModel,
    dataset: Dataset,
    processing_class: PreTrainedTokenizerBase,
    batch_size: int = 8,
    max_new_tokens: int | None = None,
    stop_strings: Sequence[str] | None = END_OF_TITLE,
    desc: str = "Generating",
) -> list[str]:
    """
    What a model answers to the prompts of multi-preference records, token by token the likeliest (greedy decoding).

    Prompts are tokenized as in training and padded on the left, the longest first. An answer ends at an EOS token, at
    a stop string, or after `max_new_tokens`.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to ask. It is left as it was.
        dataset ([`~datasets.Dataset`]):
            Multi-preference records, standard, conversational or tokenized.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        batch_size (`int`, *optional*, defaults to `8`):
            Number of prompts in a batch.
        max_new_tokens (`int`, *optional*):
            Most tokens of an answer. If `None`, those of the longest completion of the dataset.
        stop_strings (`Sequence[str]`, *optional*, defaults to `("\\n",)`):
            Texts that end an answer and are cut off: a line break, which no title holds, or the `completion_suffix`
            of the template. `None` stops at EOS tokens only.
        desc (`str`, *optional*, defaults to `"Generating"`):
            Label of the progress bar.

    Returns:
        `list[str]`: The answers in the order of the dataset, without special tokens and without white space at the
        ends.

    Raises:
        `ValueError`: If a record is malformed, see [`check_multi_preference`], the dataset is empty, there is no pad
            token, or a number is below 1.
    """
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} is below 1. Pass at least 1, or None.")
    if len(dataset) == 0:
        raise ValueError("There are no prompts to answer: the dataset is empty.")
    tokenized = tokenize_dataset(
        dataset, processing_class, processing_class.eos_token, desc=f"{desc}: tokenizing"
    ).select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    prompts = tokenized["prompt_ids"][:]
    check_prompts(prompts, processing_class, batch_size)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=_longest_completion(tokenized) if max_new_tokens is None else max_new_tokens,
        eos_token_id=end_tokens(model, processing_class),
        pad_token_id=processing_class.pad_token_id,
    )
    criteria = StoppingCriteriaList()
    if stop_strings:
        criteria.append(StopStringCriteria(processing_class, list(stop_strings)))
    # the longest first, so that memory runs out at the start or not at all
    order = np.argsort([-len(ids) for ids in prompts], kind="stable")
    answers = [""] * len(prompts)
    with generating(model), progress(total=len(prompts), desc=desc, unit="prompts") as bar:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = left_padded([prompts[index] for index in indices], processing_class, model.device)
            output = model.generate(**batch, generation_config=config, stopping_criteria=criteria)
            texts = processing_class.batch_decode(output[:, batch["input_ids"].size(1) :], skip_special_tokens=True)
            for index, text in zip(indices, texts, strict=True):
                answers[index] = title_of(text, stop_strings)
            bar.update(len(indices))
    return answers


def _longest_completion(tokenized: Dataset) -> int:
    chosen = max(map(len, tokenized["chosen_ids"]))
    return max(chosen, max(len(ids) for pool in tokenized["rejected_ids"] for ids in pool))


def title_of(text: str, stop_strings: Sequence[str] | None = END_OF_TITLE) -> str:
    """The title in a completion: what stands before the first stop string, without white space at the ends."""
    for stop_string in stop_strings or ():
        text = text.partition(stop_string)[0]
    return text.strip()


def title_of_completion(text: str, stop_strings: Sequence[str] | None = END_OF_TITLE) -> str:
    """
    The title in a completion of a record, which is whole: without what ends it. A stop string of letters is the suffix
    of the template and stands at the end; before it a title may hold the same letters, as "Mr. Holland" does the stop
    of "Mr. Holland.".
    """
    text = text.strip()
    for stop_string in stop_strings or ():
        stripped = stop_string.strip()
        text = text.removesuffix(stripped).rstrip() if stripped else text.partition(stop_string)[0].rstrip()
    return text


def stop_strings_of(templates: Sequence[PromptTemplate]) -> list[str]:
    """
    What ends a title in the completions of templates: a line break, unless a completion begins with one, and the text
    of a suffix.

    Args:
        templates (`Sequence[PromptTemplate]`):
            The wordings.

    Returns:
        `list[str]`: For `stop_strings` of [`candidate_titles`] and [`generation_metrics`].
    """
    ends = [] if any("\n" in one.completion_prefix for one in templates) else list(END_OF_TITLE)
    return [*ends, *dict.fromkeys(one.completion_suffix.strip() for one in templates if one.completion_suffix.strip())]


def candidate_titles(
    dataset: Dataset,
    processing_class: PreTrainedTokenizerBase | None = None,
    stop_strings: Sequence[str] | None = END_OF_TITLE,
) -> list[list[str]]:
    """
    The titles in the completions of multi-preference records, the chosen one first.

    Args:
        dataset ([`~datasets.Dataset`]):
            Multi-preference records, standard, conversational or tokenized.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer, to read tokenized records with.
        stop_strings (`Sequence[str]`, *optional*, defaults to `("\\n",)`):
            As in [`generate_answers`].

    Returns:
        `list[list[str]]`: For each record 1 + K titles.

    Raises:
        `ValueError`: If the records are tokenized and there is no tokenizer.
    """
    if "rejected_ids" in dataset.column_names:
        if processing_class is None:
            raise ValueError("Column `rejected_ids`: the records are tokenized. Pass `processing_class` to read them.")
        pools = zip(dataset["chosen_ids"], dataset["rejected_ids"], strict=True)
        texts = (processing_class.batch_decode([one, *others], skip_special_tokens=True) for one, others in pools)
    else:
        pools = zip(dataset["chosen"], dataset["rejected"], strict=True)
        texts = ([completion_text(each) for each in (one, *others)] for one, others in pools)
    return [[title_of_completion(text, stop_strings) for text in completions] for completions in texts]


def generation_metrics(
    answers: Sequence[str],
    dataset: Dataset,
    rule: str = "whole",
    *,
    seed: int | None = None,
    groups: Sequence[Hashable] | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    stop_strings: Sequence[str] | None = END_OF_TITLE,
) -> dict:
    """
    HR@1 and ValidRatio of answers, as the S-DPO paper (https://huggingface.co/papers/2406.09215) reports them.

    $\\text{HR@}1 = \\frac{1}{n} \\sum_i [\\text{answer}_i \\text{ names the target}]$ and
    $\\text{ValidRatio} = \\frac{1}{n} \\sum_i [\\text{answer}_i \\text{ names exactly one candidate}]$, both over all
    n records: an answer that names none is a miss. What naming is, is decided by the rule. Other papers divide the
    hits by the valid answers alone (LLaRA, https://huggingface.co/papers/2312.02445), which is `hr@1_of_valid`.

    Args:
        answers (`Sequence[str]`):
            What [`generate_answers`] returns.
        dataset ([`~datasets.Dataset`]):
            The records that were answered.
        rule (`str`, *optional*, defaults to `"whole"`):
            `"whole"` or `"substring"`, see [`match_title`].
        seed (`int`, *optional*):
            Deprecated: the intervals draw nothing any longer. Passing it warns.
        groups (`Sequence`, *optional*):
            The user of each record. Intervals are over users then, whose records are not independent.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer, to read tokenized records with.
        stop_strings (`Sequence[str]`, *optional*, defaults to `("\\n",)`):
            As in [`generate_answers`].

    Returns:
        `dict`: `hr@1`, `valid_ratio` and `hr@1_of_valid`, each with its 95% interval under `hr@1_ci` and so on (lists
        of two, see [`wilson_interval`]); `hr@1_of_valid` is missing where no answer is valid; `chance`, the mean of
        1 / (1 + K); `rule`, and `n`. With groups also `hr@1_per_user`, in which every user counts the same, and
        `users`.

    Raises:
        `ValueError`: If there are no answers or not one for each record, or the rule is unknown.

    Example:
        ```python
        >>> from datasets import Dataset

        >>> rows = Dataset.from_dict(
        ...     {"prompt": ["Next:"] * 2, "chosen": [" Rocky II"] * 2, "rejected": [[" Rocky", " Jaws", " Heat"]] * 2}
        ... )
        >>> metrics = generation_metrics(["Rocky II", "a film"], rows)
        >>> metrics["hr@1"], metrics["valid_ratio"], metrics["chance"], metrics["n"]
        (0.5, 0.5, 0.25, 2)
        >>> metrics["hr@1_of_valid"]
        1.0
        >>> generation_metrics(["Rocky II", "a film"], rows, rule="substring")["valid_ratio"]
        0.0

        ```
    """
    warn_of_seed("generation_metrics", seed)
    if len(answers) != len(dataset) or not len(answers):
        raise ValueError(
            f"There are {len(answers)} answers to {len(dataset)} records. Pass one for each, at least one."
        )
    candidates = candidate_titles(dataset, processing_class, stop_strings)
    answers = [title_of_completion(answer, stop_strings) for answer in answers]
    named = [match_title(answer, titles, rule) for answer, titles in zip(answers, candidates, strict=True)]
    hits, valid = np.array([one == 0 for one in named]), np.array([one is not None for one in named])
    users = None if groups is None else np.array(list(map(str, groups)))
    metrics: dict[str, Any] = {}
    for name, values in (("hr@1", hits), ("valid_ratio", valid)):
        metrics |= {name: float(np.mean(values)), f"{name}_ci": list(wilson_interval(values, users))}
    if valid.any():
        interval = wilson_interval(hits[valid], None if users is None else users[valid])
        metrics |= {"hr@1_of_valid": float(np.mean(hits[valid])), "hr@1_of_valid_ci": list(interval)}
    if users is not None:
        metrics |= {"hr@1_per_user": mean_per_group(hits, users), "users": len(set(users.tolist()))}
    chance = float(np.mean([1 / len(titles) for titles in candidates]))
    return metrics | {"chance": chance, "rule": rule, "n": len(answers)}
