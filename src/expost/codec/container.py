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
    images     how many, at least one in every block
    symbols    number of values a pixel may have
    batch      most images in one block: rows that networks see at once, where so many fit into 32 MiB (:mod:`.networks`)
    steps      bin widths of every level's latents, outermost first
    span       latents lie in -span ... span bins
    seed       {value, words}: the words that the stack began with, and which decoding must give back
    blocks     how many
    words      length of the message
    origin     where the model came from, {run, density}: a hint, may be empty
    machine    versions and processor that wrote the file: decoding is promised on the same kind of machine

:func:`unpack` raises ``ValueError`` for anything but a whole file: what is damaged is never decoded. The checksum guards against accidents
only, so every field is held against its declared type and range, and against the length of the file, before anything is made of it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, TypedDict

import numpy as np

from expost.system.schema import Count, Meta, parse

__all__ = ["MAGIC", "Batch", "Container", "Header", "SeedValue", "Span", "malformed", "pack", "unpack"]

MAGIC = b"\x89XPZ\r\n\x1a\n"
VERSION = 1
_DIGEST = 16
_BLOCK = 6
_WORD = 4
_LONGEST_HEADER = 2**20
_CONTRADICTS, _AGAIN = "does not follow the format", ": restore it from a copy, or compress the images again"

SeedValue = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Batch = Annotated[int, Meta(ge=1, lt=2**16)]
Span = Annotated[int, Meta(ge=1, lt=2**22)]
Steps = Annotated[list[Annotated[float, Meta(ge=2.0**-64, le=2.0**64)]], Meta(min_length=1)]


class Seed(TypedDict):
    """What the stack began with: ``words`` words made of ``value``."""

    value: SeedValue
    words: Count


@dataclass(frozen=True)
class Header:
    """See the module's table."""

    model: Annotated[str, Meta(pattern=r"^[0-9a-f]{24}\Z")]
    dtype: Literal["uint8", "float32"]
    shape: Annotated[list[Count], Meta(min_length=1)]
    images: Count
    symbols: Annotated[int, Meta(ge=2)]
    batch: Batch
    steps: Steps
    span: Span
    seed: Seed
    blocks: Count
    words: Count
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
    if length > min(_LONGEST_HEADER, len(data) - start - _DIGEST):
        raise malformed(name, f"a header of {length} bytes in a file of {len(data)}")
    table = start + length
    try:
        header = parse(data[start:table], Header, f"{name} {_CONTRADICTS}")
    except ValueError as error:
        raise ValueError(f"{error}{_AGAIN}") from None
    end = table + _BLOCK * header.blocks
    if end + _WORD * header.words + _DIGEST != len(data):
        raise malformed(name, f"{header.blocks} blocks and {header.words} words do not make {len(data)} bytes")
    if header.seed["words"] > header.words:
        raise malformed(name, f"a message of {header.words} words began with {header.seed['words']}")
    blocks = list(struct.iter_unpack("<HI", data[table:end]))
    if not all(1 <= n <= header.batch for n, _ in blocks):
        raise malformed(name, f"blocks of 1 to {header.batch} images are expected, and one has another number")
    if sum(n for n, _ in blocks) != header.images:
        raise malformed(name, f"its blocks hold {sum(n for n, _ in blocks)} images, and {header.images} are announced")
    return Container(header, blocks, np.frombuffer(data[end:-_DIGEST], dtype="<u4").astype(np.uint32))


def malformed(name: str, why: str) -> ValueError:
    """The error for a file that is whole and contradicts the format, itself or its model."""
    return ValueError(f"{name} {_CONTRADICTS} ({why}){_AGAIN}")
