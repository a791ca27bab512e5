"""What a report says first."""

import re

import pytest

from trl_sdpo.evaluation.report import collect_results, headline, models_of, results_text, to_html, to_markdown
from trl_sdpo.evaluation.verdict import same_titles, verdict_sentence


def row(value, **more):
    return {"hr@1": value, "hr@1_ci": [value - 0.05, value + 0.05], "users": 7, "n": 40, **more}


@pytest.fixture
def results():
    comparisons = [
        {"system": "s-dpo", "baseline": name, "hr@1": gain, "hr@1_ci": [gain - 0.1, gain + 0.1], "hr@1_p": 0.01,
         "hr@1_p_holm": 0.02, "verdict": verdict}
        for name, gain, verdict in (
            ("popularity", 0.2, "better"), ("kNN", 0.1, "better"), ("sft", 0.0, "no measurable difference"))
    ]  # fmt: skip
    section = {
        "protocol": "ranking",
        "label": "sampled metrics",
        "metric": "hr@1",
        "systems": {
            "chance": {"hr@1": 0.05, "hr@1_ci": [0.05, 0.05], "n": 40},
            "popularity": row(0.2), "kNN": row(0.3), "sft": row(0.4), "s-dpo": row(0.4),
        },
        "comparisons": comparisons,
        "breakdowns": [
            {
                "name": "length of the history", "unit": "titles",
                "bins": [{"label": "1-5", "n": 1234}, {"label": "6-10", "n": 8}],
                "systems": {name: [{"value": 0.4, "ci": [0.3, 0.5]}] * 2 for name in ("sft", "s-dpo")},
            }
        ],
        "examples": {"system": "s-dpo", "hits": [], "misses": []},
        "notes": ["s-dpo: all of the 40 lists hold 'Emma'."],
    }  # fmt: skip
    facts = {"s-dpo": {"num_negatives": 15, "steps": 300}}
    return collect_results(
        [section], dataset={"name": "mine", "split": "test", "records": 40}, settings={"seed": 0}, facts=facts
    )


def test_the_verdict_is_that_of_the_tests(results):
    said = (
        "s-dpo has hr@1 0.400 (0.350 to 0.450), where chance has 0.050: better than popularity and kNN; no measurable "
        "difference from sft."
    )
    assert verdict_sentence(results) == said
    assert to_markdown(results).startswith(f"# Results\n\n**{said.replace('_', chr(92) + '_')}**")
    page = to_html(results)
    assert re.search(r"<h1>Results</h1>\s*<p class=\"verdict\">s-dpo has hr@1 0\.400", page)
    assert verdict_sentence(results | {"sections": []}) is None


def test_the_verdict_is_on_a_model_and_not_on_another_score_of_it(results):
    section = results["sections"][0]
    rewards = {"s-dpo (implicit reward)": row(0.1)}
    both = section | {"systems": section["systems"] | rewards}
    assert verdict_sentence(results | {"sections": [both]}) == verdict_sentence(results)
    alone = section | {"systems": {"chance": section["systems"]["chance"], **rewards}}
    assert verdict_sentence(results | {"sections": [alone]}).startswith("s-dpo (implicit reward) has")


def test_what_was_evaluated_is_said_with_date_users_and_steps(results):
    assert headline(results) == "mine: split test, 40 records of 7 users"
    assert re.fullmatch(
        r"Made on \d{4}-\d\d-\d\d\. Systems: kNN, sft, s-dpo \(K 15, steps 300\)\.", models_of(results)
    )
    assert "Made on 2" in to_html(results)


def test_notes_and_the_size_of_each_bin_stand_on_the_page(results):
    page = to_html(results)
    assert "all of the 40 lists hold" in page
    assert "n = 1,234" in page
    assert "s-dpo: all of the 40 lists hold 'Emma'." in results_text(results)


def test_of_lines_that_lie_on_each_other_all_are_seen(results):
    """None is wider than the others, and a later one has more gaps."""
    page = to_html(results)
    figure = page[page.index("by length of the history") - 60_000 :]
    assert max(float(width) for width in re.findall(r"stroke-width: ([\d.]+)", figure)) <= 1.5
    systems = len(results["sections"][0]["breakdowns"][0]["systems"])
    assert len(set(re.findall(r"stroke-dasharray: ([\d.,]+)", figure))) >= systems - 1


def test_what_no_reader_of_a_verdict_needs_is_folded(results):
    probes = [
        {"name": name, "hr_at_1": 0.2, "ci": [0.1, 0.3], "matched": None, "chance": 0.25, "n": 10, "leaks": leaks}
        | {"verdict": "leaks: x" if leaks else "no more than chance", "popularity": None}
        for name, leaks in (("list lookup", False), ("id above the last", True))
    ]
    page = to_html(results | {"leak_probes": probes})
    assert "Of 2 rules that know nothing of tastes, id above the last finds more targets than chance." in page
    assert page.index("<details><summary>What each rule finds") < page.index("list lookup</td>")


def test_the_same_answer_to_everybody_is_said():
    rows = [["Emma", str(number)] for number in range(50)]
    mostly = [["Emma"] if number % 5 else ["Ran"] for number in range(50)]
    assert same_titles({"x": rows, "y": mostly, "few": rows[:5], "fair": [[str(number)] for number in range(50)]}) == [
        "x: all of the 50 lists hold 'Emma'.",
        "y: 80% of the 50 lists begin with 'Emma'.",
    ]
