"""What a report says first: its verdict in a sentence, what it is of, and lists that are always the same."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


CHANCE, POPULARITY = "chance", "popularity"
IMPLICIT_REWARD = " (implicit reward)"
# From how many lists on, and from which share of them, one title at their head is said
_FEWEST, _SHARE = 20, 0.5


def of_likelihood(names: Sequence[str]) -> list[str]:
    """Systems less those that rank by the implicit reward, which is another score of one of them; all if none is left."""
    return [name for name in names if not name.endswith(IMPLICIT_REWARD)] or list(names)


def verdict_sentence(results: Mapping[str, Any]) -> str | None:
    """
    The verdict on the last system of the first section, which is that of the last training, ranked by likelihood.

    Args:
        results (`Mapping`):
            Of [`collect_results`].

    Returns:
        `str` or `None`: Its metric with interval and chance, and what the paired tests say; `None` without systems.
    """
    if not results["sections"]:
        return None
    section = results["sections"][0]
    metric, systems = section["metric"], section["systems"]
    own = of_likelihood([name for name in systems if name not in (CHANCE, POPULARITY)])
    if not own or metric not in systems[own[-1]]:
        return None
    name, row = own[-1], systems[own[-1]]
    low, high = row.get(f"{metric}_ci") or (None, None)
    interval = "" if low is None else f" ({low:.3f} to {high:.3f})"
    chance = systems.get(CHANCE, {}).get(metric)
    beside = "" if chance is None else f", where chance has {chance:.3f}"
    verdicts: dict[str, list[str]] = {}
    for one in section["comparisons"]:
        if one["system"] == name:
            verdicts.setdefault(one["verdict"], []).append(one["baseline"])
    said = [f"{_said(verdict)} {_listed(others)}" for verdict, others in verdicts.items()]
    than = f": {'; '.join(said)}" if said else ""
    return f"{name} has {metric} {row[metric]:.3f}{interval}{beside}{than}."


def rules_sentence(probes: Sequence[Mapping[str, Any]]) -> str:
    """
    What the rules that know nothing of tastes found, in a sentence.

    Example:
        ```python
        >>> rules_sentence([{"name": "list lookup", "leaks": False}, {"name": "id above the last", "leaks": True}])
        'Of 2 rules that know nothing of tastes, id above the last finds more targets than chance.'

        ```
    """
    leaking = [one["name"] for one in probes if one["leaks"]]
    found = f"{_listed(leaking)} find{'s' if len(leaking) == 1 else ''}" if leaking else "none finds"
    return f"Of {len(probes)} rules that know nothing of tastes, {found} more targets than chance."


def _said(verdict: str) -> str:
    return {"better": "better than", "worse": "worse than"}.get(verdict, f"{verdict} from")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def number_of_users(results: Mapping[str, Any]) -> int | None:
    """Of how many users the records are, where they say so."""
    rows = [row for section in results.get("sections", ()) for row in section["systems"].values()]
    return next((row["users"] for row in rows if row.get("users")), None)


def same_titles(lists: Mapping[str, Sequence[Sequence[str]]]) -> list[str]:
    """
    What is said of systems that answer much the same to everybody.

    Args:
        lists (`Mapping[str, Sequence[Sequence[str]]]`):
            For each system a list of titles for each record, the best first.

    Returns:
        `list[str]`: A sentence for each system whose lists hold one title always, or begin with one mostly.

    Example:
        ```python
        >>> same_titles({"a": [["Emma", "Ran"]] * 30, "b": [[str(number)] for number in range(30)]})
        ["a: all of the 30 lists hold 'Emma' and 'Ran'."]

        ```
    """
    sentences = []
    for name, rows in lists.items():
        if len(rows) < _FEWEST:
            continue
        held = Counter(title for row in rows for title in dict.fromkeys(row))
        always = [title for title, count in held.items() if count == len(rows)]
        (first, count), *_ = Counter(row[0] for row in rows if row).most_common(1) or [(None, 0)]
        if always:
            shown = _listed([repr(title) for title in always[:3]])
            more = f" and {len(always) - 3} more" if len(always) > 3 else ""
            sentences.append(f"{name}: all of the {len(rows):,} lists hold {shown}{more}.")
        elif count >= _SHARE * len(rows):
            sentences.append(f"{name}: {count / len(rows):.0%} of the {len(rows):,} lists begin with {first!r}.")
    return sentences
