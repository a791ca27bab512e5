"""How many tokens a record takes, and histories that fit."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from .templates import PromptTemplate


if TYPE_CHECKING:  # the records without a tokenizer need neither transformers nor the seconds it takes to import
    from transformers import PreTrainedTokenizerBase


_TITLES_CHECKED = 64


class TokenBudget:
    """
    Shortens histories from their oldest item until prompt and longest completion fit; completions are never cut.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer of the model to train.
        max_length (`int`, *optional*):
            Most tokens of a prompt with its longest completion and its EOS token, as `max_length` of
            [`SoftmaxDPOConfig`] counts them. If `None`, tokens are counted and nothing is shortened.
    """

    def __init__(self, processing_class: "PreTrainedTokenizerBase", max_length: int | None = None) -> None:
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length={max_length} is below 2. Pass room for a prompt and a completion.")
        self.processing_class, self.max_length = processing_class, max_length
        self._conversational = False
        self._completion_lengths = np.empty((0, 0), dtype=np.int64)

    def measure_completions(
        self, templates: Sequence[PromptTemplate], titles: Sequence[str], conversational: bool
    ) -> None:
        """Count the tokens of every title as an answer to every template, and check where its prompts end."""
        self._conversational = conversational
        lengths = []
        for template in templates:
            check_token_boundary(template, self.processing_class, titles, conversational=conversational)
            prompt = template.render(titles[:1], titles[:2])
            before = len(self._encode([prompt])[0])
            # The end-of-sequence token of a plain record is the trainer's; a chat template has its own end.
            after = [len(ids) for ids in self._encode_answers(prompt, template, titles)]
            lengths.append(np.array(after) - before + (0 if conversational else 1))
        self._completion_lengths = np.array(lengths)

    def longest_completion(self, wording: np.ndarray, items: np.ndarray) -> np.ndarray:
        """
        Tokens of the longest of the completions `(n, 1 + K)` of every record.
        """
        return self._completion_lengths[wording[:, None], items].max(axis=1)

    def fit(
        self,
        render: Callable[[np.ndarray, np.ndarray], pa.StringArray],
        histories: np.ndarray,
        completions: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Shorten histories.

        Args:
            render (`Callable`):
                Rows and their histories to prompts.
            histories (`numpy.ndarray`):
                Of shape `(n, history_size)`, the last item at the right, -1 where there is none.
            completions (`numpy.ndarray`):
                Tokens of the longest completion of every record.

        Returns:
            `tuple[numpy.ndarray, numpy.ndarray]`: Histories of the same shape, and tokens of the prompt with the
            longest completion; -1 where a history of one item does not fit.
        """
        histories, tokens = histories.copy(), np.zeros(len(histories), dtype=np.int64)
        waiting = np.arange(len(histories))
        while len(waiting):
            prompts = render(waiting, histories[waiting]).to_pylist()
            tokens[waiting] = np.array([len(ids) for ids in self._encode(prompts)]) + completions[waiting]
            if self.max_length is None:
                break
            waiting = waiting[tokens[waiting] > self.max_length]
            lengths = (histories[waiting] >= 0).sum(axis=1)
            tokens[waiting[lengths == 1]] = -1
            waiting, lengths = waiting[lengths > 1], lengths[lengths > 1]
            histories[waiting, histories.shape[1] - lengths] = -1
        return histories, tokens

    def _encode(self, prompts: list[str]) -> list[list[int]]:
        if self._conversational:
            return _chat(self.processing_class, [[("user", prompt)] for prompt in prompts], add_generation_prompt=True)
        return self.processing_class(prompts)["input_ids"]

    def _encode_answers(self, prompt: str, template: PromptTemplate, titles: Sequence[str]) -> list[list[int]]:
        if self._conversational:
            return _chat(self.processing_class, [[("user", prompt), ("assistant", title)] for title in titles])
        return self.processing_class([prompt + template.complete(title) for title in titles])["input_ids"]


def _chat(
    processing_class: "PreTrainedTokenizerBase", conversations: list[list[tuple[str, str]]], **options
) -> list[list[int]]:
    messages = [[{"role": role, "content": text} for role, text in one] for one in conversations]
    return processing_class.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"]


def check_token_boundary(
    template: PromptTemplate,
    processing_class: "PreTrainedTokenizerBase",
    titles: Sequence[str],
    *,
    conversational: bool = False,
) -> None:
    """
    Check that the prompts of a template end where a token of the tokenizer ends.

    If they do not, the last token of the prompt and the first of the completion are one, and the trainer learns and
    scores completions without their beginning.

    Args:
        template ([`PromptTemplate`]):
            The template.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        titles (`Sequence[str]`):
            Titles to try, of which 64 are taken.
        conversational (`bool`, *optional*, defaults to `False`):
            Whether prompt and completion are messages, which the chat template sets apart.

    Raises:
        ValueError: a prompt does not end where a token ends.

    Example:
        ```python
        from transformers import AutoTokenizer
        from trl_sdpo.recsys import PromptTemplate, check_token_boundary

        tokenizer = AutoTokenizer.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
        mine = PromptTemplate("mine", "history", "Seen: {history}. Next:")
        check_token_boundary(mine, tokenizer, ["Heat (1995)", "Ran (1985)"])
        ```
    """
    step = max(1, len(titles) // _TITLES_CHECKED)
    for title in titles[::step][:_TITLES_CHECKED]:
        prompt, completion = template.render([title], [title, titles[0]]), template.complete(title)
        if conversational:
            asked = [("user", prompt)]
            (prompt_ids,) = _chat(processing_class, [asked], add_generation_prompt=True)
            (both,) = _chat(processing_class, [[*asked, ("assistant", title)]])
        else:
            prompt_ids, both = processing_class([prompt, prompt + completion])["input_ids"]
        if both[: len(prompt_ids)] != prompt_ids or len(both) == len(prompt_ids):
            raise ValueError(
                f"template '{template.name}': with the completion {completion!r} the prompt does not end where a "
                f"token ends: its last tokens are {prompt_ids[-3:]}, together they are "
                f"{both[len(prompt_ids) - 3 : len(prompt_ids) + 2]}. End the text with a line break or without white "
                "space, or use another tokenizer."
            )
