"""Datasets as a command line names them: what `trl-sdpo prepare` writes, files, the Hub, and the json of S-DPO."""

import json
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from transformers.utils import logging

from ..data_utils import flat_rejected_columns, from_flat_columns
from ..graded_records import RANKED, from_ranked
from ..recsys.interactions.readers.paths import hub_can_be_named, is_hub_name, nearest_file
from ..recsys.interactions.readers.text_files import TextFile
from ..recsys.prompts.wordings import get_template
from ..recsys.records.compact import CATALOGUE, find_catalogue, holds_codes, missing_catalogue, render_splits
from ..recsys.records.recommender_files import (
    RECOMMENDER_FILE,
    RecommenderFiles,
    find_file,
    load_recommender_files,
)
from ..recsys.records.sdpo_json import CANDIDATES, HISTORY, SELECTION, from_sdpo_rows


logger = logging.get_logger(__name__)

_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


def load_records(
    dataset_name: str, dataset_config: str | None = None, streaming: bool = False, template: str | None = None
) -> DatasetDict | IterableDatasetDict:
    """
    Load a dataset of records by the name that a command line has for it.

    Args:
        dataset_name (`str`):
            A directory that `trl-sdpo prepare` or `save_to_disk` wrote or that `datasets.load_dataset` reads, a file
            (`.json`, `.jsonl`, `.csv`, `.parquet`), which is the split `train`, or the name of a dataset on the Hub.
        dataset_config (`str`, *optional*):
            Configuration of the dataset.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to read records as they are needed.
        template (`str`, *optional*):
            The words around the titles of records in the json of S-DPO (`historyList`, `itemList`, `trueSelection`),
            see [`load_sdpo_json`]. By default `"choose"`, which shows the list.

    Returns:
        [`~datasets.DatasetDict`] or [`~datasets.IterableDatasetDict`]: The splits. The json of S-DPO and flat columns
        (`rejected1..K`, see [`from_flat_columns`]) and `ranked` lists (see [`from_ranked`]) have become multi-preference
        records; other columns stay.

    Raises:
        FileNotFoundError: there is no such directory, file or dataset.
        ValueError: it cannot be read, or a record of S-DPO's json is malformed.

    Example:
        ```python
        from trl_sdpo.pipeline.datasets import load_records

        records = load_records("data/ml-1m")["train"]  # of `trl-sdpo prepare movielens-1m --output_dir data/ml-1m`
        records = load_records("lastfm-train.json", template="music-choose")["train"]
        ```
    """
    path = Path(dataset_name)
    if path.suffix == ".json" and path.is_file() and (rows := _sdpo_rows(path)) is not None:
        # before a table is made of it, in which histories as text and as lists could not stand side by side
        return DatasetDict({"train": from_sdpo_rows(rows, get_template(template or "choose"), dataset_name)})
    try:
        if path.is_file():
            splits = _load_file(path, streaming)
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            splits = load_from_disk(dataset_name)
        elif not path.exists() and "/" in dataset_name and not is_hub_name(dataset_name):
            # told at once: to ask the Hub for a mistyped path takes long
            raise FileNotFoundError(
                f"{dataset_name}: no such file or directory, and no name of a dataset on the Hub."
                f"{nearest_file(path)} Correct the path."
            )
        elif (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
            raise ValueError(
                f"{dataset_name}: is a model, and no data set. Pass the directory that `trl-sdpo prepare` wrote."
            )
        else:
            _check_connection(dataset_name)
            splits = load_dataset(dataset_name, name=dataset_config, streaming=streaming)
    except DatasetsError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(f"The dataset {dataset_name!r} cannot be read: {cause}. Correct the file.") from error
    if not isinstance(splits, dict):
        splits = DatasetDict({"train": splits})
    splits = _rendered(splits, dataset_name)
    return type(splits)(
        {name: _to_multi_preference(records, f"{dataset_name}, {name}", template) for name, records in splits.items()}
    )


def _check_connection(name: str) -> None:
    """What is neither here nor in the cache is told at once where there is no connection."""
    cached = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    if not Path(name).exists() and not cached.exists() and not hub_can_be_named():
        raise FileNotFoundError(
            f"{name}: no such file or directory here, nor in the cache, and there is no connection to the Hub."
            f"{nearest_file(name)} Correct the path, or try again with a connection."
        )


def _rendered(splits: DatasetDict | IterableDatasetDict, dataset_name: str) -> DatasetDict | IterableDatasetDict:
    """Records as texts where they are rows of a catalogue, see [`load_prepared`]."""
    if not isinstance(splits, dict) or not any(map(holds_codes, splits.values())):
        return splits
    path = Path(dataset_name)
    if path.exists():
        catalogue = find_catalogue(path)
    else:
        catalogue = find_file(dataset_name, CATALOGUE, repo_type="dataset")
    if catalogue is None:
        raise missing_catalogue(dataset_name)
    return render_splits(splits, catalogue)


def find_recommender_files(dataset_name: str | Path) -> tuple[RecommenderFiles, Path | None]:
    """
    What lies beside records for those who serve a model of them, wherever the records come from.

    Args:
        dataset_name (`str` or `Path`):
            A directory, a file in one or in its `data/`, or the name of a data set on the Hub, whose files are taken from
            the cache where the Hub cannot be reached.

    Returns:
        `tuple[RecommenderFiles, Path | None]`: `recommender.json` and `catalogue.json`, and the folder with the
        `report.json` of the data set; `None` for what is not there.

    Raises:
        ValueError: a file is damaged, or of a later version of this package.
    """
    path = Path(dataset_name)
    if path.exists():
        # `trl-sdpo prepare` writes them beside the folder of its Parquet files
        folders = (
            [path] if path.is_dir() else [path.parent, *([path.parent.parent] if path.parent.name == "data" else [])]
        )
        folder = next((one for one in folders if (one / RECOMMENDER_FILE).is_file()), folders[0])
        return load_recommender_files(folder), folder
    if not is_hub_name(str(dataset_name)):
        return RecommenderFiles(), None
    try:
        files = load_recommender_files(dataset_name, repo_type="dataset")
        report = find_file(dataset_name, "report.json", repo_type="dataset")
    except OSError as error:
        logger.warning(
            f"{dataset_name}: whether there is a {RECOMMENDER_FILE} beside the records cannot be told, so none goes with "
            f"the model ({error})"
        )
        return RecommenderFiles(), None
    return files, None if report is None else report.parent


def select_split(splits: dict[str, Dataset], split: str, flag: str, dataset_name: str) -> Dataset | IterableDataset:
    """A split by its name; a `ValueError` names those that are there."""
    if split not in splits:
        raise ValueError(
            f"The dataset {dataset_name!r} has no split {split!r}, only {list(splits)}. Pass one of them as {flag}."
        )
    return splits[split]


def _load_file(path: Path, streaming: bool) -> DatasetDict:
    if path.suffix not in _BUILDERS:
        raise ValueError(f"{path}: the end of the name is none of {list(_BUILDERS)}. Rename the file, or convert it.")
    # Of what pandas takes for a missing value by itself ("NA", "None", "null", ...), only an empty field is one.
    options = {"keep_default_na": False, "na_values": [""]} if _BUILDERS[path.suffix] == "csv" else {}
    options |= {"sep": "\t"} if path.suffix == ".tsv" else {}
    return load_dataset(_BUILDERS[path.suffix], data_files=str(path), streaming=streaming, **options)


def _sdpo_rows(path: Path) -> list[dict] | None:
    try:
        rows = json.loads(TextFile(path).path.read_bytes())
    except ValueError:
        return None  # lines of json, or what the library has better words for
    return rows if isinstance(rows, list) and rows and isinstance(rows[0], dict) and HISTORY in rows[0] else None


def _to_multi_preference(
    records: Dataset | IterableDataset, where: str, template: str | None
) -> Dataset | IterableDataset:
    columns = list(records.column_names or next(iter(records), {}))
    if {HISTORY, CANDIDATES, SELECTION} <= set(columns):
        return from_sdpo_rows(list(records), get_template(template or "choose"), where)
    if template is not None:
        raise ValueError(
            f"{where}: the prompts are made already, so that `template` {template!r} has no use. Drop it."
        )
    if "rejected" not in columns and flat_rejected_columns(columns):
        return from_flat_columns(records)
    if "rejected" not in columns and RANKED in columns:
        return from_ranked(records)
    return records
