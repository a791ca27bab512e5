"""Results of an evaluation as JSON, as Markdown, and as one HTML page that needs nothing else."""

import html
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .._errors import install
from .._markdown import markdown_table
from ..files import write_text
from ..recsys.metrics.facts import fact_rows
from .verdict import CHANCE, POPULARITY, number_of_users, rules_sentence, verdict_sentence


logger = logging.get_logger(__name__)

FORMAT_VERSION = 1
RESULTS = "results"
# What is known of the training of a system, by the name that a table has for it.
FACTS = {"stage": "stage", "num_negatives": "K", "beta": "β", "steps": "steps"}
_NAMES = {"ranking": "Ranking of the candidates", "generation": "Written answers", "catalogue": "Whole catalogue"}
_TEMPLATE = Path(__file__).parent / "templates" / "evaluation.html"


def collect_results(
    sections: Sequence[dict],
    *,
    dataset: Mapping[str, Any],
    settings: Mapping[str, Any],
    leak_probe: dict | None = None,
    leak_probes: Sequence[dict] = (),
    record_facts: Mapping[str, Any] | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict:
    """
    Put together what `results.json` holds.

    Args:
        sections (`Sequence[dict]`):
            Of [`evaluate_ranking`], [`evaluate_answers`] and [`evaluate_catalogue`].
        dataset (`Mapping`):
            What was evaluated: `name`, `split`, `records`, and what else is known.
        settings (`Mapping`):
            What the results depend on, such as the seed.
        leak_probe (`dict`, *optional*):
            Of [`probe_records`].
        leak_probes (`Sequence[dict]`, *optional*):
            Of [`probe_rules`].
        record_facts (`dict`, *optional*):
            Of [`record_facts`].
        facts (`Mapping[str, Mapping]`, *optional*):
            By system `stage`, `num_negatives`, `beta` and `steps`, as far as known. Two systems with different values
            of one of the numbers are plotted over it.

    Returns:
        `dict`: The results.
    """
    return {
        "format_version": FORMAT_VERSION,
        "date": datetime.now(UTC).date().isoformat(),
        "dataset": dict(dataset),
        "settings": dict(settings),
        "facts": {name: dict(values) for name, values in (facts or {}).items() if values},
        "leak_probe": leak_probe,
        "leak_probes": list(leak_probes),
        "record_facts": None if record_facts is None else dict(record_facts),
        "sections": list(sections),
    }


def write_report(results: dict, directory: str | Path) -> list[Path]:
    """
    Write `results.json`, `results.md` and `results.html`. Each file is there whole or as it was before.

    Args:
        results (`dict`):
            Of [`collect_results`].
        directory (`str` or `Path`):
            Where to. It is made where it is missing.

    Returns:
        `list[Path]`: The files. Without matplotlib the page has no figures, which a warning says.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    texts = {
        "json": json.dumps(_finite(results), indent=1, ensure_ascii=False) + "\n",
        "md": to_markdown(results),
        "html": to_html(results),
    }
    return [write_text(directory / f"{RESULTS}.{kind}", text) for kind, text in texts.items()]


def _finite(value: Any) -> Any:
    """Without infinities and NaN, which are no JSON."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def metric_table(section: dict, facts: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """
    The metrics of a section as text.

    Args:
        section (`dict`):
            Of [`evaluate_ranking`] and its kin.
        facts (`Mapping`):
            See [`collect_results`].

    Returns:
        `tuple[list[str], list[list[str]]]`: The header, and a row for each system.
    """
    known = [name for name in FACTS if any(name in facts.get(system, {}) for system in section["systems"])]
    # ndcg@1 is hr@1; what each user counts the same in is shown of one metric, and is all in the JSON
    left_out = ("rule", "ndcg@1", "n", "users")
    of_users = f"{section['metric']}_per_user"
    metrics = dict.fromkeys(
        name
        for row in section["systems"].values()
        for name in row
        if not name.endswith("_ci") and name not in left_out and (name == of_users or not name.endswith("_per_user"))
    )
    counts = [name for name in ("users", "n") if any(name in row for row in section["systems"].values())]
    metrics = [*metrics, *counts]
    header = ["system", *(FACTS[name] for name in known), *metrics]
    rows = []
    for system, row in section["systems"].items():
        told = [_text(facts.get(system, {}).get(name)) for name in known]
        rows.append([system, *told, *(_metric(row, name) for name in metrics)])
    return header, rows


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _metric(row: dict, name: str) -> str:
    if name not in row:
        return ""
    value = row[name]
    if name in ("n", "users"):
        return f"{value:,}"
    if "popularity" in name:
        return f"{value:,.1f}"
    low, high = row.get(f"{name}_ci") or (None, None)
    interval = "" if low is None or low == high == value else f" ({low:.3f} to {high:.3f})"
    return f"{value:.3f}{interval}"


def comparison_table(section: dict) -> tuple[list[str], list[list[str]]]:
    """The paired tests of a section as text: a header, and a row for each pair."""
    metric = section["metric"]
    header = ["system", "against", f"difference of {metric}", "95% interval", "p", "p corrected", "verdict"]
    rows = []
    for one in section["comparisons"]:
        low, high = one[f"{metric}_ci"]
        rows.append(
            [
                one["system"],
                one["baseline"],
                f"{one[metric]:+.3f}",
                f"{low:+.3f} to {high:+.3f}",
                _p_value(one[f"{metric}_p"]),
                _p_value(one[f"{metric}_p_holm"]),
                one["verdict"],
            ]
        )
    return header, rows


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def probe_sentence(probe: dict) -> str:
    """What the leak probe says."""
    low, high = probe["ci"]
    verdict = (
        "The lists tell more of their targets than popularity does: results on these records are not of the history."
        if low > max(probe["popularity"], probe["chance"])
        else "The lists tell no more of their targets than popularity does."
    )
    return (
        f"Leak probe: a lookup that never sees a history scores hr@1 {probe['hr_at_1']:.3f} (95% interval {low:.3f} to "
        f"{high:.3f}) on {probe['n']:,} records, where chance has {probe['chance']:.3f} and popularity as a target "
        f"{probe['popularity']:.3f}. {verdict}"
    )


RULES = "Rules that know nothing of tastes, which should find no more targets than chance:"


FUSED = (
    "What the fusion adds up, as fitted on validation records: the weight of each score with its standard error over "
    "users, and by how much the mean log-probability of the target falls where the fit is made without it."
)


def fusion_table(fusion: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """What each part of a [`Fusion`] adds, as text: a header, and a row for each feature."""
    parts = zip(fusion["features"], fusion["weights"], fusion["errors"], fusion["gains"], strict=True)
    rows = [[name, f"{weight:.3f}", f"{error:.3f}", f"{gain:.4f}"] for name, weight, error, gain in parts]
    return ["part", "weight", "standard error", "nats lost without it"], rows


def rule_table(probes: Sequence[dict], words: bool = True) -> tuple[list[str], list[list[str]]]:
    """
    What [`probe_rules`] found as text: a header, and a row for each rule, with what a verdict means or without. "Matched"
    is what a rule would find if targets were drawn from the candidates by their popularity alone.
    """
    first = probes[0]
    header = ["rule", "hr@1", "95% interval", "matched", "chance", "n", "verdict"]
    rows = [
        [
            one["name"],
            f"{one['hr_at_1']:.3f}",
            _interval(one["ci"]),
            "" if one["matched"] is None else f"{one['matched']:.3f}",
            f"{one['chance']:.3f}",
            f"{one['n']:,}",
            one["verdict"] if words else one["verdict"].partition(":")[0],
        ]
        for one in probes
    ]
    if first["popularity"] is not None:
        popular = [f"{first['popularity']:.3f}", _interval(first["popularity_ci"])]
        rows.append(
            ["popularity", *popular, "", f"{first['chance']:.3f}", f"{first['n']:,}", "no rule: to compare with"]
        )
    return header, rows


def _interval(ci: Sequence[float]) -> str:
    return f"{ci[0]:.3f} to {ci[1]:.3f}"


FACTS_HEADER = ["of the records", "count", "share"]


def headline(results: dict) -> str:
    """The data set and what was taken of it, in one line."""
    dataset = results["dataset"]
    of = f" of {dataset['of']:,}" if dataset.get("of", 0) > dataset["records"] else ""
    split = f"split {dataset['split']}, " if "split" in dataset else ""
    users = number_of_users(results)
    whose = "" if users is None else f" of {users:,} user{'' if users == 1 else 's'}"
    return f"{dataset['name']}: {split}{dataset['records']:,}{of} records{whose}"


def models_of(results: dict) -> str:
    """The systems of a report, with what is known of their training, and the date, in one line."""
    names = dict.fromkeys(
        name for section in results["sections"] for name in section["systems"] if name not in (CHANCE, POPULARITY)
    )
    said = []
    for name in names:
        known = {FACTS[key]: value for key, value in results["facts"].get(name, {}).items() if key in FACTS}
        facts = ", ".join(f"{key} {_text(value)}" for key, value in known.items())
        said.append(f"{name} ({facts})" if facts else name)
    date = f"Made on {results['date']}. " if results.get("date") else ""
    return f"{date}Systems: {', '.join(said)}." if said else date.strip()


NOTES = (
    "Intervals are 95% intervals, and tests are paired, record by record. Both are over users where the records name "
    "them, since records of one user are not independent: a user's records are left out, or exchanged between two "
    "systems, all at once. Where there is one record for each user, or users are not named, the test of hit rates is the "
    "exact McNemar test. P-values are corrected over the pairs of a table (Holm), and a verdict is what the corrected one "
    "says at 5%; the interval of a difference is of that pair alone. 'per_user' is the mean over users, in which each "
    "counts the same. Ties count against a system."
)


def to_markdown(results: dict) -> str:
    """The results as Markdown."""
    verdict = verdict_sentence(results)
    lines = ["# Results", "", *([f"**{_escaped(verdict)}**", ""] if verdict else [])]
    lines += [f"{_escaped(headline(results))}. {_escaped(models_of(results))}", ""]
    for section in results["sections"]:
        lines += [f"## {_NAMES[section['protocol']]}", "", f"{section['label'].capitalize()}.", ""]
        lines += [*_markdown_table(*metric_table(section, results["facts"])), ""]
        lines += [f"{_escaped(sentence)}\n" for sentence in section.get("notes", ())]
        lines += [*_markdown_table(*comparison_table(section)), ""] if section["comparisons"] else []
        if "fusion" in section:
            lines += [FUSED, "", *_markdown_table(*fusion_table(section["fusion"])), ""]
        for one in section["breakdowns"]:
            header = [one["unit"], *(f"{part['label']} (n = {part['n']:,})" for part in one["bins"])]
            rows = [[name, *(f"{part['value']:.3f}" for part in row)] for name, row in one["systems"].items()]
            lines += [f"### {section['metric']} by {one['name']}", "", *_markdown_table(header, rows), ""]
        lines += _markdown_examples(section["examples"])
    lines += [probe_sentence(results["leak_probe"]), ""] if results["leak_probe"] else []
    if results["leak_probes"]:
        lines += [RULES, "", *_markdown_table(*rule_table(results["leak_probes"])), ""]
    if results["record_facts"]:
        lines += [*_markdown_table(FACTS_HEADER, fact_rows(results["record_facts"])), ""]
    lines += [NOTES, "", "## Settings", ""]
    lines += [
        *_markdown_table(["setting", "value"], [[name, _text(value)] for name, value in results["settings"].items()]),
        "",
    ]
    return "\n".join(lines)


def results_text(results: dict) -> str:
    """
    The tables of the results for a terminal, aligned, with a sentence on what the lists tell.

    Args:
        results (`dict`):
            Of [`collect_results`].

    Returns:
        `str`: Metrics of every system, and the paired tests.
    """
    lines = []
    for section in results["sections"]:
        lines += [f"{section['label'][0].upper()}{section['label'][1:]}", ""]
        lines += [*_aligned(*metric_table(section, results["facts"])), ""]
        lines += [*section["notes"], ""] if section.get("notes") else []
        lines += [*_aligned(*comparison_table(section)), ""] if section["comparisons"] else []
        lines += [FUSED, "", *_aligned(*fusion_table(section["fusion"])), ""] if "fusion" in section else []
    lines += [probe_sentence(results["leak_probe"])] if results["leak_probe"] else []
    if results["leak_probes"]:
        lines += [
            "",
            RULES,
            "",
            *_aligned(*rule_table(results["leak_probes"], words=False)),
        ]  # warnings have said what verdicts mean
    if results["record_facts"]:
        lines += ["", *_aligned(FACTS_HEADER, fact_rows(results["record_facts"]))]
    return "\n".join(lines)


def _aligned(header: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        first, *others = (
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    return lines


def _markdown_examples(examples: dict) -> list[str]:
    lines = []
    for kind in ("hits", "misses"):
        if examples[kind]:
            lines += [f"### {kind.capitalize()} of {_escaped(examples['system'])}", ""]
        for one in examples[kind]:
            history = ", ".join(map(_escaped, one["history"])) or "no history in the record"
            shown = "; ".join(_escaped(item["title"]) for item in one["shown"])
            lines.append(f"- record {one['record']}: {history} → **{_escaped(one['target'])}**. First: {shown}")
        lines += [""] if examples[kind] else []
    return lines


def _markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    return markdown_table([_escaped(name) for name in header], [[_escaped(cell) for cell in row] for row in rows])


def _escaped(text: str) -> str:
    """Text that Markdown takes as it is, on one line."""
    text = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{letter}" if letter in r"\`*_[]|#" else letter for letter in text)


def to_html(results: dict) -> str:
    """The results as one page, with its figures in it."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    sections = [
        {
            "notes": [],
            **section,
            "title": _NAMES[section["protocol"]],
            "table": metric_table(section, results["facts"]),
            "comparison": comparison_table(section),
            "fused": (FUSED, fusion_table(section["fusion"])) if "fusion" in section else None,
            "figures": _figures(section, results["facts"]),
        }
        for section in results["sections"]
    ]
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        headline=headline(results),
        verdict=verdict_sentence(results),
        models=models_of(results),
        sections=sections,
        probe=probe_sentence(results["leak_probe"]) if results["leak_probe"] else None,
        rules=(rules_sentence(results["leak_probes"]), rule_table(results["leak_probes"]))
        if results["leak_probes"]
        else None,
        record_facts=(FACTS_HEADER, fact_rows(results["record_facts"])) if results["record_facts"] else None,
        notes=NOTES,
        settings={name: _text(value) for name, value in results["settings"].items()},
    )


def _figures(section: dict, facts: dict) -> list:
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning_once(f"matplotlib is not installed: results.html has no figures. Run `{install('examples')}`.")
        return []
    from .figures import draw_section

    return draw_section(section, facts, {"num_negatives": "negatives K", "beta": "β"})
