"""Data larger than memory: decoded once into a file of the cache that lies in the order of the splits, and mapped from there.

What takes more than :func:`limit` bytes is never an array in memory. While it is read it goes to :func:`scratch`, a file without a name that
the system removes with the process; :func:`arrange` writes it, split after split and padded, to a temporary name and renames it. Its size
is checked when it is opened, its content by the data set's own hash, which is kept beside it. Mapped pages count as memory of the process
only as long as nobody else needs the room. Delete the files whenever no process uses them.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expost.system.files import atomic, cache_folder, write_json
from expost.system.memory import machine

__all__ = ["arrange", "chunks", "converted", "keep", "large", "limit", "place", "reopen", "scratch", "taken"]

LIMIT: int | None = None
"""Bytes from which data are mapped, if not the default."""
_CHUNK = 2**25


def limit() -> int:
    """Bytes that data may take in memory: a GiB, or a quarter of the machine's memory if that is less."""
    return LIMIT if LIMIT is not None else min(2**30, machine() // 4)


def large(shape: tuple[int, ...] | torch.Size, itemsize: int) -> bool:
    """Whether numbers of this shape and size are more than memory is for."""
    return math.prod(shape) * itemsize > limit()


def chunks(x: Any) -> Iterator[slice]:
    """Consecutive rows of an array or tensor, some 32 MB at a time."""
    rows = max(1, _CHUNK // max(1, math.prod(x.shape[1:]) * x.dtype.itemsize))
    for start in range(0, len(x), rows):
        yield slice(start, min(len(x), start + rows))


def scratch(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array to be filled: in memory, or if it is large in a file of the cache folder that has no name and goes with the process."""
    dtype = np.dtype(dtype)
    if not large(shape, dtype.itemsize):
        return np.empty(shape, dtype)
    folder = cache_folder("data")
    _room(folder, math.prod(shape) * dtype.itemsize)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(math.prod(shape) * dtype.itemsize)
        return np.memmap(file, dtype, "r+", 0, shape)


def converted(array: np.ndarray, dtype: Any) -> np.ndarray:
    """The array in C order as ``dtype``; itself if it is that already."""
    if array.dtype == np.dtype(dtype) and array.dtype.isnative and array.flags.c_contiguous:
        return array
    out = scratch(array.shape, dtype)
    for rows in chunks(array):
        out[rows] = array[rows]
    return out


def taken(parts: list[Tensor], rows: Tensor | None) -> Tensor:
    """Rows of tensors put after one another (None: all)."""
    if len(parts) == 1 and rows is None:
        return parts[0]
    shape = (sum(map(len, parts)) if rows is None else len(rows), *parts[0].shape[1:])
    if not large(shape, parts[0].element_size()):
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole if rows is None else whole[rows]
    out = torch.from_numpy(scratch(shape, _numpy(parts[0].dtype)))
    first = done = 0
    for part in parts:
        mine = torch.arange(len(part)) if rows is None else rows[(rows >= first) & (rows < first + len(part))] - first
        for piece in mine.split(max(1, _CHUNK // max(1, part[:1].nbytes))):
            out[done : done + len(piece)] = part[piece]
            done += len(piece)
        first += len(part)
    return out


def place(identity: Any, *how: Any, root: Any = None) -> Path:
    """The file of data of this identity, read and arranged in this way."""
    text = json.dumps([1, identity, *how])
    return cache_folder("data", root=root) / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.map"


def reopen(file: Path) -> tuple[Tensor, dict[str, Any]] | None:
    """The data that :func:`keep` wrote and what it noted, or None if they are not there or not whole."""
    try:
        meta = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        shape, dtype = tuple(meta["shape"]), np.dtype(meta["dtype"])
        if file.stat().st_size != math.prod(shape) * dtype.itemsize or not {"hash", "said"} <= meta.keys():
            return None
        return _mapped(file, dtype, shape), meta
    except (OSError, ValueError, KeyError, TypeError):
        return None


def arrange(file: Path, x: Tensor, order: Tensor, shape: tuple[int, ...], prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """Write rows of ``x`` in this order, each piece under ``prepare``, and map the file; ``shape`` is that of one row afterwards."""
    dtype = _numpy(prepare(x[:1]).dtype)
    _room(file.parent, len(order) * math.prod(shape) * dtype.itemsize)
    with atomic(file) as temporary, temporary.open("wb") as stream:
        for rows in order.split(max(1, _CHUNK // max(1, x[:1].nbytes))):
            stream.write(prepare(x[rows]).contiguous().numpy().data)
    return _mapped(file, dtype, (len(order), *shape))


def keep(file: Path, x: Tensor, hash: str, said: list[str]) -> None:
    """Note beside an arranged file what it holds, so that it is found again."""
    write_json(file.with_suffix(".json"), {"shape": list(x.shape), "dtype": _numpy(x.dtype).str, "hash": hash, "said": said})


def _mapped(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.memmap(file, dtype, "c", 0, shape))  # copy on write: nothing ever reaches the file


def _numpy(dtype: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=dtype).numpy().dtype


def _room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"the data take {size / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f} GB left: free some, or set XDG_CACHE_HOME to a larger disk"
        )
