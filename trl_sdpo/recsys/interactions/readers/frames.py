"""Columns of tables in memory: polars, pandas, `datasets`."""

import decimal
import math
import numbers
from typing import Any, cast

import polars as pl
import pyarrow as pa


def frame_columns(data: Any, columns: list[str], label: str) -> pl.DataFrame:
    """
    The wanted columns of a table in memory, as they are.

    Args:
        data (`polars.DataFrame`, `polars.LazyFrame`, `pandas.DataFrame` or `datasets.Dataset`):
            The table.
        columns (`list[str]`):
            Names.
        label (`str`):
            What messages call the table.

    Returns:
        `polars.DataFrame`: The columns. Columns of pandas that hold several types are text, where text and numbers
        are all that is there. Class labels of `datasets` are their names.

    Raises:
        TypeError: it is no table, or a column holds what is neither text nor number.
        ValueError: a column is not there, or there twice.
    """
    if isinstance(data, (pl.DataFrame, pl.LazyFrame)):
        check_columns(data.collect_schema().names(), columns, label)
        return data.lazy().select(columns).collect(engine="streaming")
    if hasattr(data, "to_polars") and hasattr(data, "features"):
        check_columns(data.column_names, columns, label)
        return _from_dataset(data.select_columns(columns))
    if hasattr(data, "iloc") and hasattr(data, "columns"):
        names = [str(name) for name in data.columns]
        check_columns(names, columns, label)
        return pl.DataFrame([_from_pandas(data.iloc[:, names.index(name)], name, label) for name in columns])
    raise TypeError(
        f"{label}: {type(data).__name__} is no table. Pass a path, a polars or pandas DataFrame, or a Dataset (of a "
        "DatasetDict one split)."
    )


def check_columns(there: list[str], wanted: list[str], label: str) -> None:
    """Raise if a column is not there, or there twice."""
    for column in wanted:
        if column not in there:
            raise ValueError(f"{label}: no column '{column}', only {there}. Name another, or rename it.")
        if there.count(column) > 1:
            raise ValueError(f"{label}: column '{column}' is there {there.count(column)} times. Rename the others.")


def _from_dataset(data: Any) -> pl.DataFrame:
    frame = data.with_format(None).to_polars()
    for name, feature in data.features.items():
        if hasattr(feature, "int2str") and hasattr(feature, "names"):
            names = dict(enumerate(feature.names))
            frame = frame.with_columns(pl.col(name).replace_strict(names, default=None, return_dtype=pl.String))
    return frame


def _from_pandas(column: Any, name: str, label: str) -> pl.Series:
    try:
        if column.dtype == object:
            return _from_objects(column.tolist(), column.isna().tolist(), name)
        return cast(pl.Series, pl.from_pandas(column.reset_index(drop=True))).alias(name)
    except (TypeError, ValueError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise TypeError(f"{label}: column '{name}' ({column.dtype}): {error}. Cast it to one type.") from error


def _from_objects(values: list, missing: list[bool], name: str) -> pl.Series:
    values = [None if absent else value for value, absent in zip(values, missing, strict=True)]
    kinds = {type(value) for value in values if value is not None}
    odd = [
        kind.__name__ for kind in kinds if not issubclass(kind, (str, numbers.Number, decimal.Decimal)) or kind is bool
    ]
    if not odd:
        return pl.Series(name, [None if value is None else _text(value) for value in values], dtype=pl.String)
    aware = {getattr(value, "tzinfo", None) is None for value in values if value is not None}
    if len(kinds) > 1 or len(aware) > 1:
        raise TypeError(
            f"holds {', '.join(sorted(kind.__name__ for kind in kinds))}, with and without a time zone or not"
        )
    return pl.Series(name, values)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (decimal.Decimal, numbers.Integral)):
        return str(value)
    value = float(value)
    if not math.isfinite(value):
        return repr(value)
    # Where a float is exact it is the whole number that it was; beyond, its form says that it was a float.
    if value == math.floor(value):
        return str(int(value)) if abs(value) < 2**53 else f"{value:.15e}"
    return repr(value)
