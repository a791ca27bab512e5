"""What publishers tell of an item beside its title: columns of the items, for those who ask for them."""

from collections.abc import Sequence

import polars as pl

from .interactions import ITEM_ID, TITLE


def wanted_attributes(attributes: str | Sequence[str], known: Sequence[str] | None, source: str) -> tuple[str, ...]:
    """
    The names of attributes that a loader is asked for.

    Args:
        attributes (`str` or `Sequence[str]`):
            Names, or one text of them with commas between.
        known (`Sequence[str]`, *optional*):
            What the source has. If `None`, any column.
        source (`str`):
            What messages call it.

    Returns:
        `tuple[str, ...]`: The names, each once.

    Raises:
        ValueError: there is no such attribute.

    Example:
        ```python
        >>> wanted_attributes("genres, year", ("genres", "year", "tags"), "movielens")
        ('genres', 'year')

        ```
    """
    names = attributes.split(",") if isinstance(attributes, str) else attributes
    names = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    for name in names:
        if known is not None and name not in known:
            raise ValueError(f"{source}: attributes={name!r} is none of {', '.join(known)}. Pass some of them.")
        if name in (ITEM_ID, TITLE):
            raise ValueError(f"{source}: attributes={name!r} is no attribute, but what an item is. Leave it out.")
    return names


def with_attributes(items: pl.DataFrame, attributes: pl.DataFrame) -> pl.DataFrame:
    """
    The items with the attributes of those that have any.

    Args:
        items (`polars.DataFrame`):
            The items with `item_id` and `title`, told apart and merged: of merged items the attributes are those of the
            one that stays.
        attributes (`polars.DataFrame`):
            A row per item with `item_id`. Blank texts and empty lists are null.

    Returns:
        `polars.DataFrame`: The items in their order, with more columns.
    """
    names = [name for name in attributes.columns if name != ITEM_ID]
    cleaned = attributes.with_columns(_cleaned(attributes[name]) for name in names)
    return items.join(cleaned, on=ITEM_ID, how="left", maintain_order="left")


def most_frequent(pairs: pl.DataFrame, name: str) -> pl.DataFrame:
    """
    What is said of an item by many, the most frequent first and of equals by name.

    Args:
        pairs (`polars.DataFrame`):
            `item_id` and a text in the column `name`, as often as it is said. Case and white space are one.
        name (`str`):
            The column.

    Returns:
        `polars.DataFrame`: `item_id` and a list of texts in the column `name`.
    """
    text = pl.col(name).str.replace_all(r"\s+", " ").str.strip_chars().str.to_lowercase()
    counts = pairs.select(ITEM_ID, text).filter(pl.col(name) != "").group_by(ITEM_ID, name).len()
    ordered = counts.sort(ITEM_ID, "len", name, descending=[False, True, False])
    return ordered.group_by(ITEM_ID, maintain_order=True).agg(name)


def _cleaned(values: pl.Series) -> pl.Series:
    if values.dtype == pl.String:
        text = values.str.replace_all(r"\s+", " ").str.strip_chars()
        return text.set(text == "", None)
    if values.dtype == pl.List(pl.String):
        texts = values.list.eval(pl.element().str.replace_all(r"\s+", " ").str.strip_chars())
        texts = texts.list.eval(pl.element().filter(pl.element() != ""))
        return texts.set(texts.list.len() == 0, None)
    return values
