"""A parser for the dataclasses of a command, with `--config FILE.yaml` as in TRL's scripts."""

import argparse
import copy
import dataclasses
import importlib
import os
import re
import socket
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trl.scripts.utils import TrlParser

from .._errors import SPOKEN_FOR, in_flags
from .._terminal import FlagHelpFormatter
from ..cli import COMMANDS, suggest
from ..recsys.interactions.readers.paths import nearest_file
from ..recsys.records.recommender_files import check_model
from ._config_file import ENVIRONMENT, OLD_NAMES, old_name_sentence, read_config, section_of, with_new_names


# What several commands say of one flag
SHARED_HELP = {
    "device": "Default: an accelerator, else the CPU.",
    "dtype": "Type of the weights. Default: as saved.",
    "host": "Address to listen at. 0.0.0.0 lets other machines in: there is no password.",
    "num_beams": "Width of the search in the catalogue. Default: 10, or --top_k if that is more.",
}


def help_of(text: str, **more: Any) -> dict[str, Any]:
    """The metadata of a field that is a flag: its help, and what `argparse` takes besides."""
    return {"help": text, **more}


def check_model_flag(flag: str, name: str, **hub_kwargs: Any) -> None:
    """[`check_model`] with an error that begins with the flag."""
    with error_of(f"--{flag}"):
        check_model(name, **hub_kwargs)


def check_file_flag(flag: str, path: str) -> None:
    """A `FileNotFoundError` that names the flag and the nearest file, unless there is the file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"--{flag}: there is no file {path!r}.{nearest_file(path)} Correct it.")


@contextmanager
def error_of(flag: str) -> Iterator[None]:
    """Errors that a user can mend begin with the flag, or the files, that they are of."""
    try:
        yield
    except OSError as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        raise kind(f"{flag}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error


def check_port(host: str, port: int) -> None:
    """Before a model is loaded: a `ValueError` where nobody can listen at the port."""
    if not 0 <= port < 65536:
        raise ValueError(f"--port is {port}. Pass one from 1 to 65535, or 0 for any that is free.")
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except socket.gaierror as error:
        raise ValueError(
            f"--host: {host!r} is no address of this machine ({error.strerror}). Pass 127.0.0.1, for one."
        ) from error
    except OSError as error:
        raise ValueError(
            f"--port: {port} at {host} cannot be had ({error.strerror}). Pass another, or 0 for any that is free."
        ) from error


class CommandParser(TrlParser):
    """
    TRL's parser of dataclasses, which suggests what a mistyped word may have meant, and takes from a file with a
    section per command its own.

    Args:
        arguments (`type` or `Sequence[type]`):
            A dataclass, see [`flat_fields`], or several.
        help_groups (`Mapping[str, Sequence[str]]`, *optional*):
            The most used flags by the title above them, for a parser with too many flags to read. `--help` shows these,
            in one sentence each, and `--help_all` all.
        **kwargs:
            Passed to `argparse.ArgumentParser`.
    """

    def __init__(
        self, arguments: type | Sequence[type], help_groups: Mapping[str, Sequence[str]] | None = None, **kwargs
    ) -> None:
        self._single = isinstance(arguments, type)
        self._help_groups, self._sets_environment = help_groups, True
        kwargs.setdefault("formatter_class", FlagHelpFormatter)
        # An abbreviation that is unique today may mean another flag tomorrow.
        super().__init__([arguments] if self._single else arguments, allow_abbrev=False, **kwargs)
        self.add_argument(
            "--config", metavar="FILE", help="YAML file with values of these flags, or with a section per command."
        )
        if help_groups:
            self.add_argument("--help_all", action=_HelpAll, help="Show all flags, and exit.")

    def parse_args(self, args: list[str]) -> Any:
        """The dataclass, or a tuple of them, from words and the file of `--config`; errors exit."""
        try:
            args, path = _take_config(self._with_new_names(args))
            if path is not None:
                self._set_defaults_from_file(path)
            parsed = self.parse_args_into_dataclasses(args, look_for_args_file=False)
        except (ValueError, TypeError, OSError, argparse.ArgumentTypeError) as error:
            return self.error(str(error))
        parsed = parsed[: len(self.dataclass_types)]  # less the namespace of --config
        return parsed[0] if self._single else parsed

    def check_file(self, path: str) -> Any:
        """What `parse_args` gives for the file alone; it exits with an error where it would, and sets no environment."""
        self._sets_environment = False
        return self.parse_args(["--config", path])

    @property
    def command(self) -> str:
        """The name of the command."""
        return self.prog.split()[-1]

    @property
    def flags(self) -> list[str]:
        """The names of all flags."""
        return [one.dest for one in self._actions if one.dest not in ("help", "help_all", "config")]

    @property
    def flags_of_all(self) -> list[str]:
        """The names of the flags that the section `common` of a file reaches."""
        return self.flags

    def _set_defaults_from_file(self, path: str) -> None:
        config, command = read_config(path), self.command
        environment = config.pop(ENVIRONMENT, None) or {}
        section, others = section_of(config, command, self.flags_of_all, path)
        environment |= section.pop(ENVIRONMENT, None) or {}
        section, said = with_new_names(command, section)
        self._say(said)
        if others:
            _check_common(others, [name for name in config if name in COMMANDS and name != command], path, self.flags)
        if self._sets_environment:
            os.environ.update({name: str(value) for name, value in environment.items()})
        self.set_defaults_with_config(**section)

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            self.error(f"{flag!r} is no flag.{self._suggest_flag(flag)} See --help.")
        return known, unknown

    def _suggest_flag(self, flag: str) -> str:
        old = {f"--{name}": f"--{new}" for name, new in OLD_NAMES.get(self.command, {}).items()}
        hint = suggest(flag, [*self._option_string_actions, *old])
        return next((f" Did you mean {new!r}?" for name, new in old.items() if f"{name!r}?" in hint), hint)

    def _with_new_names(self, words: Sequence[str]) -> list[str]:
        old, taken, said = OLD_NAMES.get(self.command, {}), [], []
        for word in words:
            flag, equals, value = word.partition("=")
            name = flag.removeprefix("--")
            if word.startswith("--") and name in old:
                word = f"--{old[name]}{equals}{value}"
                said.append(old_name_sentence(f"--{name}", f"--{old[name]}"))
            taken.append(word)
        self._say(dict.fromkeys(said))
        return taken

    def _say(self, sentences: Iterable[str]) -> None:
        if SPOKEN_FOR not in os.environ:
            for sentence in sentences:
                print(f"{self.prog}: {sentence}", file=sys.stderr)

    def set_defaults_with_config(self, **kwargs) -> list[str]:
        for action in self._actions:  # one text where a list is expected is a list of one
            if action.nargs in ("+", "*") and isinstance(kwargs.get(action.dest), str):
                kwargs[action.dest] = [kwargs[action.dest]]
        unknown = super().set_defaults_with_config(**kwargs)
        if unknown:
            name = unknown[0].removeprefix("--")
            self.error(f"--config: {name!r} is no flag.{suggest(name, self.flags)} See --help.")
        # argparse looks at the choices of words only
        for action in self._actions:
            value = kwargs.get(action.dest)
            if action.choices and value is not None and str(value) not in map(str, action.choices):
                choices = [str(choice) for choice in action.choices]
                self.error(f"--config: {action.dest} is {value!r}, none of {choices}.{suggest(str(value), choices)}")
        return unknown

    def error(self, message: str) -> typing.NoReturn:
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if wrong:
            message += "." + suggest(wrong[1], [choice.strip(" '") for choice in wrong[2].split(",")])
        message = re.sub(r"argument (--\w+)/--[\w-]+:", r"\1:", message)
        if kind := re.search(r": invalid (int|float) value: '", message):
            message += f". Pass a {'whole ' if kind[1] == 'int' else ''}number."
        message = in_flags(message, self.flags, loader="loader_options" in self.flags)
        self.exit(2, f"{self.prog}: error: {message}\n")
        raise AssertionError("argparse has ended the process")

    def format_help(self) -> str:
        """The flags of `help_groups`, or all where there are none."""
        return self._format_help(self._help_groups) if self._help_groups else super().format_help()

    def format_help_all(self) -> str:
        """All flags: those of `help_groups` first, then the others by the dataclass that has them."""
        shown = {name for names in self._help_groups.values() for name in names}
        groups = dict(self._help_groups)
        for kind in self.dataclass_types:
            names = [one.name for one in dataclasses.fields(kind) if one.init and one.name not in shown]
            groups[f"other flags of {kind.__name__}"] = names
            shown.update(names)
        return self._format_help(groups, whole=True)

    def _format_help(self, groups: Mapping[str, Sequence[str]], whole: bool = False) -> str:
        by_name = {one.dest: one for one in reversed(self._actions)}  # of a flag and its `no_` the flag
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, names in {"options": ["help", "help_all", "config"], **groups}.items():
            formatter.start_section(title)
            formatter.add_arguments([by_name[name] if whole else _shortened(by_name[name]) for name in names])
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


class _HelpAll(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser: Any, *_) -> None:
        print(parser.format_help_all(), end="")
        parser.exit()


def _shortened(action: argparse.Action) -> argparse.Action:
    """The action with the first sentence of its help."""
    short = copy.copy(action)
    short.help = re.split(r"(?<=[a-z`')])\. ", action.help or "", maxsplit=1)[0].rstrip(".") + "."
    return short


def _take_config(args: Sequence[str]) -> tuple[list[str], str | None]:
    """The words without `--config FILE`, or `--config=FILE`, and the file."""
    rest, path, words = [], None, iter(args)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != "--config":
            rest.append(word)
            continue
        path = value if equals else next(words, None)
        if not path:
            raise ValueError("--config: expected the name of a file behind it.")
    return rest, path


def _check_common(names: list[str], commands: list[str], path: str, own: list[str]) -> None:
    """Each name in `common` must be a flag of one of the commands that have a section in the file."""
    known = set(own)
    for command in commands:
        module = importlib.import_module(f".{command}", __package__)
        known.update(module.make_parser(f"trl-sdpo {command}").flags, OLD_NAMES.get(command, {}))
    for name in names:
        if name not in known:
            raise ValueError(
                f"{path}: {name!r} in the section 'common' is no flag of any command here.{suggest(name, sorted(known))}"
            )


def flat_fields(config: type) -> list[tuple[str, Any, Any]]:
    """
    The fields of a dataclass as flags that are `None` until they are given: a union is a string, a tuple is a list.

    Args:
        config (`type`):
            A dataclass whose fields have `help`, and where there are any `choices`, in their metadata.

    Returns:
        `list[tuple[str, Any, dataclasses.Field]]`: What `dataclasses.make_dataclass` takes.
    """
    hints, fields = typing.get_type_hints(config), []
    for one in dataclasses.fields(config):
        metadata = {key: value for key, value in one.metadata.items() if key in ("help", "choices")}
        kind = _flag_type(hints[one.name])
        if kind is bool:
            metadata |= {"nargs": "?", "const": True}
        if one.default is not None:
            values = one.default if isinstance(one.default, tuple) else [one.default]
            metadata["help"] += f" Default: {' '.join(map(str, values))}."
        fields.append((one.name, kind | None, dataclasses.field(default=None, metadata=metadata)))
    return fields


def _flag_type(hint: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        return types.GenericAlias(list, typing.get_args(hint)[:1])
    if isinstance(hint, types.UnionType):
        plain = [one for one in typing.get_args(hint) if one in (int, float, str)]
        return str if str in plain else plain[0]
    return hint
