"""What the attributes of items tell alone: the baseline that a model which reads text has to beat, on new items above all."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ..interactions.codes import encode
from ..interactions.interactions import ITEM_ID, TITLE
from ..metrics.fusion import Fusion, fit_fusion
from .counting import LAST, training_sequences


YEAR, TEXT = "year", "text"
# Events of items with a value, for the prior of a value that few items have.
_PRIOR_ITEMS = 5.0
_AT_ONCE = 64
_NO_ROW = -1


@dataclass(eq=False, repr=False)
class ContentScorer:
    """
    The fit of [`content_scorer`], a *scorer*: call it with histories and candidates.

    Args:
        items (`polars.DataFrame`):
            The items whose attributes are known, by `item_id`, as strings, sorted.
        counts (`numpy.ndarray`):
            Training events of each.
        vectors (`numpy.ndarray`, *optional*):
            A vector of each, of shape `(items, d)`.
        features (`Sequence[_Feature]`):
            What is computed of a history and a candidate.
        fusion ([`Fusion`], *optional*):
            Their weights. `None` before they are fitted.
    """

    items: pl.DataFrame
    counts: np.ndarray
    vectors: np.ndarray | None
    features: Sequence["_Feature"]
    fusion: Fusion | None = None

    @property
    def item_ids(self) -> pl.Series:
        """The ids of the items."""
        return self.items[ITEM_ID]

    def parts(
        self, histories: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]]
    ) -> dict[str, list[np.ndarray]]:
        """
        The features by name, each an array for each record with a number for each candidate, as [`fit_fusion`] takes them.

        Args:
            histories (`Sequence[Sequence[str]]`), candidates (`Sequence[Sequence[str]]`):
                Item ids, oldest first. Of an item without attributes nothing is known, in either.
        """
        found: dict[str, list[np.ndarray]] = {}
        for begin in range(0, len(candidates), _AT_ONCE):
            some = slice(begin, begin + _AT_ONCE)
            read, owners = self._rows(histories[some])
            asked, of = self._rows(candidates[some])
            cuts = np.cumsum([len(row) for row in candidates[some]])[:-1]
            for feature in self.features:
                for name, values in feature(read, owners, asked, of, len(candidates[some])):
                    found.setdefault(name, []).extend(np.split(values, cuts))
        return found

    def __call__(self, histories: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """A score for each candidate of each record, see [`score_records`]."""
        return self.fusion.scores(self.parts(histories, candidates)) if len(candidates) else []

    def _rows(self, lists: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """The items of lists as rows, one behind the other, -1 where unknown; and of which list each is."""
        flat = pl.Series([str(item) for row in lists for item in row], dtype=pl.String)
        return encode(flat, self.item_ids), np.repeat(np.arange(len(lists)), [len(row) for row in lists])


class _Feature:
    """Rows of histories with their owners, rows of candidates with theirs, and a number of records, to named columns."""

    def __call__(
        self, read: np.ndarray, owners: np.ndarray, asked: np.ndarray, of: np.ndarray, size: int
    ) -> Iterator[tuple[str, np.ndarray]]:
        raise NotImplementedError


class _Values(_Feature):
    """
    Attributes that are words: how like the history a candidate is, and how often training took items with its values.

    Args:
        name (`str`):
            The attribute.
        values (`list[list[str]]`):
            Of every item.
        counts (`numpy.ndarray`):
            Training events of every item.
    """

    def __init__(self, name: str, values: list[list[str]], counts: np.ndarray) -> None:
        self.name = name
        lengths = np.array([len(row) for row in values])
        flat = pl.Series([one for row in values for one in row], dtype=pl.String)
        known = flat.unique().sort()
        self.codes, self.num_values = encode(flat, known), len(known)
        self.begins = np.concatenate([[0], np.cumsum(lengths)])
        items = np.repeat(np.arange(len(values)), lengths)
        idf = np.log((1 + len(values)) / (1 + np.bincount(self.codes, minlength=self.num_values))) + 1
        squares = np.bincount(items, idf[self.codes] ** 2, minlength=len(values))
        self.weights = idf[self.codes] / np.sqrt(np.maximum(squares, 1e-12))[items]
        # what training says of a value: events per item that it knows, towards the mean of all where there are few
        taken = counts > 0
        mean = counts.sum() / max(1, taken.sum())
        events = np.bincount(self.codes, counts[items], minlength=self.num_values)
        holders = np.bincount(self.codes, taken[items].astype(float), minlength=self.num_values)
        prior = np.log((events + _PRIOR_ITEMS * mean) / (holders + _PRIOR_ITEMS) / mean)
        self.prior = np.bincount(items, prior[self.codes], minlength=len(values)) / np.maximum(1, lengths)

    def __call__(
        self, read: np.ndarray, owners: np.ndarray, asked: np.ndarray, of: np.ndarray, size: int
    ) -> Iterator[tuple[str, np.ndarray]]:
        profile = np.zeros(size * self.num_values)
        places, which = self._entries(read)
        np.add.at(profile, owners[which] * self.num_values + self.codes[places], self.weights[places])
        profile = profile.reshape(size, self.num_values)
        profile /= np.maximum(np.sqrt((profile**2).sum(axis=1, keepdims=True)), 1e-12)
        places, which = self._entries(asked)
        products = profile[of[which], self.codes[places]] * self.weights[places]
        yield f"{self.name}: like the history", np.bincount(which, products, minlength=len(asked))
        yield f"{self.name}: popularity of its values", np.where(asked >= 0, self.prior[asked], 0.0)

    def _entries(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of the values of rows of items, one behind the other, and which of the rows each belongs to."""
        begins = np.where(rows >= 0, self.begins[rows], 0)
        lengths = np.where(rows >= 0, self.begins[rows + 1] - begins, 0)
        which = np.repeat(np.arange(len(rows)), lengths)
        return np.repeat(begins - np.cumsum(lengths) + lengths, lengths) + np.arange(len(which)), which


class _Number(_Feature):
    """
    Attributes that are numbers, such as the year: how far a candidate is from the history.

    Args:
        name (`str`):
            The attribute.
        values (`numpy.ndarray`):
            Of every item, NaN where not known.
    """

    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name, known = name, values[np.isfinite(values)]
        # what is not known is in the middle
        self.values = np.append(np.where(np.isfinite(values), values, np.median(known)), np.median(known))
        self.scale = max(float(known.std()), 1e-12)

    def __call__(
        self, read: np.ndarray, owners: np.ndarray, asked: np.ndarray, of: np.ndarray, size: int
    ) -> Iterator[tuple[str, np.ndarray]]:
        values = self.values[read]
        counts = np.bincount(owners, minlength=size)
        means = np.bincount(owners, values, minlength=size) / np.maximum(1, counts)
        means[counts == 0] = self.values[_NO_ROW]
        largest = np.full(size, -np.inf)
        np.maximum.at(largest, owners, values)
        largest[counts == 0] = self.values[_NO_ROW]
        own = self.values[asked]
        yield f"{self.name}: near the history's mean", -np.abs(own - means[of]) / self.scale
        yield f"{self.name}: near the history's largest", -np.abs(own - largest[of]) / self.scale


class _Vectors(_Feature):
    """
    Vectors of items, such as embeddings of their titles: the cosine to the mean of the history, and to its nearest item.

    Args:
        name (`str`):
            What they are of.
        vectors (`numpy.ndarray`):
            Of shape `(items, d)`.
    """

    def __init__(self, name: str, vectors: np.ndarray) -> None:
        self.name = name
        # Vectors of a language model share most of their direction, which says nothing.
        centred = vectors - vectors.mean(axis=0)
        centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
        self.vectors = np.vstack([centred, np.zeros_like(centred[:1])])

    def __call__(
        self, read: np.ndarray, owners: np.ndarray, asked: np.ndarray, of: np.ndarray, size: int
    ) -> Iterator[tuple[str, np.ndarray]]:
        means, nearest = np.zeros(len(asked)), np.zeros(len(asked))
        for record in range(size):
            history, some = self.vectors[read[owners == record]], of == record
            if len(history):
                cosines = self.vectors[asked[some]] @ history.T
                mean = np.linalg.norm(history.mean(axis=0))
                means[some], nearest[some] = cosines.mean(axis=1) / max(mean, 1e-12), cosines.max(axis=1)
        yield f"{self.name}: like the history", means
        yield f"{self.name}: like its nearest", nearest


def content_scorer(
    events: pl.DataFrame,
    items: pl.DataFrame,
    *,
    seed: int = 0,
    vectors: Mapping[str, np.ndarray] | None = None,
    history_size: int = 10,
    num_negatives: int = 19,
    max_targets: int = 20_000,
) -> ContentScorer:
    r"""
    Score a candidate by its attributes: words such as genres, numbers such as the year, vectors of its title.

    Nothing is known of an item but its attributes, so one without events is scored as any other. The features are, of
    words the cosine of the candidate and the history (values weighted by how rare they are) and how often training took
    items of such values; of numbers the distance to the mean and to the largest of the history; of vectors the cosine
    to the history's mean and to its nearest item. Their weights are those of a conditional logit ([`fit_fusion`]) over
    training events and items that training took, drawn uniformly, without those of the user.

    Args:
        events (`polars.DataFrame`):
            See [`training_sequences`].
        items (`polars.DataFrame`):
            `item_id` and attributes: texts and lists of texts are words, numbers are numbers. Without a column `year`
            that of the title (`"Heat (1995)"`) is taken, where there is one.
        seed (`int`, *optional*, defaults to `0`):
            Of the draws for the fit.
        vectors (`Mapping[str, numpy.ndarray]`, *optional*):
            A vector for each item id, such as [`title_embeddings`] makes.
        history_size (`int`, *optional*, defaults to `10`):
            Items of a history of the fit.
        num_negatives (`int`, *optional*, defaults to `19`), max_targets (`int`, *optional*, defaults to `20000`):
            Items that are drawn for each event, and events of the fit at most, drawn uniformly.

    Returns:
        [`ContentScorer`]: The scorer, with the weights in `fusion`.

    Raises:
        ValueError: items have no attribute and no vector, an id twice or no vector, or there is no event to fit on.

    Example:
        ```python
        >>> items = pl.DataFrame({"item_id": range(6), "genres": [["A"], ["A"], ["A"], ["B"], ["B"], ["B"]]})
        >>> events = pl.DataFrame({"user_id": [1, 1, 1, 2, 2, 2], "item_id": [0, 1, 2, 3, 4, 5]})
        >>> like, unlike = content_scorer(events, items, num_negatives=2)([["0", "1"]], [["2", "5"]])[0]
        >>> bool(like > unlike)
        True

        ```
    """
    sequences = training_sequences(events)
    items = _with_year(items.with_columns(pl.col(ITEM_ID).cast(pl.String)).sort(ITEM_ID))
    ids = items[ITEM_ID]
    if ids.n_unique() < len(ids):
        again = ids.filter(ids.is_duplicated())[0]
        raise ValueError(f"items: column '{ITEM_ID}': {again!r} occurs twice. Keep one row of it.")
    codes = encode(sequences[ITEM_ID], ids)
    counts = np.bincount(codes[codes >= 0], minlength=len(ids)).astype(np.float64)
    rows = None if vectors is None else _rows_of(vectors, ids)
    features = features_of(items, counts, rows)
    if not features:
        raise ValueError(
            f"items: no attribute among {items.columns}. Keep some with the loader (attributes=..., `--loader_options "
            "attributes=genres,year`), or pass vectors."
        )
    scorer = ContentScorer(items, counts, rows, features)
    histories, candidates = _fit_records(sequences, ids, counts, seed, history_size, num_negatives, max_targets)
    scorer.fusion = fit_fusion(scorer.parts(histories, candidates))
    return scorer


def features_of(items: pl.DataFrame, counts: np.ndarray, vectors: np.ndarray | None) -> list[_Feature]:
    """What can be computed of the attributes, the training events `(items,)` and the vectors `(items, d)` of items."""
    features: list[_Feature] = []
    for name in (name for name in items.columns if name not in (ITEM_ID, TITLE)):
        column = items[name]
        if column.dtype.is_numeric():
            values = column.cast(pl.Float64).fill_null(np.nan).to_numpy()
            features += [_Number(name, values)] if np.isfinite(values).any() else []
            continue
        rows = column.cast(pl.List(pl.String) if column.dtype == pl.List else pl.String).to_list()
        rows = rows if column.dtype == pl.List else [[one] for one in rows]
        words = [[one for one in dict.fromkeys(row or ()) if one] for row in rows]
        features += [_Values(name, words, counts)] if any(words) else []
    return features if vectors is None else [*features, _Vectors(TEXT, vectors)]


def _rows_of(vectors: Mapping[str, np.ndarray], ids: pl.Series) -> np.ndarray:
    missing = [item for item in ids.to_list() if item not in vectors]
    if missing:
        raise ValueError(f"vectors: none of item {missing[0]!r} ({len(missing)} such items). Pass one for each.")
    return np.array([vectors[item] for item in ids.to_list()], dtype=np.float64)


def _with_year(items: pl.DataFrame) -> pl.DataFrame:
    """The year that titles end in as a number, where the items have no other."""
    if YEAR in items.columns:
        # sources have it as text too
        year = pl.col(YEAR).cast(pl.Float64, strict=False)
        whole = items[YEAR].dtype != pl.List and items.select(year.is_null() == pl.col(YEAR).is_null())[YEAR].all()
        return items.with_columns(year) if whole else items
    if TITLE not in items.columns:
        return items
    year = items[TITLE].str.extract(r"\((\d{4})\)\s*$").cast(pl.Float64)
    return items if year.is_null().all() else items.with_columns(year.alias(YEAR))


def _fit_records(
    sequences: pl.DataFrame,
    ids: pl.Series,
    counts: np.ndarray,
    seed: int,
    history_size: int,
    num_negatives: int,
    max_targets: int,
) -> tuple[list[list[str]], list[list[str]]]:
    """Histories and candidates, the target first, of training events."""
    generator = np.random.default_rng(seed)
    ends = np.flatnonzero(sequences[LAST].to_numpy()) + 1
    begins = np.repeat(np.concatenate([[0], ends[:-1]]), np.diff(np.concatenate([[0], ends])))
    events = sequences[ITEM_ID].to_list()
    taken = ids.filter(pl.Series(counts > 0)).to_list()
    places = np.flatnonzero(np.arange(len(events)) > begins)
    if len(places) > max_targets:
        places = np.sort(generator.choice(places, max_targets, replace=False))
    histories, candidates, lasts = [], [], np.repeat(ends, np.diff(np.concatenate([[0], ends])))
    for place, begin, end in zip(places.tolist(), begins[places].tolist(), lasts[places].tolist(), strict=True):
        own = set(events[begin:end])
        drawn = generator.integers(len(taken), size=num_negatives)
        others = [taken[row] for row in dict.fromkeys(drawn.tolist()) if taken[row] not in own]
        if others:
            histories.append(events[max(begin, place - history_size) : place])
            candidates.append([events[place], *others])
    if not candidates:
        raise ValueError("events: none has a history and items that its user did not take. Pass more training events.")
    return histories, candidates
