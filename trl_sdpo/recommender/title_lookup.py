"""What a user of a recommender may mean: one history or several, one list of candidates or one for each, a title or an id."""

import difflib
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers.utils import logging

from ..recsys.interactions.readers.histories import ItemId, Title
from ..recsys.interactions.titles import canonical_title
from ..recsys.metrics.matching import normalize_title
from ..recsys.records.catalogue.columns import ParquetColumn, TextRows
from ..recsys.records.recommender_files import Catalogue


logger = logging.get_logger(__name__)

UNKNOWN_TITLES = ("error", "keep")
# Titles that are compared letter by letter to find the nearest; a second's work.
_MOST_COMPARED = 20_000
# More than so many titles take seconds to index, which is said.
_SAID = 200_000


def where(name: str, index: int, single: bool) -> str:
    """What messages call a history or a list."""
    return name if single else f"{name}, row {index}"


def is_nested(rows: Any, name: str) -> bool:
    """Whether there are several lists, and not one."""
    if isinstance(rows, str) or not isinstance(rows, Sequence | np.ndarray) or not len(rows):
        raise ValueError(f"{name}: {rows!r} is no list with something in it. Pass a list of titles or ids.")
    return not isinstance(rows[0], str) and isinstance(rows[0], Sequence | np.ndarray)


def one_for_each(candidates: Any, count: int) -> list:
    """A list of candidates for each history."""
    if not is_nested(candidates, "candidates"):
        return [candidates] * count
    if len(candidates) != count:
        raise ValueError(
            f"candidates has {len(candidates)} rows for {count} histories. Pass one for each, or one list."
        )
    return list(candidates)


class TitleLookup:
    """
    Finds items of a catalogue by title or id.

    Args:
        catalogue ([`Catalogue`], *optional*):
            The items. Without, every title is taken as it is, and nothing is known by an id.
    """

    def __init__(self, catalogue: Catalogue | None) -> None:
        self.titles = () if catalogue is None else catalogue.titles
        self.item_ids = () if catalogue is None else catalogue.item_ids
        self._by_title, self._by_id = _rows(self.titles), _rows(self.item_ids)
        self._keys: tuple[np.ndarray, np.ndarray] | None = None  # hashes of keys, sorted, and the rows of these

    def find(self, value: Any, where: str, unknown: str = "error") -> tuple[int | None, str]:
        """
        The item that a title or an id means.

        A number or an [`ItemId`] is an id, and a [`Title`] is a title. Another text is a title, in the letters of the catalogue or, where that leaves one item, without
        regard to case, white space, quotes and the place of an article; or else an id.

        Args:
            value (`str` or `int`):
                Title or id.
            where (`str`):
                Where it stands, for messages.
            unknown (`str`, *optional*, defaults to `"error"`):
                What becomes of a title that is not in the catalogue: `"error"`, or `"keep"` to take it as it is, with a
                warning.

        Returns:
            `tuple[int | None, str]`: Its row in the catalogue, `None` for a title that is not there, and its title.

        Raises:
            ValueError: it is not in the catalogue, is a title of one item and the id of another, or is no text.
        """
        if isinstance(value, ItemId):
            return self.find_id(str(value), value.where or where)
        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            return self.find_id(str(value), where)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(
                f"{where}: {value!r} is neither a title nor an id. Pass a text, or the number of an item."
            )
        where = getattr(value, "where", "") or where
        by_title, by_id = self._find_title(value), None if isinstance(value, Title) else self._by_id.get(value)
        if by_title is not None and by_id is not None and by_title != by_id:
            raise ValueError(
                f"{where}: {value!r} is the id of {self.titles[by_id]!r} and the title of the item "
                f"{self.item_ids[by_title]!r}. Pass ids as numbers: {value} or {self.item_ids[by_title]}; or say which it is: "
                f"ItemId({str(value)!r}) or Title({str(value)!r}), in a csv a column item_id or title."
            )
        index = by_id if by_title is None else by_title
        if index is not None:
            return index, self.titles[index]
        if not self.titles:
            return None, value
        problem = f"{where}: {value!r} is no title and no id of the catalogue.{self._nearest(value)}"
        if unknown == "error":
            raise ValueError(f'{problem} Correct it, or pass unknown_titles="keep" to take it as it is.')
        logger.warning(f"{problem} It is taken as it is.")
        return None, value

    def find_id(self, item_id: str | int, where: str) -> tuple[int, str]:
        """
        The item of an id, whatever titles there are: its row in the catalogue, and its title.

        Raises:
            ValueError: there is none. The message begins with `where`.
        """
        index = self._by_id.get(str(item_id))
        if index is None:
            raise ValueError(f"{where}: {self._no_such_id(item_id)}")
        return index, self.titles[index]

    def find_title(self, title: str, where: str) -> tuple[int, str]:
        """
        The item of a title, whatever ids there are: its row in the catalogue, and the title as it stands there.

        Raises:
            ValueError: there is none. The message begins with `where`.
        """
        index = self._find_title(title)
        if index is None:
            raise ValueError(f"{where}: {title!r} is no title of the catalogue.{self._nearest(title)} Correct it.")
        return index, self.titles[index]

    def title_of(self, item_id: str, where: str) -> str:
        """
        The title of an id.

        Raises:
            ValueError: there is none. The message begins with `where`.
        """
        return self.find_id(item_id, where)[1]

    def id_of(self, index: int | None) -> str | None:
        """The id of a row of the catalogue."""
        return None if index is None else self.item_ids[index]

    def _find_title(self, value: str) -> int | None:
        row = self._by_title.get(value)
        if row is not None:
            return row
        if self._keys is None:
            if len(self.titles) > _SAID:
                logger.info(f"Making an index of {len(self.titles)} titles, for those that are written otherwise.")
            hashes = np.fromiter((hash(_key(title)) for title in self.titles), np.int64, len(self.titles))
            order = np.argsort(hashes, kind="stable")
            self._keys = hashes[order], order
        hashes, order = self._keys
        key = _key(value)
        first, last = (int(np.searchsorted(hashes, hash(key), side)) for side in ("left", "right"))
        found = [int(row) for row in order[first:last] if _key(self.titles[int(row)]) == key]
        return found[0] if len(found) == 1 else None

    def _no_such_id(self, value: object) -> str:
        if not self.item_ids:
            return f"the id {value} means nothing without a catalogue. Pass titles, or `catalogue=`."
        return f"{value} is no id of the {len(self.item_ids)} items of the catalogue. Pass one, or a title."

    def _nearest(self, value: str) -> str:
        titles = _sharing_a_word(value, self.titles) if len(self.titles) > _MOST_COMPARED else self.titles
        by_key = {_key(title): title for title in titles[:_MOST_COMPARED]}
        near = difflib.get_close_matches(_key(value), by_key, n=3)
        return f" Did you mean {' or '.join(repr(by_key[key]) for key in near)}?" if near else ""


def _rows(texts: Sequence[str]) -> dict[str, int] | TextRows:
    """The row of each text."""
    if isinstance(texts, ParquetColumn):
        return TextRows(texts)
    return {text: row for row, text in enumerate(texts)}


def _key(title: str) -> str:
    # an article is known by its capital letter
    return normalize_title(canonical_title(title.title()))


def _sharing_a_word(value: str, titles: Sequence[str]) -> list[str]:
    longest = max(_key(value).split(), key=len, default="")
    return [title for title in titles if longest in title.casefold()]
