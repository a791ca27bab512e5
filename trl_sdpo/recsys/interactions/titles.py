"""The one form of a title, and what becomes of items that have none or share one."""

import logging
import re

import polars as pl

from .interactions import ITEM_ID, TITLE, USER_ID, YEAR, time_columns


logger = logging.getLogger(__name__)

# What catalogues put behind a title, as ", X". "Da" stands in "Hip Hop Witch, Da (2000)".
ARTICLES = (
    *("The", "A", "An", "Da"),
    *("Le", "La", "Les", "L'", "L’", "Un", "Une", "Des"),
    *("El", "Los", "Las", "Lo", "Una"),
    *("Il", "I", "Gli", "Uno"),
    *("Der", "Die", "Das", "Ein", "Eine"),
    *("De", "Het", "Een", "Det", "Den", "En", "Ett", "Et"),
    *("O", "Os", "As", "Um", "Uma"),
)
_ARTICLE_BEHIND = re.compile(rf"(?P<known_as>a\.k\.a\. )?(?P<body>.+), (?P<article>{'|'.join(ARTICLES)})")
_FORMAT_MARKER = re.compile(r"\s*\((?:V|TV|VG)\)")
_YEAR_BEHIND = re.compile(r"(?P<body>.*\S)\s*\((?P<year>\d{4})\)")
_GROUP_BEHIND = re.compile(r"(?P<body>.*\S)\s*\((?P<group>[^()]*)\)")
_YEAR_SUFFIX = r" \(\d{4}\)$"
_NO_TITLE = (
    "nan",
    "NaN",
    "None",
    "none",
    "null",
    "NULL",
    "Null",
    "NA",
    "N/A",
    "n/a",
    "<NA>",
    "NaT",
    "\\N",
    "undefined",
)


def canonical_title(title: str, year: int | None = None) -> str:
    """
    The one form of a title, `"The Usual Suspects (1995)"`, from whichever file it comes.

    An article behind the title, or behind an alternative title in parentheses, moves to the front; `(V)`, `(TV)` and
    `(VG)`, which say how a film was released, go; white space is stripped and single; the year is set off by a space.
    Applied twice, it changes nothing.

    Args:
        title (`str`):
            The title as the source has it.
        year (`int`, *optional*):
            The year, from another column. Used where the title does not end in a year of its own.

    Returns:
        `str`: The title.

    Raises:
        ValueError: the title is empty.

    Example:
        ```python
        >>> canonical_title("Usual Suspects, The (1995)")
        'The Usual Suspects (1995)'
        >>> canonical_title("Postman, The (Postino, Il)", year=1994)
        'The Postman (Il Postino) (1994)'
        >>> canonical_title("Eye of Vichy, The (Oeil de Vichy, L')(1993) (V)")
        "The Eye of Vichy (L'Oeil de Vichy) (1993)"

        ```
    """
    text = " ".join(title.split())
    # There is a film that is called (V).
    text = " ".join(_FORMAT_MARKER.sub("", text).split()) or text
    if not text:
        raise ValueError(f"title {title!r} is empty. Give the item a title.")
    dated = _YEAR_BEHIND.fullmatch(text)
    if dated:
        text, year = dated["body"], int(dated["year"])
    groups: list[str] = []
    while group := _GROUP_BEHIND.fullmatch(text):
        text = group["body"]
        groups.insert(0, f" ({_article_to_front(group['group'].strip())})")
    suffix = "" if year is None else f" ({year:04d})"
    return _article_to_front(text) + "".join(groups) + suffix


def _article_to_front(text: str) -> str:
    match = _ARTICLE_BEHIND.fullmatch(text)
    if not match:
        return text
    space = "" if match["article"].endswith(("'", "’")) else " "
    return f"{match['known_as'] or ''}{match['article']}{space}{match['body']}"


def plain_titles(column: str) -> pl.Expr:
    """Titles of books and names of artists: white space single and stripped, nothing moved. Blank ones are null."""
    title = pl.col(column).str.replace_all(r"\s+", " ").str.strip_chars()
    return pl.when(title != "").then(title)


def drop_untitled(events: pl.DataFrame, items: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """
    Leave out what a language model cannot be asked about: items without a title, and events of items without one.

    Args:
        events (`polars.DataFrame`):
            The events, see [`Interactions`]. Their items need not be among `items`.
        items (`polars.DataFrame`):
            The items with `item_id` and `title`, which may be null.

    Returns:
        `tuple[polars.DataFrame, polars.DataFrame, dict[str, int]]`: Events, items and a report:
        `items_without_title` (rows of `items`), `items_unknown` (items of events that are not in `items`) and
        `events_without_title` (events of either).

    Example:
        ```python
        >>> events = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [7, 8, 9], "timestamp": [30, 20, 10]})
        >>> items = pl.DataFrame({"item_id": [7, 8], "title": ["Moby", None]})
        >>> events, items, report = drop_untitled(events, items)
        >>> events.rows(), report
        ([(1, 7, 30)], {'items_without_title': 1, 'items_unknown': 1, 'events_without_title': 2})

        ```
    """
    titled = items.filter(pl.col(TITLE).is_not_null())
    unknown = events.filter(~pl.col(ITEM_ID).is_in(items[ITEM_ID].implode()))
    kept = events.filter(pl.col(ITEM_ID).is_in(titled[ITEM_ID].implode()))
    report = {
        "items_without_title": items.height - titled.height,
        "items_unknown": unknown[ITEM_ID].n_unique(),
        "events_without_title": events.height - kept.height,
    }
    if kept.height < events.height:
        logger.warning(
            "%d of %d events are of items without a title and left out.", events.height - kept.height, events.height
        )
    return kept, titled, report


def resolve_duplicate_titles(
    events: pl.DataFrame, items: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """
    Make titles unique: tell equal titles apart by their year where that helps, else merge the items.

    A merged item takes the lowest of the ids, and the events of the others are re-mapped to it. A user who had more
    than one of them keeps the earliest event (then the lowest original id).

    Args:
        events (`polars.DataFrame`):
            The events, see [`Interactions`].
        items (`polars.DataFrame`):
            The items with `item_id` and `title` in its canonical form, see [`canonical_title`], and optionally `year`
            (`Int64`, may be null), which is set behind those titles that occur twice and have no year yet.

    Returns:
        `tuple[polars.DataFrame, polars.DataFrame, dict[str, int]]`: Events, items (without `year`) and a report:
        `items_disambiguated` (they would share their title were it not for the year), `items_merged` (items that are
        gone), `events_remapped`, `events_dropped_by_merge`.

    Example:
        ```python
        >>> events = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [7, 9, 9], "timestamp": [30, 20, 10]})
        >>> items = pl.DataFrame({"item_id": [7, 9], "title": ["Chasing Amy (1997)", "Chasing Amy (1997)"]})
        >>> events, items, report = resolve_duplicate_titles(events, items)
        >>> events.rows(), items["item_id"].to_list(), report["items_merged"]
        ([(1, 7, 20), (2, 7, 10)], [7], 1)

        ```
    """
    kept, groups, report = titles_to_merge(items)
    merged, remapped = merge_items(events, groups)
    report |= {"events_remapped": remapped, "events_dropped_by_merge": events.height - merged.height}
    if any(report.values()):
        logger.info(
            "Equal titles: %s items are told apart by their years, %s are one with another of the same title, to "
            "which %s events went; %s were dropped as repeats.",
            *(f"{count:,}" for count in report.values()),
        )
    return merged, kept, report


def titles_to_merge(items: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """
    What [`resolve_duplicate_titles`] does to items: those that stay, the ids of a title with the `lowest` of them where it
    is that of several, and the report.
    """
    if YEAR in items.columns:
        shared = items[TITLE].is_duplicated() & items[YEAR].is_not_null()
        titles = [
            canonical_title(title, year) if extend else title
            for title, year, extend in zip(items[TITLE], items[YEAR], shared, strict=True)
        ]
        items = items.with_columns(pl.Series(TITLE, titles)).drop(YEAR)
    without_year = pl.col(TITLE).str.replace(_YEAR_SUFFIX, "")
    told_apart = items.select((without_year.is_duplicated() & ~pl.col(TITLE).is_duplicated()).sum()).item()
    _warn_of_no_titles(items[TITLE])
    lowest = items.select(ITEM_ID, pl.col(ITEM_ID).min().over(TITLE).alias("lowest"))
    kept = items.filter(lowest["lowest"] == lowest[ITEM_ID])
    report = {"items_disambiguated": told_apart, "items_merged": items.height - kept.height}
    return kept, lowest.filter(pl.col("lowest").is_duplicated()), report


def _warn_of_no_titles(titles: pl.Series) -> None:
    """Several items called "nan" have no title: a program has written so what is missing."""
    shared = titles.filter(titles.is_duplicated() & titles.str.replace(_YEAR_SUFFIX, "").is_in(_NO_TITLE))
    if len(shared):
        logger.warning(
            "%d items are called %r, which is what programs write for a title that is missing. They become one item: "
            "leave their titles empty if they have none.",
            len(shared),
            shared[0],
        )


def merge_items(events: pl.DataFrame, groups: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Move the events of the items in `groups` to the lowest id of their title; how many have moved and stayed."""
    if groups.is_empty():
        return events, 0
    # Few items share a title, so all but the last step run over few events.
    shared = events.with_row_index("row").filter(pl.col(ITEM_ID).is_in(groups[ITEM_ID].implode()))
    shared = shared.join(groups, on=ITEM_ID, how="left", maintain_order="left")
    both = pl.col(ITEM_ID).n_unique().over(USER_ID, "lowest") > 1
    order = pl.struct(*time_columns(events), ITEM_ID, "row").rank("ordinal").over(USER_ID, "lowest")
    dropped = both & (order > 1)
    remapped = shared.select((~dropped & (pl.col("lowest") != pl.col(ITEM_ID))).sum()).item()
    moved = groups.filter(pl.col("lowest") != pl.col(ITEM_ID))
    events = events.with_columns(pl.col(ITEM_ID).replace(moved[ITEM_ID], moved["lowest"]))
    rows = shared.filter(dropped)["row"]
    if len(rows):
        keep = pl.repeat(True, events.height, eager=True).scatter(rows, False)
        events = events.filter(keep)
    return events, remapped


def number_duplicate_titles(items: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """
    Make titles unique without merging items: all but the first of a title take their id behind it.

    Args:
        items (`polars.DataFrame`):
            The items with `item_id` and `title`.

    Returns:
        `tuple[polars.DataFrame, dict[str, int]]`: The items, and a report: `items_numbered`.

    Example:
        ```python
        >>> items = pl.DataFrame({"item_id": [246, 268], "title": ["Chasing Amy (1997)", "Chasing Amy (1997)"]})
        >>> number_duplicate_titles(items)[0]["title"].to_list()
        ['Chasing Amy (1997)', 'Chasing Amy (1997) #268']

        ```
    """
    again = ~pl.col(TITLE).is_first_distinct()
    report = {"items_numbered": items.select(again.sum()).item()}
    numbered = pl.format("{} #{}", TITLE, ITEM_ID)
    return items.with_columns(pl.when(again).then(numbered).otherwise(pl.col(TITLE)).alias(TITLE)), report
