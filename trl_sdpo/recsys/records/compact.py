"""
Records on disk as rows of a catalogue, for large data sets: a tenth of the text, which is rendered when a record is read.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetDict, IterableDatasetDict, load_dataset

from ..interactions.interactions import ITEM_ID, TITLE
from ..prompts.record_texts import CODED, OF_ITEMS, RecordTexts
from ..prompts.rendering import plain
from ..prompts.templates import PromptTemplate
from . import recommender_files
from .catalogue.files import PARQUET_FILE, as_catalogue


CATALOGUE = PARQUET_FILE
TEXT, IDS, AUTO = FORMS = ("text", "ids", "auto")
_SETTINGS = b"trl_sdpo.records"
_FORMAT_VERSION = 1
# Above this much of text records are written as ids.
LARGEST_TEXT_FORM = 1 << 30


class RenderRecords:
    """
    The transform of a data set of rows of a catalogue, see [`~datasets.Dataset.with_transform`]: columns that were whole
    numbers are prompts, completions, titles and ids, the same as in the text form; others pass.

    Args:
        path (`str` or `Path`):
            The `catalogue.parquet` beside the records.

    Raises:
        ValueError: the file is damaged or of a later version.
    """

    # What reads all records may hand over many at a time, see `data_utils.plain_records`, and as often as it likes, see
    # `data_utils.rendered_columns`.
    batched = True
    renders = CODED

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        settings = json.loads((pq.read_schema(path).metadata or {}).get(_SETTINGS, b"{}"))
        version = settings.pop("format_version", None)
        if version != _FORMAT_VERSION:
            raise ValueError(
                f"{path}: format_version is {version!r}, where this version of trl-sdpo reads {_FORMAT_VERSION}. Copy the "
                "file again from where `trl-sdpo prepare` wrote it, or upgrade trl-sdpo."
            )
        self.digest = hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()
        templates = [PromptTemplate(**fields) for fields in settings.pop("templates")]
        self.texts = RecordTexts(pl.read_parquet(path), templates, **settings)

    def __reduce__(self) -> tuple:
        # The hash that `datasets` caches by is of this: the digest makes another catalogue another one.
        return _render_records, (self.path, self.digest)

    def __call__(self, batch: Mapping[str, list]) -> dict[str, list]:
        """Render a batch of columns."""
        rendered = dict(batch)
        codes = {name: _codes(values) for name, values in batch.items() if name in CODED and _is_coded(name, values)}
        for name, array in self.texts.render(codes).items():
            rendered[name] = plain(array).to_pylist()
        return rendered

    def table(self, table: pa.Table) -> pa.Table:
        """Render a table of columns."""
        return render_table(table, self.texts)


def render_table(table: pa.Table, texts: RecordTexts) -> pa.Table:
    """A table of whole numbers as one of texts."""
    rendered = texts.render({name: table[name].combine_chunks() for name in table.column_names})
    return pa.table({name: plain(rendered[name]) for name in table.column_names})


def _render_records(path: str, digest: str) -> RenderRecords:
    transform = RenderRecords(path)
    if transform.digest != digest:
        raise ValueError(f"{path}: is another file than before. Load the records again.")
    return transform


def _is_coded(name: str, values: list) -> bool:
    """Whether a column holds whole numbers still, and not what a `map` has put into its place."""
    first = next((value for value in values if value is not None and value != []), None)
    inner = first[0] if isinstance(first, list) else first
    return isinstance(inner, int) or (name in OF_ITEMS and [] in values)


def _codes(values: list) -> pa.Array:
    return pa.array(values, pa.list_(pa.int64()) if any(isinstance(value, list) for value in values) else pa.int64())


def write_catalogue(
    path: Path,
    catalogue: pl.DataFrame,
    templates: tuple[PromptTemplate, ...],
    history_size: int,
    num_candidates: int,
    conversational: bool,
    train_counts: np.ndarray | None = None,
) -> None:
    """
    Write the items, and what renders them, to `catalogue.parquet`; see [`RecordTexts`] for the arguments. Where that file is
    to be the catalogue of a recommender, too, it gets `train_counts`, the training events of every item.
    """
    settings = {
        "format_version": _FORMAT_VERSION,
        "templates": [recommender_files.fields_of_template(template) for template in templates],
        "history_size": history_size,
        "num_candidates": num_candidates,
        "conversational": conversational,
    }
    table = catalogue.to_arrow()
    metadata = {**(table.schema.metadata or {}), _SETTINGS: json.dumps(settings, ensure_ascii=False).encode()}
    table = table.replace_schema_metadata(metadata)
    if train_counts is not None:
        attributes = [name for name in catalogue.columns if name not in (ITEM_ID, TITLE)]
        table = as_catalogue(table, attributes, train_counts)
    pq.write_table(table, path, compression="zstd")


def load_prepared(path: str | Path, *, streaming: bool = False) -> DatasetDict | IterableDatasetDict:
    """
    Load a data set that [`prepare`] wrote, in whichever form.

    Records that are on disk as text are what `datasets.load_dataset` gives. Those that are ids are rendered when they are
    read: `dataset["train"][0]` and all that goes through `map`, `select` or a trainer of this package sees the same
    columns with the same values. `Dataset.features`, `with_format` and `to_dict` show the numbers that are on disk.

    Args:
        path (`str` or `Path`):
            The directory.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to read records as they are needed.

    Returns:
        [`~datasets.DatasetDict`] or [`~datasets.IterableDatasetDict`]: The splits.

    Example:
        ```python
        from trl_sdpo.recsys import load_prepared, prepare

        prepare("movielens-100k", "data/ids", form="ids", max_train_records=1000)
        load_prepared("data/ids")["train"][0]["prompt"]
        ```
    """
    splits = load_dataset(str(path), streaming=streaming)
    return render_splits(splits, Path(path) / CATALOGUE) if any(map(holds_codes, splits.values())) else splits


def render_splits(splits: Any, catalogue: str | Path) -> Any:
    """Splits of rows of a catalogue with the transform that renders them."""
    transform = RenderRecords(catalogue)
    if isinstance(splits, DatasetDict):
        return DatasetDict({name: records.with_transform(transform) for name, records in splits.items()})
    return type(splits)({name: records.map(transform, batched=True) for name, records in splits.items()})


def find_catalogue(path: Path) -> Path | None:
    """The `catalogue.parquet` of a prepared data set, given its directory or one of its Parquet files."""
    folders = [path] if path.is_dir() else [path.parent, path.parent.parent]
    return next((one / CATALOGUE for one in folders if (one / CATALOGUE).is_file()), None)


def missing_catalogue(name: str | Path) -> ValueError:
    """What to say where there is none."""
    return ValueError(
        f"{name}: 'chosen' holds whole numbers, as in records that are rows of a catalogue, and there is no {CATALOGUE} to "
        "render them of. Write completions as text, or copy the file from where "
        "`trl-sdpo prepare` wrote the records."
    )


def holds_codes(records: Any) -> bool:
    """Whether the completions of records are whole numbers, so that there is a catalogue to render them of."""
    features = getattr(records, "features", None) or {}
    return "int" in getattr(features.get("chosen"), "dtype", "")
