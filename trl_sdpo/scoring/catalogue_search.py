"""The likeliest titles of a whole catalogue: beam search within a trie."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .._progress import progress
from ..prefix_sharing.masks import base_model, why_prefix_sharing_is_unsound
from .generation import check_prompts, generating, left_padded
from .title_trie import DEAD, TitleTrie


# `generate` begins with beams of -1e9; a sum of log-probabilities of a title is nowhere near
_NOT_FOUND = -1e8


class TrieLogitsProcessor(LogitsProcessor):
    """
    Leaves the tokens that go on to a title, for all beams at once.

    Args:
        trie ([`TitleTrie`]):
            The titles.
        prompt_length (`int`):
            Tokens of a row before those that are generated.
        num_beams (`int`):
            Rows of a prompt.
        closed (`Sequence[numpy.ndarray]`, *optional*):
            For each prompt the nodes that are left out, see [`TitleTrie.closed_nodes`].
    """

    def __init__(
        self, trie: TitleTrie, prompt_length: int, num_beams: int, closed: Sequence[np.ndarray] | None = None
    ) -> None:
        self.trie, self.prompt_length, self.num_beams = trie, prompt_length, num_beams
        offsets = [number * trie.num_nodes + nodes for number, nodes in enumerate(closed or ())]
        self._closed = torch.as_tensor(np.concatenate(offsets) if offsets else np.empty(0, dtype=np.int64))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        written = input_ids[:, self.prompt_length :]
        tokens, children, exists = self.trie.children(self.trie.walk(written), level=written.size(1))
        if len(self._closed):
            self._closed = self._closed.to(children.device)
            prompts = torch.arange(len(children), device=children.device) // self.num_beams
            keys = prompts.unsqueeze(1) * self.trie.num_nodes + children
            places = torch.searchsorted(self._closed, keys).clamp(max=len(self._closed) - 1)
            exists = exists & (self._closed[places] != keys)
        # what does not exist goes to a column behind the vocabulary
        size = scores.size(1)
        allowed = scores.new_full((len(scores), size + 1), -torch.inf)
        allowed.scatter_(1, torch.where(exists, tokens, size), scores.gather(1, torch.where(exists, tokens, 0)))
        return allowed[:, :size]


class EndOfTitleCriteria(StoppingCriteria):
    """
    Ends a beam where a title ends.

    Args:
        trie ([`TitleTrie`]):
            The titles.
        prompt_length (`int`):
            Tokens of a row before those that are generated.
    """

    def __init__(self, trie: TitleTrie, prompt_length: int) -> None:
        self.trie, self.prompt_length = trie, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor | None, **kwargs) -> torch.Tensor:
        return self.trie.is_leaf(self.trie.walk(input_ids[:, self.prompt_length :]))


def trie_and_prompts(
    prompts: Sequence[str | list[dict] | list[int]],
    processing_class: PreTrainedTokenizerBase,
    titles: Sequence[str] | TitleTrie,
    exclude: Sequence[Sequence[int]] | None,
    form: tuple[str, str, bool],
    batch_size: int,
) -> tuple[TitleTrie, list[list[int]]]:
    """
    What a search and a ranking of a catalogue begin with: titles as a trie and prompts as tokens, checked.

    Args:
        form (`tuple[str, str, bool]`):
            `completion_prefix`, `completion_suffix` and `append_eos` of [`search_catalogue`], as the others.

    Raises:
        `ValueError`: As [`search_catalogue`].
    """
    if exclude is not None and len(exclude) != len(prompts):
        raise ValueError(
            f"exclude has {len(exclude)} rows for {len(prompts)} prompts. Pass one for each, [] for none."
        )
    if len(prompts) == 0:
        raise ValueError("There are no prompts. Pass at least one.")
    if isinstance(titles, TitleTrie):
        trie = titles
    else:
        trie = TitleTrie.from_titles(titles, processing_class, prompts[0], *form)
    prompt_ids = trie.prompt_ids(prompts, processing_class)
    check_prompts(prompt_ids, processing_class, batch_size)
    return trie, prompt_ids


def search_catalogue(
    model: PreTrainedModel,
    prompts: Sequence[str | list[dict] | list[int]],
    processing_class: PreTrainedTokenizerBase,
    titles: Sequence[str] | TitleTrie,
    num_beams: int = 10,
    top_k: int = 10,
    exclude: Sequence[Sequence[int]] | None = None,
    completion_prefix: str = " ",
    completion_suffix: str = "",
    append_eos: bool = True,
    batch_size: int = 8,
    desc: str | None = "Searching",
) -> list[list[tuple[int, float]]]:
    """
    The titles of a catalogue that a model finds likeliest as the answer to a prompt, by beam search over the tokens
    that lead to a title (as in GENRE, https://huggingface.co/papers/2010.00904). So every answer is an item.

    The beam search is that of [`~transformers.GenerationMixin.generate`] without a length penalty. With as many beams
    as there are titles the result is exact; with fewer, titles whose beginning is unlikely may be missed.

    Titles with the same tokens are found as one, and the first of them is returned: [`TitleTrie.same_titles`] has the
    others. Excluding one of them excludes all, since a user sees the same title.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to ask. It is left as it was.
        prompts (`Sequence`):
            Prompts: texts, lists of messages, or lists of tokens, of a template that shows no candidates.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        titles (`Sequence[str]` or [`TitleTrie`]):
            The catalogue. A trie saves the time to make it anew in every call, and then holds prefix, suffix and end.
        num_beams (`int`, *optional*, defaults to `10`):
            Width of the search, at least 2.
        top_k (`int`, *optional*, defaults to `10`):
            Most titles to return, at most `num_beams`.
        exclude (`Sequence[Sequence[int]]`, *optional*):
            For each prompt the indices of titles that must not be returned, such as what the user had.
        completion_prefix (`str`, *optional*, defaults to `" "`), completion_suffix (`str`, *optional*, defaults to `""`):
            Before and behind a title, see [`TitleTrie.from_titles`].
        append_eos (`bool`, *optional*, defaults to `True`):
            Whether a title ends in the EOS token, see [`TitleTrie.from_titles`].
        batch_size (`int`, *optional*, defaults to `8`):
            Number of prompts in a batch, which is `batch_size * num_beams` rows.
        desc (`str`, *optional*, defaults to `"Searching"`):
            Label of the progress bar. If `None`, there is none.

    Returns:
        `list[list[tuple[int, float]]]`: For each prompt the index of a title and its log-probability, summed over its
        tokens to the end, in nats; the best first. There are fewer than `top_k` if no more titles are left.

    Raises:
        `ValueError`: If there are no prompts or titles, an index or a number is out of range, or a prompt does not end
            where a token ends.
    """
    if num_beams < 2 or not 1 <= top_k <= num_beams:
        raise ValueError(
            f"num_beams={num_beams}, top_k={top_k}: pass at least 2 beams, and top_k from 1 to num_beams."
        )
    form = (completion_prefix, completion_suffix, append_eos)
    trie, prompt_ids = trie_and_prompts(prompts, processing_class, titles, exclude, form, batch_size)
    closed = None if exclude is None else [_closed_nodes(trie, row, titles) for row, titles in enumerate(exclude)]
    order = np.argsort([-len(ids) for ids in prompt_ids], kind="stable")
    found: list[list[tuple[int, float]]] = [[] for _ in prompt_ids]
    with generating(model), progress(total=len(prompt_ids), desc=desc, unit="prompts") as bar:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = left_padded([prompt_ids[index] for index in indices], processing_class, model.device)
            closed_of_batch = None if closed is None else [closed[index] for index in indices]
            results = _search_batch(
                model, batch, trie, num_beams, top_k, closed_of_batch, processing_class.pad_token_id
            )
            for index, result in zip(indices, results, strict=True):
                found[index] = result
            bar.update(len(indices))
    return found


def _closed_nodes(trie: TitleTrie, row: int, titles: Sequence[int]) -> np.ndarray:
    try:
        return trie.closed_nodes(titles)
    except ValueError as error:
        raise ValueError(f"exclude, row {row}: {error}") from error


def _search_batch(
    model: PreTrainedModel,
    batch: dict[str, torch.Tensor],
    trie: TitleTrie,
    num_beams: int,
    top_k: int,
    closed: list[np.ndarray] | None,
    pad_token_id: int,
) -> list[list[tuple[int, float]]]:
    prompt_length = batch["input_ids"].size(1)
    output = model.generate(
        **batch,
        **_prompt_cache(model, batch, num_beams),
        generation_config=GenerationConfig(
            do_sample=False,
            num_beams=num_beams,
            num_return_sequences=top_k,
            max_new_tokens=trie.depth,
            length_penalty=0.0,
            pad_token_id=pad_token_id,
            return_dict_in_generate=True,
            output_scores=True,
        ),
        logits_processor=LogitsProcessorList([TrieLogitsProcessor(trie, prompt_length, num_beams, closed)]),
        stopping_criteria=StoppingCriteriaList([EndOfTitleCriteria(trie, prompt_length)]),
    )
    scores = output.sequences_scores.view(-1, top_k).tolist()
    sequences = output.sequences[:, prompt_length:].view(len(scores), top_k, -1)
    results = []
    for rows, row_scores in zip(sequences, scores, strict=True):
        ends = _ends(trie, rows)
        pairs = zip(ends, row_scores, strict=True)
        results.append([(trie.title_at(node), score) for node, score in pairs if score > _NOT_FOUND])
    return results


def _ends(trie: TitleTrie, rows: torch.Tensor) -> list[int]:
    """The leaf that each row of tokens, padded on the right, comes by."""
    ends = torch.full((rows.size(0),), DEAD, device=rows.device)
    for nodes in trie.steps(rows):
        ends = torch.where(trie.is_leaf(nodes), nodes, ends)
    return ends.tolist()


def _prompt_cache(model: PreTrainedModel, batch: dict[str, torch.Tensor], num_beams: int) -> dict:
    """
    The cache of the prompts but for their last token, computed once and repeated: `generate` itself computes every
    prompt `num_beams` times.
    """
    prompt, mask = batch["input_ids"][:, :-1], batch["attention_mask"][:, :-1]
    if prompt.size(1) == 0 or why_prefix_sharing_is_unsound(model) is not None:
        return {}
    position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)
    backbone = base_model(model).base_model
    cache = backbone(input_ids=prompt, attention_mask=mask, position_ids=position_ids, use_cache=True).past_key_values
    cache.batch_repeat_interleave(num_beams)
    return {"past_key_values": cache}
