"""
YAML files with the flags of commands.

A file holds the flags of one command, as in TRL, or a section per command and what they have in common:

```yaml
common:
  dataset_name: data/mine
sft:
  output_dir: outputs/sft
train:
  model_name_or_path: outputs/sft
  output_dir: outputs/s-dpo
```
"""

import difflib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..cli import COMMANDS, suggest


COMMON, ENVIRONMENT = "common", "env"
# An old name that is one command's own today: in `common` it is that one's
_NOT_OLD_IN_COMMON = ("split",)
# Sections that have a data set, and those that have a model
_WITH_DATA, _WITH_MODEL = ("sft", "train", "evaluate"), ("sft", "train", "evaluate", "recommend")
# What flags were called before all commands had one name for one thing, TRL's where TRL has one
OLD_NAMES = {
    "prepare": {"output": "output_dir"},
    "sft": {"overwrite_output_dir": "overwrite"},
    "train": {"overwrite_output_dir": "overwrite"},
    "evaluate": {
        "dataset": "dataset_name",
        "model": "model_name_or_path",
        "output": "output_dir",
        "split": "dataset_split",
        "batch_size": "per_device_eval_batch_size",
        "reference": "ref_model",
    },
    "recommend": {"model": "model_name_or_path", "batch_size": "per_device_eval_batch_size"},
    "push": {"directory": "model_name_or_path"},
    "serve": {"model": "model_name_or_path"},
    "demo": {"model": "model_name_or_path", "data": "dataset_name", "output": "output_dir"},
}
SECTIONS = (COMMON, *(name for name in COMMANDS if name != "run"))


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, and not the last one's value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                line = node.value[number][0].start_mark.line + 1
                raise ValueError(f"line {line}: the key {key!r} stands there a second time. Remove one of them.")
        return super().construct_mapping(node, deep)


def read_config(path: str | Path) -> dict[str, Any]:
    """
    Read a file of flags.

    Args:
        path (`str` or `Path`):
            The YAML file.

    Returns:
        `dict[str, Any]`: What is in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML mapping, a key stands twice, or it mixes sections with flags.
    """
    path = Path(path)
    if not path.is_file():
        beside = [one.name for one in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise FileNotFoundError(f"There is no file {str(path)!r}.{suggest(path.name, beside)}")
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: not YAML that can be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected `name: value` lines, got {str(config)[:80]!r}.")
    if has_sections(config):
        for name, section in config.items():
            if name not in SECTIONS and name != ENVIRONMENT:
                hint = suggest(str(name), SECTIONS)
                raise ValueError(f"{path}: {name!r} is no section.{hint} Flags stand in the section of their command.")
            if not isinstance(section, dict | None):
                raise ValueError(f"{path}: the section {name!r} holds {section!r} where `name: value` is expected.")
    return config


def with_new_names(command: str, section: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """
    A section with the names that flags have now.

    Args:
        command (`str`):
            Name of the command.
        section (`dict[str, Any]`):
            Flags by the names in a file.

    Returns:
        `tuple[dict[str, Any], list[str]]`: The flags, and a sentence for each that has another name now.

    Raises:
        ValueError: a flag stands there by both names.
    """
    renamed, said = {}, []
    old = OLD_NAMES.get(command, {})
    for name, value in section.items():
        new = old.get(name, name)
        if command == "push" and new != name:
            new = flag_of_folder(value)
        if new != name and new in section:
            raise ValueError(f"{command}: {name!r} and {new!r} are one flag. Leave out {name!r}, its old name.")
        if new != name:
            said.append(old_name_sentence(name, new))
        renamed[new] = value
    return renamed, said


def flag_of_folder(folder: Any) -> str:
    """The flag of `push` that a directory belongs to, by what it holds."""
    is_dataset = isinstance(folder, str) and any((Path(folder) / "data").glob("*.parquet"))
    return "dataset_name" if is_dataset else "model_name_or_path"


def old_name_sentence(old: str, new: str) -> str:
    """What is said of the old name of a flag."""
    return f"{old!r} is called {new!r} now, as in all commands. The old name is taken until the next release."


def has_sections(config: dict[str, Any]) -> bool:
    """Whether the file has a section for a command or for all, rather than the flags of one command."""
    return any(name in SECTIONS for name in config)


def section_of(
    config: dict[str, Any], command: str, known: Collection[str], path: str | Path
) -> tuple[dict[str, Any], list[str]]:
    """
    The flags of a command.

    Args:
        config (`dict[str, Any]`):
            Of [`read_config`], less `env`.
        command (`str`):
            Name of the command.
        known (`Collection[str]`):
            Its flags, of which it takes those in `common`.
        path (`str` or `Path`):
            The file, for errors.

    Returns:
        `tuple[dict[str, Any], list[str]]`: The flags, those of the section before those of `common`, and the names in
        `common` that are not the command's.

    Raises:
        ValueError: the file has sections, but none for the command.
    """
    if not has_sections(config):
        return config, []
    if command not in config:
        there = [name for name in config if name != COMMON]
        raise ValueError(
            f"{path}: there is no section {command!r}, only {there}. Add it, if only as `{command}: {{}}`."
        )
    common, own = config.get(COMMON) or {}, config[command] or {}
    old = {
        old: new for old, new in OLD_NAMES.get(command, {}).items() if old not in _NOT_OLD_IN_COMMON and new in known
    }
    taken = {name: value for name, value in common.items() if name in known or name in old}
    # what the section itself says stands before it, by whichever name
    taken = {name: value for name, value in taken.items() if old.get(name) not in own}
    return taken | own, [name for name in common if name not in known and name not in old]


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
        for flag in ("model_name_or_path", "dataset_name") if name == "push" else ():
            if isinstance(flags.get(flag), str):
                _check_folder(f"{name}: {flag}", flags[flag], made)
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
    from ..recsys.interactions.readers.paths import is_hub_name

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
    from ..recsys.records.recommender_files import check_model

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
