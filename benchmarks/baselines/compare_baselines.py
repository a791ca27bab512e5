"""
All baselines on the records of a prepared data set: hr@1 with its interval, and the difference to SASRec on the same records.

    trl-sdpo prepare movielens-100k --output data/ml-100k --max_validation_records 2000 --max_test_records 2000
    python benchmarks/baselines/compare_baselines.py data/ml-100k --output scores

Everything is learned from the training records, and stopped by hr@1 on the validation records. Caser comes from RecBole in
an environment of its own (recbole_baselines.py), which the first run makes; `--without_recbole` leaves it out. The
scores of the test records go to `NAME.test.parquet` in the output directory, the table to `baselines.md`. Scores of Caser
that are there already, from a run of recbole_baselines.py, are not made again.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from datasets import DatasetDict, load_dataset

from trl_sdpo.recsys import (
    chance_metrics,
    cooccurrence_scorer,
    difference_interval,
    events_of_records,
    item_knn_scorer,
    popularity_scorer,
    ranking_metrics,
    ranks,
    read_scores,
    score_records,
    write_scores,
)
from trl_sdpo.recsys.baselines.sequential import train_gru4rec, train_sasrec


COLUMNS = ["user_id", "item_id", "history_item_ids", "rejected_item_ids", "position"]
BEST = "SASRec"


def main() -> None:
    """Score with every baseline and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="What `trl-sdpo prepare` wrote.")
    parser.add_argument("--output", type=Path, required=True, help="Directory for scores and table.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without_recbole", action="store_true", help="Leave out Caser.")
    args = parser.parse_args()
    dataset = load_dataset(str(args.data)).select_columns(COLUMNS)
    args.output.mkdir(parents=True, exist_ok=True)
    scores, seconds = score_all(dataset, args.seed, args.output)
    if not args.without_recbole:
        report = args.output / "caser.json"
        if not report.exists():
            script = Path(__file__).with_name("recbole_baselines.py")
            command = [sys.executable, script, args.data, "--output", args.output, "--seed", str(args.seed)]
            subprocess.run(command, check=True)
        scores["Caser"] = read_scores(args.output / "caser.test.parquet", len(dataset["test"]))
        seconds["Caser"] = json.loads(report.read_text())["seconds"]
    text = table(scores, seconds, dataset["test"]["user_id"]) + "\n\n" + machine(args.seed) + "\n"
    (args.output / "baselines.md").write_text(text, encoding="utf-8")
    print(text, end="")


def score_all(dataset: DatasetDict, seed: int, output: Path) -> tuple[dict[str, list[np.ndarray]], dict[str, float]]:
    """The scores of the test records, and the seconds from training events to scores."""
    events = events_of_records(dataset["train"])
    # the columns are read once, as lists
    validation: dict = dataset["validation"].to_dict()
    test: dict = dataset["test"].to_dict()
    makers = {
        "Popularity": lambda: popularity_scorer(events),
        "Next item": lambda: cooccurrence_scorer(events, window=1),
        "Last-item co-occurrence": lambda: cooccurrence_scorer(events),
        "Item-kNN, whole sequences": lambda: item_knn_scorer(events, k=200, window=None),
        "Item-kNN": lambda: item_knn_scorer(events),
        BEST: lambda: train_sasrec(events, seed=seed, validation=validation),
        "GRU4Rec": lambda: train_gru4rec(events, seed=seed, validation=validation),
    }
    scores, seconds = {}, {}
    for name, make in makers.items():
        start = time.perf_counter()
        scores[name] = score_records(make(), test, desc=name)
        seconds[name] = time.perf_counter() - start
        write_scores(scores[name], output / f"{name.lower().replace(',', '').replace(' ', '-')}.test.parquet")
    return scores, seconds


def table(scores: dict[str, list[np.ndarray]], seconds: dict[str, float], users: list) -> str:
    """A row for each system, in Markdown, with intervals over users."""
    ranked = {name: ranks(rows) for name, rows in scores.items()}
    sizes = {len(row) for rows in scores.values() for row in rows}
    lines = [
        f"| | hr@1 | 95% interval | minus {BEST} | ndcg@10 | mrr | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    if len(sizes) == 1:
        chance = chance_metrics(sizes.pop())
        lines.append(f"| Chance | {chance['hr@1']:.3f} | | | {chance['ndcg@10']:.3f} | {chance['mrr']:.3f} | |")
    for name, row in ranked.items():
        metrics = ranking_metrics(row, groups=users)
        low, high = metrics["hr@1_ci"]
        difference = (row == 1).astype(float) - (ranked[BEST] == 1)
        apart = difference_interval(difference, users)
        gap = "" if name == BEST else f"{difference.mean():+.3f} ({apart[0]:+.3f}, {apart[1]:+.3f})"
        lines.append(
            f"| {name} | {metrics['hr@1']:.3f} | {low:.3f}, {high:.3f} | {gap} | {metrics['ndcg@10']:.3f} "
            f"| {metrics['mrr']:.3f} | {seconds[name]:.1f} |"
        )
    return "\n".join(lines) + f"\n\nn = {metrics['n']}, {metrics['users']} users, sampled candidates."


def machine(seed: int) -> str:
    """What it ran on."""
    return (
        f"Seed {seed}, {os.cpu_count()} cores ({platform.machine()}), {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, numpy {np.__version__}."
    )


if __name__ == "__main__":
    main()
