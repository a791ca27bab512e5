"""Scores of several systems fitted into one: a conditional logit over the candidates of records."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...files import write_text
from .intervals import group_codes


# What training counts say of a candidate, as features by these names.
EVENTS, COLD = "log(1 + training events)", "no training event"
_MOST_STEPS = 100
_ROUNDING = 1e-12  # of the largest value


@dataclass(frozen=True)
class Fusion:
    """
    A weighted sum of scores, fitted by [`fit_fusion`].

    Args:
        features (`tuple[str, ...]`):
            What is summed.
        weights (`tuple[float, ...]`):
            The weight of each, in units of its score.
        errors (`tuple[float, ...]`):
            Their standard errors, over the groups that they were fitted with.
        gains (`tuple[float, ...]`):
            For each feature by how many nats a record the fit without it is worse, on the records of the fit.
        log_likelihood (`float`):
            Mean over the records of the fit of the log-probability of the target among its candidates, in nats.
        num_records (`int`):
            Records of the fit.

    Example:
        ```python
        >>> fusion = Fusion(("sdpo", "sasrec"), (0.5, 1.0), (0.1, 0.1), (0.1, 0.2), -1.2, 100)
        >>> fusion.scores({"sdpo": [[2.0, 0.0]], "sasrec": [[0.0, 3.0]]})[0].tolist()
        [1.0, 3.0]

        ```
    """

    features: tuple[str, ...]
    weights: tuple[float, ...]
    errors: tuple[float, ...]
    gains: tuple[float, ...]
    log_likelihood: float
    num_records: int

    def scores(self, scores: Mapping[str, Sequence[Sequence[float] | np.ndarray]]) -> list[np.ndarray]:
        """
        The sum for the candidates of records.

        Args:
            scores (`Mapping[str, Sequence[Sequence[float] | np.ndarray]]`):
                For each feature the scores of the candidates of each record, as they were fitted.

        Returns:
            `list[numpy.ndarray]`: For each record an array of shape `(1 + K,)`.

        Raises:
            ValueError: a feature is missing, or a score is not finite.
        """
        missing = [name for name in self.features if name not in scores]
        if missing:
            raise ValueError(f"fusion: no scores of {missing}, which it was fitted with. Pass them.")
        flat, lengths = _flatten({name: scores[name] for name in self.features})
        return np.split(flat @ np.array(self.weights), np.cumsum(lengths)[:-1])

    def save(self, path: str | Path) -> None:
        """Write the fit as JSON."""
        write_text(Path(path), json.dumps(vars(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Fusion":
        """
        Read what [`Fusion.save`] wrote.

        Raises:
            ValueError: the file holds something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            lists = {name: tuple(content[name]) for name in ("features", "weights", "errors", "gains")}
            return cls(**lists, log_likelihood=content["log_likelihood"], num_records=content["num_records"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: no fusion ({error!r}). Pass what Fusion.save wrote.") from error


def fit_fusion(
    scores: Mapping[str, Sequence[Sequence[float] | np.ndarray]],
    groups: Sequence[Hashable] | None = None,
    l2: float = 1.0,
) -> Fusion:
    r"""
    Fit how much each of several scores says about the target, given the others.

    The model is McFadden's conditional logit: the target of a record is candidate $j$ with probability
    $\exp(w^\top x_j) / \sum_i \exp(w^\top x_i)$, where $x_j$ are the scores of the candidate. The log-likelihood is
    concave, and Newton's method finds its maximum. A score may be a log-probability of a language model, that of a model
    of ids, a count, or a flag such as "has no training event" ([`cold_features`]). What is the same for all candidates
    of a record says nothing.

    Fit on validation records: on training records every system is better than it will be.

    Args:
        scores (`Mapping[str, Sequence[Sequence[float] | np.ndarray]]`):
            For each feature the scores of the candidates of each record, the target first.
        groups (`Sequence[Hashable]`, *optional*):
            The user of each record, for standard errors over users.
        l2 (`float`, *optional*, defaults to `1.0`):
            Weight of half the squared weights, taken of scores scaled to a standard deviation of 1 within records. It
            keeps the weights finite where scores tell all targets, and hardly moves them where there are many records.

    Returns:
        [`Fusion`]: The fit.

    Raises:
        ValueError: there are no features or records, the features differ in records or candidates, a score is not
            finite, or `l2` is negative.

    Example:
        ```python
        >>> language = [[2.0, 1.0], [0.5, 1.0], [3.0, 1.0], [2.0, 2.5]]
        >>> ids = [[1.0, 0.0], [1.0, 0.5], [0.0, 0.2], [1.0, 0.0]]
        >>> fusion = fit_fusion({"language": language, "ids": ids})
        >>> all(weight > 0 for weight in fusion.weights)
        True

        ```
    """
    if l2 < 0:
        raise ValueError(f"l2={l2} is negative. Pass 0 or more.")
    if not scores:
        raise ValueError("scores: no features. Pass the scores of at least one system.")
    flat, lengths = _flatten(scores)
    begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    scale = _within_scale(flat, begins, lengths)
    scaled = flat / scale
    codes = np.arange(len(lengths)) if groups is None else group_codes(groups, len(lengths))
    weights, likelihood = _newton(scaled, begins, lengths, l2)
    gains = []
    for column in range(len(scores)):
        others = np.delete(scaled, column, axis=1)
        gains.append(likelihood - _newton(others, begins, lengths, l2)[1])
    errors = _clustered_errors(scaled, begins, lengths, weights, l2, codes)
    return Fusion(
        tuple(scores),
        tuple((weights / scale).tolist()),
        tuple((errors / scale).tolist()),
        tuple(map(float, gains)),
        float(likelihood),
        len(lengths),
    )


def _flatten(scores: Mapping[str, Sequence[Sequence[float] | np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Features as columns, of shape `(candidates of all records, features)`, and the candidates of each record."""
    columns, lengths = [], None
    for name, rows in scores.items():
        of_rows = np.array([len(row) for row in rows], dtype=np.int64)
        if not len(of_rows):
            raise ValueError(f"{name}: no records. Pass at least one.")
        if lengths is not None and (len(of_rows) != len(lengths) or (of_rows != lengths).any()):
            raise ValueError(
                f"{name}: scores of {len(of_rows)} records with {of_rows.sum()} candidates, where the others have "
                f"{len(lengths)} with {lengths.sum()}. Score the same candidates of the same records."
            )
        lengths = of_rows
        column = np.concatenate([np.asarray(row, dtype=np.float64) for row in rows])
        if not np.isfinite(column).all():
            place = int(np.flatnonzero(~np.isfinite(column))[0])
            record = int(np.searchsorted(np.cumsum(lengths), place, side="right"))
            raise ValueError(
                f"{name}: record {record} has a score of {column[place]}. Fit finite scores: give an item that a system "
                "does not know the lowest, and a flag of its own."
            )
        columns.append(column)
    return np.stack(columns, axis=1), lengths


def _within_scale(flat: np.ndarray, begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The standard deviation of each feature within records; 1 where it does not vary there but by rounding."""
    means = np.add.reduceat(flat, begins, axis=0) / lengths[:, None]
    spread = np.sqrt(((flat - np.repeat(means, lengths, axis=0)) ** 2).mean(axis=0))
    return np.where(spread > _ROUNDING * np.abs(flat).max(axis=0), spread, 1.0)


def _probabilities(
    flat: np.ndarray, begins: np.ndarray, lengths: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of all candidates, and the log-probability of each target."""
    values = flat @ weights
    values -= np.repeat(np.maximum.reduceat(values, begins), lengths)
    exponentials = np.exp(values)
    sums = np.add.reduceat(exponentials, begins)
    return exponentials / np.repeat(sums, lengths), values[begins] - np.log(sums)


def _gradients(flat: np.ndarray, begins: np.ndarray, lengths: np.ndarray, weights: np.ndarray) -> tuple:
    """Of each record, of shape `(records, features)`; and minus the second derivative of their sum."""
    probabilities, log_likelihoods = _probabilities(flat, begins, lengths, weights)
    means = np.add.reduceat(probabilities[:, None] * flat, begins, axis=0)
    information = (probabilities[:, None] * flat).T @ flat - means.T @ means
    return flat[begins] - means, information, log_likelihoods


def _newton(flat: np.ndarray, begins: np.ndarray, lengths: np.ndarray, l2: float) -> tuple[np.ndarray, float]:
    """The weights, and the mean log-likelihood (without the penalty)."""
    weights = np.zeros(flat.shape[1])
    gradients, information, likelihoods = _gradients(flat, begins, lengths, weights)
    for _ in range(_MOST_STEPS):
        if not len(weights):
            break
        slope = gradients.sum(axis=0) - l2 * weights
        # a feature that does not vary has no curvature; the least step leaves its weight at 0
        step = np.linalg.lstsq(information + l2 * np.eye(len(weights)), slope, rcond=None)[0]
        before, rate = likelihoods.sum() - l2 / 2 * weights @ weights, 1.0
        while True:  # half a step where a whole one goes too far
            moved = weights + rate * step
            found = _gradients(flat, begins, lengths, moved)
            if found[2].sum() - l2 / 2 * moved @ moved >= before or rate < 1e-8:
                break
            rate /= 2
        weights, (gradients, information, likelihoods) = moved, found
        if np.abs(rate * step).max() < 1e-10:
            break
    return weights, float(likelihoods.mean())


def _clustered_errors(
    flat: np.ndarray, begins: np.ndarray, lengths: np.ndarray, weights: np.ndarray, l2: float, codes: np.ndarray
) -> np.ndarray:
    """Standard errors by the sandwich over groups, as of records that are not independent within one."""
    gradients, information, _ = _gradients(flat, begins, lengths, weights)
    count = int(codes.max()) + 1
    sums = np.zeros((count, len(weights)))
    np.add.at(sums, codes, gradients)
    bread = np.linalg.pinv(information + l2 * np.eye(len(weights)))
    meat = sums.T @ sums * (count / max(1, count - 1))
    return np.sqrt(np.maximum(0, np.diag(bread @ meat @ bread)))
