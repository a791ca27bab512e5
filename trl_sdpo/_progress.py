"""Progress of what takes minutes: a bar on a terminal and in a notebook, and where neither is, a line a minute in the log."""

import io
import logging
import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain_tqdm


logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60
_SECONDS_TO_FIRST_LINE = 10


def progress(iterable: Iterable | None = None, *, desc: str | None, unit: str, **options) -> tqdm:
    """
    A bar of `tqdm`, to iterate over or to `update`.

    Where the standard error is neither a terminal nor that of a notebook, there is no bar, which would be one line of
    thousands of characters in a file, but a line after ten seconds, one in each minute after that, and a last one.

    Args:
        iterable (`Iterable`, *optional*):
            What is iterated over.
        desc (`str`, *optional*):
            What is done, as `"Ranking, sft"`. If `None`, nothing is shown.
        unit (`str`):
            What is counted, in the plural; `"B"` for bytes.
        **options:
            Passed to `tqdm`, as `total`.

    Returns:
        [`~tqdm.tqdm`]: The bar.
    """
    if desc is None:
        return tqdm(iterable, disable=True, **options)
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        shown = {"unit": "B", "unit_scale": True} if unit == "B" else {"unit": f" {unit}"}
        return tqdm(iterable, desc=desc, **shown, **options)
    return _Lines(iterable, desc=desc, unit=unit, **options)


class _Lines(plain_tqdm):
    """A bar that is written as lines of the log."""

    monitor_interval = 0  # no thread

    def __init__(self, *args: Any, **options: Any) -> None:
        self._said: float | None = None
        # looked at in each step, and not by a thread; what `tqdm` itself writes goes nowhere
        options |= {"miniters": 1, "mininterval": _SECONDS_TO_FIRST_LINE, "maxinterval": 0, "delay": 0}
        super().__init__(*args, **{"disable": False, "leave": False, **options, "file": io.StringIO()})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """A line, unless the last one is not a minute old."""
        if msg is not None or self.n <= self.initial:
            return
        now, elapsed = time.monotonic(), self.format_dict["elapsed"]
        if elapsed >= _SECONDS_TO_FIRST_LINE and (self._said is None or now - self._said >= SECONDS_BETWEEN_LINES):
            self._said = now
            logger.info(self._line(elapsed))

    def close(self) -> None:
        """The last line, where there was a first one."""
        if not self.disable and self._said is not None:
            self._said = None
            logger.info(f"{self.desc}: {self._amount(self.n)} in {duration(self.format_dict['elapsed'])}.")
        super().close()

    def _line(self, elapsed: float) -> str:
        done = self.n - self.initial
        parts = [
            self._amount(self.n) if self.total is None else f"{self._number(self.n)} of {self._amount(self.total)}"
        ]
        parts.append(f"{self._number(done / elapsed)} a second")
        if self.total is not None:
            parts.append(f"{duration((self.total - self.n) * elapsed / done)} left")
        parts += [self.postfix] if self.postfix else []
        return f"{self.desc}: {', '.join(parts)}."

    def _amount(self, number: float) -> str:
        return self._number(number) if self.unit == "B" else f"{self._number(number)} {self.unit}"

    def _number(self, number: float) -> str:
        if self.unit == "B":
            return f"{number / 1e6:,.1f} MB"
        return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.2g}"


def duration(seconds: float) -> str:
    """
    A time in the unit that fits.

    Example:
        ```python
        >>> duration(12.3), duration(600), duration(9000)
        ('12 s', '10 min', '2.5 h')

        ```
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
