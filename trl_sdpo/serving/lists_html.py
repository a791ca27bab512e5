"""A recommended list as HTML: bars of probability, what is known of an item, and what changed against another list."""

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..recommender.recommender import Recommendation
    from ..recsys.records.recommender_files import Catalogue

STYLE = """
.sdpo-list {width: 100%; border: 0 !important; border-collapse: collapse; font-size: 0.95rem}
.sdpo-list caption {text-align: left; font-weight: 600; padding: 4px 0; overflow-wrap: anywhere}
.sdpo-list th {text-align: left; font-weight: 500; opacity: 0.75; padding: 2px 6px; font-size: 0.8rem}
.sdpo-list td {padding: 3px 6px; vertical-align: top; overflow-wrap: anywhere}
.sdpo-list th, .sdpo-list td {border: 0 !important; border-bottom: 1px solid rgba(127, 127, 127, 0.25) !important}
.sdpo-list td.n {text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap}
.sdpo-bar {height: 5px; border-radius: 3px; background: #2f6fde; margin-top: 3px; min-width: 1px}
.sdpo-mark {font-size: 0.72rem; border: 1px solid currentColor; border-radius: 6px; padding: 0 5px; margin-left: 6px;
  white-space: nowrap}
.sdpo-known {font-size: 0.8rem; opacity: 0.75}
.sdpo-lists {display: flex; flex-wrap: wrap; gap: 24px} .sdpo-lists > div {flex: 1 1 300px; min-width: 0}
"""


def probabilities(scores: Sequence[float]) -> list[float]:
    """
    The probability of each title as the answer, out of its log-probability in nats: of all that the model could write, so
    those of a list need not sum to 1.
    """
    return [math.exp(min(score, 0.0)) for score in scores]


def percent(value: float) -> str:
    """`0.1234` as `12.3 %`, and small ones so that they can be told from 0."""
    if value >= 0.001:
        return f"{100 * value:.1f} %"
    return f"{100 * value:.1g} %" if value > 0 else "0 %"


def list_html(
    caption: str,
    items: "Sequence[Recommendation]",
    catalogue: "Catalogue",
    *,
    against: "Sequence[Recommendation] | None" = None,
    truth: str | None = None,
) -> str:
    """
    A list as a table.

    Args:
        caption (`str`):
            What stands above it.
        items (`Sequence[Recommendation]`):
            The best first.
        catalogue ([`Catalogue`]):
            For the number of training events and the attributes, where it knows them.
        against (`Sequence[Recommendation]`, *optional*):
            Another list, such as that of the history as it was: places are marked as higher, lower or new.
        truth (`str`, *optional*):
            Id of what came next, which is marked.

    Returns:
        `str`: HTML, in which all texts are escaped.
    """
    shares = probabilities([item.score for item in items])
    largest = max(shares, default=0.0) or 1.0
    counts = dict(zip(catalogue.item_ids, catalogue.train_counts or (), strict=False))
    before = None if against is None else {item.item_id: place for place, item in enumerate(against, start=1)}
    known = attributes_of(catalogue)
    rows = []
    for place, (item, share) in enumerate(zip(items, shares, strict=True), start=1):
        marks = _marks(item.item_id, place, counts, before, truth)
        rows.append(
            f'<tr><td class="n">{place}</td><td>{html.escape(item.title)}{marks}{_attributes(known.get(item.item_id))}'
            f'<div class="sdpo-bar" style="width:{100 * share / largest:.1f}%" role="img" '
            f'aria-label="probability {percent(share)}"></div></td>'
            f'<td class="n">{percent(share)}</td><td class="n">{_count(counts.get(item.item_id))}</td></tr>'
        )
    if not items:
        rows.append(
            '<tr><td colspan="4">Nothing is left to recommend: the history holds the whole catalogue.</td></tr>'
        )
    head = "<tr><th></th><th>title</th><th>probability</th><th>training events</th></tr>"
    return (
        f'<div><table class="sdpo-list"><caption>{html.escape(caption)}</caption><thead>{head}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def attributes_of(catalogue: "Catalogue") -> dict[str, str]:
    """What is known of each item, in one line, by its id."""
    columns = [*catalogue.attributes.values()]
    return {
        item_id: " · ".join(text for text in map(_words, values) if text)
        for item_id, *values in zip(catalogue.item_ids, *columns, strict=True)
    }


def _words(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _attributes(text: str | None) -> str:
    return f'<div class="sdpo-known">{html.escape(text)}</div>' if text else ""


def side_by_side(tables: Sequence[str]) -> str:
    """Tables beside each other where the page is wide enough, else below each other."""
    return f'<div class="sdpo-lists">{"".join(tables)}</div>'


def _count(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def _marks(
    item_id: str | None, place: int, counts: dict[str, int], before: dict[str | None, int] | None, truth: str | None
) -> str:
    marks = []
    if truth is not None and item_id == truth:
        marks.append("came next")
    if counts.get(item_id) == 0:
        marks.append("new item")
    if before is not None:
        old = before.get(item_id)
        if old is None:
            marks.append("not in the list before")
        elif old != place:
            marks.append(f"{'▲' if old > place else '▼'} from {old}")
    return "".join(f'<span class="sdpo-mark">{mark}</span>' for mark in marks)
