"""Trained scorers as files of safetensors: the tensors of a network or of a table, and what they mean as metadata."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...files import writing
from ..interactions.interactions import ITEM_ID
from ..metrics.fusion import Fusion
from .content import ContentScorer, features_of
from .networks import GRU4Rec, SASRec
from .scores import Scorer
from .sequential import SequentialScorer


_NETWORKS = {"SASRec": SASRec, "GRU4Rec": GRU4Rec}


def save_scorer(scorer: Scorer, path: str | Path) -> None:
    """
    Write a trained scorer.

    Args:
        scorer ([`SequentialScorer`] or [`ContentScorer`]):
            What [`train_sasrec`], [`train_gru4rec`] or [`content_scorer`] returns.
        path (`str` or `Path`):
            The file, which appears when it is whole.

    Raises:
        ValueError: it is of another kind.
    """
    if isinstance(scorer, SequentialScorer):
        tensors = {name: value.contiguous().cpu() for name, value in scorer.model.state_dict().items()}
        facts = {"kind": type(scorer.model).__name__, "sizes": scorer.model.sizes, "items": scorer.item_ids.to_list()}
    elif isinstance(scorer, ContentScorer):
        columns = scorer.items.drop(ITEM_ID).to_dict(as_series=False)
        tensors = {"counts": torch.from_numpy(scorer.counts)}
        if scorer.vectors is not None:
            tensors["vectors"] = torch.from_numpy(np.ascontiguousarray(scorer.vectors))
        facts = {"kind": "content", "items": scorer.item_ids.to_list(), "columns": columns}
        facts["fusion"] = dataclasses.asdict(scorer.fusion)
    else:
        raise ValueError(
            f"{path}: a scorer of type {type(scorer).__name__} has no form on disk. Save SASRec, GRU4Rec or a content "
            "baseline, or pass the scorer where it is used."
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as stage:
        save_file(tensors, stage, metadata={"scorer": json.dumps(facts)})


def load_scorer(path: str | Path) -> Scorer:
    """
    Read what [`save_scorer`] wrote, on the CPU.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["scorer"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return _content(facts, tensors) if facts["kind"] == "content" else _network(facts, tensors)
    except (KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path}: no scorer ({error!r}). Pass what save_scorer wrote.") from error


def _network(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> SequentialScorer:
    model = _NETWORKS[facts["kind"]](**facts["sizes"])
    if "vectors" in tensors:
        # what the rest of the state fills
        model.add_vectors(torch.zeros_like(tensors["vectors"][1:]), tensors["has_events"], 0.0)
    model.load_state_dict(tensors)
    return SequentialScorer(model.eval(), pl.Series(facts["items"], dtype=pl.String))


def _content(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> ContentScorer:
    items = pl.DataFrame({ITEM_ID: facts["items"], **facts["columns"]}, strict=False)
    vectors = tensors["vectors"].numpy() if "vectors" in tensors else None
    counts, fusion = tensors["counts"].numpy(), dict(facts["fusion"])
    fusion |= {name: tuple(fusion[name]) for name in ("features", "weights", "errors", "gains")}
    return ContentScorer(items, counts, vectors, features_of(items, counts, vectors), Fusion(**fusion))
