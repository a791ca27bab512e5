"""What a recommender ranks by: likelihood, or likelihood less what says nothing of the user."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..scoring.catalogue_ranking import CatalogueScorer
from ..scoring.title_trie import TitleTrie


LIKELIHOOD, PMI, REWARD = SCORES = ("likelihood", "pmi", "reward")


def check_score(score: str) -> None:
    """
    Raise if there is no such score.

    Args:
        score (`str`):
            - `"likelihood"`: log p(item | prompt), in nats;
            - `"pmi"`: pointwise mutual information, log p(item | prompt) - log p(item | prompt without history), which
              takes out how long or how frequent a title is;
            - `"reward"`: log p(item | prompt) - log p_ref(item | prompt), the implicit reward of DPO over beta (Eq. 5 of
              https://huggingface.co/papers/2305.18290): what training has changed.
    """
    if score not in SCORES:
        raise ValueError(f"score={score!r} is none of {', '.join(SCORES)}. Pass one of them.")


@contextmanager
def reference_model(model: PreTrainedModel, ref_model: PreTrainedModel | None) -> Iterator[PreTrainedModel]:
    """
    The reference of implicit rewards, for a while.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The trained model.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            The model before the training. By default the base under an adapter, which is the reference where the adapter
            was new when S-DPO began.

    Raises:
        ValueError: there is no reference.
    """
    if ref_model is not None:
        yield ref_model
    elif isinstance(model, PeftModel):
        with model.disable_adapter():
            yield model
    else:
        raise ValueError("score='reward' needs the model before the training. Pass it as `ref_model`.")


def reference_scores(
    model: PreTrainedModel, ref_model: PreTrainedModel | None, trie: TitleTrie, pad_token_id: int, batch_size: int
) -> Callable[[list[list[int]]], np.ndarray]:
    """Log-probabilities of all titles by the reference, see [`reference_model`] and [`CatalogueScorer`]."""
    with reference_model(model, ref_model) as reference:
        scorer = CatalogueScorer(reference, trie, pad_token_id, batch_size)

    def score(prompt_ids: list[list[int]]) -> np.ndarray:
        with reference_model(model, ref_model):
            return scorer.score(prompt_ids)

    return score


def beginnings(
    records: Sequence[dict[str, Any]], begun: Sequence[Sequence[str]], processing_class: PreTrainedTokenizerBase
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """
    Tokenized records whose completions end before the title.

    Args:
        records (`Sequence[dict]`):
            Of [`tokenize_multi_preference`].
        begun (`Sequence[Sequence[str]]`):
            For each completion what stands before the title.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.

    Returns:
        `tuple[list[dict], list[np.ndarray]]`: The records, and for each completion whether anything stands there. Where
        nothing does, one token stays, since no completion is empty.
    """
    cut, flags = [], []
    for record, texts in zip(records, begun, strict=True):
        completions = [record["chosen_ids"], *record["rejected_ids"]]
        texts = [*texts, *texts][: len(completions)]  # a single candidate is there twice
        counts = [_tokens_within(ids, text, processing_class) for ids, text in zip(completions, texts, strict=True)]
        some = [ids[: max(1, count)] for ids, count in zip(completions, counts, strict=True)]
        length = len(record["prompt_ids"]) + sum(map(len, some)) + len(some) - 1
        cut.append({**record, "chosen_ids": some[0], "rejected_ids": some[1:], "length": length})
        flags.append(np.array(counts[: len(texts)]) > 0)
    return cut, flags


def _tokens_within(ids: Sequence[int], text: str, processing_class: PreTrainedTokenizerBase) -> int:
    """How many of the first tokens of a completion are within a text that it begins with, white space aside."""
    text, count = text.strip(), 0
    if not text:
        return 0
    for end in range(1, len(ids)):
        begun = processing_class.decode(ids[:end], skip_special_tokens=True).strip()
        if begun.endswith("\ufffd"):  # a character of several tokens is not whole yet
            continue
        if not text.startswith(begun):
            break
        count = end
    return count
