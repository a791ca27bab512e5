"""From the files of the runs to tables in Markdown, and JSON."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from trl_sdpo.files import write_text
from trl_sdpo.recsys import read_scores

from .markdown import markdown
from .plan import STYLES, Run, Size, searched, sweeps, systems
from .plot import plot_results
from .statistics import best_weight, hits, minus, paired_difference, summary, weighted_sum


SFT, SASREC, CHOSEN = "SFT", "SASRec", "chosen.json"


def read_chosen(directory: Path, size: Size) -> dict[str, Run]:
    """The run of seed 0 that was chosen for each system of a prompt style, by its row; nothing before the search."""
    path = directory / CHOSEN
    names = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    runs = {run.name: run for system in systems(size) for run in searched(system, size)}
    return {system: runs[name] for system, name in names.items() if name in runs}


@dataclass
class Results:
    """What the runs of a prompt style have left on disk; what is not there yet is left out."""

    directory: Path
    size: Size
    users: np.ndarray

    def folder(self, run: Run) -> Path:
        return self.directory / "runs" / run.name

    def scores(self, place: Path, split: str = "test") -> list[np.ndarray] | None:
        path = place / f"{split}.parquet"
        return read_scores(path) if path.is_file() else None

    @cached_property
    def sft(self) -> list[np.ndarray] | None:
        return self.scores(self.directory / "sft")

    @cached_property
    def chosen(self) -> dict[str, Run]:
        return read_chosen(self.directory, self.size)

    def sweep_scores(self, place: Path) -> list[np.ndarray] | None:
        """Scores of the test records of the sweeps."""
        scores = self.scores(place)
        return self.scores(place, "sweep") if scores is None else scores[:: self.size.sweep_step]

    def runs(self, run: Run, most: int = 100) -> list[Run]:
        """The seeds of a run that have been scored, of 0 to `most` - 1."""
        seeds = [replace(run, seed=seed) for seed in range(most)]
        return [one for one in seeds if (self.folder(one) / "test.parquet").is_file()]

    @cached_property
    def systems(self) -> dict[str, list[list[np.ndarray]]]:
        """Scores of the test records by row of the table and seed, of the seeds that all systems have."""
        rows = {
            system: [self.scores(self.folder(one)) for one in self.runs(run)] for system, run in self.chosen.items()
        }
        common = min((len(found) for found in rows.values() if found), default=0)
        rows = {system: found[:common] for system, found in rows.items() if found}
        return rows if self.sft is None else {SFT: [self.sft], **rows}


def table_rows(results: Results) -> dict[str, dict]:
    """The rows of a style: metrics, differences from SFT and from DPO, and what generation gave."""
    rows = {}
    baselines = [name for name in (SFT, "SFT, as many more steps", "DPO, 1 negative") if name in results.systems]
    for name, scores in results.systems.items():
        row = summary(scores, results.users) | {"differences": {}}
        if name != SFT:
            run = results.chosen[name]
            row |= {"learning_rate": run.learning_rate, "beta": run.beta}
            rewards = [minus(one, results.sft) for one in scores]
            row["reward_hr@1"] = summary(rewards)["hr@1"]
        for baseline in baselines:
            if baseline != name:
                pair = hits(scores), hits(results.systems[baseline])
                row["differences"][baseline] = paired_difference(*pair, results.users)
        rows[name] = row | generated(results, name)
    return rows


def generated(results: Results, system: str) -> dict:
    """hr@1 and ValidRatio of greedy answers, as means over the seeds that have answered."""
    places = (
        [results.directory / "sft"]
        if system == SFT
        else [results.folder(run) for run in results.runs(results.chosen[system], len(results.systems[system]))]
    )
    paths = [place / "generation.json" for place in places]
    metrics = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
    if not metrics:
        return {}
    return {
        f"generated_{name}": float(np.mean([one["whole"][name] for one in metrics]))
        for name in ("hr@1", "valid_ratio")
    } | {"substring_valid_ratio": float(np.mean([one["substring"]["valid_ratio"] for one in metrics]))}


def search_rows(results: Results) -> list[dict]:
    """What the search saw on validation records."""
    rows = []
    for system in systems(results.size):
        for run in searched(system, results.size):
            scores = results.scores(results.folder(run), "validation")
            if scores is not None:
                taken = results.chosen.get(system.system) == run
                point = {"learning_rate": run.learning_rate, "beta": run.beta, "chosen": taken}
                rows.append({"system": system.system} | point | summary([scores]))
    return rows


def sweep_rows(results: Results) -> dict[str, list[dict]]:
    """The runs of the sweeps on their test records, with their paired differences from SFT."""
    if not results.chosen or results.sft is None:
        return {}
    chosen = list(results.chosen.values())[-1]
    return {
        name: [sweep_row(results, name, run) for run in runs if results.sweep_scores(results.folder(run)) is not None]
        for name, runs in sweeps(chosen, results.size).items()
    }


def sweep_row(results: Results, name: str, run: Run) -> dict:
    """What a run of a sweep gave, and the value that makes it differ from the others."""
    step = results.size.sweep_step
    scores, sft = results.sweep_scores(results.folder(run)), results.sft[::step]
    records = run.records or results.size.preference_records["history"]
    values = {"K": run.num_negatives, "β": run.beta, "learning rate": run.learning_rate, "records": records}
    return {
        "value": values.get(name, run.negatives),
        **summary([scores], results.users[::step]),
        "reward_hr@1": summary([minus(scores, sft)])["hr@1"],
        "difference": paired_difference(hits([scores]), hits([sft]), results.users[::step]),
    }


def baseline_scores(directory: Path, split: str) -> dict[str, list[np.ndarray]]:
    """Scores of the systems without a language model, by name."""
    return {
        path.parent.name: read_scores(path) for path in sorted((directory / "baselines").glob(f"*/{split}.parquet"))
    }


def sum_rows(results: Results, sasrec: dict[str, list[np.ndarray]]) -> list[dict]:
    """
    The sum of the z-scored scores of a language model and of SASRec, with equal weights and with the one that
    validation records prefer: of SFT and of the last system, seed 0.
    """
    rows = []
    places = {SFT: results.directory / "sft"}
    if results.chosen:
        name, run = list(results.chosen.items())[-1]
        places[name] = results.folder(run)
    for name, place in places.items():
        validation, test = results.scores(place, "validation"), results.scores(place)
        if validation is None or test is None:
            continue
        for kind, weight in (("equal", 0.5), ("validation", best_weight(validation, sasrec["validation"]))):
            both = weighted_sum(test, sasrec["test"], weight)
            difference = paired_difference(hits([both]), hits([sasrec["test"]]), results.users)
            rows.append(
                {
                    "system": name,
                    "weight": weight,
                    "weights": kind,
                    **summary([both], results.users),
                    "difference": difference,
                }
            )
    return rows


def collect(directory: Path, size: Size) -> dict:
    """All that the report says, as in results.json."""
    users = np.array(json.loads((directory / "test_users.json").read_text(encoding="utf-8")))
    content = {"num_users": len(set(users.tolist())), "styles": {}}
    scores = {split: baseline_scores(directory, split) for split in ("validation", "test")}
    rows = {name: summary([one], users) for name, one in scores["test"].items()}
    content["baselines"] = dict(sorted(rows.items(), key=lambda row: row[1]["hr@1"]))
    for style in STYLES:
        results = Results(directory / style, size, users)
        if results.sft is None:
            continue
        curve = json.loads((directory / style / "sft" / "curve.json").read_text(encoding="utf-8"))
        content["styles"][style] = {
            "curve": curve,
            "systems": table_rows(results),
            "search": search_rows(results),
            "sweeps": sweep_rows(results) if style == "history" else {},
        }
        if SASREC in scores["test"]:
            sasrec = {split: scores[split][SASREC] for split in scores}
            content["styles"][style]["sums"] = sum_rows(results, sasrec)
            for name, row in content["styles"][style]["systems"].items():
                pair = hits(results.systems[name]), hits([sasrec["test"]])
                row["differences"][SASREC] = paired_difference(*pair, users)
    return content


def write_report(directory: Path, size: Size) -> dict:
    """Write results.json, results.md and results.png of what is there."""
    content = collect(directory, size)
    content["environment"] = json.loads((directory / "environment.json").read_text(encoding="utf-8"))
    write_text(directory / "results.json", json.dumps(content, indent=2))
    (directory / "results.md").write_text(markdown(content), encoding="utf-8")
    plot_results(content, directory / "results.png")
    return content
