"""A trained model as a recommender: a history in, titles with scores out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..data_utils import readable_records
from ..recsys.baselines.scores import Scorer
from ..recsys.metrics.fusion import Fusion
from ..recsys.prompts.templates import PromptTemplate
from ..recsys.records.recommender_files import (
    CATALOGUE_FILE,
    RECOMMENDER_FILE,
    Catalogue,
    RecommenderConfig,
    load_recommender_files,
    missing_file,
)
from ..scoring.generation import candidate_titles, generate_answers, stop_strings_of, title_of_completion
from ..scoring.log_probs import completion_log_probs
from ..scoring.title_trie import TitleTrie
from ..tokenization import tokenize_dataset
from .item_ranker import ItemRanker, Items, Recommendation, Scoring
from .kept_trie import catalogue_and_trie
from .loading import load_model_and_tokenizer
from .prompts import select_template
from .scores import FUSION, LIKELIHOOD, FusedScores, check_score, load_fusion
from .title_lookup import UNKNOWN_TITLES, TitleLookup, is_nested, one_for_each, where


logger = logging.get_logger(__name__)


class Recommender:
    """
    Recommends with a language model that was trained on multi-preference records: the prompts have the tokens of the
    training records, and scores are those of [`completion_log_probs`] on them.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model. It is not changed.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer. Where it has no pad token, its EOS token becomes one.
        config ([`RecommenderConfig`]):
            How prompts are made.
        catalogue ([`Catalogue`], *optional*):
            What can be recommended. Without one, candidates have to be given, and titles are not checked.
        template (`str` or [`PromptTemplate`], *optional*):
            The wording, one of those of `config` by its name, or another one. By default the first of `config`.
        name (`str`, *optional*, defaults to `"the model"`):
            What messages call the model.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            The model before S-DPO, for `score="reward"`. By default the base under an adapter.
        fusion ([`Fusion`], *optional*), scorers (`Mapping[str, Callable]`, *optional*):
            A fit of the likelihood of this model with other scores, and what gives these by name, see [`FusedScores`].
            Items are ranked by it then, unless another `score` is asked for.

    Raises:
        ValueError: the template is none of the configuration, shows an attribute that the catalogue does not have, or a
            feature of the fusion has no scorer.

    Example:
        ```python
        from trl_sdpo import Recommender

        recommender = Recommender.from_pretrained("outputs/movielens/s-dpo")
        for item in recommender.recommend(["Heat (1995)", "Fargo (1996)", "Get Shorty (1995)"], top_k=5):
            print(item.title, item.score)
        ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        config: RecommenderConfig,
        catalogue: Catalogue | None = None,
        template: str | PromptTemplate | None = None,
        name: str = "the model",
        ref_model: PreTrainedModel | None = None,
        fusion: Fusion | None = None,
        scorers: Mapping[str, Scorer] | None = None,
    ) -> None:
        if processing_class.pad_token is None:
            processing_class.pad_token = processing_class.eos_token
        self.model, self.processing_class, self.ref_model = model, processing_class, ref_model
        self.config, self.catalogue, self.name = config, catalogue, name
        self.template = select_template(config, template)
        self.lookup = TitleLookup(catalogue)
        self.fusion = fusion
        fused = None if fusion is None else FusedScores(fusion, scorers or {}, catalogue)
        self._ranker = ItemRanker(processing_class, config, catalogue, self.template, name, fused)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        template: str | PromptTemplate | None = None,
        catalogue: Catalogue | str | Path | None = None,
        config: RecommenderConfig | None = None,
        base_model: str | Path | None = None,
        ref_model: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        **model_kwargs,
    ) -> "Recommender":
        """
        Load a model, or an adapter with its base, and what lies beside it, see [`save_recommender_files`].

        Args:
            model (`str` or `Path`):
                Directory of a model or of a PEFT adapter, or its id on the Hub.
            template (`str` or [`PromptTemplate`], *optional*):
                The wording: a name among those of `recommender.json`, or a template, which a model without that file
                needs.
            catalogue ([`Catalogue`], `str` or `Path`, *optional*):
                What can be recommended, or a directory or Hub id with a catalogue, such as a prepared data set.
                By default that of the model.
            config ([`RecommenderConfig`], *optional*):
                How prompts are made, in the place of the `recommender.json` of the model.
            base_model (`str` or `Path`, *optional*):
                The model under an adapter, where it is no longer where `adapter_config.json` has it.
            ref_model (`str` or `Path`, *optional*):
                The model before S-DPO, or its adapter, for `score="reward"`. By default the base under an adapter.
            device (`str` or `torch.device`, *optional*):
                By default the accelerator of the machine, else the CPU.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
                Type of the weights; by default the one that they were saved with.
            revision (`str`, *optional*), token (`str` or `bool`, *optional*), cache_dir (`str` or `Path`, *optional*):
                For the Hub.
            **model_kwargs:
                Passed to `AutoModelForCausalLM.from_pretrained`, such as `quantization_config`, `device_map` or
                `attn_implementation`.

        Returns:
            [`Recommender`]: The recommender.

        Raises:
            ValueError: there is no `recommender.json` and no template, or a file is damaged.
            OSError: there is no such model, or the base of the adapter cannot be loaded.
        """
        hub_kwargs = {"revision": revision, "token": token, "cache_dir": cache_dir}
        hub_kwargs = {name: value for name, value in hub_kwargs.items() if value is not None}
        files = load_recommender_files(model, **hub_kwargs)
        config = config or files.config
        if config is None:
            if not isinstance(template, PromptTemplate):
                raise missing_file(model, RECOMMENDER_FILE)
            config = RecommenderConfig([template])
        found, kept_trie = catalogue_and_trie(catalogue, files.catalogue, model, hub_kwargs)
        select_template(config, template)  # before the weights, which take longer
        options = {"base_model": base_model, "device": device, "dtype": dtype, **model_kwargs}
        loaded, tokenizer = load_model_and_tokenizer(model, hub_kwargs=hub_kwargs, **options)
        reference = None
        if ref_model is not None:
            shared = {name: value for name, value in hub_kwargs.items() if name != "revision"}
            reference, _ = load_model_and_tokenizer(ref_model, hub_kwargs=shared, **{**options, "base_model": None})
        fusion, scorers = load_fusion(model, **hub_kwargs) or (None, None)
        more = {"ref_model": reference, "fusion": fusion, "scorers": scorers}
        recommender = cls(loaded, tokenizer, config, found, template, name=str(model), **more)
        recommender._ranker.kept_trie = kept_trie
        return recommender

    def recommend(
        self,
        history: Sequence[str | int] | Sequence[Sequence[str | int]],
        candidates: Sequence[str | int] | Sequence[Sequence[str | int]] | None = None,
        top_k: int = 10,
        *,
        num_beams: int | None = None,
        exclude_history: bool = True,
        unknown_titles: str = "error",
        batch_size: int = 8,
        score: str | None = None,
    ) -> list[Recommendation] | list[list[Recommendation]]:
        """
        Recommend what comes after a history, or after each of several.

        With candidates, all of them are scored. Without, the likeliest titles of the catalogue are searched for, see
        [`search_catalogue`]; the scores of both are the same.

        Args:
            history (`Sequence[str | int]`, or `Sequence` of these):
                Titles or item ids, oldest first, see [`TitleLookup.find`]; or a list of such lists. What is older than
                the `history_size` of the training is left out of the prompt.
            candidates (`Sequence[str | int]`, or `Sequence` of these, *optional*):
                What to choose from, in the order in which a template shows them: one list for all histories, or one
                for each. Nothing is excluded from them.
            top_k (`int`, *optional*, defaults to `10`):
                How many to return at most.
            num_beams (`int`, *optional*):
                Width of the search in the catalogue, by default 10 or `top_k`, whichever is larger.
            exclude_history (`bool`, *optional*, defaults to `True`):
                Whether the search leaves out what is in the history, all of it.
            unknown_titles (`str`, *optional*, defaults to `"error"`):
                `"error"`, or `"keep"` to take titles that are not in the catalogue as they are, with a warning.
            batch_size (`int`, *optional*, defaults to `8`):
                Histories in a batch.
            score (`str`, *optional*):
                What to rank by: `"likelihood"`, `"pmi"`, `"reward"` or `"fusion"`, see [`check_score`]. By default the
                fusion where the recommender has one, else the likelihood. Without candidates, for all but the likelihood
                all titles of the catalogue are scored, since parts of a title do not tell them.

        Returns:
            `list[Recommendation]`: The best first; or a list of such lists for several histories.

        Raises:
            ValueError: a history is empty or has an unknown title, the template shows candidates and there are none,
                or there is neither a catalogue nor candidates. The message says which and what to do.
        """
        score = self.check_score(score)
        if top_k < 1 or batch_size < 1:
            raise ValueError(f"top_k={top_k}, batch_size={batch_size}: pass at least 1.")
        if unknown_titles not in UNKNOWN_TITLES:
            raise ValueError(f"unknown_titles={unknown_titles!r} is none of {UNKNOWN_TITLES}. Pass one of them.")
        single = not is_nested(history, "history")
        rows: list[Any] = [history] if single else list(history)
        found = [self._find(row, where("history", index, single), unknown_titles) for index, row in enumerate(rows)]
        how = self._scoring(score, batch_size, "Recommending" if len(rows) > 1 else None)
        if candidates is None:
            excluded = [[item for item, _ in row if item is not None] if exclude_history else [] for row in found]
            results = self._ranker.search(how, found, excluded, top_k, num_beams)
        else:
            lists = one_for_each(candidates, len(rows))
            chosen = [
                self._find(row, where("candidates", index, single), unknown_titles) for index, row in enumerate(lists)
            ]
            results = self._ranker.rank(how, found, chosen, top_k)
        return results[0] if single else results

    def recommend_ids(
        self,
        histories: Sequence[Sequence[str]],
        candidates: Sequence[Sequence[str]] | None = None,
        top_k: int = 10,
        *,
        num_beams: int | None = None,
        exclude_history: bool = True,
        exclude: Sequence[Sequence[str]] | None = None,
        exact: bool = False,
        batch_size: int = 8,
        desc: str | None = None,
        score: str | None = None,
    ) -> list[list[Recommendation]]:
        """
        As [`recommend`], for programs that know the ids of items: nothing is taken for a title.

        Args:
            histories (`Sequence[Sequence[str]]`):
                Item ids, oldest first.
            candidates (`Sequence[Sequence[str]]`, *optional*):
                Item ids to choose from, for each history. By default the whole catalogue.
            top_k, num_beams, exclude_history, batch_size, score:
                See [`recommend`].
            exclude (`Sequence[Sequence[str]]`, *optional*):
                More item ids that the whole catalogue is left without, for each history, such as what the user had
                before it.
            exact (`bool`, *optional*, defaults to `False`):
                Score all titles of the catalogue in place of a beam search, see [`rank_catalogue`].
            desc (`str`, *optional*):
                Label of a progress bar. If `None`, there is none.

        Returns:
            `list[list[Recommendation]]`: For each history the best first.

        Raises:
            ValueError: there is no catalogue, or an id is not in it.
        """
        score = self.check_score(score)
        rows = self._items_of_ids(histories, "histories")
        if candidates is not None:
            how = self._scoring(score, batch_size, None)
            return self._ranker.rank(how, rows, self._items_of_ids(candidates, "candidates"), top_k)
        excluded = [[item for item, _ in row] if exclude_history else [] for row in rows]
        if exclude is not None:
            more = self._items_of_ids(exclude, "exclude")
            excluded = [[*row, *(item for item, _ in other)] for row, other in zip(excluded, more, strict=True)]
        return self._ranker.search(self._scoring(score, batch_size, desc), rows, excluded, top_k, num_beams, exact)

    def score(
        self,
        histories: Sequence[Sequence[str]],
        candidates: Sequence[Sequence[str]],
        batch_size: int = 8,
        score: str | None = None,
    ) -> list[np.ndarray]:
        """
        Score candidates by their ids, as every scorer of this package: see docs/recommend.md.

        Args:
            histories (`Sequence[Sequence[str]]`):
                Item ids, oldest first.
            candidates (`Sequence[Sequence[str]]`):
                Item ids, for each history.
            batch_size (`int`, *optional*, defaults to `8`):
                Histories in a batch.
            score (`str`, *optional*):
                See [`recommend`].

        Returns:
            `list[np.ndarray]`: Log-probabilities in nats, or differences of two, one for each candidate.

        Raises:
            ValueError: there is no catalogue, or an id is not in it.
        """
        score = self.check_score(score)
        rows, items = self._items_of_ids(histories, "histories"), self._items_of_ids(candidates, "candidates")
        return self._ranker.score(self._scoring(score, batch_size, "Scoring"), rows, items)

    def score_parts(
        self, histories: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]], batch_size: int = 8
    ) -> list[np.ndarray]:
        """
        Score what stands before the title of a candidate and the title apart, for completions that begin with attributes
        (`completion_format`), so that a fit can weigh them.

        Args:
            histories (`Sequence[Sequence[str]]`), candidates (`Sequence[Sequence[str]]`), batch_size (`int`, *optional*,
                defaults to `8`):
                As in [`score`].

        Returns:
            `list[np.ndarray]`: For each history an array of shape `(num_candidates, 2)`, in nats: the log-probability of
            the tokens before the title, and that of the title after them, with all behind it. Their sum is that of
            [`score`]. A token that is of both belongs to the title.
        """
        rows, items = self._items_of_ids(histories, "histories"), self._items_of_ids(candidates, "candidates")
        return self._ranker.score_parts(self._scoring(LIKELIHOOD, batch_size, "Scoring"), rows, items)

    def log_probs(
        self,
        dataset: Dataset,
        batch_size: int = 32,
        *,
        per_token: bool = False,
        desc: str = "Ranking",
        history: bool = True,
    ) -> list[np.ndarray]:
        """
        Log-probabilities of the completions of records, with the tokens of training, see
        [`completion_log_probs`].

        Args:
            dataset ([`~datasets.Dataset`]):
                Multi-preference records.
            batch_size (`int`, *optional*, defaults to `32`), per_token (`bool`, *optional*, defaults to `False`), desc
                (`str`, *optional*, defaults to `"Ranking"`):
                See there.
            history (`bool`, *optional*, defaults to `True`):
                If `False`, the prompts are those of the records without their histories. What the log-probabilities lose
                by that is the pointwise mutual information of history and completion.

        Returns:
            `list[np.ndarray]`: For each record an array of shape `(1 + K,)`, the chosen completion first, in nats.

        Raises:
            ValueError: without histories, the records are not of one wording that is known.
        """
        records = dataset
        if not history:
            records = self._ranker.prompts.records_without_history(readable_records(dataset), self._ranker.texts)
        records = self.tokenize(records)
        return completion_log_probs(
            self.model, records, self.processing_class, batch_size, desc=desc, per_token=per_token
        )

    def answers(self, dataset: Dataset, batch_size: int = 8, *, desc: str = "Generating") -> list[str]:
        """
        What the model writes after the prompts of records, see [`generate_answers`].

        Args:
            dataset ([`~datasets.Dataset`]):
                Multi-preference records.
            batch_size (`int`, *optional*, defaults to `8`), desc (`str`, *optional*, defaults to `"Generating"`):
                See there.

        Returns:
            `list[str]`: The answers, in the order of the records.
        """
        records = self.tokenize(dataset)
        ends = stop_strings_of(self.config.templates)
        titles = [title for row in candidate_titles(dataset, self.processing_class, ends) for title in row]
        # where a title holds the text that ends others, an answer goes on to the EOS token, and loses the end later
        ends = [end for end in ends if not any(end in title for title in set(titles))]
        answers = generate_answers(
            self.model, records, self.processing_class, batch_size, stop_strings=ends, desc=desc
        )
        return [title_of_completion(answer, stop_strings_of(self.config.templates)) for answer in answers]

    def tokenize(self, dataset: Dataset) -> Dataset:
        """The records with the tokens that the model was trained on: with or without an EOS token, as it was then."""
        # not a function of its own, which would hold the model, and be hashed with its weights
        eos_token = self.processing_class.eos_token if self.config.ends_in_eos else ""
        return tokenize_dataset(dataset, self.processing_class, eos_token, desc="Tokenizing")

    @property
    def trie(self) -> TitleTrie:
        """The titles of the catalogue as the completions of training, to search in."""
        return self._ranker.trie

    def check_score(self, score: str | None) -> str:
        """What to rank by, see [`check_score`]; where nothing is said the fusion if there is one, else the likelihood."""
        score = (LIKELIHOOD if self.fusion is None else FUSION) if score is None else score
        check_score(score, self.model, self.ref_model, self.fusion is not None)
        return score

    def _scoring(self, score: str, batch_size: int, desc: str | None) -> Scoring:
        return Scoring(self.model, self.ref_model, score, batch_size, desc)

    def _items_of_ids(self, rows: Sequence[Sequence[str]], name: str) -> Items:
        if self.catalogue is None:
            raise missing_file(self.name, CATALOGUE_FILE)
        return [
            [self.lookup.find_id(item_id, f"{name}, row {row}") for item_id in ids] for row, ids in enumerate(rows)
        ]

    def _find(self, row: Sequence[str | int], where: str, unknown: str) -> list[tuple[int | None, str]]:
        if isinstance(row, str) or not isinstance(row, Sequence | np.ndarray) or not len(row):
            raise ValueError(f"{where}: {row!r} is no list of titles or ids with at least one in it. Pass one.")
        return [self.lookup.find(value, where, unknown) for value in row]
