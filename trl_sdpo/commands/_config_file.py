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

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from ..cli import COMMANDS, suggest


COMMON, ENVIRONMENT = "common", "env"
# What flags were called before all commands had one name for one thing, TRL's where TRL has one
OLD_NAMES = {
    "prepare": {"output": "output_dir"},
    "evaluate": {"dataset": "dataset_name", "model": "model_name_or_path", "output": "output_dir"},
    "recommend": {"model": "model_name_or_path"},
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
        if new != name and new in section:
            raise ValueError(f"{command}: {name!r} and {new!r} are one flag. Leave out {name!r}, its old name.")
        if new != name:
            said.append(old_name_sentence(name, new))
        renamed[new] = value
    return renamed, said


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
    return {name: value for name, value in common.items() if name in known} | own, [
        name for name in common if name not in known
    ]
