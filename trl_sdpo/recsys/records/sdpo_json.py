"""Records as S-DPO, DynamicPO and RecPO publish them: json of histories, lists and selections, without users or times."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..interactions.readers.json_lines import strict_json, value_problem
from ..interactions.readers.text_files import TextFile
from ..prompts.templates import PromptTemplate
from ..prompts.wordings import select_templates


logger = logging.getLogger(__name__)

HISTORY, CANDIDATES, SELECTION = "historyList", "itemList", "trueSelection"
SEPARATOR = "::"


def load_sdpo_json(
    path: str | Path, prompt_style: str = "candidates", template: str | PromptTemplate | None = None
) -> Dataset:
    """
    Read a published file of S-DPO records as multi-preference records.

    Such a file holds a list of `{"historyList": "a::b::c" or a list, "itemList": titles, "trueSelection": title}`. It
    names neither users nor times, so it gives records and no [`Interactions`]. In the files published with the S-DPO
    paper (https://huggingface.co/papers/2406.09215) the lists are drawn with the target as the seed, so that the list
    tells the target: a lookup that never sees the history finds it in about half of the records.

    Args:
        path (`str` or `Path`):
            The json file.
        prompt_style (`str`, *optional*, defaults to `"candidates"`):
            `"history"`, or `"candidates"` to show the list in the prompt.
        template (`str` or [`PromptTemplate`], *optional*):
            A name or a template. By default the first of the style.

    Returns:
        `Dataset`: `prompt`, `chosen`, `rejected` and `candidates`, in the order of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no json list, or a record lacks a key, has an empty history, a list without its
            selection or with an item twice, or a history in one text with a title in it that has the separator in
            it. The message names file, record, key, value and remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file. Pass the json file of the records.")
    file = TextFile(path)  # what it reads from may go with it
    try:
        rows = strict_json(file.path.read_bytes().decode(), str(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a whole json file ({error}). Download it again.") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: expected a list of records, got {type(rows).__name__} {str(rows)[:80]!r}.")
    templates = select_templates(prompt_style, template)
    if len(templates) > 1:
        raise ValueError("template 'random' needs a user and a position to draw by, which these records do not have.")
    return from_sdpo_rows(rows, templates[0], str(path))


def from_sdpo_rows(rows: Sequence[dict[str, Any]], template: PromptTemplate, source: str = "rows") -> Dataset:
    """
    Turn rows of `historyList`, `itemList` and `trueSelection` into multi-preference records.

    Args:
        rows (`Sequence[dict]`):
            The rows.
        template ([`PromptTemplate`]):
            The words around the titles.
        source (`str`, *optional*, defaults to `"rows"`):
            Where the rows come from, for errors.

    Returns:
        `Dataset`: `prompt`, `chosen`, `rejected` and `candidates`, in order.

    Raises:
        ValueError: a row is malformed, see [`load_sdpo_json`].

    Example:
        ```python
        >>> from trl_sdpo.recsys import get_template
        >>> row = {"historyList": "Heat::Ran", "itemList": ["Big", "Alien"], "trueSelection": "Alien"}
        >>> record = from_sdpo_rows([row], get_template("watched"))[0]
        >>> record["prompt"], record["chosen"], record["rejected"]
        ('This user has watched Heat, Ran. Next:', ' Alien', [' Big'])

        ```
    """
    ambiguous = _titles_with_separator(rows)
    records: dict[str, list] = {"prompt": [], "chosen": [], "rejected": [], "candidates": []}
    for number, row in enumerate(rows):
        history, candidates, target = _check_row(row, f"{source}, record {number}", ambiguous)
        records["prompt"].append(template.render(history, candidates))
        records["chosen"].append(template.complete(target))
        records["rejected"].append([template.complete(title) for title in candidates if title != target])
        records["candidates"].append(candidates)
    logger.info("%s: %d records, none dropped.", source, len(rows))
    return Dataset.from_dict(records)


def _titles_with_separator(rows: Sequence[Any]) -> list[str]:
    lists = [row.get(CANDIDATES) for row in rows if isinstance(row, dict)]
    titles = {title for each in lists if isinstance(each, list) for title in each if isinstance(title, str)}
    return sorted(title for title in titles if SEPARATOR in title)


def _check_row(row: Any, where: str, ambiguous: Sequence[str]) -> tuple[list[str], list[str], str]:
    for key in (HISTORY, CANDIDATES, SELECTION):
        if not isinstance(row, dict) or not row.get(key):
            raise ValueError(f"{where}: {key} is missing or empty, got {str(row)[:200]!r}. Remove the record.")
    history, candidates, target = row[HISTORY], row[CANDIDATES], row[SELECTION]
    if isinstance(history, str):
        cut = next((title for title in ambiguous if title in history), None)
        if cut is not None:
            raise ValueError(
                f"{where}: {HISTORY} would be cut inside the title {cut!r}, which has the separator {SEPARATOR!r} in "
                f"it. Give {HISTORY} as a list of titles."
            )
        if SEPARATOR + SEPARATOR[0] in history and SEPARATOR * 2 not in history:
            raise ValueError(
                f"{where}: {HISTORY} {history!r} has a title that begins or ends with {SEPARATOR[0]!r}, so that nobody "
                f"knows where it is to be cut. Give {HISTORY} as a list of titles."
            )
        history = history.split(SEPARATOR)
    for key, titles in ((HISTORY, history), (CANDIDATES, candidates)):
        bad = None if isinstance(titles, list) else titles
        if bad is None:
            bad = next((title for title in titles if not _is_title(title)), None)
        if bad is not None:
            raise ValueError(f"{where}: {key} holds {bad!r} where a title is expected. Correct or remove the record.")
    if target not in candidates:
        raise ValueError(f"{where}: {SELECTION} {target!r} is not in {CANDIDATES}. Correct or remove the record.")
    if len(candidates) < 2:
        raise ValueError(
            f"{where}: {CANDIDATES} holds nothing but {target!r}, so there is no rejected. Remove the record."
        )
    plain = [" ".join(title.split()) for title in candidates]
    twice = next((title for title, text in zip(candidates, plain, strict=True) if plain.count(text) > 1), None)
    if twice is not None:
        raise ValueError(
            f"{where}: {CANDIDATES} holds {twice!r} twice, white space aside. Remove one of them, or the record."
        )
    return history, candidates, target


def _is_title(title: Any) -> bool:
    return isinstance(title, str) and bool(title.strip()) and value_problem(title) is None
