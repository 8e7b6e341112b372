r"""The file format `.xpz`, version 1. All numbers are little-endian.

    bytes      what
    8          magic: 89 58 50 5A 0D 0A 1A 0A  ("\x89XPZ\r\n\x1a\n": a transfer in text mode breaks it visibly)
    2          version, unsigned
    4          length of the header, unsigned
    ...        header: JSON in UTF-8
    6 each     blocks, in the order of coding: number of images (2), CRC-32 of their values as bytes (4)
    4 each     message: the words of the stack, the last one its top
    16         first half of the SHA-256 of everything before

The header's fields:

    model      name of the model's content: 24 hexadecimal digits of the SHA-256 of its structure and weights
    dtype      uint8 or float32, of the images
    shape      of one image
    images     how many
    symbols    number of values a pixel may have
    batch      rows that networks see at once
    steps      bin widths of every level's latents, outermost first
    span       latents lie in -span ... span bins
    seed       {value, words}: the words that the stack began with, and which decoding must give back
    blocks     how many
    words      length of the message
    origin     where the model came from, {run, density}: a hint, may be empty
    machine    versions and processor that wrote the file: decoding is promised on the same kind of machine

:func:`unpack` raises ``ValueError`` for anything but a whole file: what is damaged is never decoded.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

__all__ = ["MAGIC", "Container", "Header", "pack", "unpack"]

MAGIC = b"\x89XPZ\r\n\x1a\n"
VERSION = 1
_DIGEST = 16


@dataclass(frozen=True)
class Header:
    """See the module's table."""

    model: str
    dtype: str
    shape: list[int]
    images: int
    symbols: int
    batch: int
    steps: list[float]
    span: int
    seed: dict[str, int]
    blocks: int
    words: int
    origin: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Container:
    """A header, the blocks (images, checksum) in the order of coding, and the message."""

    header: Header
    blocks: list[tuple[int, int]]
    message: np.ndarray[Any, np.dtype[np.uint32]]


def pack(container: Container) -> bytes:
    """The bytes of a file."""
    header = json.dumps(asdict(container.header), separators=(",", ":"), sort_keys=True).encode()
    parts = [MAGIC, struct.pack("<HI", VERSION, len(header)), header]
    parts += [struct.pack("<HI", images, checksum) for images, checksum in container.blocks]
    parts.append(container.message.astype("<u4").tobytes())
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()[:_DIGEST]


def unpack(data: bytes, name: str = "this file") -> Container:
    """What :func:`pack` wrote; ``ValueError`` in one sentence for foreign, truncated or damaged data."""
    start = len(MAGIC) + 6
    if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
        raise ValueError(f"{name} is not a compressed file of expost (no .xpz magic at its beginning): check the path")
    if len(data) < start + _DIGEST:
        raise ValueError(f"{name} is truncated ({len(data)} bytes): restore it from a copy")
    if hashlib.sha256(data[:-_DIGEST]).digest()[:_DIGEST] != data[-_DIGEST:]:
        raise ValueError(f"{name} is damaged or truncated (its checksum does not match): restore it from a copy")
    version, length = struct.unpack("<HI", data[len(MAGIC) : start])
    if version != VERSION:
        raise ValueError(f"{name} has version {version} of the format and this expost reads version {VERSION}: update expost")
    try:
        header = Header(**json.loads(data[start : start + length]))
        table, end = start + length, start + length + 6 * header.blocks
        blocks = [struct.unpack("<HI", data[i : i + 6]) for i in range(table, end, 6)]
        message = np.frombuffer(data[end:-_DIGEST], dtype="<u4").astype(np.uint32)
        consistent = len(message) == header.words and sum(n for n, _ in blocks) == header.images
    except (TypeError, ValueError, struct.error):
        consistent = False
    if not consistent:
        raise ValueError(f"{name} does not follow the format (its header contradicts its length): write it again")
    return Container(header, [(int(n), int(c)) for n, c in blocks], message)
