"""Where data come from: an explicit path, the cache, the publisher, then a PyPI wheel that carries the same files.

Whatever is written appears in one piece: files and directories are made under another name and renamed when they are
whole, so that an interrupted run leaves nothing that a later one would read.
"""

import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import pooch
import requests

from .interactions import Interactions
from .movielens import load_movielens
from .recbole import load_recbole


logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0  # for each address of a host
ANSWER_SECONDS = 8.0  # for all of it: name look-up, every address, proxy, TLS, the first bytes of the answer

MOVIELENS_100K_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
MOVIELENS_100K_SHA256 = "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"
RECBOLE_VERSION = "1.2.1"
RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
RECBOLE_MOVIELENS_100K = "recbole/dataset_example/ml-100k"

MOVIELENS_TERMS = (
    "MovieLens data are GroupLens's (University of Minnesota): for research; no redistribution and no commercial use "
    "without their permission; publications acknowledge them by citing F. M. Harper and J. A. Konstan (2015), The "
    "MovieLens Datasets: History and Context, ACM TiiS 5(4), 19, https://doi.org/10.1145/2827872"
)


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
    path = Path(os.environ.get("TRL_SDPO_CACHE") or pooch.os_cache("trl_sdpo")).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"the cache directory {path} cannot be made ({error}): set TRL_SDPO_CACHE to a writable directory"
        ) from error
    return path


@contextmanager
def staged_directory(destination: str | Path) -> Iterator[Path]:
    """
    A new directory to write to, which becomes `destination` when the block ends without an error.

    Args:
        destination (`str` or `Path`):
            Where the directory goes. When another process has made it in the meantime, that one stays.

    Returns:
        A context manager that gives the `Path` of an empty directory beside `destination`. It is removed on an error.
    """
    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkdtemp: its directories are closed to everybody else, and would stay so.
    stage = destination.parent / f".{destination.name}.{uuid.uuid4().hex[:12]}"
    stage.mkdir()
    try:
        yield stage
        try:
            os.replace(stage, destination)
        except OSError:
            if not destination.is_dir():
                raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


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
        with requests.get(url, stream=True, timeout=(CONNECT_SECONDS, ANSWER_SECONDS)) as response:
            response.raise_for_status()

    try:
        return within(ANSWER_SECONDS, ask)
    except requests.RequestException as error:
        # requests wraps urllib3's error, which says in fewer words what happened.
        return f"{type(error).__name__}: {getattr(error.args[0], 'reason', error) if error.args else error}"


def fetch_url(url: str, sha256: str, path: str | Path, *, timeout: float = 60.0) -> Path:
    """
    Download a file of known content, with a progress bar.

    Args:
        url (`str`):
            What to download.
        sha256 (`str`):
            Its SHA-256, in hexadecimal digits.
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
            If what came has another checksum. Nothing is kept then.
    """
    path = Path(path)
    if path.is_file() and pooch.file_hash(str(path)) == sha256:
        return path
    reason = _unreachable(url)
    if reason is not None:
        raise ConnectionError(f"{url} cannot be reached ({reason}): check the network and the proxy settings")
    downloader = pooch.HTTPDownloader(progressbar=True, chunk_size=2**16, timeout=(CONNECT_SECONDS, timeout))
    try:
        pooch.retrieve(url, f"sha256:{sha256}", fname=path.name, path=path.parent, downloader=downloader)
    except requests.RequestException as error:
        raise ConnectionError(f"the download of {url} broke off ({error}), nothing was kept: try again") from error
    except ValueError as error:
        raise ValueError(
            f"what came from {url} is not the expected file: its SHA-256 is not {sha256}, nothing was kept. A proxy's "
            "page may have come in its place, or the publisher changed the file"
        ) from error
    return path


def _checked_members(archive: zipfile.ZipFile, patterns: Sequence[str]) -> list[zipfile.ZipInfo]:
    """The files of an archive that match a pattern, once none of its members could do harm."""
    name, members, seen = archive.filename, [], set()
    for info in archive.infolist():
        parts = PurePosixPath(info.filename).parts
        # A backslash or a colon makes a path of another kind on Windows: no archive that we read has one.
        if not parts or parts[0] == "/" or ".." in parts or "\\" in info.filename or ":" in info.filename:
            raise ValueError(f"{name}: member {info.filename!r} points outside the archive, nothing was unpacked")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{name}: member {info.filename!r} is a link or a device, nothing was unpacked")
        if info.is_dir():
            continue
        if parts in seen:
            raise ValueError(f"{name}: member {info.filename!r} is there twice, nothing was unpacked")
        seen.add(parts)
        if any(fnmatchcase(info.filename, pattern) for pattern in patterns):
            members.append(info)
    if not members:
        raise ValueError(f"{name}: no member matches {', '.join(patterns)}")
    # Text packs to a tenth, seldom to a fiftieth. zipfile reads no more of a member than it declares.
    size, limit = sum(info.file_size for info in members), max(2**26, 100 * os.path.getsize(name))
    if size > limit:
        raise ValueError(f"{name}: would unpack to {size} bytes, more than the {limit} that its size warrants")
    return members


def unpack_zip(archive: str | Path, destination: str | Path, *, members: Sequence[str] = ("*",)) -> Path:
    """
    Unpack a zip archive safely and in one piece.

    Args:
        archive (`str` or `Path`):
            The archive.
        destination (`str` or `Path`):
            The directory to make. One that exists is whole, and is left as it is.
        members (`Sequence[str]`, *optional*, defaults to `("*",)`):
            Patterns (`*` matches `/` too) of the members that are wanted. They keep their paths.

    Returns:
        `Path`:
            `destination`.

    Raises:
        `ValueError`:
            If the archive is damaged or encrypted, has a member that is absolute, climbs by `..`, is a link or is
            there twice, would unpack to far more than its size warrants, or has no member that is wanted.
    """
    destination = Path(destination)
    if destination.is_dir():
        return destination
    try:
        with zipfile.ZipFile(archive) as opened, staged_directory(destination) as stage:
            for info in _checked_members(opened, members):
                target = stage / info.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 2**20)
    # RuntimeError: encrypted. NotImplementedError: packed in a way that zipfile does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{archive} is not a whole zip archive ({error}): remove it and download it again") from error
    return destination


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
        found = pooch.file_hash(str(wheel))
        if found != sha256:
            raise ValueError(
                f"{wheel.name}, as pip downloaded it, has the SHA-256 {found} and not {sha256}, nothing was kept: "
                "check pip's index settings (pip config list) and clear its cache (pip cache purge)"
            )
        return unpack_zip(wheel, destination, members=members)


def _layout(path: Path) -> str | None:
    """Which loader reads the directory: `"movielens"`, `"recbole"` or, if none does, `None`."""
    if any((path / name).is_file() for name in ("u.data", "ratings.dat", "ratings.csv")):
        return "movielens"
    return "recbole" if any(path.glob("*.inter")) else None


def _explicit(path: Path) -> Path:
    """The directory with the data that the user names: itself, the one folder inside it, or an archive's content."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: give the directory or the zip archive with the MovieLens data"
        )
    if path.is_file():
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is neither a directory nor a whole zip archive: give the one or the other")
        path = unpack_zip(path, cache_dir() / f"{path.stem}-{pooch.file_hash(str(path))[:16]}")
    candidates = [path, *sorted(child for child in path.iterdir() if child.is_dir())]
    found = [candidate for candidate in candidates if _layout(candidate)]
    if not found:
        raise FileNotFoundError(
            f"{path} holds no MovieLens data: expected one of u.data, ratings.dat, ratings.csv or a .inter file"
        )
    if found[0] != path and len(found) > 1:
        raise ValueError(f"{path} holds several data sets ({', '.join(f.name for f in found)}): give one of them")
    return found[0]


def movielens_100k(data: str | Path | None = None) -> Path:
    """
    The directory with MovieLens-100k, downloaded if need be.

    In this order: `data`; the cache; GroupLens; if that cannot be reached, the PyPI wheel of RecBole, which carries
    the same ratings. GroupLens's terms are logged, whichever road is taken.

    Args:
        data (`str` or `Path`, *optional*):
            A directory in one of GroupLens's layouts or RecBole's, or GroupLens's zip archive.

    Returns:
        `Path`:
            A directory with `u.data`, `ratings.dat` or `ratings.csv`, or RecBole's `.inter` file.

    Raises:
        `FileNotFoundError`:
            If `data` does not exist or holds no MovieLens data.
        `ConnectionError`:
            If neither GroupLens nor the package index can be reached.
        `ValueError`:
            If a download has another checksum than it should.
    """
    logger.warning(MOVIELENS_TERMS)
    if data is not None:
        return _explicit(Path(data).expanduser())
    cache = cache_dir()
    grouplens, recbole = cache / "grouplens-ml-100k", cache / f"recbole-{RECBOLE_VERSION}"
    roads = [
        (grouplens, grouplens / "ml-100k", "u.data"),
        (recbole, recbole / RECBOLE_MOVIELENS_100K, "ml-100k.inter"),
    ]
    for top, directory, file in roads:
        if (directory / file).is_file():
            return directory
        if top.is_dir():
            logger.warning("%s lacks %s: it is made anew", directory, file)
            shutil.rmtree(top)
    try:
        return _from_grouplens(grouplens) / "ml-100k"
    except ConnectionError as error:
        reason = error
    logger.warning("GroupLens: %s. MovieLens-100k is taken from the PyPI wheel recbole %s.", reason, RECBOLE_VERSION)
    members = [f"{RECBOLE_MOVIELENS_100K}/*"]
    try:
        fetch_wheel("recbole", RECBOLE_VERSION, RECBOLE_SHA256, members=members, destination=recbole)
    except ConnectionError as error:
        raise ConnectionError(
            f"MovieLens-100k cannot be had. GroupLens: {reason}. PyPI: {error}. Or download {MOVIELENS_100K_URL} by "
            "hand and give the archive or its directory as data (--data in the examples)"
        ) from error
    return recbole / RECBOLE_MOVIELENS_100K


def _from_grouplens(destination: Path) -> Path:
    """Download GroupLens's archive and unpack it."""
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".ml-100k.") as folder:
        archive = fetch_url(MOVIELENS_100K_URL, MOVIELENS_100K_SHA256, Path(folder) / "ml-100k.zip")
        return unpack_zip(archive, destination)


def load_movielens_100k(data: str | Path | None = None) -> Interactions:
    """
    Read MovieLens-100k, downloaded if need be.

    Args:
        data (`str` or `Path`, *optional*):
            As in [`movielens_100k`].

    Returns:
        `Interactions`:
            What [`load_movielens`] or, for RecBole's layout, [`load_recbole`] makes of it.

    Raises:
        As [`movielens_100k`], and as the loaders do for malformed files.
    """
    path = movielens_100k(data)
    return load_movielens(path) if _layout(path) == "movielens" else load_recbole(path)
