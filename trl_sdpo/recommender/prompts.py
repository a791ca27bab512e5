"""The prompts of a recommender, in the words and of the length of its training records."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..recsys.prompts.item_texts import TITLE_ALONE
from ..recsys.prompts.templates import PromptTemplate
from ..recsys.prompts.token_budget import TokenBudget
from ..recsys.records.catalogue.columns import ParquetColumn
from ..recsys.records.recommender_files import Catalogue, RecommenderConfig


logger = logging.get_logger(__name__)


def select_template(config: RecommenderConfig, template: str | PromptTemplate | None) -> PromptTemplate:
    """
    The wording of a recommender.

    Args:
        config ([`RecommenderConfig`]):
            With the wordings of the training records.
        template (`str` or [`PromptTemplate`], *optional*):
            One of these by its name, or another one. By default the first.

    Returns:
        [`PromptTemplate`]: The template.

    Raises:
        ValueError: there is none of this name.
    """
    if isinstance(template, PromptTemplate):
        return template
    by_name = {one.name: one for one in config.templates}
    if template is None:
        return config.templates[0]
    if template not in by_name:
        raise ValueError(
            f"template {template!r} is none of those that the model was trained on, {list(by_name)}. Pass one of them."
        )
    return by_name[template]


class RenderedTexts(Sequence[str]):
    """
    Texts of the items of a catalogue on disk, each made when it is asked for, all when they are iterated over.

    Args:
        render (`Callable`):
            Titles and attributes to texts, such as [`PromptTemplate.answers`].
        titles (`Sequence[str]`), attributes (`Mapping[str, Sequence]`):
            Of all items.
    """

    def __init__(
        self,
        render: Callable[[Sequence[str], Mapping[str, Sequence[Any]]], list[str]],
        titles: Sequence[str],
        attributes: Mapping[str, Sequence[Any]],
    ) -> None:
        self._render, self._titles, self._attributes = render, titles, attributes

    def __len__(self) -> int:
        return len(self._titles)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if not isinstance(place, slice):
            return self._render([self._titles[place]], {name: [one[place]] for name, one in self._attributes.items()})[
                0
            ]
        return self._render(self._titles[place], {name: one[place] for name, one in self._attributes.items()})

    def __iter__(self) -> Iterator[str]:
        return iter(self[:])  # together, so that two items of one text are seen


class ItemTexts:
    """
    Items in the words of prompts and of completions, with their attributes, as in training.

    Args:
        template ([`PromptTemplate`]):
            The wording.
        catalogue ([`Catalogue`], *optional*):
            The items. One that is not there is its title alone.

    Attributes:
        answers (`Sequence[str]`): What completions say of each item of the catalogue.
        before_titles (`Sequence[str]`): What stands before the title there.

    Raises:
        ValueError: the catalogue lacks an attribute that the template shows.
    """

    def __init__(self, template: PromptTemplate, catalogue: Catalogue | None) -> None:
        titles, attributes = ((), {}) if catalogue is None else (catalogue.titles, catalogue.attributes)
        if catalogue is None:
            attributes = dict.fromkeys(template.attributes, ())
        self._by_answer: dict[str, str] | None = None
        self._shown: Sequence[str]
        self.answers: Sequence[str]
        self.before_titles: Sequence[str]
        if isinstance(titles, ParquetColumn) and set(template.attributes) <= attributes.keys():
            attributes = {name: attributes[name] for name in template.attributes}
            shown, answers = (
                RenderedTexts(render, titles, attributes) for render in (template.shown, template.answers)
            )
            self._shown = titles if template.item_format == TITLE_ALONE else shown
            self.answers = titles if template.completion_format == TITLE_ALONE else answers
            self.before_titles = RenderedTexts(template.before_titles, titles, attributes)
        else:
            self._shown = template.shown(titles, attributes)
            self.answers = template.answers(titles, attributes)
            self.before_titles = template.before_titles(titles, attributes)

    def shown(self, rows: Sequence[Sequence[tuple[int | None, str]]]) -> list[list[str]]:
        """Items, each its row in the catalogue and its title, as history and list show them."""
        return [[title if item is None else self._shown[item] for item, title in row] for row in rows]

    def shown_of_answers(self, answers: Sequence[str]) -> list[str]:
        """Items that are known by what completions say of them, as history and list show them."""
        if self.answers is self._shown:
            return list(answers)
        if self._by_answer is None:
            self._by_answer = dict(zip(self.answers, self._shown, strict=True))
        return [self._by_answer.get(answer, answer) for answer in answers]

    def answered(self, rows: Sequence[Sequence[tuple[int | None, str]]]) -> list[list[str]]:
        """The same as completions name them."""
        return [[title if item is None else self.answers[item] for item, title in row] for row in rows]


class PromptMaker:
    """
    Makes prompts as [`build_preference_dataset`] makes them: histories of at most `history_size` titles, and
    shortened further from the oldest where a prompt with its longest completion has more than `max_length` tokens.

    Args:
        template ([`PromptTemplate`]):
            The wording.
        config ([`RecommenderConfig`]):
            What was trained.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer, to count with.
    """

    def __init__(
        self, template: PromptTemplate, config: RecommenderConfig, processing_class: PreTrainedTokenizerBase
    ) -> None:
        self.template, self.config, self.processing_class = template, config, processing_class
        self._longest: tuple[Sequence[str] | None, int] = (None, 0)

    def complete(self, title: str) -> str | list[dict[str, str]]:
        """The completion that answers with a title, or what stands for one, without an EOS token."""
        if self.config.conversational:
            return [{"role": "assistant", "content": title}]
        return self.template.complete(title)

    def make(
        self,
        histories: Sequence[Sequence[str]],
        candidates: Sequence[Sequence[str]] | None,
        catalogue: Sequence[str] = (),
        answers: Sequence[Sequence[str]] | None = None,
        longest: int | None = None,
    ) -> list[str] | list[list[dict[str, str]]]:
        """
        The prompts.

        Args:
            histories (`Sequence[Sequence[str]]`):
                Items as prompts show them, oldest first.
            candidates (`Sequence[Sequence[str]]`, *optional*):
                The list of every history, as prompts show items.
            catalogue (`Sequence[str]`, *optional*):
                What may be answered where there are no candidates. Must be the same object from call to call.
            answers (`Sequence[Sequence[str]]`, *optional*):
                What completions say of the candidates. By default what prompts show of them.
            longest (`int`, *optional*):
                Tokens of the longest completion of the catalogue, where they are counted already.

        Returns:
            `list[str]` or `list[list[dict]]`: Prompts as text, or as messages where the training had messages.

        Raises:
            ValueError: there are no candidates and the template shows them.
        """
        histories = [list(history[-self.config.history_size :]) for history in histories]
        lists = [None] * len(histories) if candidates is None else candidates
        if self.config.max_length is not None:
            if candidates is None and longest is not None:
                lengths = np.full(len(histories), longest)
            else:
                lengths = self._completion_lengths(histories, candidates if answers is None else answers, catalogue)
            histories = self._fit(histories, lists, lengths)
        return self.render(histories, lists)

    def render(
        self, histories: Sequence[Sequence[str]], lists: Sequence[Sequence[str] | None]
    ) -> list[str] | list[list[dict[str, str]]]:
        """The prompts of histories that fit, with the list of each, or `None`."""
        prompts = [self.template.render(history, shown) for history, shown in zip(histories, lists, strict=True)]
        if self.config.conversational:
            return [[{"role": "user", "content": prompt}] for prompt in prompts]
        return prompts

    def without_history(self, candidates: Sequence[Sequence[str] | None]) -> list[str] | list[list[dict[str, str]]]:
        """
        The prompts without any history.

        Args:
            candidates (`Sequence`):
                For each prompt its list, as prompts show items, or `None`.

        Returns:
            `list[str]` or `list[list[dict]]`: As of [`make`].
        """
        prompts = [self.template.render_without_history(shown) for shown in candidates]
        if self.config.conversational:
            return [[{"role": "user", "content": prompt}] for prompt in prompts]
        return prompts

    def records_without_history(self, records: Dataset, texts: ItemTexts) -> Dataset:
        """
        Records with the prompts that they would have without their histories.

        Args:
            records ([`~datasets.Dataset`]):
                Multi-preference records of one wording.
            texts ([`ItemTexts`]):
                What is shown of the items of their lists.

        Returns:
            [`~datasets.Dataset`]: With `prompt`, `chosen` and `rejected`.

        Raises:
            ValueError: the records have several wordings, another one, or tokens alone, so that nobody knows where their
                histories are.
        """
        if len(self.config.templates) > 1:
            names = ", ".join(template.name for template in self.config.templates)
            raise ValueError(f"the records have several wordings ({names}). Make them anew with one template.")
        if "prompt" not in records.column_names:
            raise ValueError("the records have no column 'prompt', so nobody knows what is history. Pass texts.")
        begin = self.template.text.partition("{")[0]
        for row, prompt in enumerate(records["prompt"]):
            if not (prompt if isinstance(prompt, str) else prompt[0]["content"]).startswith(begin):
                raise ValueError(
                    f"record {row}, column 'prompt': does not begin with {begin!r}, as those of template "
                    f"'{self.template.name}' do. Make the records anew, or pass their template."
                )
        lists = [None] * len(records)
        if self.template.style == "candidates":
            lists = [texts.shown_of_answers(row) for row in records["candidates"]]
        plain = records.select_columns(["chosen", "rejected"])
        return plain.add_column("prompt", self.without_history(lists))

    def _budget(self, titles: Sequence[str]) -> TokenBudget:
        budget = TokenBudget(self.processing_class, self.config.max_length)
        budget.measure_completions([self.template], titles, self.config.conversational)
        return budget

    def _completion_lengths(
        self, histories: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]] | None, catalogue: Sequence[str]
    ) -> np.ndarray:
        """Tokens of the longest completion of every history."""
        if candidates is None:
            if self._longest[0] is not catalogue:
                self._longest = (catalogue, self._longest_of(catalogue))
            return np.full(len(histories), self._longest[1])
        return np.array([self._longest_of(row) for row in candidates])

    def _longest_of(self, titles: Sequence[str]) -> int:
        every = np.arange(len(titles))[None]
        return int(self._budget(titles).longest_completion(np.zeros(1, dtype=np.int64), every)[0])

    def _fit(
        self, histories: Sequence[Sequence[str]], lists: Sequence[Sequence[str] | None], completions: np.ndarray
    ) -> list[list[str]]:
        width = max(map(len, histories))
        places = np.full((len(histories), width), -1)
        for row, history in enumerate(histories):
            places[row, width - len(history) :] = np.arange(len(history))

        def render(rows: np.ndarray, kept: np.ndarray) -> pa.Array:
            there = kept >= 0
            return pa.array(
                [
                    self.template.render([histories[row][place] for place in line[mask]], lists[row])
                    for row, line, mask in zip(rows, kept, there, strict=True)
                ]
            )

        budget = self._budget(histories[0])
        places, tokens = budget.fit(render, places, completions)
        too_long = np.flatnonzero(tokens < 0)
        if len(too_long):
            logger.warning(
                f"History {too_long[0]} ({len(too_long)} of {len(tokens)}): with its last title alone the prompt and the "
                f"longest completion have more than max_length={self.config.max_length} tokens, as no training record had."
            )
        return [[history[place] for place in row[row >= 0]] for history, row in zip(histories, places, strict=True)]
