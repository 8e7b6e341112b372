"""A source: data as they lie somewhere, before they are split. One type for tables, picture folders, arrays and the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expost.data.decode import Decoder

__all__ = ["SPLITS", "Source", "encode_labels", "need", "split_of"]

#: How the parts of a data set are called in file names, folders and tables.
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass
class Source:
    """Data in the order they lie in, numbered 0 ... n-1 over all parts.

    Attributes:
        counts: how many belong to each part ("train", "val", "test"), in that order of numbering.
        labels: (n,) int64, -1 where a part has none; None without labels.
        fetch: the data of some rows (ascending numbers; None = all), as a tensor, and notes; pictures go through the decoder.
        ordered: the order means something (False where files come sorted by class).
        notes: what a reader must know.
    """

    counts: dict[str, int]
    labels: Tensor | None
    fetch: Callable[[Tensor | None, Decoder], tuple[Tensor, list[str]]]
    ordered: bool = True
    notes: list[str] = field(default_factory=list)


def split_of(text: str) -> str | None:
    """The part that a file or folder name speaks of ("train-00000-of-00001", "x_test", "validation"), or None."""
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return next((part for word in words for part, names in SPLITS.items() if word in names), None)


def encode_labels(values: list[np.ndarray | None], counts: list[int], what: str) -> Tensor | None:
    """One int64 label tensor over all parts: numbers as they are, names by their place in sorted order, -1 where a part has none."""
    given = [v for v in values if v is not None]
    if not given:
        return None
    if any(v.dtype.kind not in "iub" for v in given):
        if any(v.dtype.kind not in "OUS" or not all(isinstance(x, str) for x in v.tolist()) for v in given):
            raise ValueError(f"{what}: labels are neither whole numbers nor names in every part: convert them to int64 classes")
        index = {name: i for i, name in enumerate(sorted({x for v in given for x in v.tolist()}))}
        values = [None if v is None else np.array([index[x] for x in v.tolist()], np.int64) for v in values]
    return torch.cat(
        [torch.full((n,), -1) if v is None else torch.from_numpy(v.astype(np.int64)) for v, n in zip(values, counts, strict=True)]
    )


def need(module: str, package: str, what: str) -> Any:
    """Import an optional library, or say in one sentence how to get it."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise ValueError(f'{what} needs {package}, which is not installed: pip install "expost[data]"') from None


def relative(path: Path, root: Path) -> str:
    """How an error or note names a file: its path below the folder that was given."""
    return str(path.relative_to(root)) if path.is_relative_to(root) and path != root else path.name
