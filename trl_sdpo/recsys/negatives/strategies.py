"""Where negatives come from: all items alike, popular items, or the neighbours of the history."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..interactions.random_streams import (
    COLD_STREAM,
    HARD_STREAM,
    NEGATIVE_STREAM,
    POPULARITY_STREAM,
    random_numbers,
    stream_keys,
    uniform_integers,
)
from .eligibility import Arrivals


# A target's place in the sequence of its user, and how many events at the beginning of it came before.
POSITION, NUM_EARLIER = "position", "num_earlier"

UNIFORM, POPULARITY, HARD, LOW_RATED = "uniform", "popularity", "hard", "low-rated"
STRATEGIES = (UNIFORM, POPULARITY, HARD, LOW_RATED)
# No strategy to choose: what lists of cold candidates draw by, see `RecordConfig.eval_candidates`.
COLD = "cold"


@dataclass(frozen=True)
class TargetRows:
    """
    Targets as arrays of whole numbers.

    Args:
        users (`numpy.ndarray`):
            Rows of the users, of shape `(n,)`.
        user_keys (`numpy.ndarray`):
            What the random streams know a user by, `uint64` of shape `(n,)`.
        positions (`numpy.ndarray`):
            Of shape `(n,)`.
        items (`numpy.ndarray`):
            Rows of the targets in the catalogue, of shape `(n,)`.
        histories (`numpy.ndarray`):
            Rows of the items before, the last at the right, of shape `(n, history_size)`; -1 where there is none.
        phases (`numpy.ndarray`):
            The split of each, as its number: what a user took up to the end of it is no negative. Of shape `(n,)`.
        num_available (`numpy.ndarray`):
            How many items, in the order in which they came, exist by the time of each. Of shape `(n,)`.
    """

    users: np.ndarray
    user_keys: np.ndarray
    positions: np.ndarray
    items: np.ndarray
    histories: np.ndarray
    phases: np.ndarray
    num_available: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: np.ndarray | slice) -> "TargetRows":
        return TargetRows(**{name: part[rows] for name, part in vars(self).items()})

    def numbers(self, seed: int, stream: int, count: int) -> np.ndarray:
        """The first `count` numbers of a stream of every row: `uint64` of shape `(n, count)`."""
        return random_numbers(stream_keys(seed, stream, self.user_keys, self.positions), count)


# Rows and a count to an array of item rows of shape `(n, count)`, -1 for none. Asked for more, a draw begins the same.
Draw = Callable[[TargetRows, int], np.ndarray]


def uniform_draw(seed: int, arrivals: Arrivals) -> Draw:
    """Every item that exists alike, as in the S-DPO paper."""

    def draw(rows: TargetRows, count: int) -> np.ndarray:
        numbers = rows.numbers(seed, NEGATIVE_STREAM, count)
        return arrivals.order[uniform_integers(numbers, rows.num_available[:, None])]

    return draw


def cold_draw(seed: int, cold: np.ndarray, arrivals: Arrivals) -> Draw:
    """Every item that exists and has no training event (`cold`, flags of shape `(items,)`) alike."""
    order, before = arrivals.order[cold[arrivals.order]], num_cold(cold, arrivals)

    def draw(rows: TargetRows, count: int) -> np.ndarray:
        numbers = rows.numbers(seed, COLD_STREAM, count)
        return order[uniform_integers(numbers, before[rows.num_available][:, None])]

    return draw


def num_cold(cold: np.ndarray, arrivals: Arrivals) -> np.ndarray:
    """How many of the first n items, in the order in which they came, have no training event: of shape `(items + 1,)`."""
    return np.concatenate([[0], np.cumsum(cold[arrivals.order])])


def popularity_draw(seed: int, counts: np.ndarray, alpha: float, arrivals: Arrivals) -> Draw:
    """
    An item that exists with probability proportional to (1 + its number of training events) ** alpha.

    The 1 keeps items without a training event among the negatives. With alpha = 0 this is uniform, with 0.75 the
    unigram distribution of word2vec (https://huggingface.co/papers/1310.4546).
    """
    cumulative = np.cumsum((1.0 + counts[arrivals.order]) ** alpha)

    def draw(rows: TargetRows, count: int) -> np.ndarray:
        # 53 bits, all that a double holds of a number below 1
        share = (rows.numbers(seed, POPULARITY_STREAM, count) >> np.uint64(11)) * 2.0**-53
        last = rows.num_available[:, None] - 1
        found = np.searchsorted(cumulative, share * cumulative[last], side="right")
        return arrivals.order[np.minimum(found, last)]

    return draw


def hard_draw(seed: int, neighbours: np.ndarray) -> Draw:
    """One of the nearest neighbours of one of the items of the history, both drawn uniformly."""

    def draw(rows: TargetRows, count: int) -> np.ndarray:
        numbers = rows.numbers(seed, HARD_STREAM, 2 * count)
        size = rows.histories.shape[1]
        lengths = (rows.histories >= 0).sum(axis=1)
        column = size - 1 - uniform_integers(numbers[:, ::2], np.maximum(lengths, 1)[:, None])
        anchors = np.take_along_axis(rows.histories, column, axis=1)
        ranks = uniform_integers(numbers[:, 1::2], neighbours.shape[1])
        return np.where(anchors >= 0, neighbours[anchors, ranks], -1)

    return draw


def parse_negatives(negatives: str | dict[str, float]) -> dict[str, float]:
    """
    Strategies and their shares.

    Args:
        negatives (`str` or `dict[str, float]`):
            `"uniform"`, `"popularity"`, `"hard"` or `"low-rated"`; or several with shares that make 1, as
            `{"uniform": 0.5, "hard": 0.5}` or `"uniform:0.5,hard:0.5"`.

    Returns:
        `dict[str, float]`: Shares by strategy.

    Raises:
        ValueError: a strategy is unknown, or the shares do not make 1.

    Example:
        ```python
        >>> parse_negatives("uniform:0.75,hard:0.25")
        {'uniform': 0.75, 'hard': 0.25}

        ```
    """
    if isinstance(negatives, str):
        parts = [part.strip().partition(":") for part in negatives.split(",")]
        try:
            shares = {name.strip(): float(share) if share else 1.0 for name, _, share in parts}
        except ValueError as error:
            raise ValueError(f"negatives={negatives!r}: {error}. Pass such as 'uniform:0.5,hard:0.5'.") from error
    else:
        shares = dict(negatives)
    for name in shares:
        if name not in STRATEGIES:
            raise ValueError(f"negatives={negatives!r}: {name!r} is none of {STRATEGIES}. Pass one of them.")
    if any(share <= 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"negatives={negatives!r}: shares must be above 0 and make 1. Pass 'uniform:0.5,hard:0.5'.")
    return shares


def schedule(shares: dict[str, float], count: int) -> list[str]:
    """
    The strategy of every slot, so that each has its share of any number of first slots, to within one.

    Example:
        ```python
        >>> schedule({"uniform": 0.75, "hard": 0.25}, 8).count("hard")
        2

        ```
    """
    slots, given = [], dict.fromkeys(shares, 0)
    for slot in range(1, count + 1):
        name = max(shares, key=lambda one: shares[one] * slot - given[one])
        given[name] += 1
        slots.append(name)
    return slots
