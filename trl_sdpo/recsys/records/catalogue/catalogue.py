"""What can be recommended."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from .columns import ParquetColumn


@dataclass(frozen=True)
class Catalogue:
    """
    What can be recommended: the contents of `catalogue.json`, or of the `catalogue.parquet` that a large one is. Columns
    are tuples; those of a file are read when they are first asked for.

    Args:
        item_ids (`Sequence[str]`):
            The ids, which become strings.
        titles (`Sequence[str]`):
            The title of every id.
        train_counts (`Sequence[int]`, *optional*):
            Training events of every item, for popularity.
        attributes (`Mapping[str, Sequence]`, *optional*):
            What else is known of every item, by the name of the attribute, such as `"genres"`: a text, a number, a list of
            texts, or `None`.

    Raises:
        ValueError: there are no items, the columns differ in length, an id or a title occurs twice, or one is empty.

    Example:
        ```python
        >>> Catalogue(item_ids=[1, 2], titles=["Heat (1995)", "Ran (1985)"]).item_ids
        ('1', '2')

        ```
    """

    item_ids: Sequence[str]
    titles: Sequence[str]
    train_counts: Sequence[int] | None = None
    attributes: Mapping[str, Sequence[Any]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "item_ids", _column(self.item_ids, str))
        object.__setattr__(self, "titles", _column(self.titles))
        if self.train_counts is not None:
            object.__setattr__(self, "train_counts", _column(self.train_counts, int))
        if len(self.item_ids) == 0:
            raise ValueError("catalogue: no items. Pass at least one.")
        object.__setattr__(self, "attributes", {name: _column(one) for name, one in (self.attributes or {}).items()})
        columns = {"titles": self.titles, "train_counts": self.train_counts, **self.attributes}
        for name, column in columns.items():
            if column is not None and len(column) != len(self.item_ids):
                raise ValueError(
                    f"catalogue: {len(self.item_ids)} item_ids and {len(column)} {name}. Pass as many of each."
                )
        for name in ("item_ids", "titles"):
            _check_distinct(name, getattr(self, name))

    def add(
        self,
        item_ids: Sequence[str],
        titles: Sequence[str],
        attributes: Mapping[str, Sequence[Any]] | None = None,
    ) -> "Catalogue":
        """
        The catalogue with new items behind its own: items without events, which a model can recommend at once, by their
        titles and attributes.

        Args:
            item_ids (`Sequence[str]`):
                Their ids.
            titles (`Sequence[str]`):
                Their titles.
            attributes (`Mapping[str, Sequence]`, *optional*):
                What else is known of them. One that is not given is missing.

        Returns:
            [`Catalogue`]: Another one. Where training events are counted, new items have none.

        Raises:
            ValueError: an id or a title is there already or empty, columns differ in length, or an attribute is none of
                the catalogue, so that no prompt would show it.

        Example:
            ```python
            >>> catalogue = Catalogue(["1", "2"], ["Heat (1995)", "Ran (1985)"], [7, 5], {"genres": [["Crime"], ["War"]]})
            >>> more = catalogue.add(["n1"], ["Tampopo (1985)"], {"genres": [["Comedy"]]})
            >>> more.item_ids, more.train_counts, more.attributes["genres"]
            (('1', '2', 'n1'), (7, 5, 0), (['Crime'], ['War'], ['Comedy']))

            ```
        """
        item_ids, titles, attributes = list(map(str, item_ids)), list(titles), dict(attributes or {})
        unknown = [name for name in attributes if name not in self.attributes]
        if unknown:
            known = ", ".join(self.attributes) or "no attributes"
            raise ValueError(
                f"new items: {unknown[0]!r} is no attribute of the catalogue, which has {known}. Leave it out."
            )
        for name, column in {"titles": titles, **attributes}.items():
            if len(column) != len(item_ids):
                raise ValueError(
                    f"new items: {len(item_ids)} item_ids and {len(column)} {name}. Pass as many of each."
                )
        counts = None if self.train_counts is None else [*self.train_counts, *[0] * len(item_ids)]
        more = {
            name: [*values, *attributes.get(name, [None] * len(item_ids))] for name, values in self.attributes.items()
        }
        return Catalogue([*self.item_ids, *item_ids], [*self.titles, *titles], counts, more)

    def __len__(self) -> int:
        return len(self.item_ids)


def _column(values: Sequence[Any], convert: Callable[[Any], Any] | None = None) -> Sequence[Any]:
    if isinstance(values, ParquetColumn):
        return values
    return tuple(values) if convert is None else tuple(map(convert, values))


def _check_distinct(name: str, values: Sequence[str]) -> None:
    if isinstance(values, ParquetColumn) and _are_distinct_texts(values):
        return
    rows: dict[str, int] = {}
    for row, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"catalogue: row {row}, {name}: {value!r} is no text. Fill it in or remove the row.")
        if value in rows:
            raise ValueError(
                f"catalogue: row {row}, {name}: {value!r} stands in row {rows[value]} already. Keep one of them."
            )
        rows[value] = row


def _are_distinct_texts(column: ParquetColumn) -> bool:
    texts = pl.Series(column.values)
    return not (texts.is_null() | (texts.str.strip_chars() == "")).any() and texts.n_unique() == len(texts)
