"""
`catalogue.parquet`: a catalogue that is too large for JSON, read by column.

Its columns are `item_id`, `title`, the attributes, and `train_counts` where events are counted. Beside records that are rows
of a catalogue it is the file that renders them, with the counts as a column more.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ....files import CATALOGUE_TABLE, writing
from ...interactions.interactions import ITEM_ID, TITLE
from .catalogue import Catalogue
from .columns import ParquetColumn, ParquetColumns


PARQUET_FILE = CATALOGUE_TABLE
# From so many items on a catalogue is Parquet: JSON takes half a second and 50 MB to read by then.
PARQUET_FROM = 100_000
FORMAT_VERSION = 1
_COUNTS = "train_counts"
_SETTINGS = b"trl_sdpo.catalogue"


def as_catalogue(
    table: pa.Table,
    attributes: Sequence[str],
    train_counts: Sequence[int] | np.ndarray | None,
    as_json: Sequence[str] = (),
) -> pa.Table:
    """
    A table that is read as a catalogue, too.

    Args:
        table (`pyarrow.Table`):
            With `item_id`, `title` and the attributes.
        attributes (`Sequence[str]`):
            The columns that are attributes.
        train_counts (`Sequence[int]`, *optional*):
            Training events of every item, which become a column.
        as_json (`Sequence[str]`, *optional*):
            The attributes whose values are JSON.

    Returns:
        `pyarrow.Table`: With what it is in its metadata.
    """
    counts = None
    if train_counts is not None:
        counts = _COUNTS
        while counts in attributes:
            counts += "_"
        table = table.append_column(counts, pa.array(train_counts, pa.int64()))
    settings = {"format_version": FORMAT_VERSION, "attributes": list(attributes), "json": list(as_json)}
    text = json.dumps({**settings, _COUNTS: counts}, ensure_ascii=False)
    return table.replace_schema_metadata({**(table.schema.metadata or {}), _SETTINGS: text.encode()})


def write_catalogue(path: str | Path, catalogue: Catalogue) -> Path:
    """
    Write a catalogue to a Parquet file, which is there whole or as it was before.

    Raises:
        ValueError: an attribute has the name of a column of the items.
    """
    taken = [name for name in catalogue.attributes if name in (ITEM_ID, TITLE)]
    if taken:
        raise ValueError(f"catalogue: an attribute is called {taken[0]!r}, as a column of the items is. Rename it.")
    columns = {ITEM_ID: pa.array(catalogue.item_ids, pa.string()), TITLE: pa.array(catalogue.titles, pa.string())}
    as_json = []
    for name, values in catalogue.attributes.items():
        array = _typed(values)
        if array is None:
            as_json.append(name)
            texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
            array = pa.array(texts, pa.string())
        columns[name] = array
    table = as_catalogue(pa.table(columns), list(catalogue.attributes), catalogue.train_counts, as_json)
    with writing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return Path(path)


def _typed(values: Sequence[Any]) -> pa.Array | None:
    """Values of one type as Arrow has them, so that they come back as they were; `None` where there are several types."""
    known = [value for value in values if value is not None]
    kinds = {type(value) for value in known}
    if kinds <= {list, tuple} and kinds:
        if {type(entry) for value in known for entry in value} <= {str}:
            return pa.array([None if one is None else list(one) for one in values], pa.list_(pa.string()))
        return None
    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if len(kinds) > 1 or not kinds <= types.keys():
        return None
    try:
        return pa.array(values, types[kinds.pop()] if kinds else pa.null())
    except (pa.ArrowException, OverflowError):  # whole numbers beyond 64 bits
        return None


def holds_catalogue(path: str | Path) -> bool:
    """Whether a Parquet file is a catalogue; one beside records may be there for these alone."""
    return _SETTINGS in (pq.read_schema(path).metadata or {})


def read_catalogue(path: str | Path) -> Catalogue:
    """
    The catalogue of a Parquet file, whose columns are read when they are first asked for; ids and titles at once, to see
    that no two are the same.

    Raises:
        ValueError: the file is damaged or of a later version. The message does not name it.
    """
    file = ParquetColumns(path)
    settings = json.loads((file.schema.metadata or {}).get(_SETTINGS, b"{}"))
    version = settings.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"format_version is {version!r}, where this version of trl-sdpo reads up to {FORMAT_VERSION}. Run `python -m pip "
            "install --upgrade trl-sdpo`, or make the file anew."
        )
    attributes, counts = settings["attributes"], settings[_COUNTS]
    missing = {ITEM_ID, TITLE, *attributes, *([] if counts is None else [counts])} - {*file.schema.names}
    if missing:
        raise ValueError(f"there is no column {min(missing)!r}, which its metadata name. Copy the file again.")
    return Catalogue(
        ParquetColumn(file, ITEM_ID, as_text=True),
        ParquetColumn(file, TITLE, as_text=True),
        None if counts is None else ParquetColumn(file, counts),
        {name: ParquetColumn(file, name, as_json=name in settings["json"]) for name in attributes},
    )
