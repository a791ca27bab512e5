"""Which candidate an answer names."""

import unicodedata
from collections.abc import Iterable, Sequence


MATCHING_RULES = ("whole", "substring")
# What a model writes around a title without meaning another one. Brackets are not among them: a year ends in one.
_SURROUNDING = " \t\r\n\"'`“”‘’„‚«»‹›*_.,;:!"


def normalize_title(text: str) -> str:
    """
    A title without what does not tell titles apart.

    Letters are composed (Unicode NFC) and of one case, every run of white space is one space, and white space, quotes,
    asterisks, underscores and the marks `.,;:!` are gone from both ends, unless nothing else is there.

    Args:
        text (`str`):
            A title, or the answer of a model.

    Returns:
        `str`: The normalised title.

    Example:
        ```python
        >>> normalize_title(' "The  Usual Suspects (1995)".\\n')
        'the usual suspects (1995)'
        >>> normalize_title("!!!")
        '!!!'

        ```
    """
    text = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return text.strip(_SURROUNDING) or text


def match_title(answer: str, candidates: Sequence[str], rule: str = "whole") -> int | None:
    """
    The candidate that an answer names, if it names exactly one.

    `"whole"`: the answer is the title of the candidate, compared as [`normalize_title`] has them. Where several
    candidates have that normalised title, the answer must be one of them to the letter. `"substring"`: the title of
    the candidate, in lower case, is part of the answer, and that of no other candidate is. This is the rule of the
    published evaluations of LLaRA and S-DPO, here for comparison: a title that contains the title of another
    candidate can never count under it, and an answer that names a candidate among other words does.

    Args:
        answer (`str`):
            What the model wrote.
        candidates (`Sequence[str]`):
            The titles.
        rule (`str`, *optional*, defaults to `"whole"`):
            `"whole"` or `"substring"`.

    Returns:
        `int` or `None`: The index of the candidate, `None` if the answer names none or more than one.

    Raises:
        ValueError: the rule is unknown, or there are no candidates.

    Example:
        ```python
        >>> match_title("Rocky II (1979)\\n", ["Rocky (1976)", "Rocky II (1979)"])
        1
        >>> match_title("Rocky II", ["Rocky", "Rocky II"])
        1
        >>> match_title("Rocky II", ["Rocky", "Rocky II"], rule="substring")  # names both
        >>> match_title("I say Rocky", ["Rocky", "Jaws"], rule="substring")
        0

        ```
    """
    if rule not in MATCHING_RULES:
        raise ValueError(f"rule={rule!r} is none of {MATCHING_RULES}. Pass one of them.")
    if len(candidates) == 0:
        raise ValueError("candidates is empty. Pass the titles that the answer may name.")
    if rule == "substring":
        text = answer.lower()
        return _only(index for index, title in enumerate(candidates) if title.strip().lower() in text)
    wanted = normalize_title(answer)
    matches = [index for index, title in enumerate(candidates) if normalize_title(title) == wanted]
    if len(matches) > 1:
        matches = [index for index in matches if candidates[index].strip() == answer.strip()]
    return _only(matches)


def _only(indices: Iterable[int]) -> int | None:
    indices = list(indices)
    return indices[0] if len(indices) == 1 else None
