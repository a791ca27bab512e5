"""In memory or a partition at a time: which way records are made, where the files of the second lie, and how it goes on."""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import psutil

from ....files import write_text
from ...interactions.interactions import Interactions
from ...interactions.streams import EventStream
from ..config import RecordConfig
from ..dataset import RecordPlan, check_source, plan_records
from ..splits import BY_USER, BY_USER_IN_TIME, LEAVE_ONE_OUT, TEMPORAL
from . import partitions as partition_files
from .plan import DiskPlan, plan_on_disk


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MEMORY, DISK, AUTO = ENGINES = ("memory", "disk", "auto")
# For each event: of memory what planning took at 25 million (5.2 GB), of the disk an estimate from the widths of the columns.
_MEMORY_PER_EVENT, _DISK_PER_EVENT = 210, 90
_FORMAT_VERSION = 1
_FULL = "No space left on device"
# The fields of `RecordConfig` that the steps know: one that comes later is refused until they do.
KNOWN_OPTIONS = frozenset(
    [
        "seed",
        "prompt_style",
        "template",
        "item_format",
        "completion_format",
        "domain",
        "conversational",
        "history_size",
        "min_history",
        "max_length",
        "num_candidates",
        "pool_size",
        "negatives",
        "eval_negatives",
        "popularity_alpha",
        "low_rating",
        "scores",
        "candidate_seed",
        "exclude_seen",
        "existence",
        "min_rating",
        "min_interactions",
        "k_core",
        "core_period",
        "min_length",
        "merge_repeats",
        "order",
        "split",
        "ratios",
        "file_order",
        "windows",
        "eval_windows",
        "train_stride",
        "max_train_records",
        "max_validation_records",
        "max_test_records",
    ]
)
KNOWN_SPLITS = (TEMPORAL, LEAVE_ONE_OUT, BY_USER, BY_USER_IN_TIME)


@contextmanager
def opened_plan(
    open_stream: Callable[[], AbstractContextManager[EventStream]],
    known: Any,
    output: Path,
    config: RecordConfig,
    processing_class: "PreTrainedTokenizerBase | None",
    engine: str,
) -> Iterator[tuple[RecordPlan | DiskPlan, dict]]:
    """
    A plan of records by one of the engines.

    Args:
        open_stream (`Callable`):
            Opens the source.
        known (`Any`):
            What JSON can hold, that tells this source from others.
        output (`Path`):
            The directory of the data set. The partitions are beside it, and go when the block ends without an error.
        config ([`RecordConfig`]), processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            See [`plan_records`].
        engine (`str`):
            `"memory"`, `"disk"` or `"auto"`.

    Yields:
        `tuple[RecordPlan | DiskPlan, dict]`: The plan, and what the report says of source and engine.
    """
    engine, folder = check_engine(engine, config), output.parent / f".{output.name}.partitions"
    mark = _fingerprint(known, config, processing_class)
    going_on = engine != MEMORY and _read_begun(folder)["mark"] == mark
    partitions = partition_files.open_partitions(folder, config) if going_on else None
    if partitions is None:
        with open_stream() as stream:
            columns = stream.events.collect_schema().names()
            check_source(stream.name, columns, stream.has_time, stream.height, config)
            engine, reason = choose_engine(engine, stream.height)
            if engine == MEMORY:
                interactions = stream.collect()
            else:
                _check_tokenizer(config, processing_class)
                _start(folder, {"mark": mark, "reason": reason}, going_on, stream.height)
                with _full_disk_said(folder):
                    partitions = partition_files.write_partitions(stream, folder, config)
        del stream, open_stream  # which may hold all events
    else:
        logger.info("%s: goes on from what an earlier call left there.", folder)
    if partitions is None:
        about = {"loader": interactions.report, "engine": MEMORY, "engine_reason": reason}
        plan = plan_records(interactions, config, processing_class)
        del interactions  # large, and not needed for the records
        yield plan, about
        return
    with _removing_of_no_use(folder):
        disk_plan = plan_on_disk(partitions, processing_class)
        reason = _read_begun(folder)["reason"]
        yield disk_plan, {"loader": disk_plan.loaded, "engine": DISK, "engine_reason": reason}


@contextmanager
def _removing_of_no_use(folder: Path) -> Iterator[None]:
    """Remove the partitions when records are made of them, or when the same call would meet the same error again."""
    try:
        with _full_disk_said(folder):
            yield
    except ValueError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder)


def choose_engine(engine: str, events: int) -> tuple[str, str]:
    """
    The engine for so many events, and why.

    Example:
        ```python
        >>> choose_engine("auto", 100_000)
        ('memory', '100,000 events take about 0.0 GB in memory')

        ```
    """
    reason = f"{events:,} events take about {events * _MEMORY_PER_EVENT / 1e9:.1f} GB in memory"
    if engine != AUTO:
        return engine, f"chosen; {reason}"
    engine = MEMORY if events * _MEMORY_PER_EVENT < memory_at_hand() / 2 else DISK
    if engine == DISK:
        logger.warning("Records are made a partition at a time, since %s. engine='memory' makes them there.", reason)
    return engine, reason


def check_engine(engine: str, config: RecordConfig) -> str:
    """The engine, `"memory"` where `"auto"` meets an option that a partition at a time does not know; else it is refused."""
    given = {
        one.name: getattr(config, one.name)
        for one in dataclasses.fields(config)
        if getattr(config, one.name) != one.default
    }
    refused = {name: value for name, value in given.items() if name not in KNOWN_OPTIONS}
    refused |= {"split": config.split} if config.split not in KNOWN_SPLITS else {}
    if engine == DISK and refused:
        name, value = next(iter(refused.items()))
        raise ValueError(f"{name}={value!r} needs all events in memory. Pass engine='memory', or leave it out.")
    return MEMORY if engine == AUTO and refused else engine


def memory_at_hand() -> int:
    """Bytes of memory that are free, as far as the system tells: those of the machine, and of a container's limit."""
    free = psutil.virtual_memory().available
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text("ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text("ascii"))
        free = free if limit == "max" else min(free, int(limit) - used)
    except (OSError, ValueError):
        pass
    return free


def fingerprint_of(source: Interactions) -> list:
    """What tells interactions from others, see [`opened_plan`]."""
    sums = [int(frame.hash_rows(0).sum() or 0) % 2**63 for frame in (source.events, source.items)]
    return [source.name, source.events.height, source.items.height, source.has_time, *sums]


def fingerprint_of_files(path: Any) -> list:
    """What tells files from others: names, sizes and times of those at a path and beside it."""
    if not isinstance(path, str | os.PathLike | None):
        return [uuid.uuid4().hex]  # a table in memory, of which a call that is made again cannot be sure
    if path is None or not Path(path).exists():
        return [str(path)]
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    return [str(Path(path).resolve()), *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)]


def _fingerprint(known: Any, config: RecordConfig, processing_class: "PreTrainedTokenizerBase | None") -> str:
    tokenizer = None if processing_class is None else [processing_class.name_or_path, len(processing_class)]
    parts = [_FORMAT_VERSION, partition_files.EVENTS_PER_PARTITION, known, dataclasses.asdict(config), tokenizer]
    parts.append([pl.__version__, np.__version__])
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _read_begun(folder: Path) -> dict:
    """What the call that began wrote: the mark of its source and options, and why it chose the engine, for the report."""
    path = folder / "begun.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {"mark": None, "reason": None}


def _check_tokenizer(config: RecordConfig, processing_class: "PreTrainedTokenizerBase | None") -> None:
    if config.max_length is not None and processing_class is None:
        raise ValueError(f"max_length={config.max_length} needs a tokenizer to count with. Pass processing_class.")


def _start(folder: Path, begun: dict, going_on: bool, events: int) -> None:
    """A folder for partitions, where there is room for them."""
    if not going_on:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = events * _DISK_PER_EVENT, shutil.disk_usage(folder).free
    logger.info(
        "%s: takes about %.1f GB of the %.1f that are free, until the records are made.",
        folder,
        needed / 1e9,
        free / 1e9,
    )
    if needed > free:
        shutil.rmtree(folder)
        raise OSError(
            errno.ENOSPC,
            f"{_FULL}: partitions of {events:,} events take about {needed / 1e9:.1f} GB beside the output, where "
            f"{free / 1e9:.1f} GB are free. Free some, or choose another output",
            str(folder),
        )
    write_text(folder / "begun.json", json.dumps(begun))


@contextmanager
def _full_disk_said(folder: Path) -> Iterator[None]:
    """Say that the disk is full in one sentence, by whichever library it comes."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        if getattr(error, "errno", None) != errno.ENOSPC and _FULL not in str(error):
            raise
        raise OSError(
            errno.ENOSPC, f"{_FULL}: free some, and the same call goes on from what is done", str(folder)
        ) from error
