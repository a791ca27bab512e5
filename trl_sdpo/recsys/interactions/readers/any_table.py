"""Columns of a table, whatever holds it: a file, a frame, a data set in memory or on the Hub."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import polars as pl
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from .delimited import read_records
from .frames import check_columns, frame_columns
from .ids import Fail, blank_to_null
from .json_lines import read_json_lines, strict_record
from .paths import is_hub_name
from .quoting import AUTO, Quoting, find_quoting
from .text_files import TextFile


_TEXT = {".csv": ",", ".tsv": "\t"}
_KINDS = (*_TEXT, ".parquet", ".jsonl")


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
        quote (`str`, *optional*, defaults to `"auto"`), escape (`str`, *optional*):
            See [`find_quoting`].
        encoding (`str`, *optional*):
            See [`TextFile`].
    """

    data: Any
    label: str
    separator: str | None = None
    split: str = "train"
    quote: str = AUTO
    escape: str | None = None
    encoding: str | None = None

    @property
    def kind(self) -> str:
        """The ending of a file, without `.gz`; empty for what is no file."""
        if not isinstance(self.data, (str, Path)) or Path(self.data).is_dir():
            return ""
        return Path(str(self.data).removesuffix(".gz")).suffix.lower()

    @cached_property
    def file(self) -> TextFile:
        """The text file."""
        return TextFile(Path(self.data), self.label, self.encoding)

    @cached_property
    def quoting(self) -> Quoting:
        """How the text file is written."""
        separator = _TEXT[self.kind] if self.separator is None else self.separator
        return find_quoting(self.file, separator, self.quote, self.escape)

    def names(self) -> list[str]:
        """The names of its columns; of JSON lines the keys that any line has."""
        if self.kind in _TEXT:
            return self.quoting.header(self.file)
        if self.kind == ".jsonl":
            records = (
                strict_record(line, f"{self.label}: line {number}")
                for number, line in self.file.lines()
                if line.strip()
            )
            return list(dict.fromkeys(key for record in records if isinstance(record, dict) for key in record))
        if self.kind == ".parquet":
            return list(pl.read_parquet_schema(self.data))
        raise ValueError(f"{self.label}: is no file that ends in one of {', '.join(_KINDS)}. Pass one.")

    def read(self, columns: dict[str, str], nested: tuple[str, ...] = ()) -> pl.DataFrame:
        """
        The columns that are wanted, `{new name: name in the table}`, missing values null. One may be wanted under two
        names. Those of `nested` may be lists in lines of JSON.
        """
        wanted = list(dict.fromkeys(columns.values()))
        try:
            frame = self._read(wanted, nested)
        except (pl.exceptions.PolarsError, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            if self.kind in _TEXT:
                for _ in self.file.lines():  # which names a line that is no UTF-8
                    pass
            raise ValueError(
                f"{self.label}: {error}. Check that the file is whole and of the kind that its name says."
            ) from error
        if frame.is_empty():
            raise ValueError(f"{self.label}: no rows. Check that the table is whole.")
        names = [pl.col(column) == column for column in wanted if frame[column].dtype == pl.String]
        again = frame.select(pl.all_horizontal(names).arg_true()).to_series().to_list() if len(names) > 1 else []
        if again and len(names) == len(wanted):
            self.raise_at(again[0], wanted[0], wanted[0], "is the header again. Remove the line.")
        frame = frame.with_columns(blank_to_null(values) for values in frame)
        return frame.select(pl.col(column).alias(name) for name, column in columns.items())

    def raise_at(self, row: int, column: str, value: Any, problem: str) -> NoReturn:
        """Name a value by its line where there are lines, else by its row."""
        where = f"row {row} (counted from 0)"
        if self.kind in (*_TEXT, ".jsonl"):
            where = f"line {next(islice(self.line_numbers(), row, None))}"
        raise ValueError(f"{self.label}: {where}, column '{column}': {value!r} {problem}")

    def line_numbers(self) -> Iterator[int]:
        """The lines in which the rows of a text file end."""
        if self.kind == ".jsonl":
            return (number for number, line in self.file.lines() if line.strip())
        return (number for number, _ in islice(self.quoting.records(self.file), 1, None))  # the first is the header

    def fail_at(self, column: str, values: pl.Series) -> Fail:
        """What raises for a row of a column."""
        return lambda row, problem: self.raise_at(row, column, values[row], problem)

    def _read(self, wanted: list[str], nested: tuple[str, ...]) -> pl.DataFrame:
        if not isinstance(self.data, (str, Path)):
            return frame_columns(self.data, wanted, self.label)
        path = Path(self.data)
        if path.is_dir():
            return frame_columns(_load_from_disk(path), wanted, self.label)
        if not path.exists():
            if is_hub_name(self.data):
                return frame_columns(load_dataset(self.data, split=self.split), wanted, self.label)
            raise FileNotFoundError(f"{path}: no such file or folder. Correct the path.")
        if self.kind in _TEXT:
            check_columns(self.quoting.header(self.file), wanted, self.label)
            return read_records(self.file, self.quoting, wanted)
        if self.kind == ".jsonl":
            return read_json_lines(self.file, wanted, nested)
        if self.kind == ".parquet":
            if not path.stat().st_size:
                raise ValueError(f"{self.label}: the file is empty. Fetch it again.")
            return frame_columns(pl.scan_parquet(path), wanted, self.label)
        raise ValueError(
            f"{path}: the name ends in none of {', '.join(_KINDS)}, or one of the texts with .gz behind it. Unpack or "
            "convert the file, rename it if it is one of these, or pass a DataFrame."
        )


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
