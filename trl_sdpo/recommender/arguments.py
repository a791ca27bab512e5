"""One history or several, one list of candidates or one for each."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def where(name: str, index: int, single: bool) -> str:
    """What messages call a history or a list."""
    return name if single else f"{name}, row {index}"


def is_nested(rows: Any, name: str) -> bool:
    """Whether there are several lists, and not one."""
    if isinstance(rows, str) or not isinstance(rows, Sequence | np.ndarray) or not len(rows):
        raise ValueError(f"{name}: {rows!r} is no list with something in it. Pass a list of titles or ids.")
    return not isinstance(rows[0], str) and isinstance(rows[0], Sequence | np.ndarray)


def one_for_each(candidates: Any, count: int) -> list:
    """A list of candidates for each history."""
    if not is_nested(candidates, "candidates"):
        return [candidates] * count
    if len(candidates) != count:
        raise ValueError(
            f"candidates has {len(candidates)} rows for {count} histories. Pass one for each, or one list."
        )
    return list(candidates)
