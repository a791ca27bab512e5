"""What a page does with a history: find titles for it, load a test user's, change it to see what a list depends on."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..recsys.metrics.matching import normalize_title


if TYPE_CHECKING:
    from datasets import Dataset

    from ..recsys.records.recommender_files import Catalogue

AS_IT_IS, SHUFFLED, WITHOUT = "as it is", "shuffled", "without one item"
VARIATIONS = (AS_IT_IS, SHUFFLED, WITHOUT)


class KnownUser(NamedTuple):
    """A record of the test: whose it is, item ids of the history, oldest first, and of what came next."""

    name: str
    history: list[str]
    target: str


class TitleSearch:
    """
    Finds titles by the words in them.

    Args:
        catalogue ([`Catalogue`]):
            The titles, and the number of training events, by which the most known stand first.
    """

    def __init__(self, catalogue: "Catalogue") -> None:
        counts = catalogue.train_counts or [0] * len(catalogue)
        order = sorted(range(len(catalogue)), key=lambda row: (-counts[row], catalogue.titles[row]))
        self._rows = [(normalize_title(catalogue.titles[row]), catalogue.item_ids[row]) for row in order]

    def find(self, text: str, limit: int = 12) -> list[str]:
        """
        Ids of titles in which every word of the text begins a word, at most `limit`; the most known ones for no text.

        Example:
            ```python
            >>> from trl_sdpo import Catalogue
            >>> search = TitleSearch(Catalogue(["1", "2"], ["Heat (1995)", "The Great Heart (1938)"]))
            >>> search.find("hea"), search.find("great hea")
            (['1', '2'], ['2'])

            ```
        """
        words = normalize_title(text).split()
        found = []
        for title, item_id in self._rows:
            if all(title.startswith(word) or f" {word}" in title or f"({word}" in title for word in words):
                found.append(item_id)
                if len(found) == limit:
                    break
        return found


def vary(history: Sequence[str], variation: str, without: str | None = None, seed: int = 0) -> list[str]:
    """
    A history changed.

    Args:
        history (`Sequence[str]`):
            Item ids, oldest first.
        variation (`str`):
            One of `VARIATIONS`.
        without (`str`, *optional*):
            The item that is left out.
        seed (`int`, *optional*, defaults to `0`):
            Of the shuffled order.

    Returns:
        `list[str]`: Item ids; empty where nothing is left.
    """
    if variation == WITHOUT:
        return [item_id for item_id in history if item_id != without]
    changed = list(history)
    if variation == SHUFFLED:
        random.Random(seed).shuffle(changed)
    return changed


def users_of(records: "Dataset", catalogue: "Catalogue", limit: int = 100) -> list[KnownUser]:
    """
    The first record of each user of a prepared data set, at most `limit`.

    Raises:
        ValueError: records do not hold ids, so they are none of `trl-sdpo prepare`.
    """
    needed = {"user_id", "history_item_ids", "item_id"}
    missing = needed - set(records.column_names)
    if missing:
        raise ValueError(
            f"The test records have no columns {sorted(missing)}, so their histories cannot be shown. Pass the directory "
            "that `trl-sdpo prepare` wrote."
        )
    known, users = set(catalogue.item_ids), {}
    for row in records.select_columns(sorted(needed)):
        name, history = str(row["user_id"]), [str(item) for item in row["history_item_ids"]]
        if name not in users and known.issuperset(history):
            users[name] = KnownUser(name, history, str(row["item_id"]))
            if len(users) == limit:
                break
    return list(users.values())
