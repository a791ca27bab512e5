"""Negatives and candidate lists, drawn so that they tell nothing about the target."""

import copy
import logging
import threading
from collections.abc import Iterable

import numpy as np
import polars as pl

from ..interactions.codes import encode, sorted_catalogue
from ..interactions.interactions import ITEM_ID, USER_ID, instants
from ..interactions.random_streams import ORDER_STREAM, hash_keys, random_numbers, stream_keys
from .cooccurrence import nearest_by_co_occurrence
from .eligibility import LAST_PHASE, Arrivals, Seen
from .grades import Grades, low_rated_draw
from .histories import first_in_row, history_codes, history_ends
from .strategies import (
    COLD,
    HARD,
    LOW_RATED,
    POPULARITY,
    POSITION,
    UNIFORM,
    Draw,
    TargetRows,
    cold_draw,
    hard_draw,
    num_cold,
    parse_negatives,
    popularity_draw,
    schedule,
    uniform_draw,
)


logger = logging.getLogger(__name__)

NEGATIVES = "negatives"
CANDIDATES = "candidates"

_DRAWS_PER_CHUNK = 1 << 21
# What popularity or neighbours do not give within so many draws is drawn uniformly: a user may have all of them.
_DRAWS_BEFORE_UNIFORM = 1 << 12


class CandidateSampler:
    """
    Draws negatives and the order of candidate lists, see [`sample_negatives`].

    Args:
        events (`polars.DataFrame`):
            All interactions, with `user_id` and `item_id`: what a user's negatives must not be among.
        catalogue (`polars.DataFrame`):
            The items to draw from, sorted by `item_id`.
        seed (`int`):
            The seed.
        train_events (`polars.DataFrame` or `polars.LazyFrame`, *optional*):
            Events of the training split in order: what popularity and neighbours are counted on.
        popularity_alpha (`float`, *optional*, defaults to `1.0`):
            The exponent of popularity.
        phases (`numpy.ndarray`, *optional*):
            The phase of every event, see [`Seen`].
        available_from (`numpy.ndarray`, *optional*):
            Since when every item of the catalogue has been there, see [`Arrivals`].
        ratings (`polars.DataFrame`, *optional*):
            Events with `rating`, for the scores of records and for negatives that the user rated low.
        low_rating (`float`, *optional*):
            The highest rating of such a negative.
    """

    def __init__(
        self,
        events: pl.DataFrame,
        catalogue: pl.DataFrame,
        *,
        seed: int,
        train_events: pl.DataFrame | pl.LazyFrame | None = None,
        popularity_alpha: float = 1.0,
        phases: np.ndarray | None = None,
        available_from: np.ndarray | None = None,
        ratings: pl.DataFrame | None = None,
        low_rating: float | None = None,
    ) -> None:
        self.ids = catalogue[ITEM_ID]
        self.seed = seed
        self.arrivals = Arrivals(available_from, len(self.ids))
        self.train_events, self.popularity_alpha = train_events, popularity_alpha
        self._draws: dict[str, Draw] = {UNIFORM: uniform_draw(seed, self.arrivals)}
        # what a strategy does not give within so many draws is drawn uniformly
        self._limits: dict[str, int | None] = {UNIFORM: None}
        self.cold: np.ndarray | None = None
        self._read(events, phases, ratings, low_rating)

    def _read(
        self,
        events: pl.DataFrame,
        phases: np.ndarray | None,
        ratings: pl.DataFrame | None,
        low_rating: float | None,
        first_user: int = 0,
    ) -> None:
        self.seen = Seen(events, self.ids, phases)
        self.grades = None if ratings is None else Grades(ratings, self.ids, self.seen)
        if self.grades is not None and low_rating is not None:
            self._draws[LOW_RATED], self._limits[LOW_RATED] = low_rated_draw(
                self.seed, self.grades, low_rating, first_user
            )
        self.filled_uniformly = 0
        self._lock = threading.Lock()

    def over(
        self,
        events: pl.DataFrame,
        *,
        phases: np.ndarray | None,
        ratings: pl.DataFrame | None,
        low_rating: float | None,
        first_user: int,
    ) -> "CandidateSampler":
        """
        The same sampler for the events of some users, sharing what is counted over all.

        Args:
            events (`polars.DataFrame`), phases (`numpy.ndarray`, *optional*), ratings (`polars.DataFrame`, *optional*), low_rating (`float`, *optional*):
                As those of the class, of these users.
            first_user (`int`):
                The row of the first of them among all users, sorted.

        Returns:
            [`CandidateSampler`]: It draws the same for these users.
        """
        other = copy.copy(self)
        other._draws, other._limits = dict(self._draws), dict(self._limits)
        other._read(events, phases, ratings, low_rating, first_user)
        return other

    def release(self) -> None:
        """Let go of what draws need: there are none after it."""
        self._draws, self.seen = {}, None

    def use_counts(self, counts: np.ndarray, neighbours: np.ndarray | None) -> None:
        """Draw by training events of every item `(items,)`, and by neighbours, that were counted elsewhere."""
        self._draws[POPULARITY] = popularity_draw(self.seed, counts, self.popularity_alpha, self.arrivals)
        if neighbours is not None:
            self._draws[HARD] = hard_draw(self.seed, neighbours)

    def prepare(self, strategies: Iterable[str]) -> None:
        """Count what these strategies draw by."""
        for strategy in set(strategies) - self._draws.keys():
            if strategy == LOW_RATED:
                raise ValueError(
                    "negatives of strategy 'low-rated' need the ratings of a source. Make records with "
                    "`build_preference_dataset(..., negatives='low-rated', low_rating=...)`."
                )
            if self.train_events is None:
                raise ValueError(f"negatives of strategy '{strategy}' need train_events. Pass the training events.")
            train_events = self.train_events.lazy().collect()
            if strategy == POPULARITY:
                items = encode(train_events[ITEM_ID], self.ids)
                counts = np.bincount(items[items >= 0], minlength=len(self.ids))
                self._draws[POPULARITY] = popularity_draw(self.seed, counts, self.popularity_alpha, self.arrivals)
            elif strategy == HARD:
                neighbours = nearest_by_co_occurrence(train_events, self.ids)
                self._draws[HARD] = hard_draw(self.seed, neighbours)

    def prepare_cold(self, train_counts: np.ndarray) -> None:
        """Let lists of cold candidates be drawn: of items without a training event."""
        self.cold = train_counts == 0
        self._draws[COLD], self._limits[COLD] = cold_draw(self.seed, self.cold, self.arrivals), None

    def rows(self, targets: pl.DataFrame, histories: np.ndarray, phases: np.ndarray | None = None) -> TargetRows:
        """Targets with `user_id`, `position` and `item_id`, rows of the items before them and phases, as arrays."""
        items = encode(targets[ITEM_ID], self.ids)
        missing = np.flatnonzero(items < 0)
        if len(missing):
            row = int(missing[0])
            raise ValueError(
                f"targets: row {row}, column '{ITEM_ID}': {targets[ITEM_ID][row]!r} is not among the items. Add it to "
                "them."
            )
        users, keys = self.seen.encode_users(targets[USER_ID]), hash_keys(targets[USER_ID])
        phases = np.full(len(items), LAST_PHASE) if phases is None else phases
        available = self.arrivals.count(None if self.arrivals.always else instants(targets).to_numpy(), len(items))
        return TargetRows(users, keys, targets[POSITION].to_numpy(), items, histories, phases, available)

    def num_left(self, rows: TargetRows, enough: int, cold: bool = False) -> np.ndarray:
        """How many (cold) items may be negatives of the rows `(n,)`; exact where there are fewer than `enough`."""
        there = num_cold(self.cold, self.arrivals)[rows.num_available] if cold else rows.num_available
        left = there - self.seen.count(rows.users) - 1
        for row in np.flatnonzero(left < enough).tolist():
            taken = np.union1d(self.seen.items_of(rows.users[row], rows.phases[row]), rows.items[row])
            taken = taken[self.cold[taken]] if cold else taken
            left[row] = there[row] - (self.arrivals.places[taken] < rows.num_available[row]).sum()
        return left

    def check_enough(self, targets: pl.DataFrame, rows: TargetRows, pool_size: int) -> None:
        """Raise if a user leaves too few items."""
        left = self.num_left(rows, pool_size)
        short = np.flatnonzero(left < pool_size)
        if len(short):
            row = int(short[0])
            raise ValueError(
                f"targets: row {row}, column '{USER_ID}': user {targets[USER_ID][row]!r} leaves {left[row]} of "
                f"{len(self.ids)} items to draw {pool_size} negatives from ({len(short)} such rows). Draw fewer "
                "negatives, use more items, or drop the user."
            )

    def draw(self, rows: TargetRows, num_negatives: int, pool_size: int, shares: dict[str, float]) -> np.ndarray:
        """
        Rows of the negatives in the catalogue.

        Args:
            rows ([`TargetRows`]):
                The targets.
            num_negatives (`int`), pool_size (`int`):
                The first `num_negatives` are those of the list, whatever the size of the pool.
            shares (`dict[str, float]`):
                See [`parse_negatives`].

        Returns:
            `numpy.ndarray`: Of shape `(n, pool_size)`.
        """
        pool = np.full((len(rows), pool_size), -1, dtype=np.int64)
        slots = np.array(schedule(shares, pool_size))
        for begin, end in ((0, num_negatives), (num_negatives, pool_size)):
            for strategy in shares:
                columns = begin + np.flatnonzero(slots[begin:end] == strategy)
                if len(columns):
                    pool[:, columns] = self._accept(rows, strategy, pool[:, :end], len(columns))
            short = np.flatnonzero((pool[:, begin:end] < 0).any(axis=1))
            if len(short):
                missing = pool[short, :end] < 0
                extra = self._accept(rows[short], UNIFORM, pool[short, :end], end - begin)
                filled = pool[short, :end]
                filled[missing] = extra[np.arange(end - begin) < missing.sum(axis=1)[:, None]]
                pool[short, :end] = filled
                with self._lock:  # threads draw for different rows, and count together
                    self.filled_uniformly += int(missing.sum())
        return pool

    def order(self, rows: TargetRows, num_candidates: int) -> np.ndarray:
        """The order in which a list shows its candidates, of shape `(n, num_candidates)`; 0 is the target."""
        keys = stream_keys(self.seed, ORDER_STREAM, rows.user_keys, rows.positions)
        return np.argsort(random_numbers(keys, num_candidates), axis=1, kind="stable")

    def _accept(self, rows: TargetRows, strategy: str, taken: np.ndarray, count: int) -> np.ndarray:
        """The first `count` of a stream that may be negatives, -1 for those that it does not give."""
        result = np.full((len(rows), count), -1, dtype=np.int64)
        taken = taken[:, (taken >= 0).any(axis=0)]
        limit = self._limits.get(strategy, _DRAWS_BEFORE_UNIFORM)
        # The first numbers of a stream are the same however many are drawn, so a row that comes out short is drawn
        # again, longer, with the same beginning.
        waiting, draws = np.arange(len(rows)), taken.shape[1] + count + count // 4 + 4
        while len(waiting):
            short = []
            step = max(1, _DRAWS_PER_CHUNK // draws)
            for begin in range(0, len(waiting), step):
                part = waiting[begin : begin + step]
                codes = self._draws[strategy](rows[part], draws)
                good = self._allowed(rows[part], codes, taken[part], seen=strategy == LOW_RATED)
                rank = np.cumsum(good, axis=1)
                found = np.minimum(rank[:, -1], count)
                done = (found == count) | (limit is not None and draws >= limit)
                filled = result[part]
                filled[(np.arange(count) < found[:, None]) & done[:, None]] = codes[
                    good & (rank <= count) & done[:, None]
                ]
                result[part] = filled
                short.append(part[~done])
            waiting, draws = np.concatenate(short), draws * 2
        return result

    def _allowed(self, rows: TargetRows, codes: np.ndarray, taken: np.ndarray, seen: bool = False) -> np.ndarray:
        first = first_in_row(np.concatenate([taken, codes], axis=1))[:, taken.shape[1] :]
        allowed = first & (codes >= 0) & (codes != rows.items[:, None])
        if not self.arrivals.always:
            allowed &= self.arrivals.places[codes] < rows.num_available[:, None]
        return allowed if seen else allowed & ~self.seen.contains(rows.users, codes, rows.phases)


def sample_negatives(
    targets: pl.DataFrame,
    sequences: pl.DataFrame,
    items: pl.DataFrame,
    *,
    num_negatives: int = 19,
    seed: int,
    pool_size: int | None = None,
    negatives: str | dict[str, float] = UNIFORM,
    popularity_alpha: float = 1.0,
    train_events: pl.DataFrame | None = None,
    history_size: int = 10,
) -> pl.DataFrame:
    """
    Draw, for every target, items with which its user never interacted, and the order in which a list shows them.

    The draw is a function of (seed, user, position) alone: a counter-based generator (SplitMix64, Steele, Lea and
    Flood, OOPSLA 2014) keyed by the three gives a stream of items, by default uniform over `items`, from which those of
    the user, the target and repetitions are left out. So neither the target nor other targets nor the order of rows changes a
    record's draw. (Seeding by the target, as published data does, gives a target away by its list: a lookup that never
    sees the history then finds it in half of the cases.) The order of the list comes from a stream of its own.

    Args:
        targets (`polars.DataFrame`):
            One row per record, with `user_id`, `position` and `item_id`.
        sequences (`polars.DataFrame`):
            All interactions, with `user_id` and `item_id`: what a user's negatives must not be among. For records
            filtered by rating pass the unfiltered events.
        items (`polars.DataFrame`):
            The catalogue to draw from, with unique `item_id` and unique `title`, so that no negative has the target's
            title.
        num_negatives (`int`, *optional*, defaults to `19`):
            How many of them the list shows beside the target.
        seed (`int`):
            The seed.
        pool_size (`int`, *optional*):
            How many to draw; by default `num_negatives`. The first `num_negatives` are those of the list, whatever
            the size.
        negatives (`str` or `dict[str, float]`, *optional*, defaults to `"uniform"`):
            Which items: `"uniform"`; `"popularity"`, by (1 + training events) ** `popularity_alpha`; `"hard"`, uniform
            over the 100 nearest neighbours by co-occurrence of the last items of the history (not of the target, whose
            neighbours would give it away); or several with shares, as `"uniform:0.5,hard:0.5"`. What one of them cannot
            give is drawn uniformly.
        popularity_alpha (`float`, *optional*, defaults to `1.0`):
            The exponent of popularity.
        train_events (`polars.DataFrame`, *optional*):
            What popularity and neighbours are counted on: rows of `sequences` of the training split alone, in order,
            so that they know nothing of what comes later. Needed for all but `"uniform"`.
        history_size (`int`, *optional*, defaults to `10`):
            How many items before the target `"hard"` looks at. Needs `sequences` with `position`, sorted.

    Returns:
        `polars.DataFrame`: The targets with `negatives` (`pool_size` item ids) and `candidates` (`num_negatives` + 1
        item ids, the target among them, in the order of the list).

    Raises:
        ValueError: a number is out of range, items or titles occur twice, a target is not among the items, or a user
            has too few items left.

    Example:
        ```python
        >>> import polars as pl
        >>> targets = pl.DataFrame({"user_id": [1], "position": [3], "item_id": [2]})
        >>> seen = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2]})
        >>> items = pl.DataFrame({"item_id": [1, 2, 3, 4], "title": ["A", "B", "C", "D"]})
        >>> drawn = sample_negatives(targets, seen, items, num_negatives=2, seed=0)
        >>> sorted(drawn["negatives"][0]), sorted(drawn["candidates"][0])
        ([3, 4], [2, 3, 4])

        ```
    """
    pool_size = num_negatives if pool_size is None else pool_size
    if num_negatives < 1 or pool_size < num_negatives:
        raise ValueError(
            f"num_negatives={num_negatives} and pool_size={pool_size}: pass at least 1 negative and a pool of at least "
            "that size."
        )
    if targets.is_empty():
        raise ValueError("targets: no rows. Pass at least one target.")
    shares = parse_negatives(negatives)
    items = sorted_catalogue(items)
    sampler = CandidateSampler(
        sequences, items, seed=seed, train_events=train_events, popularity_alpha=popularity_alpha
    )
    sampler.prepare(shares)
    no_histories = np.empty((targets.height, 0), dtype=np.int64)
    histories = _histories(targets, sequences, items, history_size) if HARD in shares else no_histories
    rows = sampler.rows(targets, histories)
    sampler.check_enough(targets, rows, pool_size)
    pool = sampler.draw(rows, num_negatives, pool_size, shares)
    shown = shown_candidates(sampler, rows, pool, num_negatives)
    ids = items[ITEM_ID]
    return targets.with_columns(_gather_lists(ids, pool, NEGATIVES), _gather_lists(ids, shown, CANDIDATES))


def _histories(targets: pl.DataFrame, sequences: pl.DataFrame, items: pl.DataFrame, history_size: int) -> np.ndarray:
    """Rows of the items before each target, of shape `(n, history_size)`."""
    rows = sequences.select(USER_ID, POSITION).with_row_index("place")
    places = targets.join(rows, on=[USER_ID, POSITION], how="left", maintain_order="left")["place"]
    ends = history_ends(targets, places.to_numpy().astype(np.int64))
    return history_codes(encode(sequences[ITEM_ID], items[ITEM_ID]), *ends, history_size)


def shown_candidates(sampler: CandidateSampler, rows: TargetRows, pool: np.ndarray, num_negatives: int) -> np.ndarray:
    """Rows of the candidates in the order of the list, of shape `(n, num_negatives + 1)`."""
    order = sampler.order(rows, num_negatives + 1)
    return np.take_along_axis(np.column_stack([rows.items, pool[:, :num_negatives]]), order, axis=1)


def _gather_lists(ids: pl.Series, codes: np.ndarray, name: str) -> pl.Series:
    return ids.gather(codes.ravel()).reshape(codes.shape).arr.to_list().alias(name)
