"""What commands write to the terminal or to a file of theirs: their own sentences, and of other libraries what matters."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Collection

from ._errors import in_flags


# Whose notices are for those who write programs on them
_LIBRARIES = "transformers|torch|trl|peft|datasets|accelerate|huggingface_hub|bitsandbytes|jieba|pydantic"
_ONLY_WARNINGS = ("httpx", "httpx2", "httpcore", "urllib3", "filelock", "matplotlib", "fsspec")
# They log counts as Python has them; `prepare` says them in words
_IN_REPORT = (
    "trl_sdpo.recsys.records",
    "trl_sdpo.recsys.interactions.sources",
    "trl_sdpo.recsys.interactions.interactions",
)
# Progress of all libraries: none in a file, and on a terminal a line that goes when it is done
_NO_BARS = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
_LINES = {"TQDM_LEAVE": ""}
_RANK = re.compile(r"^\[RANK (\d+)\] ")


def quiet_libraries() -> None:
    """Before other libraries are imported: no bars in files, no notices of what they deprecate."""
    for name, value in (_LINES if sys.stderr.isatty() else _NO_BARS).items():
        os.environ.setdefault(name, value)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=rf"({_LIBRARIES})\b")
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # warns of kernels that it does without


def log_to_terminal(flags: Collection[str] = ()) -> None:
    """Write what is logged to the standard error, our own warnings in the words of a command with these flags."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(flags))
    handler.addFilter(
        lambda record: record.levelno >= logging.WARNING or not record.name.startswith(_ONLY_WARNINGS + _IN_REPORT)
    )
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
