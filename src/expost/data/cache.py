"""Decoded images, kept: one safetensors file per source and way of decoding, so that a second load needs neither source nor decoder.

The key is made of the source's identity (``folder.open_folder``; for the hub the repository's name), the decode options and, where not all
images are decoded, their numbers. A file that is damaged or foreign counts as absent and is written anew; a folder that cannot be written
costs a note. Delete the folder whenever you like.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expost.data.decode import Decoder
from expost.data.mapped import large
from expost.data.source import Source
from expost.system.files import load_tensors, save_tensors

__all__ = ["cached"]

_VERSION = 2  # raise it when decoding, or what is kept beside the images, changes


def cached(identity: Any, opener: Callable[[], Source], decoder: Decoder, root: str | os.PathLike[str] | None) -> Source:
    """The opened source, reading from and writing to the cache; if all of it is there already, it is not even opened."""
    if identity is None:
        return opener()
    whole = _file(identity, decoder, None, root)
    if (found := _read(whole)) is not None:
        tensors, meta = found

        def kept(rows: Tensor | None, _: Decoder) -> tuple[Tensor, list[str]]:
            return (tensors["x"] if rows is None else tensors["x"][rows]), meta["said"]

        return Source(meta["counts"], tensors.get("labels"), kept, meta["ordered"], meta["notes"])
    source = opener()

    def fetch(rows: Tensor | None, _: Decoder) -> tuple[Tensor, list[str]]:
        file = whole if rows is None else _file(identity, decoder, rows, root)
        if rows is not None and (found := _read(file)) is not None:
            return found[0]["x"], found[1]["said"]
        x, said = source.fetch(rows, decoder)
        if large(x.shape, x.element_size()):  # mapped, and kept as such
            return x, said
        tensors = {"x": x} if source.labels is None else {"x": x, "labels": source.labels}
        meta = {"counts": source.counts, "ordered": source.ordered, "notes": source.notes, "said": said, "crc": _checksum(tensors)}
        try:
            save_tensors(file, tensors, meta)
        except Exception as error:  # OSError, or safetensors' own for a full disk: what was decoded is still good
            return x, [*said, f"not cached: {file.parent} cannot be written ({type(error).__name__})"]
        return x, said

    return Source(source.counts, source.labels, fetch, source.ordered, source.notes)


def _file(identity: Any, decoder: Decoder, rows: Tensor | None, root: str | os.PathLike[str] | None) -> Path:
    chosen = None if rows is None else hashlib.sha256(rows.numpy().data).hexdigest()
    key = json.dumps([_VERSION, identity, decoder.crop, decoder.size, chosen])
    base = Path(root) if root is not None else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "expost"
    return base / "data" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and metadata of a cache file, or None if it is absent or damaged."""
    try:
        if not file.is_file():
            return None
        tensors, meta = load_tensors(file, "a cache of decoded images")
        sound = (
            meta["crc"] == _checksum(tensors)
            and tensors["x"].dtype == torch.uint8
            and {"counts", "ordered", "notes", "said"} <= meta.keys()
        )
    except Exception:  # whatever is wrong with it: it is only a cache
        return None
    return (tensors, meta) if sound else None


def _checksum(tensors: dict[str, Tensor]) -> int:
    crc = 0
    for key in sorted(tensors):
        crc = zlib.crc32(tensors[key].contiguous().numpy().data, crc)
    return crc
