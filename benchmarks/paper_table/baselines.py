"""Scorers without a language model on the records of the table."""

import os
from pathlib import Path

import polars as pl
import torch

from trl_sdpo.recsys import build_sequences, temporal_split
from trl_sdpo.recsys.baselines.counting import cooccurrence_scorer, item_knn_scorer, popularity_scorer
from trl_sdpo.recsys.baselines.scores import Scorer, score_records
from trl_sdpo.recsys.baselines.sequential import train_gru4rec, train_sasrec

from .models import RECORDS_SEED, Style
from .runs import cached_scores


def baseline_scorers(style: Style, directory: Path) -> dict[str, Scorer]:
    """
    Popularity, last-item co-occurrence, item-kNN, SASRec and GRU4Rec, of the training events.

    Args:
        style ([`Style`]):
            For the interactions, and the validation records on which SASRec and GRU4Rec stop.
        directory (`Path`):
            Where the trained networks are kept for a second start.

    Returns:
        `dict[str, Callable]`: Scorers of item ids, by name.
    """
    events = temporal_split(build_sequences(style.interactions)).filter(pl.col("split") == "train")
    scorers = {
        "popularity": popularity_scorer(events),
        "last-item co-occurrence": cooccurrence_scorer(events),
        "item-kNN": item_knn_scorer(events),
    }
    for name, train in (("SASRec", train_sasrec), ("GRU4Rec", train_gru4rec)):
        path = scorer_path(directory, name)
        if not path.is_file():
            scorer = train(events, seed=RECORDS_SEED, validation=style.records["validation"])
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            torch.save(scorer, temporary)
            temporary.replace(path)
        scorers[name] = trained_scorer(directory, name)
    return scorers


def scorer_path(directory: Path, name: str) -> Path:
    return directory / name / "scorer.pt"


def trained_scorer(directory: Path, name: str) -> Scorer | None:
    """SASRec or GRU4Rec as [`baseline_scorers`] left it, if it did."""
    path = scorer_path(directory, name)
    # a file of this program's own: a whole object, not weights alone
    return torch.load(path, weights_only=False) if path.is_file() else None


def score_baselines(style: Style, directory: Path) -> None:
    """Scores of validation and test records: the candidates of both styles are the same."""
    for name, scorer in baseline_scorers(style, directory).items():
        for split in ("validation", "test"):
            records = style.records[split]
            cached_scores(directory / name / f"{split}.parquet", lambda: score_records(scorer, records))  # noqa: B023
