"""The words around the titles."""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .item_texts import TITLE_ALONE, attributes_of, item_texts, parse_item_format, title_starts


PROMPT_STYLES = ("history", "candidates")
_PLACEHOLDERS = ("history", "num_history", "candidates", "num_candidates")


@dataclass(frozen=True)
class PromptTemplate:
    """
    A prompt of one wording, and the form of the completions to it.

    A prompt ends where a token ends: without white space at its end, the completion beginning with a space; or with a
    line break, the completion beginning with the title. So the tokens of the prompt are the first tokens of prompt
    and completion together.

    Args:
        name (`str`):
            The name, see [`get_template`].
        style (`str`):
            `"candidates"`: the list of candidates is shown. `"history"`: it is not.
        text (`str`):
            The prompt, with `{history}` and, where the list is shown, `{candidates}` and `{num_candidates}`, which is
            the true number of them. `{num_history}` may be used too.
        history_separator (`str`, *optional*, defaults to `", "`):
            Between the titles of the history.
        candidate_separator (`str`, *optional*, defaults to `", "`):
            Between the titles of the list.
        completion_prefix (`str`, *optional*, defaults to `" "`):
            Before the title in a completion.
        completion_suffix (`str`, *optional*, defaults to `""`):
            Behind the title in a completion.
        item_format (`str`, *optional*, defaults to `"{title}"`):
            What history and list show of an item, such as `"{title}[ ({genres:3})]"`, see [`item_texts`].
        completion_format (`str`, *optional*, defaults to `"{title}"`):
            What a completion says of an item, between prefix and suffix, such as `"[{genres:2}: ]{title}"`: attributes
            before the title give an item that nobody has touched a likelihood by what it is like.

    Raises:
        ValueError: a field is missing in the text or does not go with the style, the prompt does not end where a token
            ends, or a format is malformed.

    Example:
        ```python
        >>> template = PromptTemplate("mine", "history", "Seen: {history}. Next:")
        >>> template.render(["Heat (1995)", "Ran (1985)"]) + template.complete("Tampopo (1985)")
        'Seen: Heat (1995), Ran (1985). Next: Tampopo (1985)'

        ```
    """

    name: str
    style: str
    text: str
    history_separator: str = ", "
    candidate_separator: str = ", "
    completion_prefix: str = " "
    completion_suffix: str = ""
    item_format: str = TITLE_ALONE
    completion_format: str = TITLE_ALONE

    def __post_init__(self) -> None:
        where = f"template '{self.name}'"
        if self.style not in PROMPT_STYLES:
            raise ValueError(f"{where}: style {self.style!r} is none of {PROMPT_STYLES}. Pass one of them.")
        shown = ("{candidates}", "{num_candidates}")
        required = ("{history}", *(shown if self.style == "candidates" else ()))
        for placeholder in required:
            if placeholder not in self.text:
                raise ValueError(f"{where}: text lacks {placeholder}, which style '{self.style}' needs. Add it.")
        if self.style == "history" and any(placeholder in self.text for placeholder in shown):
            raise ValueError(f"{where}: text shows candidates, style 'history' does not. Pass style='candidates'.")
        try:
            for _, field, spec, conversion in string.Formatter().parse(self.text):
                if field is not None and (field not in _PLACEHOLDERS or spec or conversion):
                    raise ValueError(f"'{field}', where {_PLACEHOLDERS} are known, without format or conversion")
        except ValueError as error:
            raise ValueError(f"{where}: text {self.text!r}: unknown placeholder or brace: {error}.") from error
        for name in ("item_format", "completion_format"):
            parse_item_format(getattr(self, name), f"{where}, {name}")
        at_line_start = self.text.endswith("\n")
        prefix = self.completion_prefix
        if at_line_start:
            at_boundary = prefix == ""
        else:
            at_boundary = self.text == self.text.rstrip() and prefix[:1].isspace()
        if not at_boundary:
            raise ValueError(
                f"{where}: text ends in {self.text[-1:]!r} and completion_prefix is {prefix!r}, so the "
                "prompt would not end where a token ends. End the text without white space and begin completions with "
                "' ', or end it with a line break and begin them with ''."
            )

    def render(self, history_titles: Sequence[str], candidate_titles: Sequence[str] | None = None) -> str:
        """
        The prompt.

        Args:
            history_titles (`Sequence[str]`):
                What the user had, oldest first.
            candidate_titles (`Sequence[str]`, *optional*):
                The list in the order in which it is shown. Style `"history"` does not look at it.

        Returns:
            `str`: The prompt.

        Raises:
            ValueError: the history is empty, or the list is and the style needs it.
        """
        if not history_titles:
            raise ValueError(f"template '{self.name}': history_titles is empty. Pass at least one title.")
        if self.style == "candidates" and not candidate_titles:
            raise ValueError(f"template '{self.name}': candidate_titles is empty. Pass the list, or style 'history'.")
        shown = candidate_titles or ()
        return self.text.format(
            history=self.history_separator.join(history_titles),
            num_history=len(history_titles),
            candidates=self.candidate_separator.join(shown),
            num_candidates=len(shown),
        )

    def render_without_history(self, candidate_titles: Sequence[str] | None = None) -> str:
        """
        The prompt without any history: what is likely after it is likely for anybody. A line that holds the history
        alone is left out.

        Args:
            candidate_titles (`Sequence[str]`, *optional*):
                As in [`render`].

        Returns:
            `str`: The prompt.

        Raises:
            ValueError: nothing is left of the text, or the list is empty and the style needs it.

        Example:
            ```python
            >>> from trl_sdpo.recsys import get_template
            >>> get_template("lines").render_without_history()
            'Movies in the order in which one user watched them:\\n'

            ```
        """
        text = re.sub(r"(^|\n)\{history\}\n", r"\1", self.text)
        if self.style == "candidates" and not candidate_titles:
            raise ValueError(f"template '{self.name}': candidate_titles is empty. Pass the list, or style 'history'.")
        shown = candidate_titles or ()
        prompt = text.format(
            history="", num_history=0, candidates=self.candidate_separator.join(shown), num_candidates=len(shown)
        )
        if not prompt.strip():
            raise ValueError(f"template '{self.name}': nothing is left without the history. Put words before it.")
        return prompt

    def complete(self, title: str) -> str:
        """The completion that answers with this title, or with another text of [`answers`]."""
        return f"{self.completion_prefix}{title}{self.completion_suffix}"

    @property
    def attributes(self) -> list[str]:
        """The attributes of items that prompts or completions show."""
        return [*dict.fromkeys([*attributes_of(self.item_format), *attributes_of(self.completion_format)])]

    def shown(self, titles: Sequence[str], attributes: Mapping[str, Sequence[Any]] | None = None) -> list[str]:
        """
        Items as history and list show them: what [`render`] takes for titles.

        Args:
            titles (`Sequence[str]`):
                The titles.
            attributes (`Mapping[str, Sequence]`, *optional*):
                Their attributes, see [`item_texts`].

        Returns:
            `list[str]`: A text for each.

        Raises:
            ValueError: an attribute is missing.
        """
        return item_texts(self.item_format, titles, attributes, f"template '{self.name}', item_format")

    def answers(self, titles: Sequence[str], attributes: Mapping[str, Sequence[Any]] | None = None) -> list[str]:
        """
        Items as completions name them: what [`complete`] takes for a title.

        Args:
            titles (`Sequence[str]`), attributes (`Mapping[str, Sequence]`, *optional*):
                As in [`shown`].

        Returns:
            `list[str]`: A text for each, no two of them the same.

        Raises:
            ValueError: an attribute is missing, or two items have one answer.
        """
        where = f"template '{self.name}', completion_format"
        texts = item_texts(self.completion_format, titles, attributes, where)
        if self.completion_format != TITLE_ALONE and len({*texts}) < len({*titles}):
            places: dict[str, int] = {}
            for place, text in enumerate(texts):
                if titles[places.setdefault(text, place)] != titles[place]:
                    raise ValueError(
                        f"{where}: {titles[places[text]]!r} and {titles[place]!r} are both {text!r}. Tell them apart by "
                        "another format."
                    )
        return texts

    def before_titles(self, titles: Sequence[str], attributes: Mapping[str, Sequence[Any]] | None = None) -> list[str]:
        """What stands before the title in each text of [`answers`]: attributes, or nothing."""
        starts = title_starts(self.completion_format, titles, attributes, f"template '{self.name}', completion_format")
        return [text[:start] for text, start in zip(self.answers(titles, attributes), starts, strict=True)]
