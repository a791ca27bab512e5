"""What can be told of a file with sections before anything heavy is imported: names of data sets, models and directories."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..recsys.interactions.readers.paths import is_hub_name
from ..recsys.records.recommender_files import check_model


# Sections that have a data set, and those that have a model
_WITH_DATA, _WITH_MODEL = ("sft", "train", "evaluate"), ("sft", "train", "evaluate", "recommend")


def check_places(sections: Mapping[str, Mapping[str, Any]], all_outputs: Mapping[str, str]) -> None:
    """
    Check that what each section reads is there, or is made by a section before it.

    Args:
        sections (`Mapping[str, Mapping]`):
            The flags of each command that will run, in their order, with those of `common`.
        all_outputs (`Mapping[str, str]`):
            The directory that each command makes.

    Raises:
        ValueError: two commands make the same directory, or a name is none of a data set or a model. The message names
            section, key and value, and the nearest name.
        OSError: a model is neither here nor on the Hub.
    """
    seen: dict[str, str] = {}
    for name, folder in all_outputs.items():
        place = os.path.normpath(folder)
        if place in seen:
            raise ValueError(f"{seen[place]} and {name}: both have output_dir {folder!r}. Give each one of its own.")
        seen[place] = name
    made: list[str] = []
    for name, flags in sections.items():
        if name in _WITH_DATA and isinstance(flags.get("dataset_name"), str):
            _check_dataset(f"{name}: dataset_name", flags["dataset_name"], made)
        if name in _WITH_MODEL:
            for model in _models_of(name, flags):
                _check_model(f"{name}: model_name_or_path", model, made)
        if name == "push" and isinstance(flags.get("directory"), str):
            _check_folder(f"{name}: directory", flags["directory"], made)
        if name in all_outputs:
            made.append(os.path.normpath(all_outputs[name]))


def _models_of(name: str, flags: Mapping[str, Any]) -> list[str]:
    value = flags.get("model_name_or_path")
    models = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    if name != "evaluate":
        return [model for model in models if isinstance(model, str)]
    return [model if "=" not in model or Path(model).exists() else model.partition("=")[2] for model in models]


def _check_dataset(where: str, name: str, made: list[str]) -> None:
    if Path(name).exists() or os.path.normpath(name) in made:
        return
    hint = _hint(name, made)
    if hint or not is_hub_name(name):
        raise ValueError(
            f"{where}: {name!r} is no file or directory here, and none that a section before makes.{hint} Correct it."
        )


def _check_model(where: str, name: str, made: list[str]) -> None:
    if os.path.normpath(name) in made:
        return
    hint = "" if Path(name).exists() else _hint(name, made)
    if hint:
        raise ValueError(f"{where}: {name!r} is no directory here, and none that a section before makes.{hint}")
    try:
        check_model(name)
    except (ValueError, OSError) as error:
        raise type(error)(f"{where}: {error}") from error


def _check_folder(where: str, name: str, made: list[str]) -> None:
    if not Path(name).is_dir() and os.path.normpath(name) not in made:
        raise ValueError(f"{where}: {name!r} is no directory here, and none that a section makes.{_hint(name, made)}")


def _hint(name: str, made: list[str]) -> str:
    near = difflib.get_close_matches(os.path.normpath(name), made, n=1, cutoff=0.8)
    return f" Did you mean {near[0]!r}?" if near else ""
