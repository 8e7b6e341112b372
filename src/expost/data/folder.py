"""What a local folder or file holds, and the source that reads it: parquet tables before pictures before arrays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expost.data.arrays import array_source
from expost.data.pictures import SUFFIXES as _PICTURES
from expost.data.pictures import picture_source
from expost.data.source import Source
from expost.data.tables import table_source

__all__ = ["SUFFIXES", "files_below", "open_folder"]

#: Files that :func:`open_folder` reads by themselves.
SUFFIXES = (".parquet", ".npz", ".npy")

_SMALL = 256 * 2**20


def open_folder(place: Path, *, celeba: bool = False, labelled: bool = True) -> tuple[Any, Callable[[], Source]]:
    """The identity of what an existing folder or file holds, and a function that opens it; ``ValueError`` if nothing in it can be read.

    The identity is equal for equal files (and for paths, sizes and times where they are large), JSON-able, and None for arrays, which need
    no decoding. ``celeba`` and ``labelled`` are passed on to the readers.
    """
    if place.is_file():
        files, root = [place], place.parent
        if place.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{place} is none of {', '.join(SUFFIXES)}: give such a file, or a folder of pictures")
    else:
        files, root = files_below(place), place
    by_suffix: dict[str, list[Path]] = {}
    for file in files:
        by_suffix.setdefault(file.suffix.lower(), []).append(file)
    if tables := by_suffix.get(".parquet"):
        return _identity(root, tables, labelled), lambda: table_source(place, tables, labelled=labelled)
    if pictures := [file for file in files if file.suffix.lower() in _PICTURES]:
        return _identity(root, pictures, celeba), lambda: picture_source(place, pictures, celeba=celeba)
    if arrays := by_suffix.get(".npz", []) + by_suffix.get(".npy", []):
        return None, lambda: array_source(place, arrays)
    held = f"only {', '.join(sorted(s or 'files without a suffix' for s in by_suffix)[:5])}" if by_suffix else "nothing"
    raise ValueError(f"{place} holds {held}: give a folder with parquet files, pictures (.png, .jpg ...) or arrays (.npz, .npy)")


def mark(place: Path) -> list[Any]:
    """What tells a folder or file of arrays from others: places, sizes and times."""
    files = [place] if place.is_file() else files_below(place)
    return [str(place), *([str(file), stat.st_size, stat.st_mtime_ns] for file in files for stat in [file.stat()])]


def files_below(folder: Path, above: tuple[str, ...] | None = None) -> list[Path]:
    """The files below a folder in sorted order, without hidden ones. Links are followed, but never into a folder that one is already in.

    Raises:
        ValueError: a link that leads nowhere.
    """
    above = (os.path.realpath(folder),) if above is None else above
    found: list[Path] = []
    folders: list[tuple[Path, str]] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(folder, entry.name)
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            true = os.path.realpath(path) if entry.is_symlink() else os.path.join(above[-1], entry.name)  # only links lead in circles
            if not entry.name.startswith("__") and true not in above:
                folders.append((path, true))
        elif entry.is_file():
            found.append(path)
        elif entry.is_symlink():
            raise ValueError(f"{path} is a link that leads nowhere ({os.readlink(path)}): repair or remove it")
    return found + [file for inner, true in folders for file in files_below(inner, (*above, true))]


def _identity(root: Path, files: list[Path], *options: Any) -> list[Any]:
    """Equal for equal files: contents where there are few and small ones, else the place, sizes and times."""
    stats = [file.stat() for file in files]
    small = len(files) <= 64 and sum(stat.st_size for stat in stats) <= _SMALL
    entries: list[Any] = [] if small else [str(root)]
    for file, stat in zip(files, stats, strict=True):
        if small:
            with file.open("rb") as stream:
                mark: Any = hashlib.file_digest(stream, "sha256").hexdigest()
        else:
            mark = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        entries.append([str(file.relative_to(root)), mark])
    return [*entries, *options]
