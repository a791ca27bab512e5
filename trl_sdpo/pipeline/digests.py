"""Hashes of what the result of a stage depends on."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .state import STATE_FILE


if TYPE_CHECKING:
    from datasets import Dataset

    from ..recsys.interactions.interactions import Interactions

_MEGABYTE = 1 << 20


def digest(value: Any) -> str:
    """A short hash of what `json` can write; other values by their text."""
    text = json.dumps(
        value, sort_keys=True, default=lambda one: sorted(map(str, one)) if isinstance(one, set) else str(one)
    )
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def state_of_files(path: str | Path | None) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of all files of a directory; nothing where there is none."""
    if path is None or not Path(path).exists():
        return []
    files = [Path(path)] if Path(path).is_file() else sorted(one for one in Path(path).rglob("*") if one.is_file())
    return [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files]


def digest_of_interactions(interactions: "Interactions") -> str:
    """A hash of all events and items, in their order."""
    hasher = hashlib.blake2b(interactions.name.encode(), digest_size=8)
    for frame in (interactions.events, interactions.items):
        hasher.update(frame.hash_rows().to_numpy().tobytes())
    return hasher.hexdigest()


def digest_of_records(records: "Dataset", columns: Sequence[str]) -> str:
    """A hash of these columns, as far as they are there, of all records in their order."""
    present = [name for name in columns if name in records.column_names]
    hasher = hashlib.blake2b(digest_size=8)
    records = records.select_columns(present)
    if records.format["type"] == "custom":  # what is on disk is not what a transform shows
        for batch in records.iter(1000):
            for name in present:
                hasher.update(repr(list(batch[name])).encode())
        return hasher.hexdigest()
    for batch in records.with_format("arrow").iter(1000):
        for column in batch.columns:
            hasher.update(repr(column.to_pylist()).encode())
    return hasher.hexdigest()


def digest_of_model(model: Path) -> str:
    """Of a stage what it depends on; of another directory its files; of a Hub id the name."""
    if not model.is_dir():
        return digest(str(model))
    if (model / STATE_FILE).is_file():
        return digest((model / STATE_FILE).read_text(encoding="utf-8"))
    hasher = hashlib.blake2b(digest_size=8)
    for path in sorted(model.glob("*.safetensors")) + sorted(model.glob("*.json")):
        hasher.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as file:  # of large files the beginning and the end
            hasher.update(file.read(_MEGABYTE))
            file.seek(max(0, path.stat().st_size - _MEGABYTE))
            hasher.update(file.read())
    return hasher.hexdigest()
