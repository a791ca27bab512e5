"""Scores of any model for the candidates of records, in memory and on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..._progress import progress
from ...files import writing
from ..interactions.interactions import ITEM_ID, USER_ID
from .identity import CANDIDATES, POSITION, record_identity


# What scores candidates: histories and candidates of a batch of records as item ids, oldest first, to a score for each
# candidate of each record.
Scorer = Callable[[list[list[str]], list[list[str]]], Sequence[Sequence[float] | np.ndarray]]

HISTORY, REJECTED = "history_item_ids", "rejected_item_ids"
SCORES, LISTS = "scores", "item_ids"
_IDENTITY_TYPES = {POSITION: pa.int64()}


def score_records(
    scorer: Scorer, dataset: Any, batch_size: int = 1024, desc: str | None = "Scoring"
) -> list[np.ndarray]:
    """
    Score the candidates of records: the target and the rejected items.

    Args:
        scorer (`Callable[[list[list[str]], list[list[str]]], Sequence[Sequence[float]]]`):
            A function from histories and candidates, both item ids as strings, to a score for each candidate of each
            record. It does not learn which candidate is the target: that one comes first in every list, so a scorer
            must not go by the order.
        dataset (`Dataset` or `dict[str, Sequence]`):
            Records with `history_item_ids`, `item_id` and `rejected_item_ids`.
        batch_size (`int`, *optional*, defaults to `1024`):
            Records in a call.
        desc (`str`, *optional*, defaults to `"Scoring"`):
            Label of the progress bar; `None` for no bar.

    Returns:
        `list[numpy.ndarray]`: For each record an array of shape `(1 + K,)`, the target first, for [`ranks`].

    Raises:
        ValueError: there are no records, a column is missing, a record has no value in it, or the scorer returns the
            wrong number of scores or a NaN.

    Example:
        ```python
        >>> def shortest_id(histories, candidates):
        ...     return [[-len(item) for item in row] for row in candidates]
        >>> records = {"history_item_ids": [[1]], "item_id": [10], "rejected_item_ids": [[2, 300]]}
        >>> score_records(shortest_id, records, desc=None)[0].tolist()
        [-2.0, -1.0, -3.0]

        ```
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is below 1. Pass at least 1.")
    histories, candidates = _read_records(dataset)
    scores = []
    with progress(total=len(histories), desc=desc, unit="records") as bar:
        for begin in range(0, len(histories), batch_size):
            some = slice(begin, begin + batch_size)
            batch = scorer(histories[some], candidates[some])
            scores += _checked(batch, candidates[some], begin)
            bar.update(len(batch))
    return scores


def _read_records(dataset: Any) -> tuple[list[list[str]], list[list[str]]]:
    columns = {}
    for name in (HISTORY, ITEM_ID, REJECTED):
        try:
            columns[name] = list(dataset[name])
        except (KeyError, ValueError):  # a dict, a `Dataset`
            raise ValueError(
                f"dataset: no column '{name}'. Make the records with `build_preference_dataset` or `trl-sdpo prepare`."
            ) from None
        for record, value in enumerate(columns[name]):
            if value is None or (name == REJECTED and not len(value)):
                raise ValueError(
                    f"dataset: record {record}, column '{name}': {value!r} holds nothing to score. Remove the record."
                )
    if not columns[ITEM_ID]:
        raise ValueError("dataset: no records. Pass at least one.")
    histories = [[str(item) for item in history] for history in columns[HISTORY]]
    rows = zip(columns[ITEM_ID], columns[REJECTED], strict=True)
    return histories, [[str(target), *map(str, others)] for target, others in rows]


def _checked(
    batch: Sequence[Sequence[float] | np.ndarray], candidates: list[list[str]], begin: int
) -> list[np.ndarray]:
    if len(batch) != len(candidates):
        raise ValueError(
            f"The scorer returned scores for {len(batch)} records of {len(candidates)}, from record {begin}. "
            "Return one list of scores for each record."
        )
    rows = []
    for record, (scores, items) in enumerate(zip(batch, candidates, strict=True), start=begin):
        row = np.asarray(scores, dtype=np.float64)
        if row.shape != (len(items),):
            raise ValueError(
                f"The scorer returned scores of shape {row.shape} for record {record}, which has {len(items)} "
                "candidates. Return one score for each candidate."
            )
        if np.isnan(row).any():
            raise ValueError(
                f"The scorer returned NaN for record {record}, candidate {items[int(np.isnan(row).argmax())]!r}. "
                "Return a number, such as the lowest of the others for an item that is not known."
            )
        rows.append(row)
    return rows


def write_scores(scores: Sequence[Sequence[float] | np.ndarray], path: str | Path, records: Any = None) -> None:
    """
    Write the scores of records to a Parquet file with a column `scores` (a list of `double`) and a row per record.

    The file appears when it is whole.

    Args:
        scores (`Sequence[Sequence[float]]`):
            What [`score_records`] or [`completion_log_probs`] returns: per record the target's score, then the others.
        path (`str` or `Path`):
            The file.
        records (`Dataset` or `dict[str, Sequence]`, *optional*):
            The records. Who reads the scores can then see that they are of the same ones: the columns of
            [`record_identity`] are written beside the scores.

    Raises:
        ValueError: there are no records, a record has no score or a NaN, or there are not as many records as scores.
    """
    rows = [np.asarray(row, dtype=np.float64) for row in scores]
    _check_rows(rows, "scores")
    identity = {} if records is None else record_identity(records)
    for name, values in identity.items():
        if len(values) != len(rows):
            raise ValueError(f"{path}: {len(rows)} rows of scores for {len(values)} records. Pass one for each.")
        identity[name] = pa.array(values, _IDENTITY_TYPES.get(name, pa.string()))
    path = Path(path)
    flat, offsets = np.concatenate(rows), np.cumsum([0, *map(len, rows)])
    column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat))
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as stage:
        pq.write_table(pa.table({SCORES: column, **identity}), stage)


def read_scores(path: str | Path, num_records: int | None = None) -> list[np.ndarray]:
    """
    Read what [`write_scores`], or another program, wrote.

    Args:
        path (`str` or `Path`):
            The file.
        num_records (`int`, *optional*):
            How many records there are, where that is known.

    Returns:
        `list[numpy.ndarray]`: For each record its scores, the target first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not Parquet or lacks the column, a row holds nothing, a null or a NaN, or there are
            more or fewer rows than records.
    """
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: no Parquet file ({error}). Write it with `write_scores`.") from error
    if SCORES not in table.column_names:
        raise ValueError(f"{path}: no column '{SCORES}', only {table.column_names}. Write it with `write_scores`.")
    rows = table[SCORES].to_pylist()
    if num_records is not None and len(rows) != num_records:
        raise ValueError(
            f"{path}: scores of {len(rows)} records, but there are {num_records}. Score the same records again."
        )
    rows = [np.array([] if row is None else row, dtype=np.float64) for row in rows]
    _check_rows(rows, str(path))
    return rows


def read_identity(path: str | Path) -> dict[str, list]:
    """
    Which records the scores or lists of a file are of.

    Args:
        path (`str` or `Path`):
            The file.

    Returns:
        `dict[str, list]`: What the file holds of the columns of [`record_identity`]; nothing where another program
        wrote the scores alone.
    """
    names = [name for name in (USER_ID, POSITION, CANDIDATES) if name in pq.read_schema(path).names]
    columns = pq.read_table(path, columns=names).to_pydict() if names else {}
    if USER_ID in columns:
        columns[USER_ID] = [None if user is None else str(user) for user in columns[USER_ID]]
    return columns


def write_lists(lists: Sequence[Sequence[str]], path: str | Path, records: Any = None) -> None:
    """
    Write recommended lists to a Parquet file with a column `item_ids` (a list of `string`, the best first) and a row
    per record.

    Args:
        lists (`Sequence[Sequence[str]]`):
            Item ids, for each record.
        path (`str` or `Path`):
            The file, which appears when it is whole.
        records (`Dataset` or `dict[str, Sequence]`, *optional*):
            See [`write_scores`].

    Raises:
        ValueError: there are no lists, or not one for each record.
    """
    if not len(lists):
        raise ValueError(f"{path}: no lists. Pass at least one.")
    columns = {LISTS: pa.array([list(map(str, row)) for row in lists], pa.list_(pa.string()))}
    for name, values in ({} if records is None else record_identity(records)).items():
        if len(values) != len(lists):
            raise ValueError(f"{path}: {len(lists)} lists for {len(values)} records. Pass one for each.")
        columns[name] = pa.array(values, _IDENTITY_TYPES.get(name, pa.string()))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def read_lists(path: str | Path) -> list[list[str]]:
    """
    Read what [`write_lists`], or another program, wrote.

    Args:
        path (`str` or `Path`):
            The file.

    Returns:
        `list[list[str]]`: For each record item ids as text, the best first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not Parquet or lacks the column, or a row is null or holds an item twice or a null.
    """
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: no Parquet file ({error}). Write it with `write_lists`.") from error
    if LISTS not in table.column_names:
        raise ValueError(f"{path}: no column '{LISTS}', only {table.column_names}. Write it with `write_lists`.")
    rows = table[LISTS].to_pylist()
    for record, row in enumerate(rows):
        if row is None or None in row or len(set(map(str, row))) < len(row):
            raise ValueError(f"{path}: record {record}: {row} is no list of distinct item ids. Write it again.")
    return [list(map(str, row)) for row in rows]


def _check_rows(rows: list[np.ndarray], where: str) -> None:
    if not rows:
        raise ValueError(f"{where}: no records. Score at least one.")
    for record, row in enumerate(rows):
        if row.ndim != 1 or not len(row) or np.isnan(row).any():
            raise ValueError(
                f"{where}: record {record}: {row.tolist()} is not one number for each candidate. Score it again."
            )
