"""From a source to a data set on disk: records as Parquet, with a report of what was kept, dropped and leaked."""

import dataclasses
import json
import logging
import os
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ..._progress import progress
from ...files import writing_directory
from ..interactions.interactions import ITEM_ID, TITLE, Interactions
from ..interactions.registry import stream_source
from ..interactions.streams import EventStream
from ..metrics.leaks import probe_lists
from ..metrics.probes import leak_probes
from ..prompts.record_texts import RecordTexts
from . import compact, recommender_files
from .catalogue import files as catalogue_files
from .catalogue.columns import plain_values
from .compact import AUTO, FORMS, IDS, TEXT
from .config import DEFAULT, RecordConfig, recipe_loader_options, recipe_options
from .dataset import RecordPlan
from .out_of_core.engine import ENGINES, MEMORY, fingerprint_of, fingerprint_of_files, opened_plan
from .out_of_core.plan import DiskPlan
from .report import SplitStatistics, plot_report, write_markdown


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

REPORT = "report.json"
# Titles are a dictionary in every row group; a larger catalogue than fits falls back to plain text.
_LARGEST_DICTIONARY = 1 << 26
# Sixteen row groups: files that the Hub and `datasets` read side by side.
_RECORDS_PER_FILE = 1 << 19
_PROBED = 2000
_LEARNED_FROM = 50_000
_PROBED_COLUMNS = ["chosen", "rejected", "candidates", "user_id", "item_id", "rejected_item_ids", "history_item_ids"]
_PROBED_COLUMNS += ["timestamp"]


def prepare(
    source: str | Interactions,
    output: str | Path,
    *,
    path: str | Path | None = None,
    recipe: str = DEFAULT,
    processing_class: "str | PreTrainedTokenizerBase | None" = None,
    num_workers: int | None = None,
    overwrite: bool = False,
    form: str = AUTO,
    engine: str = AUTO,
    loader_options: dict | None = None,
    **options,
) -> dict:
    """
    Make a data set of multi-preference records and write it to a directory.

    The directory appears when it is whole: `data/SPLIT-00000-of-00001.parquet`, of large splits several files, which
    `datasets.load_dataset(output)` reads as a `DatasetDict` (see `form`), `report.md` with `report.png` (where matplotlib is installed), `report.json`, and for the
    models that are trained on it `recommender.json` and `catalogue.json`, see [`save_recommender_files`]. The bytes are
    a function of the source and the options, whatever the number of threads and processes. Records are written as they
    are made, so that memory holds the events of the source and not the records.

    Args:
        source (`str` or [`Interactions`]):
            A name that [`load_source`] takes, or interactions.
        output (`str` or `Path`):
            The directory to make.
        path (`str` or `Path`, *optional*):
            The files of the source. By default they are downloaded once and cached.
        recipe (`str`, *optional*, defaults to `"default"`):
            `"default"`, or `"s-dpo"` for what the published records did, see [`recipe_options`].
        processing_class (`str` or [`~transformers.PreTrainedTokenizerBase`], *optional*):
            A tokenizer, or the name or directory of one: to count tokens, for `max_length`, and to check that prompts
            end where a token ends.
        num_workers (`int`, *optional*):
            Threads; by default the cores, 4 at most.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace what an earlier call left in `output`.
        form (`str`, *optional*, defaults to `"auto"`):
            `"text"`: columns of texts, which `datasets.load_dataset(output)` and any trainer of TRL read. `"ids"`: rows of
            `catalogue.parquet`, about a tenth of that, which [`load_prepared`], the commands and the trainers of this
            package render when a record is read. `"auto"`: text, unless it would take more than a gibibyte in memory; log
            and report say which.
        engine (`str`, *optional*, defaults to `"auto"`):
            `"memory"`: all events are in memory at once. `"disk"`: a few users' at a time, from files beside `output` that
            go when it is there: memory does not grow with the number of events, and a call that was killed goes on where
            it was when it is made again. `"auto"`: memory, unless the events would take more than half of what is free; log
            and report say which. The records are the same.
        loader_options (`dict`, *optional*):
            Passed to the loader of the source.
        **options:
            Fields of [`RecordConfig`], which go before those of the recipe.

    Returns:
        `dict`: The report, as in `report.json`.

    Raises:
        FileExistsError: there is something in `output`, and `overwrite` is not set or it is of something else.
        ValueError: an option is out of range, or see [`build_preference_dataset`].

    Example:
        ```python
        from datasets import load_dataset
        from trl_sdpo.recsys import prepare

        prepare("movielens-100k", "data/ml-100k", prompt_style="candidates", seed=0)
        dataset = load_dataset("data/ml-100k")
        ```
    """
    output = Path(output)
    for option, value, known in (("form", form, FORMS), ("engine", engine, ENGINES)):
        if value not in known:
            raise ValueError(f"{option}={value!r} is none of {known}. Pass one of them.")
    _check_free(output, overwrite)
    name = source if isinstance(source, str) else source.name
    config = RecordConfig(**{**recipe_options(recipe, name), **options})
    if isinstance(processing_class, str):
        processing_class = _load_tokenizer(processing_class)
    num_workers = min(4, os.cpu_count() or 1) if num_workers is None else num_workers
    loader_options = {**recipe_loader_options(recipe, name), **(loader_options or {})}
    if isinstance(source, str):
        known = [source, fingerprint_of_files(path), loader_options]
        stream = partial(stream_source, source, path, **loader_options)
    else:
        known, stream = (
            None if engine == MEMORY else fingerprint_of(source),
            partial(nullcontext, EventStream.of(source)),
        )
    del source
    with opened_plan(stream, known, output, config, processing_class, engine) as (plan, about):
        del stream
        return _write(plan, {"recipe": recipe, "source_name": name, **about}, output, form, num_workers)


def _write(plan: RecordPlan | DiskPlan, about: dict, output: Path, form: str, num_workers: int) -> dict:
    """The directory of a plan."""
    name, config = about["source_name"], plan.config
    form, reason = _choose_form(form, plan)
    plan.builder.as_codes = form == IDS
    with writing_directory(output, replace=True) as stage:
        statistics = _write_records(plan, stage / "data", num_workers)
        engine = {key: about.pop(key) for key in ("engine", "engine_reason")}
        report = {key: about[key] for key in ("recipe", "source_name")} | {"options": _options(config)}
        report |= {"loader": about["loader"], **plan.report, **engine, "form": form, "form_reason": reason}
        _complete_and_write(report, statistics, plan, stage)
        _write_recommender_files(plan, name, stage)
        if form == IDS:
            _write_catalogue(plan, stage)
    return report


def _load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)


def _choose_form(form: str, plan: RecordPlan | DiskPlan) -> tuple[str, str]:
    """The form of the records on disk, and why."""
    size, texts = 0, plan.builder.texts
    for split, targets in plan.sizes.items():
        pool, list_size = plan.config.num_negatives_of(split), plan.config.num_candidates
        shown = plan.config.history_size + list_size * (1 + (plan.config.prompt_style == "candidates"))
        size += targets * (int((shown + 1 + pool) * (texts.mean_length() + 4)) + 8 * (1 + pool))
    about = f"as text the records take about {size / 1e9:.1f} GB in memory"
    if form != AUTO:
        return form, f"chosen; {about}"
    form = IDS if size > compact.LARGEST_TEXT_FORM else TEXT
    if form == IDS:
        logger.warning(
            "Records are written as rows of catalogue.parquet, since %s: read them with `trl_sdpo.recsys.load_prepared` or "
            "the commands of trl-sdpo. form='text' (--form text) writes texts.",
            about,
        )
    return form, about


def _complete_and_write(
    report: dict, statistics: dict[str, SplitStatistics], plan: RecordPlan | DiskPlan, folder: Path
) -> None:
    """The report with what is known once the records are written, as JSON, Markdown and a figure."""
    report["negatives_drawn_uniformly_instead"] = plan.builder.sampler.filled_uniformly
    for split, gathered in statistics.items():
        report[split] |= gathered.summary()
    plan.release()
    report["leak_probe"] = _probe(statistics)
    report["leak_probes"] = _probe_rules(folder / "data", list(statistics), plan)
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    figure = plot_report(report, statistics, folder / "report.png")
    write_markdown(report, folder / "report.md", figure)


def _write_catalogue(plan: RecordPlan | DiskPlan, folder: Path) -> None:
    config = plan.config
    rendering = {name: getattr(config, name) for name in ("history_size", "num_candidates", "conversational")}
    if plan.catalogue.height >= catalogue_files.PARQUET_FROM:  # one file for the records and for recommenders
        rendering["train_counts"] = plan.train_counts
    compact.write_catalogue(folder / compact.CATALOGUE, plan.catalogue, config.templates, **rendering)


def _write_records(plan: RecordPlan | DiskPlan, folder: Path, num_workers: int) -> dict[str, SplitStatistics]:
    folder.mkdir()
    statistics = {}
    for split, targets in plan.sizes.items():
        gathered = SplitStatistics(targets, plan.config.num_candidates, plan.train_counts)
        writer = _Shards(folder, split, -(-targets // _RECORDS_PER_FILE))
        with progress(total=targets, desc=f"Records, {split}", unit="records") as bar, writer:
            for chunk in plan.chunks(split, num_workers):
                writer.write(chunk.table)
                if chunk.table.num_rows:
                    gathered.add(chunk)
                bar.update(chunk.table.num_rows + chunk.dropped)
        statistics[split] = gathered
    return statistics


class _Shards:
    """Files of a split, of so many records each; fewer in the last ones where records were dropped."""

    def __init__(self, folder: Path, split: str, count: int) -> None:
        self.paths = [folder / f"{split}-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
        self.writers: list[pq.ParquetWriter] = []
        self.room = 0

    def __enter__(self) -> "_Shards":
        return self

    def write(self, table: pa.Table) -> None:
        if not self.writers or (self.room <= 0 and len(self.writers) < len(self.paths)):
            self._close_last()
            self.writers.append(_writer(self.paths[len(self.writers)], table.schema))
            self.room = _RECORDS_PER_FILE
        if table.num_rows:
            self.writers[-1].write_table(table, row_group_size=table.num_rows)
        self.room -= table.num_rows
        self.schema = table.schema

    def _close_last(self) -> None:
        if self.writers:
            self.writers[-1].close()

    def __exit__(self, kind: type | None, *error: object) -> None:
        self._close_last()
        for path in self.paths[len(self.writers) :] if kind is None and self.writers else ():
            _writer(path, self.schema).close()


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    # Without Arrow's own schema in the file, a reader sees strings and not the dictionaries that they were written from.
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        store_schema=False,
        dictionary_pagesize_limit=_LARGEST_DICTIONARY,
        # Of texts nobody asks for the first and the last of the alphabet, which take half of the time to find.
        write_statistics=["user_id", "item_id", "timestamp", "position"],
    )


def _probe(statistics: dict[str, SplitStatistics]) -> dict | None:
    """The history-blind lookup of the last split in the training records."""
    last = list(statistics)[-1]
    reference = None if last == "train" else statistics["train"].lists if "train" in statistics else None
    probe = probe_lists(statistics[last].lists, reference, max_records=_PROBED)
    looked_up = "the records before" if reference is None else f"{len(reference.targets)} training records"
    return {"split": last, "reference": looked_up, **probe._asdict(), "ci": list(probe.ci)}


def _probe_rules(folder: Path, splits: list[str], plan: RecordPlan | DiskPlan) -> list[dict]:
    """The rules of [`leak_probes`] on the last split, learned from the training records."""
    last, texts = splits[-1], plan.builder.texts if plan.builder.as_codes else None
    reference = None
    if last != "train" and "train" in splits:
        reference = _read_some(folder, "train", _LEARNED_FROM, texts)
    counts = dict(zip(plan.catalogue[ITEM_ID].to_list(), plan.train_counts.tolist(), strict=True))
    probed = _read_some(folder, last, _LEARNED_FROM, texts)
    probes = leak_probes(probed, reference, counts=counts, max_records=_PROBED, met=plan.first_met)
    return [probe.as_dict() for probe in probes]


def _read_some(folder: Path, split: str, most: int, texts: RecordTexts | None) -> dict[str, list]:
    """Records of a split, of a large one whole row groups and so the records of whole users, evenly spread."""
    with ExitStack() as stack:
        files = [stack.enter_context(pq.ParquetFile(path)) for path in sorted(folder.glob(f"{split}-*.parquet"))]
        groups = [(file, number) for file in files for number in range(file.num_row_groups)]
        rows = sum(file.metadata.num_rows for file in files)
        wanted = max(1, min(len(groups), len(groups) * most // max(1, rows)))
        chosen = [groups[number * len(groups) // wanted] for number in range(wanted)]
        tables = [file.read_row_group(number, columns=_PROBED_COLUMNS) for file, number in chosen]
    table = pa.concat_tables(tables).slice(0, most)
    return (table if texts is None else compact.render_table(table, texts)).to_pydict()


def _write_recommender_files(plan: RecordPlan | DiskPlan, source: str, folder: Path) -> None:
    config = plan.config
    recommender_config = recommender_files.RecommenderConfig(
        config.templates,
        history_size=config.history_size,
        conversational=config.conversational,
        max_length=config.max_length,
        domain=config.domain,
        source=source,
    )
    ids, titles = (plan.catalogue[column].cast(pl.String).to_list() for column in (ITEM_ID, TITLE))
    others = [name for name in plan.catalogue.columns if name not in (ITEM_ID, TITLE)]
    attributes = {name: plain_values(plan.catalogue[name]).to_list() for name in others}
    catalogue = recommender_files.Catalogue(ids, titles, plan.train_counts.tolist(), attributes)
    recommender_files.save_recommender_files(folder, recommender_config, catalogue)


def _options(config: RecordConfig) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _check_free(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    ours = output.is_dir() and (output / REPORT).is_file() and (output / "data").is_dir()
    if not ours:
        raise FileExistsError(f"{output}: holds something else. Pass another directory.")
    if not overwrite:
        raise FileExistsError(
            f"{output}: holds a data set already. Pass overwrite=True (--overwrite), or another directory."
        )
