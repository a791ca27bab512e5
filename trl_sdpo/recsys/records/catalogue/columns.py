"""Columns of a Parquet file as sequences of Python, read when they are first asked for."""

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq


_CHUNK = 1 << 16  # values that become objects of Python at a time


class ParquetColumns:
    """
    A Parquet file, mapped into memory: one that takes its place on the disk changes nothing here.

    Args:
        path (`str` or `Path`):
            The file.

    Raises:
        ValueError: the file is no Parquet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with pa.memory_map(str(path)) as source:
                self._bytes = source.read_buffer()
            self.schema = pq.read_schema(pa.BufferReader(self._bytes))
        except pa.ArrowException as error:
            raise ValueError(f"{path}: no Parquet file ({error}). Copy the file again.") from error

    def read(self, name: str) -> pa.ChunkedArray:
        """A column."""
        return pq.read_table(pa.BufferReader(self._bytes), columns=[name]).column(0)

    @cached_property
    def digest(self) -> str:
        """Of the contents of the file."""
        return hashlib.blake2b(memoryview(self._bytes), digest_size=16).hexdigest()


class ParquetColumn(Sequence[Any]):
    """
    A column, as a sequence that compares as a tuple of its values does.

    Args:
        file ([`ParquetColumns`]):
            The file.
        name (`str`):
            The column.
        as_text (`bool`, *optional*, defaults to `False`):
            Whether its values are cast to text, as ids are.
        as_json (`bool`, *optional*, defaults to `False`):
            Whether its values are JSON.
    """

    def __init__(self, file: ParquetColumns, name: str, as_text: bool = False, as_json: bool = False) -> None:
        self.file, self.name, self._as_text, self._as_json = file, name, as_text, as_json
        self._lock = threading.Lock()
        self._read: pa.ChunkedArray | None = None
        self._length = pq.read_metadata(pa.BufferReader(file._bytes)).num_rows

    @property
    def values(self) -> pa.ChunkedArray:
        """The values as Arrow has them, read once."""
        with self._lock:
            if self._read is None:
                values = self.file.read(self.name)
                self._read = values.cast(pa.string()) if self._as_text else _plain(values)
            return self._read

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Any, ...]: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            start, stop, step = place.indices(self._length)
            if step == 1:
                return tuple(map(self._python, self.values[start : max(start, stop)].to_pylist()))
            return tuple(self[one] for one in range(start, stop, step))
        if not -self._length <= place < self._length:
            raise IndexError(f"column {self.name!r} has {self._length} values, and no place {place}")
        return self._python(self.values[int(place) % self._length].as_py())

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self._length, _CHUNK):
            yield from self[start : start + _CHUNK]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (ParquetColumn, tuple)):
            return NotImplemented
        if isinstance(other, ParquetColumn) and (self.file, self.name) == (other.file, other.name):
            return True
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as sequences that are compared by their values

    def __reduce__(self) -> tuple:
        return tuple, (list(self),)  # another process may not have the file

    def __repr__(self) -> str:
        return f"ParquetColumn({str(self.file.path)!r}, {self.name!r})"

    def _python(self, value: Any) -> Any:
        return json.loads(value) if self._as_json and value is not None else value


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """What a `catalogue.json` can hold: dates and the like are text, NaN is nothing."""
    column = pl.Series(values)
    plain = plain_values(column)
    return values if plain is column else pa.chunked_array([plain.to_arrow()])


def plain_values(column: pl.Series) -> pl.Series:
    """A column as JSON can hold it: dates and the like become text, NaN nothing."""
    if column.dtype.is_float():
        return column.fill_nan(None) if column.is_nan().any() else column
    if not (column.dtype.is_integer() or column.dtype in (pl.String, pl.Boolean, pl.List(pl.String), pl.Null)):
        return column.cast(pl.List(pl.String) if column.dtype == pl.List else pl.String)
    return column


class TextRows:
    """
    The row of each of many distinct texts, in a tenth of the memory of a `dict`: their hashes, sorted.

    Args:
        texts ([`ParquetColumn`]):
            The texts.
    """

    def __init__(self, texts: ParquetColumn) -> None:
        self._texts = texts
        hashes = _hashes(pl.Series(texts.values))
        self._order = np.argsort(hashes, kind="stable").astype(np.int32 if len(hashes) < 2**31 else np.int64)
        self._hashes = hashes[self._order]

    def get(self, text: str) -> int | None:
        """The row of a text, `None` if there is none."""
        (wanted,) = _hashes(pl.Series([text], dtype=pl.String))
        first, last = (int(np.searchsorted(self._hashes, wanted, side)) for side in ("left", "right"))
        return next((row for row in map(int, self._order[first:last]) if self._texts[row] == text), None)


def _hashes(texts: pl.Series) -> np.ndarray:
    return texts.hash(seed=0).to_numpy()
