"""All titles of a catalogue in the order of their likelihood, each of them scored."""

from collections.abc import Callable, Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .._progress import progress
from ..prefix_sharing.masks import why_prefix_sharing_is_unsound
from .catalogue_search import trie_and_prompts
from .log_probs import score_tokenized, sharing_agrees
from .title_trie import TitleTrie


# Titles behind one copy of the prompt: attention costs the square of a row.
TITLES_PER_ROW = 128


def rank_catalogue(
    model: PreTrainedModel,
    prompts: Sequence[str | list[dict] | list[int]],
    processing_class: PreTrainedTokenizerBase,
    titles: Sequence[str] | TitleTrie,
    top_k: int = 10,
    exclude: Sequence[Sequence[int]] | None = None,
    completion_prefix: str = " ",
    completion_suffix: str = "",
    append_eos: bool = True,
    batch_size: int = 8,
    desc: str | None = "Ranking the catalogue",
    minus: Callable[[list[list[int]]], np.ndarray] | None = None,
    combine: Callable[[np.ndarray, int], np.ndarray] | None = None,
) -> list[list[tuple[int, float]]]:
    """
    The titles of a catalogue that a model finds likeliest as the answer to a prompt, exactly: every title is scored, in
    rows that hold a prompt once and many titles behind it.

    What [`search_catalogue`] finds with as many beams as titles, in less time. The cost is that of the tokens of all
    titles for every prompt, so this is for catalogues of some thousands of titles or few prompts; a search with few
    beams costs the same whatever the catalogue, and may miss titles.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to ask. It is left as it was.
        prompts (`Sequence`), processing_class ([`~transformers.PreTrainedTokenizerBase`]), titles (`Sequence[str]` or
            [`TitleTrie`]), exclude (`Sequence[Sequence[int]]`, *optional*), completion_prefix (`str`, *optional*,
            defaults to `" "`), completion_suffix (`str`, *optional*, defaults to `""`), append_eos (`bool`,
            *optional*, defaults to `True`):
            See [`search_catalogue`].
        top_k (`int`, *optional*, defaults to `10`):
            Most titles to return.
        batch_size (`int`, *optional*, defaults to `8`):
            Rows in a batch.
        desc (`str`, *optional*, defaults to `"Ranking the catalogue"`):
            Label of the progress bar. If `None`, there is none.
        minus (`Callable`, *optional*):
            What is subtracted from the log-probabilities of some prompts, given as tokens: an array that broadcasts to
            `(len(prompts), num_titles)`, the titles those of [`CatalogueScorer`].
        combine (`Callable`, *optional*):
            Makes other scores of those of some prompts: from an array of shape `(prompts, num_titles)` and the number of the
            first of these prompts to an array of the same shape.

    Returns:
        `list[list[tuple[int, float]]]`: As of [`search_catalogue`]: for each prompt the index of a title and its
        log-probability, the best first, and of titles with the same tokens the first.

    Raises:
        `ValueError`: As [`search_catalogue`].
    """
    if top_k < 1:
        raise ValueError(f"top_k={top_k} is below 1. Pass at least 1.")
    form = (completion_prefix, completion_suffix, append_eos)
    trie, prompt_ids = trie_and_prompts(prompts, processing_class, titles, exclude, form, batch_size)
    distinct = trie.distinct_titles()
    scorer = CatalogueScorer(model, trie, processing_class.pad_token_id, batch_size)
    found = []
    with progress(total=len(prompt_ids), desc=desc, unit="prompts") as bar:
        for begin in range(0, len(prompt_ids), batch_size):
            some = prompt_ids[begin : begin + batch_size]
            of_batch = scorer.score(some) - (0 if minus is None else minus(some))
            of_batch = of_batch if combine is None else combine(of_batch, begin)
            for number, scores in enumerate(of_batch, start=begin):
                if exclude is not None:
                    scores[np.isin(distinct, trie.first_titles(exclude[number]))] = -np.inf
                best = np.argsort(-scores, kind="stable")[:top_k]
                found.append([(int(distinct[one]), float(scores[one])) for one in best if scores[one] > -np.inf])
            bar.update(len(some))
    return found


class CatalogueScorer:
    """
    Scores all titles of a catalogue after prompts, some titles to a row. Of titles with the same tokens the first counts.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to ask. It is left as it was.
        trie ([`TitleTrie`]):
            The titles.
        pad_token_id (`int`):
            Token to pad with.
        batch_size (`int`, *optional*, defaults to `8`):
            Rows in a batch.
    """

    def __init__(self, model: PreTrainedModel, trie: TitleTrie, pad_token_id: int, batch_size: int = 8) -> None:
        self.model, self.pad_token_id, self.batch_size = model, pad_token_id, batch_size
        paths = trie.paths()
        paths = [paths[title] for title in trie.distinct_titles()]
        self.chunks = [paths[begin : begin + TITLES_PER_ROW] for begin in range(0, len(paths), TITLES_PER_ROW)]
        self.prefix_sharing: bool | None = None

    def score(self, prompt_ids: list[list[int]]) -> np.ndarray:
        """Log-probabilities of shape `(len(prompt_ids), num_titles)`."""
        parts = []
        for chunk in self.chunks:
            records = [_record(prompt, chunk) for prompt in prompt_ids]
            if self.prefix_sharing is None:
                self.prefix_sharing = why_prefix_sharing_is_unsound(self.model) is None and sharing_agrees(
                    self.model, records, self.pad_token_id, self.batch_size
                )
            scores = score_tokenized(
                self.model, records, self.pad_token_id, self.batch_size, prefix_sharing=self.prefix_sharing
            )
            parts.append(np.array([row[: len(chunk)] for row in scores], dtype=np.float64))
        return np.concatenate(parts, axis=1)


def _record(prompt_ids: list[int], paths: list[list[int]]) -> dict:
    paths = paths if len(paths) > 1 else paths * 2  # a record has at least two completions
    length = len(prompt_ids) + sum(map(len, paths)) + len(paths) - 1
    return {"prompt_ids": prompt_ids, "chosen_ids": paths[0], "rejected_ids": paths[1:], "length": length}
