"""A parser for the dataclasses of a command, with `--config FILE.yaml` as in TRL's scripts."""

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from trl.scripts.utils import TrlParser

from ..cli import suggest


class CommandParser(TrlParser):
    """
    TRL's parser of dataclasses, which suggests what a mistyped word may have meant.

    Args:
        arguments (`type`):
            A dataclass, see [`flat_fields`].
        **kwargs:
            Passed to `argparse.ArgumentParser`.
    """

    def __init__(self, arguments: type, **kwargs) -> None:
        # An abbreviation that is unique today may mean another flag tomorrow.
        super().__init__(arguments, allow_abbrev=False, formatter_class=argparse.HelpFormatter, **kwargs)
        self.add_argument("--config", metavar="FILE", help="YAML file with values of these flags.")

    def parse_args(self, args: list[str]) -> Any:
        """The dataclass, from words and the file of `--config`; errors exit."""
        try:
            return self.parse_args_and_config(args)[0]
        except (ValueError, TypeError, OSError) as error:
            return self.error(str(error))

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            self.error(f"{flag!r} is no flag.{suggest(flag, list(self._option_string_actions))} See --help.")
        return known, unknown

    def set_defaults_with_config(self, **kwargs) -> list[str]:
        unknown = super().set_defaults_with_config(**kwargs)
        if unknown:
            name = unknown[0].removeprefix("--")
            self.error(
                f"--config: {name!r} is no flag.{suggest(name, [one.dest for one in self._actions])} See --help."
            )
        return unknown

    def error(self, message: str) -> typing.NoReturn:
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if wrong:
            message += "." + suggest(wrong[1], [choice.strip(" '") for choice in wrong[2].split(",")])
        self.exit(2, f"{self.prog}: error: {message}\n")


def flat_fields(config: type) -> list[tuple[str, Any, dataclasses.Field]]:
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
            metadata["help"] += f" Default: {one.default}."
        fields.append((one.name, kind | None, dataclasses.field(default=None, metadata=metadata)))
    return fields


def _flag_type(hint: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        return list[typing.get_args(hint)[0]]
    if isinstance(hint, types.UnionType):
        plain = [one for one in typing.get_args(hint) if one in (int, float, str)]
        return str if str in plain else plain[0]
    return hint
