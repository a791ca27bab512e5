"""The tokens of titles as completions of a prompt."""

from transformers import PreTrainedTokenizerBase

from ..data_utils import _tokenize_completions
from ..tokenization import CompletionTokenizer


_AT_ONCE = 5_000  # completions


def tokenize_answers(
    prompt: str | list[dict],
    completions: list,
    processing_class: PreTrainedTokenizerBase,
    eos_token: str,
    row: int = 0,
) -> tuple[list[int], list[list[int]]]:
    """
    A prompt and completions to it as the trainer tokenizes them.

    Raises:
        `ValueError`: If the prompt does not end where a token ends.
    """
    prompt_ids, answers = _tokenized(prompt, completions, processing_class, eos_token)
    if isinstance(prompt, str):
        alone = processing_class(text=prompt)["input_ids"]
        cut_off = alone[len(prompt_ids) :]
        # a tokenizer that ends every text with an EOS token ends a prompt with it too; no token of the text is lost
        if cut_off and set(cut_off) != {processing_class.eos_token_id}:
            raise ValueError(
                f"Row {row}: the prompt does not end where a token ends: its last tokens {cut_off} merge "
                "with the completion. End prompts without white space and begin completions with a space "
                "(`completion_prefix`), or end them with a line break."
            )
    return prompt_ids, answers


def _tokenized(
    prompt: str | list[dict], completions: list, processing_class: PreTrainedTokenizerBase, eos_token: str
) -> tuple[list[int], list[list[int]]]:
    """All completions as those of one record, in parts where there are many: each once, and not with the prompt."""
    tokenize = CompletionTokenizer(processing_class, eos_token)
    prompts: list[list[int]] = []
    answers: list[list[int]] = []
    for start in range(0, len(completions), _AT_ONCE):
        some = completions[start : start + _AT_ONCE]
        ((prompt_ids, ids),) = tokenize([{"prompt": prompt, "chosen": some[0], "rejected": some[1:]}])
        prompts.append(prompt_ids)
        answers += ids
    if any(
        one != prompts[0] for one in prompts
    ):  # the prompt ends where it does for the first of all completions that merges
        example = {"prompt": prompt, "chosen": completions[0], "rejected": completions[1:]}
        return _tokenize_completions(example, processing_class, eos_token)
    return prompts[0], answers
