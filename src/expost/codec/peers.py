"""What everybody else's compressors make of the same images."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["general_purpose"]


def general_purpose(x: Tensor) -> dict[str, float]:
    """Bits per pixel value of gzip, bz2 and lzma (strongest settings, all images as one stream of bytes), PNG and WebP (lossless, one
    sheet of all images; WebP codes grey as colour).

    Binary images (only 0 and 255) are packed, eight pixels to a byte, for the first three, and are 1-bit PNG.

    Args:
        x: (n, C, H, W) uint8, C = 1 or 3; other shapes get no picture formats.
    """
    if x.dtype != torch.uint8:
        raise ValueError("the other compressors get bytes: give uint8 images")
    values = x.cpu().numpy()
    binary = bool(np.isin(values, (0, 255)).all())
    raw = np.packbits(values > 0).tobytes() if binary else values.tobytes()
    bits = 8 / values.size
    strongest: dict[str, Callable[[bytes], bytes]] = {
        "gzip": lambda b: gzip.compress(b, 9),
        "bz2": lambda b: bz2.compress(b, 9),
        "lzma": lambda b: lzma.compress(b, preset=9 | lzma.PRESET_EXTREME),
    }
    rates = {name: len(function(raw)) * bits for name, function in strongest.items()}
    if x.dim() == 4 and x.shape[1] in (1, 3):
        rates |= {name: size * bits for name, size in _pictures(values, binary).items()}
    return rates


def _pictures(values: np.ndarray, binary: bool) -> dict[str, int]:
    """Bytes of lossless picture formats, sheets of at most 10 000 rows."""
    try:
        from PIL import Image, features
    except ImportError:
        return {}
    n, channels, height, width = values.shape
    columns = max(1, 2048 // width)
    per_sheet = columns * max(1, 8192 // height)
    formats = {"PNG": {"optimize": True}} | ({"WebP": {"lossless": True, "quality": 100, "method": 6}} if features.check("webp") else {})
    sizes = dict.fromkeys(formats, 0)
    for start in range(0, n, per_sheet):
        part = values[start : start + per_sheet]
        rows = -(-len(part) // columns)
        sheet = np.zeros((rows * columns, channels, height, width), np.uint8)
        sheet[: len(part)] = part
        sheet = (
            sheet.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
        )
        picture = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
        for name, options in formats.items():
            out = io.BytesIO()
            (picture.convert("1") if binary and name == "PNG" else picture).save(out, format=name, **options)
            sizes[name] += len(out.getvalue())
    return sizes
