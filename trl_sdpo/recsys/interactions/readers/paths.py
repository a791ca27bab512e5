"""What is a path, and what the name of a data set on the Hub."""

import difflib
import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies


_HUB_NAME = r"[\w.-]+/[\w.-]+"
_FILE_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".gz", ".zip", ".inter", ".txt", ".dat", ".yaml")


def is_hub_name(name: str | Path) -> bool:
    """
    Whether what is no path here may be `owner/name` on the Hub, so that a mistyped path is told without asking it.

    A name that ends as a file does is a path, and so is one whose first part is a directory here.

    Example:
        ```python
        >>> is_hub_name("owner/log"), is_hub_name("owner/log.csv"), is_hub_name("./log"), is_hub_name(Path("owner/log"))
        (True, False, False, False)

        ```
    """
    if not isinstance(name, str) or not re.fullmatch(_HUB_NAME, name) or name.startswith("."):
        return False
    return not name.lower().endswith(_FILE_ENDINGS) and not Path(name).parent.is_dir()


def hub_can_be_named() -> bool:
    """
    Whether the Hub's name has an address. Where it has none there is no connection, and a mistyped name is told at once:
    libraries ask five times, for half a minute. Behind a proxy, which knows names of its own, nobody can tell.
    """
    if {"http", "https", "all"} & getproxies().keys():
        return True
    try:
        socket.getaddrinfo(urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or "", None)
    except OSError:
        return False
    return True


def nearest_file(path: str | Path) -> str:
    """A question that names the file or directory which may have been meant, or nothing."""
    path = Path(path)
    parent = next((one for one in path.parents if one.is_dir()), Path())
    rest = path.relative_to(parent).parts
    near = difflib.get_close_matches(rest[0], [one.name for one in parent.iterdir()], n=1) if rest else []
    return f" Did you mean {str(parent / near[0] / Path(*rest[1:]))!r}?" if near else ""
