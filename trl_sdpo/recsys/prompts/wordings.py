"""The wordings that the package has, for each kind of item."""

from dataclasses import dataclass
from functools import partial

from .templates import PROMPT_STYLES, PromptTemplate


@dataclass(frozen=True)
class _Words:
    one: str
    many: str
    do: str
    does: str
    did: str
    done: str
    name: str = "title"


_WORDS = {
    "movies": _Words("movie", "movies", "watch", "watches", "watched", "watched"),
    "books": _Words("book", "books", "read", "reads", "read", "read"),
    "music": _Words("artist", "artists", "hear", "hears", "heard", "heard", name="name"),
    "games": _Words("game", "games", "play", "plays", "played", "played"),
    "items": _Words("item", "items", "choose", "chooses", "chose", "chosen", name="name"),
}
DOMAINS = tuple(_WORDS)


def _template(domain: str, style: str, name: str, text: str, separator: str, **affixes: str) -> PromptTemplate:
    separators = {"history_separator": separator}
    if style == "candidates":
        separators["candidate_separator"] = separator
    return PromptTemplate(name if domain == "movies" else f"{domain}-{name}", style, text, **separators, **affixes)


def _history_templates(domain: str) -> tuple[PromptTemplate, ...]:
    words, make = _WORDS[domain], partial(_template, domain, "history")
    return (
        # A title of the history stands in the very form of a completion, so that every one of them teaches the next.
        make(
            "lines",
            f"{words.many.capitalize()} in the order in which one user {words.did} them:\n{{history}}\n",
            "\n",
            completion_prefix="",
            completion_suffix="\n",
        ),
        make("watched", f"This user has {words.done} {{history}}. Next:", ", "),
        make(
            "question",
            f"A user {words.did} these {words.many}, oldest first: {{history}}\n"
            f"Which {words.one} does the user {words.do} next?\nAnswer:",
            "; ",
        ),
    )


def _candidate_templates(domain: str) -> tuple[PromptTemplate, ...]:
    words, make = _WORDS[domain], partial(_template, domain, "candidates")
    return (
        make(
            "choose",
            f"This user has {words.done} these {words.many}, oldest first:\n{{history}}\n"
            f"Choose the {words.one} that the user {words.does} next from these {{num_candidates}}:\n"
            "{candidates}\nAnswer:",
            "\n",
        ),
        make(
            "recommend",
            f"You recommend {words.many}. A user {words.did}, in this order: {{history}}. There are "
            "{num_candidates} candidates: {candidates}. "
            f"Recommend exactly one of them by its {words.name}.\nRecommendation:",
            "; ",
        ),
        make(
            "predict",
            f"Candidates ({{num_candidates}}): {{candidates}}\n{words.done.capitalize()} so far: {{history}}\n"
            f"One of the candidates is {words.done} next. It is",
            " | ",
        ),
        # Behind the list it is the history template of lines, so that a model of that one knows how to go on.
        make(
            "list-and-lines",
            f"One of these {{num_candidates}} {words.many} comes next:\n{{candidates}}\n"
            f"{words.many.capitalize()} in the order in which one user {words.did} them:\n{{history}}\n",
            "\n",
            completion_prefix="",
            completion_suffix="\n",
        ),
    )


HISTORY_TEMPLATES, CANDIDATE_TEMPLATES = _history_templates("movies"), _candidate_templates("movies")
TEMPLATES = {
    template.name: template
    for domain in DOMAINS
    for template in (*_history_templates(domain), *_candidate_templates(domain))
}


def get_template(name: str) -> PromptTemplate:
    """
    A template of this package by its name.

    Args:
        name (`str`):
            One of the keys of `TEMPLATES`.

    Returns:
        [`PromptTemplate`]: The template.

    Raises:
        ValueError: there is none of this name.

    Example:
        ```python
        >>> get_template("watched").render(["Heat (1995)"])
        'This user has watched Heat (1995). Next:'

        ```
    """
    if name not in TEMPLATES:
        raise ValueError(f"template {name!r} is none of {list(TEMPLATES)}. Pass one of them or a PromptTemplate.")
    return TEMPLATES[name]


def select_templates(
    style: str, template: str | PromptTemplate | None, domain: str = "movies"
) -> tuple[PromptTemplate, ...]:
    """
    The templates to draw from: one, or all of the style for `"random"`.

    Args:
        style (`str`):
            `"history"` or `"candidates"`.
        template (`str` or [`PromptTemplate`], *optional*):
            A name, with or without the domain before it, a template, `"random"`, or `None` for the first of the style.
        domain (`str`, *optional*, defaults to `"movies"`):
            What the items are: `"movies"`, `"books"`, `"music"`, `"games"` or `"items"`.

    Returns:
        `tuple[PromptTemplate, ...]`: At least one template.

    Raises:
        ValueError: style, name or domain is unknown, or the template is of the other style.

    Example:
        ```python
        >>> [template.name for template in select_templates("history", "random")]
        ['lines', 'watched', 'question']

        ```
    """
    if style not in PROMPT_STYLES:
        raise ValueError(f"prompt style {style!r} is none of {PROMPT_STYLES}. Pass one of them.")
    if domain not in DOMAINS:
        raise ValueError(f"domain {domain!r} is none of {DOMAINS}. Pass one of them.")
    of_style = _history_templates(domain) if style == "history" else _candidate_templates(domain)
    if template == "random":
        return of_style
    if template is None:
        return of_style[:1]
    if isinstance(template, str) and f"{domain}-{template}" in TEMPLATES:
        template = f"{domain}-{template}"
    chosen = template if isinstance(template, PromptTemplate) else get_template(template)
    if chosen.style != style:
        names = [one.name for one in of_style]
        raise ValueError(f"template '{chosen.name}' has style '{chosen.style}', not '{style}'. Pass one of {names}.")
    return (chosen,)
