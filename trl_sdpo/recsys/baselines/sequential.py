"""SASRec and GRU4Rec, trained with the softmax over all items: what an LLM recommender has to beat."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F

from ..._progress import progress
from ..interactions.codes import encode
from ..interactions.interactions import ITEM_ID
from ..metrics.ranking import hit_rate, ranks
from .counting import LAST, training_sequences
from .networks import GRU4Rec, SASRec, SequentialModel
from .scores import score_records


logger = logging.getLogger(__name__)

_SCORED_AT_ONCE = 1024


@dataclass(eq=False, repr=False)
class SequentialScorer:
    """
    A trained network as a *scorer*: call it with histories and candidates.

    Args:
        model ([`SequentialModel`]):
            The network.
        item_ids (`polars.Series`):
            The items of training as strings, and those with a vector, sorted. The item in row i is item i + 1 of the
            network.
        seconds (`float`):
            How long the training took, validation included.
        num_epochs (`int`):
            After how many passes over the events the weights were taken.
        validation_hit_rates (`list[float]`):
            hr@1 of the validation records after each epoch; empty without validation.
    """

    model: SequentialModel
    item_ids: pl.Series
    seconds: float = 0.0
    num_epochs: int = 0
    validation_hit_rates: list[float] = field(default_factory=list)

    def log_probs(self, histories: Sequence[Sequence[str]]) -> np.ndarray:
        """
        Log-probabilities of every item of training as the next one.

        Args:
            histories (`Sequence[Sequence[str]]`):
                Item ids of each history, oldest first. Items that training did not have are skipped; of longer
                histories the last `max_length` items count, and an empty one is allowed.

        Returns:
            `numpy.ndarray`: `float32` of shape `(n, num_items)`, columns in the order of `item_ids`.
        """
        inputs, lengths = self._inputs(histories)
        parts = [np.empty((0, len(self.item_ids)), dtype=np.float32)]
        device = self.model.bias.device
        self.model.eval()
        with torch.no_grad():
            for begin in range(0, len(inputs), _SCORED_AT_ONCE):
                some = slice(begin, begin + _SCORED_AT_ONCE)
                states = self.model.states(inputs[some].to(device))
                last = states[torch.arange(len(states)), lengths[some].to(device)]
                parts.append(F.log_softmax(self.model.scores(last).float(), dim=-1).cpu().numpy())
        return np.concatenate(parts)

    def score(self, histories: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """
        Log-probabilities of candidates as the next item.

        Args:
            histories (`Sequence[Sequence[str]]`):
                See [`~SequentialScorer.log_probs`].
            candidates (`Sequence[Sequence[str]]`):
                Item ids to score, for each history. One that training did not have, and that has no vector, gets the
                lowest score that any item has for this history: nothing is known of it, and the sum with another model's
                score stays finite.

        Returns:
            `list[numpy.ndarray]`: One score per candidate.
        """
        scores = self.log_probs(histories)
        lengths = [len(row) for row in candidates]
        flat = pl.Series([item for row in candidates for item in row], dtype=pl.String)
        columns, rows = encode(flat, self.item_ids), np.repeat(np.arange(len(lengths)), lengths)
        values = np.where(columns < 0, scores.min(axis=1)[rows], scores[rows, columns])
        return np.split(values, np.cumsum(lengths)[:-1]) if lengths else []

    __call__ = score

    def top_items(
        self, histories: Sequence[Sequence[str]], k: int, exclude: Sequence[Sequence[str]] | None = None
    ) -> list[list[str]]:
        """
        The most likely next items of the whole catalogue, such as for hard negatives.

        Args:
            histories (`Sequence[Sequence[str]]`):
                See [`~SequentialScorer.log_probs`].
            k (`int`):
                How many.
            exclude (`Sequence[Sequence[str]]`, *optional*):
                Item ids to leave out, for each history: at least all that the user ever took, where the result is to
                be negatives. By default the history.

        Returns:
            `list[list[str]]`: Item ids, the most likely first; fewer than `k` where no more are left.
        """
        if k < 1:
            raise ValueError(f"k={k} is below 1. Pass the number of items.")
        scores = self.log_probs(histories)
        result = []
        for row, excluded in zip(scores, histories if exclude is None else exclude, strict=True):
            columns = encode(pl.Series(list(excluded), dtype=pl.String), self.item_ids)
            row[columns[columns >= 0]] = -np.inf
            best = np.argsort(-row, kind="stable")[:k]
            result.append(self.item_ids[best[row[best] > -np.inf]].to_list())
        return result

    def _inputs(self, histories: Sequence[Sequence[str]]) -> tuple[torch.Tensor, torch.Tensor]:
        """The histories as rows that begin with 0, and where each ends."""
        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        flat = pl.Series([item for history in histories for item in history], dtype=pl.String)
        codes = encode(flat, self.item_ids) + 1
        owner = np.repeat(np.arange(len(lengths)), lengths)
        owner, codes = owner[codes > 0], codes[codes > 0]
        known = np.bincount(owner, minlength=len(lengths))
        place = np.arange(len(codes)) - np.repeat(np.cumsum(known) - known, known)
        lengths = np.minimum(known, self.model.max_length)
        place -= (known - lengths)[owner]
        inputs = np.zeros((len(histories), 1 + lengths.max(initial=0)), dtype=np.int64)
        inputs[owner[place >= 0], 1 + place[place >= 0]] = codes[place >= 0]
        return torch.from_numpy(inputs), torch.from_numpy(lengths)


def draw_windows(
    begins: np.ndarray, ends: np.ndarray, max_length: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """
    Cut every sequence into windows of `max_length` + 1 events from a place that is drawn for each sequence.

    Neighbouring windows share one event: the last target of one is the first item that the next one reads.

    Args:
        begins (`numpy.ndarray`), ends (`numpy.ndarray`):
            Where the sequences begin and end among all events, both of shape `(n,)`.
        max_length (`int`):
            Most items of a history.
        generator (`numpy.random.Generator`):
            What to draw from.

    Returns:
        `tuple[numpy.ndarray, numpy.ndarray]`: Begin and end of every window.
    """
    shifts = generator.integers(max_length, size=len(begins))
    counts = -(-(ends - begins + shifts) // max_length)
    owner = np.repeat(np.arange(len(begins)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    low = begins[owner] - shifts[owner] + number * max_length
    return np.maximum(low, begins[owner]), np.minimum(low + max_length + 1, ends[owner])


@dataclass(frozen=True)
class TrainingOptions:
    """
    How a network is trained.

    Args:
        num_epochs (`int`, *optional*, defaults to `40`):
            Most passes over the events.
        patience (`int`, *optional*, defaults to `5`):
            With validation records: stop after this many epochs without a higher hr@1, and take the weights of the
            best epoch.
        batch_size (`int`, *optional*, defaults to `128`):
            Windows in a step.
        learning_rate (`float`, *optional*, defaults to `3e-3`):
            Step size of AdamW, the same from the first step to the last.
        weight_decay (`float`, *optional*, defaults to `0.01`):
            Weight decay of AdamW.
        device (`str`, *optional*, defaults to `"cpu"`):
            Where to train and score.
    """

    num_epochs: int = 40
    patience: int = 5
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("num_epochs", "patience", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is below 1. Pass at least 1.")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"learning_rate={self.learning_rate} must be above 0, weight_decay={self.weight_decay} at least 0."
            )


def train_sasrec(
    events: pl.DataFrame,
    *,
    seed: int,
    validation: Any = None,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 2,
    max_length: int = 50,
    dropout: float = 0.2,
    learning_rate: float = 5e-3,
    item_embeddings: Mapping[str, np.ndarray] | None = None,
    id_dropout: float = 0.2,
    **training,
) -> SequentialScorer:
    """
    Train SASRec (Kang and McAuley, ICDM 2018, https://huggingface.co/papers/1808.09781) with the softmax over all items
    of training, which does much better than the paper's one negative per position (Klenitskiy and Vasilev, RecSys
    2023, https://huggingface.co/papers/2309.07602).

    The same events, options and seed give the same weights on the CPU of one machine. The generators of the process
    are left as they were.

    Args:
        events (`polars.DataFrame`):
            Events with `user_id` and `item_id`, those of a user in order, as [`build_sequences`] makes them, or
            [`events_of_records`]. Where there is a column `split`, only `train` is read.
        seed (`int`):
            The seed of the weights, of dropout and of the order of the events.
        validation (`Dataset` or `dict[str, Sequence]`, *optional*):
            Records to measure hr@1 on after every epoch: the weights of the best epoch are taken. Without them the
            training goes on for `num_epochs`.
        hidden_size (`int`, *optional*, defaults to `64`), num_layers (`int`, *optional*, defaults to `2`), num_heads (`int`, *optional*, defaults to `2`):
            Size of the network.
        max_length (`int`, *optional*, defaults to `50`):
            Most items of a history that are read. It may be more than the records hold: in longer windows of the
            training sequences fewer events are targets with little before them.
        dropout (`float`, *optional*, defaults to `0.2`):
            Dropout.
        learning_rate (`float`, *optional*, defaults to `5e-3`):
            Step size of AdamW, the same from the first step to the last.
        item_embeddings (`Mapping[str, numpy.ndarray]`, *optional*):
            A vector for each item id, such as [`title_embeddings`] makes of a language model (LLM2Rec,
            https://huggingface.co/papers/2506.21579). They are standardised, do not train, and are projected into the space of
            the ids, to which they are added. Items that have one and no training event are scored by it.
        id_dropout (`float`, *optional*, defaults to `0.2`):
            With `item_embeddings`: how often, in training, an item's id is left out; 1 for vectors in place of ids.
        **training:
            The fields of [`TrainingOptions`].

    Returns:
        [`SequentialScorer`]: The scorer.

    Raises:
        ValueError: there is no training event, a number is out of range, the loss is not finite, or an item of training has
            no vector where others have one.

    Example:
        ```python
        from trl_sdpo.recsys import build_preference_dataset, build_sequences, load_movielens, score_records
        from trl_sdpo.recsys import temporal_split
        from trl_sdpo.recsys.baselines.sequential import train_sasrec

        interactions = load_movielens("ml-100k.zip")
        dataset, _ = build_preference_dataset(interactions, seed=0)
        events = temporal_split(build_sequences(interactions))
        scorer = train_sasrec(events, seed=0, validation=dataset["validation"])
        scores = score_records(scorer, dataset["test"])
        ```
    """

    def build(num_items: int) -> SASRec:
        return SASRec(num_items, hidden_size, max_length, dropout, num_layers, num_heads)

    options = TrainingOptions(learning_rate=learning_rate, **training)
    return _train(build, events, seed, validation, options, "SASRec", item_embeddings, id_dropout)


def train_gru4rec(
    events: pl.DataFrame,
    *,
    seed: int,
    validation: Any = None,
    hidden_size: int = 128,
    num_layers: int = 1,
    max_length: int = 50,
    dropout: float = 0.4,
    learning_rate: float = 3e-3,
    **training,
) -> SequentialScorer:
    """
    Train GRU4Rec (Hidasi et al., ICLR 2016, https://huggingface.co/papers/1511.06939) with the softmax over all items
    of training, as [`train_sasrec`].

    Args:
        events (`polars.DataFrame`), seed (`int`), validation (`Dataset` or `dict[str, Sequence]`, *optional*):
            See [`train_sasrec`].
        hidden_size (`int`, *optional*, defaults to `128`), num_layers (`int`, *optional*, defaults to `1`):
            Size of the network.
        max_length (`int`, *optional*, defaults to `50`):
            Most items of a history that are read.
        dropout (`float`, *optional*, defaults to `0.4`):
            Dropout.
        learning_rate (`float`, *optional*, defaults to `3e-3`):
            Step size of AdamW, the same from the first step to the last.
        **training:
            The fields of [`TrainingOptions`].

    Returns:
        [`SequentialScorer`]: The scorer.

    Raises:
        ValueError: see [`train_sasrec`].
    """

    def build(num_items: int) -> GRU4Rec:
        return GRU4Rec(num_items, hidden_size, max_length, dropout, num_layers)

    return _train(build, events, seed, validation, TrainingOptions(learning_rate=learning_rate, **training), "GRU4Rec")


def _train(
    build: Callable[[int], SequentialModel],
    events: pl.DataFrame,
    seed: int,
    validation: Any,
    options: TrainingOptions,
    name: str,
    item_embeddings: Mapping[str, np.ndarray] | None = None,
    id_dropout: float = 0.0,
) -> SequentialScorer:
    start = time.perf_counter()
    sequences = training_sequences(events)
    item_ids = learned = sequences[ITEM_ID].unique().sort()
    if item_embeddings is not None:
        item_ids = pl.concat([learned, pl.Series(list(item_embeddings), dtype=pl.String)]).unique().sort()
    codes = torch.from_numpy(encode(sequences[ITEM_ID], item_ids) + 1)
    ends = np.flatnonzero(np.append(sequences[LAST].to_numpy()[:-1], True)) + 1
    begins = np.concatenate([[0], ends[:-1]])
    # The generator of the process is left as it was.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(len(item_ids))
        if item_embeddings is not None:
            known = torch.from_numpy(item_ids.is_in(learned.implode()).to_numpy().copy())
            model.add_vectors(_standardised(item_embeddings, item_ids), known, id_dropout)
        scorer = SequentialScorer(model.to(options.device), item_ids)
        _fit(scorer, codes, begins, ends, np.random.default_rng(seed), validation, options, name)
    scorer.seconds = time.perf_counter() - start
    return scorer


def _standardised(vectors: Mapping[str, np.ndarray], item_ids: pl.Series) -> torch.Tensor:
    """Vectors of items in their order, every dimension with mean 0 and deviation 1, scaled to a length of about 1."""
    missing = [item for item in item_ids.to_list() if item not in vectors]
    if missing:
        raise ValueError(
            f"item_embeddings: none of item {missing[0]!r} ({len(missing)} such items). Pass one for each item of training."
        )
    rows = np.array([vectors[item] for item in item_ids.to_list()], dtype=np.float32)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError("item_embeddings: not vectors of one length with finite numbers. Pass those.")
    spread = rows.std(axis=0)
    rows = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return torch.from_numpy(rows / np.sqrt(rows.shape[1]).astype(np.float32))


def _fit(
    scorer: SequentialScorer,
    codes: torch.Tensor,
    begins: np.ndarray,
    ends: np.ndarray,
    generator: np.random.Generator,
    validation: Any,
    options: TrainingOptions,
    name: str,
) -> None:
    model = scorer.model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.98)
    )
    best = None
    with progress(range(1, options.num_epochs + 1), desc=name, unit="epochs") as bar:
        for epoch in bar:
            loss = _run_epoch(model, optimizer, codes, begins, ends, generator, options)
            if validation is None:
                bar.set_postfix(loss=f"{loss:.3f}")
                scorer.num_epochs = epoch
                continue
            scores = score_records(scorer, validation, desc=None)
            scorer.validation_hit_rates.append(hit_rate(ranks(scores)))
            bar.set_postfix(loss=f"{loss:.3f}", hr=f"{scorer.validation_hit_rates[-1]:.3f}")
            if scorer.validation_hit_rates[-1] > max(scorer.validation_hit_rates[:-1], default=-1):
                scorer.num_epochs = epoch
                best = {name: value.clone() for name, value in model.state_dict().items()}
            elif epoch - scorer.num_epochs >= options.patience:
                break
    if best is not None:
        model.load_state_dict(best)


def _run_epoch(
    model: SequentialModel,
    optimizer: torch.optim.Optimizer,
    codes: torch.Tensor,
    begins: np.ndarray,
    ends: np.ndarray,
    generator: np.random.Generator,
    options: TrainingOptions,
) -> float:
    low, high = draw_windows(begins, ends, model.max_length, generator)
    order = generator.permutation(len(low))
    places = torch.arange(1 + model.max_length)
    total = count = 0
    model.train()
    for begin in range(0, len(order), options.batch_size):
        rows = order[begin : begin + options.batch_size]
        index = torch.from_numpy(low[rows])[:, None] + places
        exists = index < torch.from_numpy(high[rows])[:, None]
        targets = torch.where(exists, codes[index.clamp(max=len(codes) - 1)], 0).to(options.device)
        inputs = F.pad(targets[:, :-1], (1, 0))
        states = model.states(inputs)[targets > 0]
        loss = F.cross_entropy(model.scores(states), targets[targets > 0] - 1)
        if not torch.isfinite(loss):
            raise ValueError(f"The loss is {loss.item()}. Pass less than learning_rate={options.learning_rate}.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(states)
        count += len(states)
    return total / count
