"""
What a recommender needs beside its weights: how prompts were worded, in `recommender.json`, and what can be recommended,
in `catalogue.json`, or `catalogue.parquet` where it is large. They lie in the directory of a prepared data set and travel
from there with every model that is trained on it, so that what was trained is what is served.
"""

import dataclasses
import difflib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...files import CATALOGUE_FILE, CATALOGUE_FILES, write_text, writing
from ..interactions.readers.paths import hub_can_be_named
from ..prompts.item_texts import TITLE_ALONE
from ..prompts.templates import PromptTemplate
from .catalogue import files as parquet
from .catalogue.catalogue import Catalogue


RECOMMENDER_FILE = "recommender.json"
FORMAT_VERSION = 1

_MODEL_FILES = ("config.json", "adapter_config.json")
_HOW_TO_MAKE = (
    "Make it with `trl_sdpo.save_recommender_files(directory, RecommenderConfig(templates=...), Catalogue(...))`, or "
    "copy it from the prepared data set with `trl_sdpo.copy_recommender_files(dataset_directory, model_directory)`"
)


@dataclass(frozen=True)
class RecommenderConfig:
    """
    How the prompts and completions of a recommender are made: the contents of `recommender.json`.

    Args:
        templates (`Sequence[PromptTemplate]`):
            The wordings of the training records. A recommender takes the first unless told otherwise.
        history_size (`int`, *optional*, defaults to `10`):
            Titles of the history at most; older ones are left out.
        conversational (`bool`, *optional*, defaults to `False`):
            Whether prompt and completion are messages, which the chat template of the tokenizer turns into text.
        append_eos (`bool`, *optional*):
            Whether an EOS token ends a completion. If `None`, one does unless the completions of all templates are lines,
            which is how `trl-sdpo sft` and `trl-sdpo train` tokenize. `True` for a model whose records a trainer tokenized
            itself, which adds one to every text. Messages end as the chat template has it.
        max_length (`int`, *optional*):
            Tokens of a prompt with its longest completion at most, to which histories were shortened.
        domain (`str`, *optional*):
            What the items are, such as `"movies"`.
        source (`str`, *optional*):
            The data set's name as [`load_source`] takes it, such as `"movielens-100k"`, or that of the interactions.

    Raises:
        ValueError: there is no template, or a number is out of range.

    Example:
        ```python
        >>> from trl_sdpo.recsys import get_template
        >>> config = RecommenderConfig([get_template("watched")], history_size=5)
        >>> config.templates[0].render(["Heat (1995)"])
        'This user has watched Heat (1995). Next:'

        ```
    """

    templates: Sequence[PromptTemplate]
    history_size: int = 10
    conversational: bool = False
    append_eos: bool | None = None
    max_length: int | None = None
    domain: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "templates", tuple(self.templates))
        if not self.templates:
            raise ValueError("templates is empty. Pass at least one PromptTemplate.")
        for number, template in enumerate(self.templates):
            if not isinstance(template, PromptTemplate):
                raise ValueError(f"templates[{number}] is {template!r}. Pass a PromptTemplate.")
        for name, lowest in (("history_size", 1), ("max_length", 2)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < lowest):
                raise ValueError(f"{name}={value!r} is no whole number from {lowest}. Pass one.")

    @property
    def ends_in_eos(self) -> bool:
        """Whether an EOS token follows a completion that is text: `append_eos`, or what it is where that is `None`."""
        if self.append_eos is None:
            return not all(template.completion_suffix.endswith("\n") for template in self.templates)
        return self.append_eos


@dataclass(frozen=True)
class RecommenderFiles:
    """
    What [`load_recommender_files`] finds.

    Args:
        config ([`RecommenderConfig`], *optional*):
            Of `recommender.json`; `None` where there is none.
        catalogue ([`Catalogue`], *optional*):
            Of `catalogue.json` or `catalogue.parquet`; `None` where there is none.
    """

    config: RecommenderConfig | None = None
    catalogue: Catalogue | None = None


def save_recommender_files(
    directory: str | Path, config: RecommenderConfig, catalogue: Catalogue | None = None
) -> list[Path]:
    """
    Write `recommender.json` and `catalogue.json` into a directory. Each file is there whole or as it was before. From
    100,000 items on the catalogue is `catalogue.parquet` instead, which is read by column.

    Args:
        directory (`str` or `Path`):
            Of a data set or of a model. It is made where it is missing.
        config ([`RecommenderConfig`]):
            How prompts are made.
        catalogue ([`Catalogue`], *optional*):
            What can be recommended. If `None`, a catalogue that is there stays.

    Returns:
        `list[Path]`: The files that were written.

    Example:
        ```python
        from trl_sdpo import Catalogue, RecommenderConfig, save_recommender_files
        from trl_sdpo.recsys import get_template

        config = RecommenderConfig([get_template("watched")])
        save_recommender_files("my-model", config, Catalogue(["1", "2"], ["Heat (1995)", "Ran (1985)"]))
        ```
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    wordings = {"templates": [fields_of_template(template) for template in config.templates]}
    contents = {RECOMMENDER_FILE: {"format_version": FORMAT_VERSION, **dataclasses.asdict(config), **wordings}}
    is_large = catalogue is not None and len(catalogue) >= parquet.PARQUET_FROM
    if catalogue is not None and not is_large:
        # not `asdict`, which copies value by value; without attributes, versions that know none read it
        known = {name: value for name, value in vars(catalogue).items() if name != "attributes" or value}
        known = {name: list(value) if name in ("item_ids", "titles") else value for name, value in known.items()}
        contents[CATALOGUE_FILE] = {"format_version": FORMAT_VERSION, **known}
    written = [
        write_text(directory / name, json.dumps(content, ensure_ascii=False, indent=1, default=list) + "\n")
        for name, content in contents.items()
    ]
    if is_large:
        written.append(parquet.write_catalogue(directory / parquet.PARQUET_FILE, catalogue))
    if catalogue is not None:
        remove_catalogue(directory, but=written[-1].name)
    return written


def remove_catalogue(directory: str | Path, but: str | None = None) -> None:
    """
    Remove the catalogue of a directory.

    Args:
        directory (`str` or `Path`):
            Of a data set or of a model. A `catalogue.parquet` that only renders records stays.
        but (`str`, *optional*):
            A file that stays.
    """
    for name in CATALOGUE_FILES:
        path = Path(directory) / name
        if name != but and path.is_file() and (name == CATALOGUE_FILE or parquet.holds_catalogue(path)):
            path.unlink()


def load_recommender_files(model: str | os.PathLike, **hub_kwargs) -> RecommenderFiles:
    """
    Read `recommender.json` and `catalogue.json` or `catalogue.parquet` of a data set or a model.

    Args:
        model (`str` or `Path`):
            A directory, or the id of a repository on the Hub.
        **hub_kwargs:
            Passed to [`~huggingface_hub.hf_hub_download`] for a repository: `revision`, `token`, `cache_dir`,
            `repo_type`, `subfolder`.

    Returns:
        [`RecommenderFiles`]: With `None` for a file that is not there.

    Raises:
        ValueError: a file is damaged, or of a later version of this package, or there are two catalogues. The message
            names it.
        OSError: the repository does not exist, or the Hub cannot be reached.
    """
    config = find_file(model, RECOMMENDER_FILE, **hub_kwargs)
    catalogue = find_catalogue(model, **hub_kwargs)
    return RecommenderFiles(
        None if config is None else _read(config, _make_config),
        None if catalogue is None else _read_catalogue(catalogue),
    )


def find_catalogue(model: str | os.PathLike, **hub_kwargs) -> Path | None:
    """
    The file of a catalogue, in either form; `None` where there is none. See [`load_recommender_files`].

    Raises:
        ValueError: there are two.
    """
    found = [find_file(model, name, **hub_kwargs) for name in CATALOGUE_FILES]
    paths = [path for path in found if path is not None and (path.suffix == ".json" or _is_catalogue(path))]
    if len(paths) > 1:
        raise ValueError(
            f"{model}: has both {' and '.join(CATALOGUE_FILES)}, of which one may be of other data. Remove the one that is not "
            "of this directory."
        )
    return paths[0] if paths else None


def copy_recommender_files(source: str | Path, destination: str | Path) -> list[Path]:
    """
    Copy `recommender.json` and the catalogue from one directory to another, such as from a prepared data set to a
    model that was trained on it. Where the source has one of them only, the other goes from the destination: it is of
    other data.

    Args:
        source (`str` or `Path`):
            The directory that has them.
        destination (`str` or `Path`):
            The directory that is to have them. It is made where it is missing.

    Returns:
        `list[Path]`: The files that were written: none where the source has none.

    Raises:
        ValueError: a file of the source is damaged, so that the destination would be too.
    """
    source, destination = Path(source), Path(destination)
    if source.resolve() == destination.resolve():
        return []
    config, catalogue = find_file(source, RECOMMENDER_FILE), find_catalogue(source)
    present = [path for path in (config, catalogue) if path is not None]
    if not present:
        return []
    load_recommender_files(source)
    destination.mkdir(parents=True, exist_ok=True)
    for path in present:
        with writing(destination / path.name) as temporary:
            shutil.copyfile(path, temporary)
    if config is None:  # what is there is of another data set, from an earlier training into this directory
        (destination / RECOMMENDER_FILE).unlink(missing_ok=True)
    remove_catalogue(destination, but=None if catalogue is None else catalogue.name)
    return [destination / path.name for path in present]


def missing_file(model: str | os.PathLike, name: str) -> ValueError:
    """
    The error for a model that lacks a file, which says how to make it.

    Args:
        model (`str` or `Path`):
            The model.
        name (`str`):
            `"recommender.json"` or `"catalogue.json"`.

    Returns:
        `ValueError`: To raise.
    """
    unknown, argument = {
        RECOMMENDER_FILE: ("how its prompts are worded", "template=get_template(...)"),
        CATALOGUE_FILE: ("what can be recommended", "catalogue=DATASET_DIRECTORY"),
    }[name]
    return ValueError(f"{model}: has no {name}, so {unknown} is unknown. {_HOW_TO_MAKE}, or pass `{argument}`.")


def fields_of_template(template: PromptTemplate) -> dict[str, str]:
    """Without the formats of items that are the title alone, which versions before they came do not know."""
    fields = dataclasses.asdict(template)
    return {name: value for name, value in fields.items() if not (name.endswith("_format") and value == TITLE_ALONE)}


def _make_config(templates: list[dict[str, str]], **fields) -> RecommenderConfig:
    return RecommenderConfig([PromptTemplate(**template) for template in templates], **fields)


def _read(path: Path, make: Callable[..., Any]) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("format_version", None)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: no JSON object ({error}). Copy the file again. {_HOW_TO_MAKE}.") from error
    if not isinstance(version, int):
        raise ValueError(f"{path}: format_version is {version!r}, so this is another kind of file. {_HOW_TO_MAKE}.")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version {version} is of a later version of trl-sdpo, which reads up to {FORMAT_VERSION} "
            "here. Run `python -m pip install --upgrade trl-sdpo`."
        )
    try:
        return make(**content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error} {_HOW_TO_MAKE}.") from error


def _is_catalogue(path: Path) -> bool:
    try:
        return parquet.holds_catalogue(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: no Parquet file ({error}). Copy the file again. {_HOW_TO_MAKE}.") from error


def _read_catalogue(path: Path) -> Catalogue:
    if path.suffix == ".json":
        return _read(path, Catalogue)
    try:
        return parquet.read_catalogue(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error} {_HOW_TO_MAKE}.") from error


def find_file(model: str | os.PathLike, name: str, **hub_kwargs) -> Path | None:
    """The file in a directory, or downloaded from the Hub, see [`load_recommender_files`]; `None` where there is none."""
    if Path(model).is_dir():
        path = Path(model) / hub_kwargs.get("subfolder", "") / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    connected = hub_can_be_named()
    try:
        return Path(hf_hub_download(str(model), name, **{"local_files_only": not connected, **hub_kwargs}))
    except LocalEntryNotFoundError as error:  # is an EntryNotFoundError, and means that nobody could be asked
        if _is_cached(model, hub_kwargs):
            return None  # with a connection the file would have come with the others
        raise OSError(
            f"{model}: no such directory here, and {name} could neither be fetched from the Hub nor found in the cache "
            f"({error if connected else 'no connection'}).{_nearest(Path(model))} Correct the directory, or try again with a connection."
        ) from error
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ValueError(
            f"{model}: neither a directory nor the id of a repository ({error}).{_nearest(Path(model))} Correct it."
        ) from error


def check_model(model: str | os.PathLike, **hub_kwargs) -> None:
    """
    Say at once, before anything heavy is imported, that a name is no model: a directory without one, a path that is not
    there, or a repository that the Hub does not have.

    Args:
        model (`str` or `Path`):
            A directory, or the id of a repository on the Hub.
        **hub_kwargs:
            See [`load_recommender_files`].

    Raises:
        ValueError: it is a directory without a model. The message says what it is.
        OSError: it is neither here nor on the Hub. The message names the nearest directory.
    """
    path = Path(model)
    if path.is_dir():
        if not any((path / name).is_file() for name in _MODEL_FILES):
            kind = "a prepared data set" if (path / "report.json").is_file() else "no model"
            raise ValueError(
                f"{model}: is {kind}: there is no {' and no '.join(_MODEL_FILES)} in it. Pass the directory that a training "
                "wrote."
            )
        return
    if not any(find_file(model, name, **hub_kwargs) for name in _MODEL_FILES):
        raise OSError(f"{model}: this repository of the Hub holds no {' and no '.join(_MODEL_FILES)}. Pass a model.")


def _nearest(path: Path) -> str:
    """A question that names the directory which may have been meant."""
    parent = next((one for one in path.parents if one.is_dir()), Path())
    wrong = path.relative_to(parent).parts[0] if path.parts else ""
    near = difflib.get_close_matches(wrong, [one.name for one in parent.iterdir() if one.is_dir()], n=1)
    return f" Did you mean {str(parent / near[0] / Path(*path.relative_to(parent).parts[1:]))!r}?" if near else ""


def _is_cached(model: str | os.PathLike, hub_kwargs: dict) -> bool:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    options = {name: value for name, value in hub_kwargs.items() if name != "subfolder"}
    try:
        return Path(snapshot_download(str(model), local_files_only=True, **options)).is_dir()
    except LocalEntryNotFoundError:
        return False
