"""SHA-256 of tensors: what extractors are named by and what cached features and classifiers are filed under; CRC-32: what files are checked by;
keys of rows: how equal images are found.

A CRC-32 guards against accidents, not people: it notices every error within 32 neighbouring bits, and of other damage all but one in
4 billion cases. A SHA-256 beside the content would not guard against people either, and takes one and a half to four times as long.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_bytes", "checksum", "content_hash", "distinct", "file_name", "row_keys", "state_hash"]


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
