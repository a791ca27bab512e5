"""Scorers without a language model on the records of the table. Imported by paper_table.py as a sibling module."""

import time
from pathlib import Path

import polars as pl
import stages
from paper_table_models import RECORDS_SEED, Style
from paper_table_runs import cached_scores

from trl_sdpo.recsys import build_sequences, temporal_split
from trl_sdpo.recsys.baselines import cooccurrence_scorer, item_knn_scorer, popularity_scorer
from trl_sdpo.recsys.scorers import Scorer, score_records
from trl_sdpo.recsys.sequential_baselines import train_gru4rec, train_sasrec


def baseline_scorers(style: Style, directory: Path, sequential: dict) -> dict[str, Scorer]:
    """
    Popularity, last-item co-occurrence, item-kNN, SASRec and GRU4Rec, of the training events.

    Args:
        style ([`Style`]):
            For the interactions, and the validation records on which SASRec and GRU4Rec stop.
        directory (`Path`):
            Where the seconds of training are written.
        sequential (`dict`):
            Options of SASRec and GRU4Rec.

    Returns:
        `dict[str, Callable]`: Scorers of item ids, by name.
    """
    events = temporal_split(build_sequences(style.interactions)).filter(pl.col("split") == "train")
    makers = {
        "popularity": lambda: popularity_scorer(events),
        "last-item co-occurrence": lambda: cooccurrence_scorer(events),
        "item-kNN": lambda: item_knn_scorer(events),
        "SASRec": lambda: train_sasrec(
            events, seed=RECORDS_SEED, validation=style.records["validation"], **sequential
        ),
        "GRU4Rec": lambda: train_gru4rec(
            events, seed=RECORDS_SEED, validation=style.records["validation"], **sequential
        ),
    }
    scorers, seconds = {}, {}
    for name, make in makers.items():
        start = time.perf_counter()
        scorers[name] = make()
        seconds[name] = round(time.perf_counter() - start, 1)
    directory.mkdir(parents=True, exist_ok=True)
    stages.write_json(directory / "seconds.json", seconds)
    return scorers


def score_baselines(style: Style, scorers: dict[str, Scorer], directory: Path) -> None:
    """Scores of validation and test records: the candidates of both styles are the same."""
    for name, scorer in scorers.items():
        for split in ("validation", "test"):
            records = style.records[split]
            cached_scores(directory / name / f"{split}.parquet", lambda: score_records(scorer, records))  # noqa: B023
