"""
Lists for a Parquet file of histories that need not fit into memory: chunk by chunk, on one process or several, resumed
where a run before was ended.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import write_text, writing
from ..recsys.records.compact import RenderRecords, find_catalogue, missing_catalogue


if TYPE_CHECKING:
    from .recommender import Recommendation

CHUNK_SIZE = 1024  # histories between two parts on disk
HISTORY_COLUMNS = ("history", "history_item_ids")
SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_ids", pa.list_(pa.string())),
        ("titles", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
    ]
)
_SETTINGS = "settings.json"


def recommend_file(
    histories: str | Path,
    output: str | Path,
    recommend: "Callable[[list[dict[str, Any]]], list[list[Recommendation]]]",
    settings: dict[str, Any],
    *,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] = lambda: None,
    report: Callable[[int, int, float], None] = lambda done, total, rate: None,
) -> int:
    """
    Write a list for every row of a Parquet file.

    Args:
        histories (`str` or `Path`):
            With a column `history` (titles or ids) or `history_item_ids` (ids, as `trl-sdpo prepare` writes them), and
            perhaps `user_id` and `candidates`.
        output (`str` or `Path`):
            Parquet file to write, whole or not at all: a row per history in their order, with `user_id` (else the number of
            the row), `item_ids`, `titles` and `scores` (nats). Parts of a run that was ended lie in `OUTPUT.parts`.
        recommend (`Callable`):
            From rows, dicts of the columns and `row`, their number, to lists.
        settings (`dict`):
            What the lists depend on. Parts that were made with others are made anew.
        rank (`int`, *optional*, defaults to `0`), world_size (`int`, *optional*, defaults to `1`), barrier (`Callable`, *optional*):
            Of the processes that share the work. All see the same file system.
        report (`Callable[[int, int, float], None]`, *optional*):
            Told after each chunk: rows of this process that are done, of how many, and how many a second in this run.

    Returns:
        `int`: Rows that this process computed in this run.

    Raises:
        ValueError: the file has no histories in a form that is known. The message names the column.
    """
    histories, output = Path(histories), Path(output)
    source = pq.ParquetFile(histories)
    columns, render = _columns(source, histories), _renderer(source, histories)
    parts = output.with_name(f"{output.name}.parts")
    if rank == 0:
        _open_parts(parts, {**settings, "histories": _fingerprint(histories), "catalogue": render and render.digest})
    barrier()
    total = source.metadata.num_rows
    own = sum(min(CHUNK_SIZE, total - first) for first in range(rank * CHUNK_SIZE, total, world_size * CHUNK_SIZE))
    computed, done, started = 0, 0, time.monotonic()
    for number, rows in _chunks(source, columns, render):
        if number % world_size != rank:
            continue
        part = parts / f"{number:06d}.parquet"
        if not part.is_file():
            _write(part, rows, recommend(rows))
            computed += len(rows)
        done += len(rows)
        report(done, own, computed / max(time.monotonic() - started, 1e-9))
    barrier()
    if rank == 0:
        _join(parts, output)
    barrier()
    return computed


def _columns(source: pq.ParquetFile, path: Path) -> list[str]:
    names = source.schema_arrow.names
    history = next((name for name in HISTORY_COLUMNS if name in names), None)
    if history is None:
        raise ValueError(
            f"{path}: no column {' or '.join(HISTORY_COLUMNS)}, only {names}. Write a list of items a row."
        )
    for name in {history, "candidates"} & set(names):
        kind = source.schema_arrow.field(name).type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            raise ValueError(f"{path}, column '{name}': is of type {kind}. Write a list of titles or ids a row.")
    # the candidates that `prepare` writes beside its histories are those of an evaluation
    others = ("user_id", "candidates") if history == "history" else ("user_id",)
    return [history, *(name for name in others if name in names)]


def _renderer(source: pq.ParquetFile, path: Path) -> RenderRecords | None:
    """What makes item ids of the rows of a catalogue, where `prepare` has written records as these."""
    schema = source.schema_arrow
    if "chosen" not in schema.names or not pa.types.is_integer(schema.field("chosen").type):
        return None
    catalogue = find_catalogue(path)
    if catalogue is None:
        raise missing_catalogue(path)
    return RenderRecords(catalogue)


def _chunks(
    source: pq.ParquetFile, columns: list[str], render: RenderRecords | None
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    first = 0
    for number, batch in enumerate(_batches_of(source, columns)):
        rows = (batch if render is None else render.table(batch)).to_pylist()
        for offset, row in enumerate(rows):
            row["row"] = first + offset
        first += len(rows)
        yield number, rows


def _batches_of(source: pq.ParquetFile, columns: list[str]) -> Iterator[pa.Table]:
    """Tables of exactly `CHUNK_SIZE` rows but for the last, whatever the row groups are."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in source.iter_batches(batch_size=CHUNK_SIZE, columns=columns):
        waiting.append(batch)
        count += batch.num_rows
        while count >= CHUNK_SIZE:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, CHUNK_SIZE)
            rest = table.slice(CHUNK_SIZE)
            waiting, count = rest.to_batches(), rest.num_rows
    if count:
        yield pa.Table.from_batches(waiting)


def _write(part: Path, rows: list[dict[str, Any]], lists: "list[list[Recommendation]]") -> None:
    users = [row.get("user_id") for row in rows]
    table = pa.table(
        {
            "user_id": [str(row["row"] if user is None else user) for row, user in zip(rows, users, strict=True)],
            "item_ids": [[item.item_id for item in items] for items in lists],
            "titles": [[item.title for item in items] for items in lists],
            "scores": [[item.score for item in items] for items in lists],
        },
        schema=SCHEMA,
    )
    with writing(part) as path:
        pq.write_table(table, path)


def _join(parts: Path, output: Path) -> None:
    with writing(output) as path, pq.ParquetWriter(path, SCHEMA) as writer:
        for part in sorted(parts.glob("[0-9]*.parquet")):
            writer.write_table(pq.read_table(part))
    shutil.rmtree(parts)


def _open_parts(parts: Path, settings: dict[str, Any]) -> None:
    """Keep the parts of a run with the same settings, and begin anew after others."""
    text = json.dumps(settings, sort_keys=True, indent=1, default=str)
    kept = parts / _SETTINGS
    if parts.is_dir() and not (kept.is_file() and kept.read_text(encoding="utf-8") == text):
        shutil.rmtree(parts)
    parts.mkdir(parents=True, exist_ok=True)
    write_text(kept, text)


def _fingerprint(path: Path) -> dict[str, Any]:
    """What tells a file that was changed: its size, and a digest of its footer, which has the statistics of all columns."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - (1 << 20)))
        return {"size": size, "footer": hashlib.sha256(file.read()).hexdigest(), "time": path.stat().st_mtime_ns}
