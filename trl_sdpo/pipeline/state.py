"""What a stage of a run leaves in its directory: what it depends on, and whether it is done."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_text


# A name that TRL leaves out of what it pushes
STATE_FILE = "_run.json"

NEW, BEGUN, DONE, OTHER = "new", "begun", "done", "other"


@dataclass(frozen=True)
class StageState:
    """
    The state of a stage, in `_run.json` of its directory.

    Args:
        directory (`Path`):
            The directory that the stage fills.
        digests (`dict[str, str]`):
            A hash of everything that the result depends on, by name. Hashes, since a directory is passed on more often
            than one would pass on a token or the path of a home.
        settings (`Mapping`, *optional*):
            Of these what is to be read beside the result.
        section (`str`, *optional*):
            A hash of the words that asked for the stage, see [`StageState.digests_when_done`].
    """

    directory: Path
    digests: dict[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    section: str = ""

    def look(self) -> str:
        """
        Compare with what is there.

        Returns:
            `str`: `"new"`, where there is nothing; `"begun"` or `"done"`, where the same stage was; or `"other"`, where
            something else is: a stage with other settings, or files that no run left, see [`StageState.what_is_there`].
        """
        if not self.directory.is_dir() or not any(self.directory.iterdir()):
            return NEW
        state = self._read()
        if state is None or self._changed(state):
            return OTHER
        return DONE if state["done"] else BEGUN

    def digests_when_done(self, section: str) -> dict[str, str] | None:
        """What a stage that is done depends on, where it was asked for in the very words of `section`; else `None`."""
        state = self._read()
        return state["digests"] if state and state["done"] and state.get("section") == section else None

    def what_is_there(self) -> str:
        """The words for what is in the directory in the place of this stage."""
        state = self._read()
        return "what no run left" if state is None else f"what was made with other settings ({self._changed(state)})"

    def write(self, done: bool) -> None:
        """Note that the stage has begun, or is done."""
        self.directory.mkdir(parents=True, exist_ok=True)
        content = {"done": done, "digests": self.digests}
        if self.section:
            content["section"] = self.section
        if self.settings:
            content["settings"] = dict(self.settings)
        write_text(self.directory / STATE_FILE, json.dumps(content, indent=2, default=str) + "\n")

    def _read(self) -> dict | None:
        try:
            return json.loads((self.directory / STATE_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def _changed(self, state: dict) -> str:
        before = state["digests"]
        names = before.keys() | self.digests.keys()
        return ", ".join(sorted(name for name in names if before.get(name) != self.digests.get(name)))
