"""A folder of picture files: ``[train|valid|test/][class/]name.png``, read in sorted order.

The first folders are parts if all of them are called like one, or one of them is called train and another like a part (a class may be
called "train"); else, and below a part, the first folder names the class. One single class is no class. Files
in class folders, or whose names are more than a number, have no meaningful order: nothing may ever be cut off their end, and the source says
``ordered=False``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from expost.data.decode import Decoder, Encoded, decode
from expost.data.source import SPLITS, Source, encode_labels, relative, split_of

__all__ = ["SUFFIXES", "celeba_part", "picture_source"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


def picture_source(root: Path, files: list[Path], *, celeba: bool = False) -> Source:
    """Picture files below ``root``. With ``celeba`` the number in a file's name decides its part (the official partition)."""
    tops = {path.relative_to(root).parts[0] for path in files if path.parent != root}
    known = {top: part for top in tops if (part := split_of(top)) and top.isalpha()}
    parted = bool(tops) and (len(known) == len(tops) or ("train" in known.values() and len(set(known.values())) > 1))
    notes = [f"folder {top} is no part of the data set: left out" for top in sorted(tops) if parted and top not in known]
    placed: dict[str, list[tuple[Path, str | None]]] = {part: [] for part in SPLITS}
    for path in sorted(files):
        folders = path.relative_to(root).parts[:-1]
        part = "train"
        if celeba and path.stem.isdigit():
            part, folders = celeba_part(int(path.stem)), ()
        elif parted and folders:
            if folders[0] not in known:
                continue
            part, folders = known[folders[0]], folders[1:]
        placed[part].append((path, folders[0] if folders else None))
    items = [item for part in SPLITS for item in placed[part]]
    classes = {name for _, name in items}
    if None in classes and len(classes) > 1:
        notes.append("some images lie outside the class folders: labels are left out")
    labelled = None not in classes and len(classes) > 1 and not celeba
    numbered = all(name is None and path.stem.isdigit() for path, name in items)
    counts = {part: len(found) for part, found in placed.items() if found}
    names = [np.array([str(name) for _, name in placed[part]], object) if labelled else None for part in counts]

    def blocks() -> Iterator[list[Encoded]]:
        yield [path for path, _ in items]

    def where(i: int) -> str:
        return relative(items[i][0], root)

    def fetch(rows: Tensor | None, decoder: Decoder) -> tuple[Tensor, list[str]]:
        return decode(blocks(), len(items), where, decoder, rows=rows, name=root.name), decoder.notes()

    return Source(counts, encode_labels(names, list(counts.values()), root.name), fetch, ordered=numbered, notes=notes)


def celeba_part(number: int) -> str:
    """The part of CelebA picture 000001 ... 202599 (Liu et al. 2015, list_eval_partition.txt)."""
    return "train" if number <= 162_770 else "val" if number <= 182_637 else "test"
