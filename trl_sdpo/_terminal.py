"""What commands write: their help, their own sentences, and of other libraries what matters."""

import argparse
import logging
import os
import re
import sys
import warnings
from collections.abc import Collection
from typing import TextIO

from ._errors import in_flags


# Whose notices are for those who write programs on them
_LIBRARIES = "transformers|torch|trl|peft|datasets|accelerate|huggingface_hub|bitsandbytes|jieba|pydantic"
_ONLY_WARNINGS = ("httpx", "httpx2", "httpcore", "urllib3", "filelock", "matplotlib", "fsspec")
# Progress of all libraries: none in a file, and on a terminal a line that goes when it is done
_NO_BARS = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
_LINES = {"TQDM_LEAVE": ""}
_SILENCE = {
    "transformers.utils.logging": "disable_progress_bar",
    "datasets": "disable_progress_bars",
    "huggingface_hub.utils": "disable_progress_bars",
}
_RANK = re.compile(r"^\[RANK (\d+)\] ")


def quiet_libraries() -> None:
    """No bars of other libraries in files, no notices of what they deprecate. Best before they are imported."""
    on_terminal = sys.stderr.isatty()
    for name, value in (_LINES if on_terminal else _NO_BARS).items():
        os.environ.setdefault(name, value)
    if not on_terminal:  # those that are imported have read the environment
        for module, function in _SILENCE.items():
            if module in sys.modules:
                getattr(sys.modules[module], function)()
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=rf"({_LIBRARIES})\b")
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # warns of kernels that it does without


def log_to_terminal(flags: Collection[str] = (), stream: TextIO | None = None) -> None:
    """
    Write what is logged to a terminal or a file, for a program: our sentences, and of other libraries what matters.

    Args:
        flags (`Collection[str]`, *optional*):
            Of a command, in whose words our own warnings are.
        stream (`TextIO`, *optional*):
            Where to. By default to the standard error.

    Example:
        ```python
        from trl_sdpo.pipeline import log_to_terminal

        log_to_terminal()
        ```
    """
    quiet_libraries()
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Formatter(flags))
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or not record.name.startswith(_ONLY_WARNINGS))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _Formatter(logging.Formatter):
    def __init__(self, flags: Collection[str]) -> None:
        super().__init__("%(message)s")
        self._flags = flags

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not record.name.startswith("trl_sdpo"):
            return text
        text = _RANK.sub(lambda rank: "" if rank[1] == "0" else rank[0], text)
        return in_flags(text, self._flags, loader="loader_options" in self._flags)


class FlagHelpFormatter(argparse.HelpFormatter):
    """One spelling of each flag, and its default where it says something."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return str(action.metavar)
        flag = next((one for one in action.option_strings if one.startswith("--")), "")
        if action.nargs == 0:
            return flag
        if action.choices is None:
            kind = getattr(action.type, "__name__", "str").removeprefix("string_to_").strip("_")
            metavar = action.metavar or {"int": "N", "float": "X", "bool": "[BOOL]", "str": "TEXT"}.get(kind, "VALUE")
        else:
            metavar = "|".join(map(str, action.choices)) if len(list(action.choices)) < 5 else "NAME"
        return f"{flag} {metavar}{' ...' if action.nargs == '+' else ''}"

    def _expand_help(self, action: argparse.Action) -> str:
        text, default = super()._expand_help(action), action.default
        if action.dest == "help":
            return "Show this help, and exit."
        if default in (None, "", argparse.SUPPRESS) or default == [] or "efault" in text or action.nargs == 0:
            return text
        values = default if isinstance(default, list | tuple) else [default]
        return f"{text} Default: {' '.join(str(getattr(value, 'value', value)) for value in values)}."
