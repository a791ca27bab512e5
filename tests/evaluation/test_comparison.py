import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from datasets import Dataset

from trl_sdpo import Catalogue
from trl_sdpo.evaluation import report as evaluation_report
from trl_sdpo.evaluation.breakdowns import breakdowns, equal_bins
from trl_sdpo.evaluation.comparison import (
    _mean_chance,
    evaluate_answers,
    evaluate_catalogue,
    evaluate_ranking,
    popularity_of_candidates,
)
from trl_sdpo.evaluation.probing import probe_all, probe_records
from trl_sdpo.evaluation.report import (
    collect_results,
    comparison_table,
    headline,
    metric_table,
    to_markdown,
    write_report,
)
from trl_sdpo.recsys import compare_scores, holm_correction, ranking_metrics, ranks, wilson_interval


NUM_ITEMS, NUM_RECORDS, NUM_CANDIDATES = 30, 200, 6
TITLES = [f"Film {number} ({1950 + number})" for number in range(NUM_ITEMS)]
NASTY = 'The <script>alert("1")</script> | *Story* & $x_1$ (1950)'
TITLES[::2] = [f"{NASTY} {number}" for number in range(0, NUM_ITEMS, 2)]


@pytest.fixture(scope="module")
def catalogue():
    return Catalogue(range(NUM_ITEMS), TITLES, range(NUM_ITEMS))


@pytest.fixture(scope="module")
def records():
    generator, rows = np.random.default_rng(0), []
    for number in range(NUM_RECORDS):
        target, *others = generator.choice(NUM_ITEMS, NUM_CANDIDATES + 4, replace=False).tolist()
        rejected, history = others[: NUM_CANDIDATES - 1], others[NUM_CANDIDATES - 1 :]
        rows.append(
            {
                "prompt": "Next:",
                "chosen": f" {TITLES[target]}",
                "rejected": [f" {TITLES[item]}" for item in rejected],
                "item_id": target,
                "rejected_item_ids": rejected,
                "history_item_ids": history,
                "position": 4 + number // 20,
            }
        )
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def scores():
    """Of three systems, each better than the one before it."""
    generator = np.random.default_rng(1)
    noise = generator.normal(size=(NUM_RECORDS, NUM_CANDIDATES))
    return {name: list(noise + gain * (np.arange(NUM_CANDIDATES) == 0)) for name, gain in (("base", 0), ("sft", 1), ("s-dpo", 2))}  # fmt: skip


@pytest.fixture(scope="module")
def ranking(scores, records, catalogue):
    return evaluate_ranking(scores, records, seed=0, ks=(1, 3, 10), catalogue=catalogue, num_examples=3)


class TestRanking:
    def test_metrics_and_tests_are_those_of_the_functions(self, ranking, scores, records, catalogue):
        assert list(ranking["systems"]) == ["chance", "popularity", "base", "sft", "s-dpo"]
        # 10 is no cut-off of a list of 6
        assert ranking["systems"]["sft"] == ranking_metrics(ranks(scores["sft"]), (1, 3))
        assert ranking["systems"]["chance"]["hr@1"] == pytest.approx(1 / 6)
        popular = popularity_of_candidates(records, catalogue)
        assert popular[0].tolist() == [records["item_id"][0], *records["rejected_item_ids"][0]]
        assert ranking["systems"]["popularity"] == ranking_metrics(ranks(popular), (1, 3))
        pairs = {(one["system"], one["baseline"]): one for one in ranking["comparisons"]}
        assert len(pairs) == 6
        expected = compare_scores(scores["s-dpo"], scores["sft"], (1, 3), seed=0)
        one = pairs["s-dpo", "sft"]
        assert {key: one[key] for key in expected} == expected
        assert set(one) - set(expected) == {"system", "baseline", "verdict"} | {
            f"{name}_holm" for name in expected if name.endswith("_p")
        }
        assert ranking["label"] == "sampled metrics: the target among 6 candidates of 30 items, chance hr@1 0.167"

    def test_verdicts_are_those_of_the_corrected_test(self, ranking):
        comparisons = ranking["comparisons"]
        for name in ("hr@1", "hr@3", "ndcg@3", "mrr"):
            corrected = holm_correction([one[f"{name}_p"] for one in comparisons])
            assert [one[f"{name}_p_holm"] for one in comparisons] == corrected
        for one in comparisons:
            measurable = one["hr@1_p_holm"] <= 0.05
            assert (one["verdict"] == "better") == (measurable and one["hr@1"] > 0)
        assert {one["verdict"] for one in comparisons} == {"better", "no measurable difference"}
        header, rows = comparison_table(ranking)
        assert header[-3:] == ["p", "p corrected", "verdict"]
        assert [row[-1] for row in rows] == [one["verdict"] for one in comparisons]

    def test_users_are_those_of_the_records(self, scores, records, catalogue):
        """What 200 records of four users say is not what 200 users say."""
        users = [f"user {number % 4}" for number in range(NUM_RECORDS)]
        section = evaluate_ranking(scores, records.add_column("user_id", users), seed=0, ks=(1,), catalogue=catalogue)
        assert section["systems"]["sft"] == ranking_metrics(ranks(scores["sft"]), (1,), groups=users)
        assert {one["users"] for one in section["comparisons"]} == {4}
        # of 2^4 signs
        assert min(one["hr@1_p"] for one in section["comparisons"]) >= 1 / 8
        assert {one["verdict"] for one in section["comparisons"]} == {"no measurable difference"}
        header, rows = metric_table(section, {})
        assert header == ["system", "hr@1", "mrr", "hr@1_per_user", "users", "n"]
        assert rows[-1][-2:] == ["4", "200"]
        part = section["breakdowns"][1]["systems"]["sft"][0]
        inside = np.array(records["position"]) == 4
        hits = ranks(scores["sft"]) == 1
        assert part["ci"] == list(wilson_interval(hits[inside], np.array(users)[inside]))

    def test_examples_are_hits_and_misses_of_the_last_system(self, ranking, scores, records):
        examples = ranking["examples"]
        assert examples["system"] == "s-dpo"
        assert [len(examples[kind]) for kind in ("hits", "misses")] == [3, 3]
        for kind in ("hits", "misses"):
            for one in examples[kind]:
                record = records[one["record"]]
                assert one["target"] == TITLES[record["item_id"]]
                assert one["history"] == [TITLES[item] for item in record["history_item_ids"]]
                assert (one["ranks"]["s-dpo"] == 1) == (kind == "hits")
                assert (one["shown"][0]["title"] == one["target"]) == (kind == "hits")
                assert one["shown"][0]["score"] == max(scores["s-dpo"][one["record"]])

    def test_many_systems_are_compared_with_the_first(self, scores, records):
        many = {f"system {number}": scores["sft"] for number in range(8)}
        comparisons = evaluate_ranking(many, records, seed=0, ks=(1,))["comparisons"]
        assert [(one["system"], one["baseline"]) for one in comparisons] == [
            (f"system {number}", "system 0") for number in range(1, 8)
        ]

    def test_lists_of_several_lengths(self):
        rows = Dataset.from_dict(
            {"prompt": ["a", "b"], "chosen": [" A", " B"], "rejected": [[" C"], [" C", " D", " E"]]}
        )
        section = evaluate_ranking({"one": [[1.0, 0.0], [0.0, 1.0, 2.0, 3.0]]}, rows, seed=0, ks=(1, 3))
        assert section["label"] == "sampled metrics: the target among 2 to 4 candidates"
        assert section["systems"]["chance"]["hr@1"] == pytest.approx((1 / 2 + 1 / 4) / 2)
        assert section["systems"]["chance"]["hr@3"] == pytest.approx((1 + 3 / 4) / 2)
        # without ids there is neither popularity nor a breakdown, and the target is the text of the completion
        assert list(section["systems"]) == ["chance", "one"]
        assert section["breakdowns"] == []
        assert section["examples"]["hits"][0]["target"] == "A"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda scores: {}, "There are no systems"),
            (lambda scores: {"chance": scores["sft"]}, "A system is called 'chance'"),
            (lambda scores: {"a": scores["sft"][:-1]}, "a: 199 rows for 200 records"),
            (lambda scores: {"a": [row[:-1] for row in scores["sft"]]}, "a: record 0: 5 scores for 6 candidates"),
            (lambda scores: {"a": [[np.nan] * 6, *scores["sft"][1:]]}, "NaN"),
        ],
    )
    def test_bad_scores(self, scores, records, change, message):
        with pytest.raises(ValueError, match=message):
            evaluate_ranking(change(scores), records, seed=0)

    def test_leak_probe(self, records):
        clean = probe_records(records, None)
        assert clean["chance"] == pytest.approx(1 / 6)
        assert clean["hr_at_1"] < 0.3
        # every list stands among the training records, with its target
        assert probe_records(records, records)["hr_at_1"] == 1
        assert probe_records(records.select_columns(["item_id"]), None) is None


def test_answers(records, catalogue):
    answers = [TITLES[target] if number % 4 == 0 else "no film" for number, target in enumerate(records["item_id"])]
    wrong = [TITLES[others[0]] for others in records["rejected_item_ids"]]
    section = evaluate_answers({"mine": answers, "wrong": wrong}, records, seed=0, catalogue=catalogue)
    assert section["systems"]["mine"]["hr@1"] == section["systems"]["mine"]["valid_ratio"] == 0.25
    assert (section["systems"]["wrong"]["hr@1"], section["systems"]["wrong"]["valid_ratio"]) == (0, 1)
    (comparison,) = section["comparisons"]
    assert comparison["hr@1"] == -0.25
    assert comparison["hr@1_p"] < 0.001
    assert section["examples"]["hits"] == []
    assert section["examples"]["misses"][0]["shown"] == [{"title": wrong[section["examples"]["misses"][0]["record"]]}]


def test_lists_from_the_catalogue(records, catalogue):
    first = [[str(target), *(str(i) for i in range(NUM_ITEMS) if i != target)][:5] for target in records["item_id"]]
    popular = [[str(item) for item in range(NUM_ITEMS - 1, NUM_ITEMS - 6, -1)]] * NUM_RECORDS
    section = evaluate_catalogue({"popular": popular, "oracle": first}, records, catalogue, seed=0, ks=(1, 5))
    assert section["label"] == "full ranking: lists from all 30 items"
    assert section["systems"]["oracle"]["hr@1"] == section["systems"]["oracle"]["hr@5"] == 1
    assert section["systems"]["popular"]["coverage@5"] == pytest.approx(5 / 30)
    assert section["systems"]["popular"]["popularity@5"] == 27
    assert section["systems"]["chance"]["hr@5"] == pytest.approx(5 / 30)
    assert section["metric"] == "hr@5"
    assert section["examples"]["hits"][0]["ranks"]["oracle"] == 1


class TestBreakdowns:
    def test_parts_by_popularity_and_length(self, records, catalogue):
        hits = {"even": np.array(records["item_id"]) % 2 == 0}
        popularity, length, events = breakdowns(hits, records, catalogue)
        assert sum(part["n"] for part in popularity["bins"]) == NUM_RECORDS
        for part, found in zip(popularity["bins"], popularity["systems"]["even"], strict=True):
            inside = [item for item in records["item_id"] if part["low"] <= item <= part["high"]]
            assert part["n"] == len(inside)
            assert found["value"] == pytest.approx(np.mean([item % 2 == 0 for item in inside]))
            assert found["ci"][0] <= found["value"] <= found["ci"][1]
        assert [part["label"] for part in length["bins"]] == [str(number) for number in range(4, 14)]
        assert {part["n"] for part in length["bins"]} == {20}
        # the training events of an item are its number
        assert [part["label"] for part in events["bins"]] == ["0", "1–5", "6–20", "above 20"]
        for part, (low, high) in zip(events["bins"], ((0, 0), (1, 5), (6, 20), (21, 99)), strict=True):
            assert part["n"] == sum(low <= item <= high for item in records["item_id"])

    def test_parts_by_what_training_has_seen(self, records, catalogue):
        """Against one record after the other."""
        users = [number % 7 for number in range(NUM_RECORDS)]
        named = records.add_column("user_id", users)
        train = named.select(range(0, 150, 7)).add_column("extra", [0] * 22)
        *_, steps, warm = breakdowns({"all": np.ones(NUM_RECORDS, dtype=bool)}, named, catalogue, train=train)
        seen = set()
        for row in train:
            items = [*row["history_item_ids"], row["item_id"]]
            seen |= set(itertools.pairwise(items))
        known = [(row["history_item_ids"][-1], row["item_id"]) in seen for row in named]
        assert 22 <= sum(known) < NUM_RECORDS
        assert {part["label"]: part["n"] for part in steps["bins"]} == {
            "not seen": NUM_RECORDS - sum(known), "seen": sum(known),
        }  # fmt: skip
        assert {part["label"]: part["n"] for part in warm["bins"]} == {
            "cold: none": NUM_RECORDS - users.count(0), "warm": users.count(0),
        }  # fmt: skip
        # ids as text and as numbers are the same ids
        alone = Dataset.from_dict({"user_id": ["a"], "item_id": ["3"], "history_item_ids": [["7"]], "position": [0]})
        (_, steps, _) = breakdowns({"all": np.ones(1, dtype=bool)}, alone, None, train=alone)
        assert [part["label"] for part in steps["bins"]] == ["seen"]

    def test_few_records_are_not_cut_into_tenths(self, records, catalogue):
        some = records.select(range(45))
        for one in breakdowns({"all": np.ones(45, dtype=bool)}, some, catalogue)[:2]:
            assert len(one["bins"]) == 2
        (alone,) = breakdowns({"all": np.ones(5, dtype=bool)}, some.select(range(5)), None)
        assert [part["n"] for part in alone["bins"]] == [5]

    def test_equal_values_stay_together(self):
        places, bins = equal_bins(np.array([0] * 95 + [1, 2, 3, 4, 5]))
        assert [part["label"] for part in bins] == ["0", "1–5"]
        assert np.bincount(places).tolist() == [95, 5]
        assert equal_bins(np.array([3]))[1] == [{"low": 3, "high": 3, "label": "3", "n": 1}]


class Page(HTMLParser):
    """Tags that are open, and what refers to something."""

    VOID = ("meta", "br", "path", "use", "rect", "image", "line", "circle")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.references, self.outside, self.text = [], [], [], [], ""

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href", "src"):
                (self.references if value.startswith("#") else self.outside).append(value)
            self.references += re.findall(r"url\((#[^)]*)\)", value or "")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


class TestReport:
    FACTS = {
        "sft": {"stage": "SFT"},
        "base": {"num_negatives": 1, "beta": 1.0},
        "s-dpo": {"num_negatives": 15, "beta": 1.0},
    }

    @pytest.fixture
    def results(self, ranking, records, catalogue):
        return collect_results(
            [ranking],
            dataset={"name": "data/tiny", "split": "test", "records": NUM_RECORDS, "of": 900},
            settings={"seed": 0},
            facts=self.FACTS,
            **probe_all({"test": records}, "test", records, catalogue),
        )

    def test_json_is_the_results(self, results, tmp_path):
        paths = write_report(results, tmp_path / "out")
        assert [path.name for path in paths] == ["results.json", "results.md", "results.html"]
        assert json.loads(paths[0].read_text(encoding="utf-8")) == results
        assert sorted(tmp_path.joinpath("out").iterdir()) == sorted(paths)

    def test_page_stands_on_its_own(self, results, tmp_path):
        text = write_report(results, tmp_path)[2].read_text(encoding="utf-8")
        page = Page()
        page.feed(text)
        assert page.open == []
        assert page.outside == []
        assert len(page.ids) == len(set(page.ids))
        assert {reference[1:] for reference in page.references} <= set(page.ids)
        # a title is text, wherever it stands
        assert "<script" not in text
        assert "alert" in page.text
        assert NASTY in page.text
        # systems, K, three breakdowns; β is the same for all
        assert text.count("<svg") == 5
        assert [caption for caption in re.findall("<figcaption>(.*?)</figcaption>", text) if "over" in caption] == [
            "hr@1 over negatives K"
        ]
        # colours follow light and dark
        assert "var(--series-1)" in text
        assert re.search(r"<svg.*#1b1f24.*</svg>", text, flags=re.DOTALL) is None
        for system, row in results["sections"][0]["systems"].items():
            assert system in page.text
            assert f"{row['hr@1']:.3f}" in page.text

    def test_the_same_results_give_the_same_bytes(self, results, tmp_path):
        first, second = (write_report(results, tmp_path / name) for name in ("a", "b"))
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]

    def test_markdown(self, results):
        text = to_markdown(results)
        assert "data/tiny: split test, 200 of 900 records." in text
        hr = results["sections"][0]["systems"]["sft"]
        low, high = hr["hr@1_ci"]
        assert f"| sft | SFT |  |  | {hr['hr@1']:.3f} ({low:.3f} to {high:.3f}) |" in text
        assert "### hr@1 by popularity of the target" in text
        assert "<script" not in text
        lines = [line for line in text.splitlines() if line.startswith("|")]
        for before, after in itertools.pairwise(lines):
            if after.startswith("| ---"):
                assert len(re.findall(r"(?<!\\)\|", before)) == len(re.findall(r"(?<!\\)\|", after))
        assert "Leak probe: a lookup that never sees a history scores hr@1" in text

    def test_chance_is_exact(self, ranking):
        header, rows = metric_table(ranking, {})
        assert header == ["system", "hr@1", "hr@3", "ndcg@3", "mrr", "n"]
        assert rows[0] == ["chance", "0.167", "0.500", "0.355", "0.408", "200"]

    def test_without_matplotlib(self, results, tmp_path, monkeypatch):
        warned = []
        monkeypatch.setattr(evaluation_report.importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(evaluation_report.logger, "warning_once", warned.append)
        text = write_report(results, tmp_path)[2].read_text(encoding="utf-8")
        assert "<svg" not in text
        assert "matplotlib is not installed" in warned[0]

    def test_headline_of_all_records(self):
        assert headline({"dataset": {"name": "x", "records": 1200, "of": 1200}}) == "x: 1,200 records"


def test_chance_of_lists_of_several_lengths_is_the_mean_over_records():
    """Three lists of 2 and one of 4."""
    chance = _mean_chance(np.array([2, 2, 2, 4]), (1, 3))
    assert chance["hr@1"] == pytest.approx((3 / 2 + 1 / 4) / 4)
    assert chance["hr@3"] == pytest.approx((3 + 3 / 4) / 4)
