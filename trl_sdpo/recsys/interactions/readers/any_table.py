"""Columns of a table, whatever holds it: a file, a frame, a data set in memory or on the Hub."""

import csv
import gzip
import itertools
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import polars as pl
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from .delimited import check_not_empty, check_width, decode_line
from .json_lines import raise_first_bad_record


_TEXT = {".csv": ",", ".tsv": "\t"}
_KINDS = (*_TEXT, ".parquet", ".jsonl")
_HUB_NAME = r"[\w.-]+/[\w.-]+"


@dataclass(frozen=True)
class AnyTable:
    """
    A table and what messages call it.

    Args:
        data (`str`, `Path`, `polars.DataFrame`, `pandas.DataFrame` or `datasets.Dataset`):
            See [`load_table`].
        label (`str`):
            What messages call it.
        separator (`str`, *optional*):
            One character between the fields of a text file.
        split (`str`, *optional*, defaults to `"train"`):
            The split of a data set on the Hub.
    """

    data: Any
    label: str
    separator: str | None = None
    split: str = "train"

    @property
    def kind(self) -> str:
        """The ending of a file, without `.gz`; empty for what is no file."""
        if not isinstance(self.data, (str, Path)) or Path(self.data).is_dir():
            return ""
        return Path(str(self.data).removesuffix(".gz")).suffix.lower()

    def read(self, columns: dict[str, str]) -> pl.DataFrame:
        """The columns that are wanted, `{new name: name in the table}`. One may be wanted under two names."""
        try:
            table = self._scan()
            there = table.collect_schema().names()
            for column in columns.values():
                if column not in there:
                    raise ValueError(f"{self.label}: no column '{column}', only {there}. Name another, or rename it.")
            frame = table.select(pl.col(column).alias(name) for name, column in columns.items())
            # A blank line of a text file comes as a row of nulls.
            frame = frame.filter(pl.any_horizontal(pl.all().is_not_null())).collect(engine="streaming")
        except (pl.exceptions.PolarsError, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            self._raise_damage(error)
        if frame.is_empty():
            raise ValueError(f"{self.label}: no rows. Check that the table is whole.")
        return frame

    def raise_at(self, row: int, column: str, value: Any, problem: str) -> NoReturn:
        """Name a value by its line where there are lines, else by its row."""
        where = f"row {row} (counted from 0)"
        if self.kind in _TEXT:
            # The header is a record too.
            lines = (line for line, fields in self._records() if any(fields))
            where = f"line {next(itertools.islice(lines, row + 1, None))}"
        raise ValueError(f"{self.label}: {where}, column '{column}': {value!r} {problem}")

    def _scan(self) -> pl.LazyFrame:
        data = self.data
        if isinstance(data, (pl.DataFrame, pl.LazyFrame)):
            return data.lazy()
        if hasattr(data, "to_polars"):
            return data.to_polars().lazy()
        if isinstance(data, (str, Path)):
            return self._scan_file(Path(data))
        try:
            return pl.from_pandas(data).lazy()
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{self.label}: {type(data).__name__} is no table. Pass a path, a polars or pandas DataFrame, or a "
                "Dataset (of a DatasetDict one split)."
            ) from error

    def _scan_file(self, path: Path) -> pl.LazyFrame:
        if path.is_dir():
            return _load_from_disk(path).to_polars().lazy()
        if not path.exists():
            if isinstance(self.data, str) and re.fullmatch(_HUB_NAME, self.data) and self.kind not in _KINDS:
                return load_dataset(self.data, split=self.split).to_polars().lazy()
            raise FileNotFoundError(f"{path}: no such file or folder. Correct the path.")
        check_not_empty(path, self.label)
        if self.kind in _TEXT:
            separator = self.separator or _TEXT[self.kind]
            return pl.scan_csv(path, separator=separator, infer_schema=False)
        if self.kind == ".parquet":
            return pl.scan_parquet(path)
        if self.kind == ".jsonl":
            return pl.scan_ndjson(path, infer_schema_length=None)
        raise ValueError(
            f"{path}: the name ends in none of {', '.join(_KINDS)}. Rename the file, or pass a DataFrame."
        )

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Lines of a text file: number and fields."""
        path = Path(self.data)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            lines = (decode_line(line, self.label, number) for number, line in enumerate(file, start=1))
            reader = csv.reader(lines, delimiter=self.separator or _TEXT[self.kind], strict=True)
            try:
                for fields in reader:
                    yield reader.line_num, fields
            except csv.Error as error:
                raise ValueError(f"{self.label}: line {reader.line_num}: {error}. Correct the line.") from error
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ValueError(
                    f"{self.label}: damaged after line {reader.line_num} ({error}). Fetch the file again."
                ) from error

    def _raise_damage(self, error: Exception) -> NoReturn:
        """Name the line of a text file that cannot be read, if there is one."""
        if self.kind == ".jsonl":
            raise_first_bad_record(Path(self.data), {}, error)
        if self.kind in _TEXT:
            width = None
            for line, fields in self._records():
                width = width or len(fields)
                if fields:
                    check_width(fields, width, self.label, line)
        raise ValueError(
            f"{self.label}: {error}. Check that the file is whole and of the kind that its name says."
        ) from error


def _load_from_disk(path: Path) -> Dataset:
    try:
        dataset = load_from_disk(str(path))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: neither a file nor a folder that Dataset.save_to_disk wrote. Pass one of them."
        ) from None
    if isinstance(dataset, DatasetDict):
        raise ValueError(f"{path}: several splits: {', '.join(dataset)}. Pass the folder of one of them.")
    return dataset
