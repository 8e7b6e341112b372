"""From encoded pictures to one ``uint8`` tensor (n, C, H, W), decoded once.

A source hands out its pictures as blocks of encoded bytes or file paths, in a fixed order. Each picture is decoded by PIL, turned by
its EXIF orientation, brought to grey or RGB (alpha is dropped), cropped about its centre, and resized (bilinear with antialiasing,
``PIL.Image.resize``). One grey picture among colour ones becomes RGB; a picture of another size is an error, not a guess.

Not promised: more than 8 bits a channel (such files are refused), and the alpha channel.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expost.data.mapped import chunks, scratch
from expost.system.progress import Bar
from expost.system.schema import printable

__all__ = ["Decoder", "Encoded", "decode"]

#: One encoded picture: its bytes, its file, or None where a table has a hole.
Encoded = bytes | Path | None

#: What PIL may take a picture for, whatever its name: pixels alone. It knows formats that are programs, and starts Ghostscript for PostScript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000")

_BLOCK = 512


@dataclass(frozen=True)
class Decoder:
    """How to make pictures of one shape: centre crop to crop x crop, then resize to size x size (each if given)."""

    crop: int | None = None
    size: int | None = None
    seen: set[str] = field(default_factory=set, compare=False)  # formats and modes met, for the notes

    def picture(self, image: Any) -> np.ndarray:
        """A PIL image -> (H, W, C) uint8."""
        from PIL import ImageOps

        if "exif" in image.info:
            image = ImageOps.exif_transpose(image)
        if image.mode not in ("L", "RGB"):
            if image.mode.startswith(("I", "F")):
                raise ValueError("has more than 8 bits a channel: convert it to 8 bits")
            self.seen.add(image.mode)
            image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
        array = np.asarray(self.resized(image))
        return array[..., None] if array.ndim == 2 else array

    def resized(self, image: Any) -> Any:
        """A PIL image of any mode, cropped and resized; ``ValueError`` with a predicate if it is too small."""
        from PIL import Image

        width, height = image.size
        if self.crop is not None:
            if self.crop > min(width, height):
                raise ValueError(f"is {height} x {width}, smaller than crop={self.crop}: choose a smaller crop")
            image = _centre(image, self.crop)
        elif self.size is not None and width != height:
            self.seen.add("square")
            image = _centre(image, min(width, height))
        if self.size is not None and image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return image

    def shape(self, height: int, width: int, name: str) -> tuple[int, int]:
        """Height and width that images of this height and width get."""
        if self.crop is not None and self.crop > min(height, width):
            raise ValueError(f"{name}: images are {height} x {width}, smaller than crop={self.crop}: choose a smaller crop")
        side = self.size or self.crop
        return (height, width) if side is None else (side, side)

    def encoded(self, item: Encoded) -> np.ndarray:
        """Encoded bytes or a file -> (H, W, C) uint8; ``ValueError`` with a predicate ("cannot be decoded ...") if that fails."""
        from PIL import Image

        if item is None:
            raise ValueError("holds no image: remove the row")
        try:
            with Image.open(item if isinstance(item, Path) else io.BytesIO(item), formats=FORMATS) as image:
                self.seen.add(image.format or "?")
                image.load()
                picture = image
        except FileNotFoundError:
            raise ValueError("does not exist: check the folder") from None
        except Exception as error:  # PIL raises whatever its decoders do: OSError, SyntaxError, struct.error, ...
            raise ValueError(f"cannot be decoded, it is damaged or not an image ({type(error).__name__}): replace or remove it") from None
        return self.picture(picture)

    def notes(self) -> list[str]:
        """What the decoding did that a reader must know."""
        notes = ["images are JPEG-compressed (lossy)"] if self.seen & {"JPEG", "MPO"} else []
        if modes := sorted(self.seen & {"1", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "La", "RGBa"}):
            notes.append(
                f"images of mode {', '.join(modes)} were converted to grey or RGB{' (alpha dropped)' * any('A' in m for m in modes)}"
            )
        if "square" in self.seen:
            notes.append("images that are not square were cropped to their central square before resizing")
        return notes


def _centre(image: Any, side: int) -> Any:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def decode(
    blocks: Iterable[list[Encoded]],
    count: int,
    where: Callable[[int], str],
    decoder: Decoder,
    *,
    rows: Tensor | None = None,
    name: str = "images",
) -> Tensor:
    """Decode ``count`` pictures, or only those whose numbers are in ``rows`` (ascending), to ``uint8`` (len, C, H, W).

    ``where(i)`` says where picture i came from; every error names it. Long decoding shows its progress.
    """
    wanted = None if rows is None else rows.numpy()
    total = count if wanted is None else len(wanted)
    out = np.empty((0, 0, 0, 0), np.uint8)
    done = 0
    with Bar(total, what=f"decoding {printable(name)}") as bar:
        for numbers, items in _select(blocks, wanted):
            pictures = _block(numbers, items, where, decoder)
            if done == 0:
                out = scratch((total, pictures.shape[3], *pictures.shape[1:3]), np.uint8)
            if out.shape[2:] != pictures.shape[1:3]:
                raise _sizes_differ(out.shape[2:], "earlier images", pictures.shape[1:3], where(numbers[0]))
            if pictures.shape[3] > out.shape[1]:
                grey, out = out, scratch((total, pictures.shape[3], *pictures.shape[1:3]), np.uint8)  # grey so far, colour from here
                for piece in chunks(grey[:done]):
                    out[piece] = grey[piece]
            out[done : done + len(numbers)] = pictures.transpose(0, 3, 1, 2)
            done += len(numbers)
            bar.update(done)
    if done != total:
        raise ValueError(f"{name}: {done} images where {total} were announced: the files changed while they were read, load again")
    return torch.from_numpy(out)


def _select(blocks: Iterable[list[Encoded]], wanted: np.ndarray | None) -> Iterator[tuple[list[int], list[Encoded]]]:
    """Cut blocks to at most _BLOCK wanted pictures, with their numbers."""
    start = 0
    for block in blocks:
        if wanted is None:
            picked = np.arange(start, start + len(block))
        else:
            low, high = np.searchsorted(wanted, (start, start + len(block)))
            picked = wanted[low:high]
        for at in range(0, len(picked), _BLOCK):
            numbers = picked[at : at + _BLOCK].tolist()
            yield numbers, [block[i - start] for i in numbers]
        start += len(block)


def _block(numbers: list[int], items: list[Encoded], where: Callable[[int], str], decoder: Decoder) -> np.ndarray:
    """(k, H, W, C), in RGB if any of them is."""
    pictures: list[np.ndarray] = []
    for number, item in zip(numbers, items, strict=True):
        try:
            picture = decoder.encoded(item)
        except ValueError as error:
            raise ValueError(f"{where(number)} {error}") from None
        if pictures and picture.shape[:2] != pictures[0].shape[:2]:
            raise _sizes_differ(pictures[0].shape, where(numbers[0]), picture.shape, where(number))
        pictures.append(picture)
    channels = max(p.shape[2] for p in pictures)
    return np.stack([p if p.shape[2] == channels else np.repeat(p, channels, 2) for p in pictures])


def _sizes_differ(one: tuple[int, ...], first: str, other: tuple[int, ...], second: str) -> ValueError:
    return ValueError(
        f"images differ in size ({one[0]} x {one[1]} in {first}, {other[0]} x {other[1]} in {second}): give size=32, say, to resize them all"
    )
