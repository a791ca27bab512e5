"""What prompts and completions say of an item: its title, and what else is known of it."""

import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any


TITLE_ALONE = "{title}"
_TITLE = "title"
_BRACKETS = re.compile(r"\[\[|\]\]|\[|\]")
# A piece of a format: words, and the name and the limit of what stands behind them.
_Piece = tuple[str, str | None, int | None]


def parse_item_format(text: str, where: str) -> list[tuple[bool, list[_Piece]]]:
    """
    The parts of the format of an item.

    Args:
        text (`str`):
            Such as `"{title} ({genres})"` or `"{title}[ ({genres:2}[[...]])]"`, see [`item_texts`].
        where (`str`):
            Where it stands, for messages.

    Returns:
        `list[tuple[bool, list]]`: For each part whether it may be left out, and its pieces.

    Raises:
        ValueError: brackets or braces do not come in pairs, `{title}` is missing or optional, a limit is no number, or
            there is a line break.
    """
    if not isinstance(text, str) or "\n" in text or "\r" in text:
        raise ValueError(f"{where}: {text!r} is no text of one line. Pass one, such as '{{title}} ({{genres}})'.")
    parts: list[tuple[bool, str]] = [(False, "")]
    begin = 0
    for match in [*_BRACKETS.finditer(text), None]:
        optional, words = parts[-1]
        words += text[begin : match.start() if match else None]
        parts[-1] = optional, words
        if match is None:
            break
        begin = match.end()
        if len(match[0]) == 2:
            parts[-1] = optional, words + match[0][0]
        elif (match[0] == "[") == optional:
            raise ValueError(f"{where}: {text!r}: brackets do not come in pairs. Write '[[' for a bracket itself.")
        else:
            parts.append((match[0] == "[", ""))
    if parts[-1][0]:
        raise ValueError(f"{where}: {text!r}: a bracket is not closed. Write '[[' for a bracket itself.")
    parsed = [(optional, _pieces(words, text, where)) for optional, words in parts if words]
    if not any(field == _TITLE for optional, pieces in parsed if not optional for _, field, _ in pieces):
        raise ValueError(f"{where}: {text!r} lacks {{title}} outside of brackets. Add it.")
    return parsed


def _pieces(words: str, text: str, where: str) -> list[_Piece]:
    try:
        found = [*string.Formatter().parse(words)]
    except ValueError as error:
        raise ValueError(f"{where}: {text!r}: {error}. Write '{{{{' for a brace itself.") from error
    pieces: list[_Piece] = []
    for literal, field, limit, conversion in found:
        if field is not None and (not field or conversion or (limit and not re.fullmatch("[1-9][0-9]*", limit))):
            raise ValueError(
                f"{where}: {text!r}: {{{field}{(conversion and '!' + conversion) or ''}{(limit and ':' + limit) or ''}}} is no "
                "name with, behind a colon, how many characters or entries to show at most."
            )
        pieces.append((literal, field, int(limit) if limit else None))
    return pieces


def attributes_of(text: str) -> list[str]:
    """
    The attributes that the format of an item names, `title` aside.

    Example:
        ```python
        >>> attributes_of("{title}[ ({genres:2}, {year})]")
        ['genres', 'year']

        ```
    """
    fields = [field for _, pieces in parse_item_format(text, "format") for _, field, _ in pieces]
    return [field for field in dict.fromkeys(fields) if field not in (None, _TITLE)]


def item_texts(
    text: str, titles: Sequence[str], attributes: Mapping[str, Sequence[Any]] | None = None, where: str = "format"
) -> list[str]:
    """
    Items in the words of a format.

    What stands in brackets is left out for an item that lacks an attribute in it; an item that lacks one outside of
    brackets is its title alone. A text is its white space made single, a list its entries with commas between, a whole
    number that has become a float one again. `{genres:2}` shows two entries at most, `{description:80}` whole words of
    80 characters at most. `[[`, `]]`, `{{` and `}}` are brackets and braces themselves.

    Args:
        text (`str`):
            The format.
        titles (`Sequence[str]`):
            The titles of `n` items.
        attributes (`Mapping[str, Sequence]`, *optional*):
            `n` values by the name of an attribute: texts, numbers, lists of texts, or `None`.
        where (`str`, *optional*, defaults to `"format"`):
            What messages call the format.

    Returns:
        `list[str]`: Of length `n`.

    Raises:
        ValueError: the format is malformed, or names an attribute that the items do not have.

    Example:
        ```python
        >>> attributes = {"genres": [["Crime", "Drama"], None], "year": [1995, 1985]}
        >>> item_texts("{title}[ ({genres})], {year}", ["Heat", "Ran"], attributes)
        ['Heat (Crime, Drama), 1995', 'Ran, 1985']

        ```
    """
    return [shown for shown, _ in _texts_and_starts(text, titles, attributes, where)]


def title_starts(
    text: str, titles: Sequence[str], attributes: Mapping[str, Sequence[Any]] | None = None, where: str = "format"
) -> list[int]:
    """
    Where the title begins in each text of [`item_texts`], in characters.

    Example:
        ```python
        >>> title_starts("[{genres}: ]{title}", ["Heat", "Ran"], {"genres": [["Crime"], None]})
        [7, 0]

        ```
    """
    return [start for _, start in _texts_and_starts(text, titles, attributes, where)]


def _texts_and_starts(
    text: str, titles: Sequence[str], attributes: Mapping[str, Sequence[Any]] | None, where: str
) -> list[tuple[str, int]]:
    parts, attributes = parse_item_format(text, where), attributes or {}
    if text == TITLE_ALONE:
        return [(title, 0) for title in titles]
    missing = [name for name in attributes_of(text) if name not in attributes]
    if missing:
        raise ValueError(
            f"{where}: {text!r} shows {', '.join(missing)}, and the items have {', '.join(attributes) or 'no attributes'}. "
            f"Keep it when the source is read (attributes={missing[0]!r}), or change the format."
        )
    names = [_TITLE, *attributes_of(text)]
    columns = [titles, *(attributes[name] for name in names[1:])]
    return [_text(parts, dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def _text(parts: list[tuple[bool, list[_Piece]]], values: dict[str, Any]) -> tuple[str, int]:
    """An item in the words of a format, and where its title begins."""
    texts, start = "", None
    for optional, pieces in parts:
        shown = [None if field is None else _shown(values[field], limit) for _, field, limit in pieces]
        if any(field is not None and not value for (_, field, _), value in zip(pieces, shown, strict=True)):
            if optional:
                continue
            return values[_TITLE], 0
        for (literal, field, _), value in zip(pieces, shown, strict=True):
            texts += literal
            if field == _TITLE and start is None:
                start = len(texts)
            texts += value or ""
    return texts, start or 0


def _shown(value: Any, limit: int | None) -> str:
    """A value as text; empty where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, (list, tuple)):
        entries = [text for text in (_shown(one, None) for one in value) if text]
        return ", ".join(entries[:limit])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    words = str(value).split()
    text = " ".join(words)
    if limit is None or len(text) <= limit:
        return text
    while len(words) > 1 and len(" ".join(words)) > limit:
        words.pop()
    return " ".join(words)[:limit]
