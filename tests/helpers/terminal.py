"""Commands in a pseudo-terminal, as a person sees them, with Ctrl-C at a chosen moment."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass

from trl_sdpo._terminal import _LINES, _NO_BARS


CTRL_C = b"\x03"


@dataclass
class Shown:
    """The exit status of a command, all that it wrote, and whether Ctrl-C was pressed."""

    status: int
    raw: str
    interrupted: bool

    @property
    def text(self) -> str:
        """What stands on the screen at the end: of a line that was written over, the last."""
        lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw).replace("\r\n", "\n").split("\n")
        return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)


def trl_sdpo(
    words: list[str],
    folder: str | os.PathLike,
    environment: dict[str, str],
    interrupt: str | Callable[[], bool] | None = None,
    seconds: float = 240,
) -> Shown:
    """
    Run `trl-sdpo WORDS` in a terminal of its own.

    Args:
        words (`list[str]`): The words.
        folder (`str` or `os.PathLike`): Where it runs.
        environment (`dict[str, str]`): Its environment.
        interrupt (`str` or `Callable`, *optional*): Press Ctrl-C, once, when this was shown, or is true.
        seconds (`float`, *optional*): It is killed after so long, and the test fails.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "trl_sdpo.cli", *words],
        cwd=folder,
        # less what a command that ran in the process of the tests, without a terminal, has set for its own children
        env={name: value for name, value in environment.items() if name not in (*_NO_BARS, *_LINES)}
        | {"TERM": "xterm", "COLUMNS": "160", "LINES": "50"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C goes to all processes of the terminal
    )
    os.close(slave)
    seen, pressed, end = b"", False, time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            if select.select([master], [], [], 0.05)[0]:
                try:
                    part = os.read(master, 65536)
                except OSError:  # all that had the terminal open are gone
                    break
                if not part:
                    break
                seen += part
            if interrupt is not None and not pressed:
                wanted = interrupt() if callable(interrupt) else re.search(interrupt.encode(), seen)
                if wanted:
                    os.write(master, CTRL_C)
                    pressed = True
        else:
            os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(f"trl-sdpo {' '.join(words)} goes on:\n{seen.decode(errors='replace')[-3000:]}")
        return Shown(process.wait(30), seen.decode(errors="replace"), pressed)
    finally:
        os.close(master)
        if process.poll() is None:
            process.kill()
