"""Items ranked after histories: a given list, or the whole catalogue."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..prefix_sharing.masks import why_prefix_sharing_is_unsound
from ..recsys.prompts.templates import PromptTemplate
from ..recsys.records.recommender_files import CATALOGUE_FILE, Catalogue, RecommenderConfig, missing_file
from ..scoring.catalogue_ranking import CatalogueScorer, rank_catalogue
from ..scoring.catalogue_search import search_catalogue
from ..scoring.log_probs import score_tokenized, sharing_agrees
from ..scoring.title_trie import TitleTrie
from ..tokenization import CompletionTokenizer
from .kept_trie import KeptTrie
from .prompts import ItemTexts, PromptMaker
from .scores import FUSION, LIKELIHOOD, PMI, REWARD, FusedScores, beginnings, reference_model, reference_scores


# For each history or list its items: a row of the catalogue, if the item is there, and the title.
Items: TypeAlias = Sequence[Sequence[tuple[int | None, str]]]


class Recommendation(NamedTuple):
    """
    An item of the list that [`Recommender.recommend`] returns.

    Args:
        item_id (`str` or `None`):
            The id in the catalogue; `None` for a candidate that is not there.
        title (`str`):
            The title.
        score (`float`):
            The log-probability of the title as the answer, its end included, in nats; or what is asked for in its place,
            see [`check_score`].
    """

    item_id: str | None
    title: str
    score: float


class Scoring(NamedTuple):
    """What gives the scores (a model and perhaps its reference), which ones, and of how many histories at a time."""

    model: PreTrainedModel
    ref_model: PreTrainedModel | None
    score: str
    batch_size: int
    desc: str | None


class ItemRanker:
    """
    Makes prompts of histories and completions of items, with the tokens of the training records, and ranks by their scores.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]), config ([`RecommenderConfig`]), catalogue
            ([`Catalogue`], *optional*), template ([`PromptTemplate`]), name (`str`):
            As in [`Recommender`].
        fused ([`FusedScores`], *optional*):
            What makes scores of kind `"fusion"`.
    """

    def __init__(
        self,
        processing_class: PreTrainedTokenizerBase,
        config: RecommenderConfig,
        catalogue: Catalogue | None,
        template: PromptTemplate,
        name: str,
        fused: FusedScores | None = None,
    ) -> None:
        self.fused = fused
        self.processing_class, self.config, self.catalogue = processing_class, config, catalogue
        self.template, self.name = template, name
        self.prompts = PromptMaker(template, config, processing_class)
        self.texts = ItemTexts(template, catalogue)
        self._completions = CompletionTokenizer(
            processing_class, processing_class.eos_token if config.ends_in_eos else ""
        )
        self._prefix_sharing: dict[bool, bool] = {}
        self._without_history: np.ndarray | None = None
        self._trie: TitleTrie | None = None
        self.kept_trie: KeptTrie | None = None  # where it is kept

    @property
    def trie(self) -> TitleTrie:
        """See [`Recommender.trie`]."""
        if self._trie is None:
            if self.catalogue is None:
                raise missing_file(self.name, CATALOGUE_FILE)
            answers = self.texts.answers
            (prompt,) = self.prompts.render([answers[:1]], [None])
            affixes = self.template.completion_prefix, self.template.completion_suffix
            ends_in_eos = self.config.ends_in_eos
            make = partial(TitleTrie.from_titles, answers, self.processing_class, prompt, *affixes, ends_in_eos)
            if self.kept_trie is None:
                self._trie = make()
            else:
                depends_on = [prompt, *affixes, self.template.completion_format, ends_in_eos]
                self._trie = self.kept_trie.get(make, self.processing_class, depends_on)
        return self._trie

    def search(
        self,
        how: Scoring,
        histories: Items,
        excluded: Sequence[Sequence[int]],
        top_k: int,
        num_beams: int | None,
        exact: bool = False,
    ) -> list[list[Recommendation]]:
        """The best of the catalogue but for the rows that are excluded: by a beam search, or `exact` of all titles."""
        if self.template.style == "candidates":
            raise ValueError(
                f"{self.name}: template '{self.template.name}' shows candidates, so it needs some. Pass `candidates`, or "
                "use a model that was trained on prompts without them (prompt_style='history')."
            )
        if how.score != LIKELIHOOD and num_beams is not None:
            raise ValueError(f"score={how.score!r} scores the whole catalogue, without beams. Leave num_beams out.")
        trie, longest = self.trie, None
        if not isinstance(self.texts.answers, list):  # too many to count their tokens again
            without_end = not self.config.conversational and not self.config.ends_in_eos
            longest = trie.depth + without_end  # a budget has room for the end
        prompts = self.prompts.make(self.texts.shown(histories), None, self.texts.answers, longest=longest)
        asked = (how.model, prompts, self.processing_class, trie)
        options: dict[str, Any] = {"top_k": top_k, "exclude": excluded}
        options |= {"batch_size": how.batch_size, "desc": how.desc}
        if exact or how.score != LIKELIHOOD:
            combine = self._fuse_all(histories) if how.score == FUSION else None
            found = rank_catalogue(*asked, **options, minus=self._minus(how), combine=combine)
        else:
            found = search_catalogue(
                *asked, num_beams=max(2, top_k, 10 if num_beams is None else num_beams), **options
            )
        item_ids, titles = self.catalogue.item_ids, self.catalogue.titles
        return [[Recommendation(item_ids[index], titles[index], score) for index, score in row] for row in found]

    def rank(self, how: Scoring, histories: Items, candidates: Items, top_k: int) -> list[list[Recommendation]]:
        """The best of a list for each history; what is there twice counts once."""
        candidates = [list(dict.fromkeys(row)) for row in candidates]
        results = []
        for row, scores in zip(candidates, self.score(how, histories, candidates), strict=True):
            best = [(*row[place], float(scores[place])) for place in np.argsort(-scores, kind="stable")[:top_k]]
            results.append(
                [
                    Recommendation(None if item is None else self.catalogue.item_ids[item], title, score)
                    for item, title, score in best
                ]
            )
        return results

    def score(self, how: Scoring, histories: Items, candidates: Items) -> list[np.ndarray]:
        """For each history an array of the scores of its candidates."""
        shown, answers = self.texts.shown(candidates), self.texts.answered(candidates)
        prompts = self.prompts.make(self.texts.shown(histories), shown, answers=answers)
        scores = self._log_probs(how.model, how, prompts, answers)
        if how.score == LIKELIHOOD:
            return scores
        if how.score == FUSION:
            known = self.score_parts(how, histories, candidates) if self.fused.by_parts else scores
            return self.fused(known, self._ids(histories), self._ids(candidates, "candidates"))
        if how.score == PMI:
            others = self._log_probs(how.model, how, self.prompts.without_history(shown), answers)
        else:
            with reference_model(how.model, how.ref_model) as reference:
                others = self._log_probs(reference, how, prompts, answers, of_reference=True)
        return [ours - theirs for ours, theirs in zip(scores, others, strict=True)]

    def score_parts(self, how: Scoring, histories: Items, candidates: Items) -> list[np.ndarray]:
        """See [`Recommender.score_parts`]."""
        answers = self.texts.answered(candidates)
        prompts = self.prompts.make(self.texts.shown(histories), self.texts.shown(candidates), answers=answers)
        whole = self._log_probs(how.model, how, prompts, answers)
        begun = [[self.texts.before_titles[item] for item, _ in row] for row in candidates]
        records, cut = beginnings(self.tokenize(prompts, answers), begun, self.processing_class)
        before = self._score_tokenized(how.model, how, records, self._prefix_sharing[False])
        parts = []
        for total, row, there in zip(whole, before, cut, strict=True):
            begins = np.where(there, row[: len(total)], 0.0)
            parts.append(np.column_stack([begins, total - begins]))
        return parts

    def tokenize(self, prompts: Sequence[str | list[dict]], answers: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """Records of prompts and what answers them, with the tokens of training."""
        examples = []
        for prompt, texts in zip(prompts, answers, strict=True):
            chosen, *rejected = [self.prompts.complete(text) for text in texts]
            examples.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        records = []
        for prompt_ids, ids in self._completions(examples):
            if len(ids) == 1:
                ids = ids * 2  # a record has at least two completions
            length = len(prompt_ids) + sum(map(len, ids)) + len(ids) - 1
            records.append({"prompt_ids": prompt_ids, "chosen_ids": ids[0], "rejected_ids": ids[1:], "length": length})
        return records

    def _log_probs(
        self,
        model: PreTrainedModel,
        how: Scoring,
        prompts: Sequence[str | list[dict]],
        answers: Sequence[Sequence[str]],
        of_reference: bool = False,
    ) -> list[np.ndarray]:
        records = self.tokenize(prompts, answers)
        if of_reference not in self._prefix_sharing:
            sound = why_prefix_sharing_is_unsound(model) is None
            pad_token_id = self.processing_class.pad_token_id
            agrees = sharing_agrees(model, records, pad_token_id, how.batch_size, prefix_sharing=sound)
            self._prefix_sharing[of_reference] = agrees
        scores = self._score_tokenized(model, how, records, self._prefix_sharing[of_reference])
        return [values[: len(row)] for values, row in zip(scores, answers, strict=True)]

    def _score_tokenized(
        self, model: PreTrainedModel, how: Scoring, records: list[dict[str, Any]], sharing: bool
    ) -> list[np.ndarray]:
        pad_token_id = self.processing_class.pad_token_id
        return score_tokenized(model, records, pad_token_id, how.batch_size, prefix_sharing=sharing, desc=how.desc)

    def _minus(self, how: Scoring) -> Callable[[list[list[int]]], np.ndarray] | None:
        """What a score of the whole catalogue takes off the log-probabilities after prompts."""
        pad_token_id = self.processing_class.pad_token_id
        if how.score == REWARD:
            return reference_scores(how.model, how.ref_model, self.trie, pad_token_id, how.batch_size)
        if how.score == PMI and self._without_history is None:
            prompt_ids = self.trie.prompt_ids(self.prompts.without_history([None]), self.processing_class)
            scorer = CatalogueScorer(how.model, self.trie, pad_token_id, how.batch_size)
            self._without_history = scorer.score(prompt_ids)
        return (lambda prompt_ids: self._without_history) if how.score == PMI else None

    def _fuse_all(self, histories: Items) -> Callable[[np.ndarray, int], np.ndarray]:
        """Fuses the scores of all titles after some of these histories."""
        if self.fused.by_parts:
            raise ValueError(
                f"{self.name}: its fusion weighs attributes and title apart, which are scored of candidates and not of the "
                "whole catalogue. Pass candidates, or another score."
            )
        read, items = self._ids(histories), [self.catalogue.item_ids[row] for row in self.trie.distinct_titles()]

        def combine(scores: np.ndarray, begin: int) -> np.ndarray:
            return np.array(self.fused(list(scores), read[begin : begin + len(scores)], [items] * len(scores)))

        return combine

    def _ids(self, rows: Items, needed: str | None = None) -> list[list[str]]:
        """The ids of items; those of histories that are not in the catalogue say nothing to models of ids."""
        for number, row in enumerate(rows if needed else ()):
            for item, title in row:
                if item is None:
                    raise ValueError(
                        f"{needed}, row {number}: {title!r} is not in the catalogue, so a fusion has no score of it. Pass "
                        "items of the catalogue, or score='likelihood'."
                    )
        return [[self.catalogue.item_ids[item] for item, _ in row if item is not None] for row in rows]
