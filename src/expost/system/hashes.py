"""SHA-256 of tensors: what extractors are named by and what cached features and classifiers are filed under; CRC-32: what files are checked by;
keys of rows: how equal images are found; texts that name a configuration, the same in every process, unlike ``repr``, which prints addresses of
functions.

A CRC-32 guards against accidents, not people: it notices every error within 32 neighbouring bits, and of other damage all but one in
4 billion cases. A SHA-256 beside the content would not guard against people either, and takes one and a half to four times as long.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "as_bytes",
    "checksum",
    "content_hash",
    "distinct",
    "experiment_name",
    "file_name",
    "row_keys",
    "stable_repr",
    "state_hash",
    "timeless",
]


def content_hash(*tensors: Tensor) -> str:
    """SHA-256 (64 hexadecimal digits) of dtypes, shapes and values, in order; wherever the tensors lie and however they are strided."""
    digest = hashlib.sha256()
    for tensor in tensors:
        _add(digest, "", tensor)
    return digest.hexdigest()


def state_hash(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """12 hexadecimal digits of the SHA-256 of named tensors and of a configuration that JSON can express."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(state):
        _add(digest, name, state[name])
    return digest.hexdigest()[:12]


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Two CRC-32 in 16 hexadecimal digits: of a text, and of the text and all of the tensors (names, dtypes, shapes, values)."""
    crc = _Crc(text)
    alone = crc.value
    for name in sorted(tensors):
        _add(crc, name, tensors[name])
    return f"{alone:08x}{crc.value:08x}"


class _Crc:
    def __init__(self, text: str) -> None:
        self.value = zlib.crc32(text.encode())

    def update(self, data: Any) -> None:
        self.value = zlib.crc32(data, self.value)


def as_bytes(tensor: Tensor) -> memoryview:
    """The values of a tensor, in order, wherever they lie and however they are strided."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
    if tensor.numel():
        digest.update(as_bytes(tensor))


def file_name(*parts: str) -> str:
    """Parts joined by ``-`` into the name of a safetensors file, unusual characters replaced."""
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part) for part in parts) + ".safetensors"


def row_keys(features: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A key of each row of ``features`` (n, d) as values of ``dtype`` (their own): (n,) int64 on the CPU.

    Equal rows have equal keys; of different rows, two in 2^64 do (BLAKE2). -0 counts as 0.
    """
    kind = dtype or features.dtype
    kind = kind if kind == torch.float64 else torch.float32
    digests = (
        hashlib.blake2b(row, digest_size=8).digest()
        for part in features.split(4096)
        for row in part.detach().to("cpu", kind).add(0.0).contiguous().numpy()
    )
    return torch.from_numpy(np.frombuffer(bytearray(b"".join(digests)), np.int64))


def distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Of keys (n,): the places where each appears first, ascending (u,), and for every key which of these it equals (n,).

    >>> [part.tolist() for part in distinct(torch.tensor([7, 3, 7, 5, 3]))]
    [[0, 1, 3], [0, 1, 0, 2, 1]]
    """
    _, first, inverse = np.unique(keys.numpy(), return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return torch.from_numpy(first[order]), torch.from_numpy(rank[inverse])


def experiment_name(text: str, data_hash: str, seed: int) -> str:
    """Eight hexadecimal digits that name an experiment (its :func:`stable_repr`, :func:`timeless`) on data, from a seed."""
    return hashlib.sha256(f"{text} {data_hash} {seed}".encode()).hexdigest()[:8]


def timeless(text: str) -> str:
    """A :func:`stable_repr` of settings without what changes no result: time limits and intervals of writing, at their defaults."""
    for name, default in (("minutes", "None"), ("checkpoint_every", "30.0")):
        text = re.sub(rf"(?<=[(, ]){name}=[^,()]*", f"{name}={default}", text)
    return text


def stable_repr(value: Any) -> str:
    """Dataclasses by their fields, functions by their qualified names, modules by their structure, the rest by ``repr``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = ", ".join(f"{f.name}={stable_repr(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{type(value).__name__}({inside})"
    if isinstance(value, nn.Module):
        return str(value)
    if isinstance(value, partial):
        return f"partial({stable_repr(value.func)}, {stable_repr(value.args)}, {stable_repr(value.keywords)})"
    if isinstance(value, type) or callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(stable_repr, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {stable_repr(v)}' for k, v in sorted(value.items()))}}}"
    return repr(value)
