"""Finding the files of a release in a folder or a zip archive, as a publisher packs them."""

import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath


def open_release(
    path: str | Path, layouts: tuple[tuple[str, ...], ...], beside: tuple[str, ...] = ()
) -> tuple[str, dict[str, tuple[str, Path | bytes]]]:
    """
    Find the files of one data set.

    Args:
        path (`str` or `Path`):
            The folder with the files, the folder above it, or the zip archive as published. Nothing is unpacked.
        layouts (`tuple[tuple[str, ...], ...]`):
            The sets of files that make a data set, the best first. Which one it is, is told by the first file of each.
        beside (`tuple[str, ...]`, *optional*):
            Files that come last if they are there.

    Returns:
        `tuple[str, dict[str, tuple[str, Path or bytes]]]`: What the data set is called, and for each file of its
        layout what messages call it and the file itself or, from an archive, what is in it.

    Raises:
        FileNotFoundError: there is no such path, or a file is missing.
        ValueError: several folders hold such files, or the archive is damaged.
    """
    path = Path(path)
    names, read = _list_files(path)
    folder, layout = _find_layout(path, names, layouts)
    files = {}
    for name in layout:
        member, label = str(folder / name), str(path / folder / name)
        if member not in names:
            raise FileNotFoundError(f"{label}: missing beside {layout[0]}. Fetch the whole release.")
        files[name] = (label, read(member))
    for name in beside:
        if name not in layout and str(folder / name) in names:
            files[name] = (str(path / folder / name), read(str(folder / name)))
    return folder.name or path.stem, files


def _list_files(path: Path) -> tuple[set[str], Callable[[str], Path | bytes]]:
    """Names below the path, at most one folder deep, and how to open one."""
    if path.is_dir():
        files = [*path.glob("*"), *path.glob("*/*")]
        return {file.relative_to(path).as_posix() for file in files if file.is_file()}, lambda name: path / name
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder. Fetch a release from its publisher, or correct it.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: neither a folder nor a whole .zip. Pass the folder, or fetch the .zip again.")

    def read(name: str) -> bytes:
        try:
            with zipfile.ZipFile(path) as archive:
                return archive.read(name)
        except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: {name}: damaged ({error}). Fetch the .zip again.") from error

    with zipfile.ZipFile(path) as archive:
        return {name for name in archive.namelist() if name.count("/") <= 1}, read


def _find_layout(path: Path, names: set[str], layouts: tuple) -> tuple[PurePosixPath, tuple[str, ...]]:
    folders = {PurePosixPath(name).parent for name in names}
    # The folder itself goes before the folders in it.
    for depth in (0, 1):
        found = [
            (folder, layout)
            for layout in layouts
            for folder in sorted(folders)
            if len(folder.parts) == depth and str(folder / layout[0]) in names
        ]
        if len({folder for folder, _ in found}) > 1:
            raise ValueError(f"{path}: several releases: {sorted({str(f) for f, _ in found})}. Pass one of them.")
        if found:
            return found[0]
    wanted = ", ".join(dict.fromkeys(layout[0] for layout in layouts))
    raise FileNotFoundError(f"{path}: none of {wanted} in it or one folder down. Pass the folder of a release.")
