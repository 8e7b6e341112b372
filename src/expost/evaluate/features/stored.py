"""Sets of images on disk, read a part at a time: picture files in a folder, and arrays in numpy's files.

Neither keeps anything of what was read. In particular a numpy file is mapped for the time of one read only: pages of a mapping stay in the
memory of the process, as far as the system counts it, until the mapping ends. Files must not change while a set is in use. Nothing is
ever unpickled.
"""

from __future__ import annotations

import math
import os
import shutil
import struct
import tempfile
import weakref
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from expost.data.arrays import channels_last, resize
from expost.data.decode import Decoder
from expost.data.folder import files_below
from expost.data.pictures import SUFFIXES
from expost.data.source import need
from expost.evaluate.features.base import Shape

__all__ = ["ArraySet", "FolderSet", "check_range"]

#: What the array of images in an archive may be called, first choice first.
_WHOLE = ("images", "image", "x", "data", "samples")


class FolderSet:
    """The picture files below a folder, its subfolders included, sorted by path; hidden ones are left out. uint8 (n, C, H, W).

    The first picture decides the shape. Grey pictures of a colour set become RGB; any other difference is an error that names the file.

    Args:
        path: the folder.
        size, crop: centre crop to crop x crop, then resize to size x size, as in :func:`expost.data.load`.
        channels: 1 or 3, where the first picture is not typical.
    """

    def __init__(
        self, path: str | Path, *, size: int | None = None, crop: int | None = None, channels: int | None = None, name: str | None = None
    ) -> None:
        folder = Path(path)
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder: give a folder of pictures (.png, .jpg ...)")
        need("PIL", "Pillow", "reading pictures")
        files = [f for f in files_below(folder) if f.suffix.lower() in SUFFIXES]
        if not files:
            raise ValueError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))}): give another folder")
        self.files, self.name, self._decoder = sorted(files), name or folder.name, Decoder(crop, size)
        #: How files become images: with their content, what the images are.
        self.how = f"crop {crop}, size {size}, channels {channels}"
        first = self._picture(self.files[0])
        self.shape: Shape = (channels or first.shape[2], first.shape[0], first.shape[1])

    def __len__(self) -> int:
        return len(self.files)

    def notes(self) -> list[str]:
        """What a reader of numbers must know of how the pictures were decoded; their headers say it."""
        from PIL import Image

        seen = Decoder()
        for file in self.files:
            with Image.open(file) as picture:
                seen.seen.add(picture.format or "?")
                seen.seen.add(picture.mode)
        return [f"{self.name}: {note}" for note in seen.notes()]

    def read(self, start: int, stop: int) -> Tensor:
        check_range(self, start, stop)
        (c, h, w), out = self.shape, np.empty((stop - start, *self.shape), np.uint8)
        for row, file in zip(out, self.files[start:stop], strict=True):
            picture = self._picture(file)
            if picture.shape[:2] != (h, w):
                raise ValueError(
                    f"{file} is {picture.shape[0]} x {picture.shape[1]} where the first picture of {self.name} is {h} x {w}: "
                    "give size=32, say, to resize them all"
                )
            if picture.shape[2] > c:
                raise ValueError(f"{file} is in colour where the first picture of {self.name} is grey: give channels=3")
            row[:] = picture.transpose(2, 0, 1)
        return torch.from_numpy(out)

    def _picture(self, file: Path) -> np.ndarray:
        try:
            return self._decoder.encoded(file)
        except ValueError as error:
            raise ValueError(f"{file} {error}") from None


class ArraySet:
    """Images in a ``.npy`` file, or in an array of an ``.npz`` archive: (n, H, W), (n, C, H, W), or (n, H, W, C), as :mod:`expost.data` reads them.

    Booleans become 0 and 255, whole numbers must lie in 0 ... 255, floats in [0, 1] or all be whole numbers 0 ... 255. An array that an archive holds uncompressed
    (``numpy.savez``) is mapped where it lies, once its checksum is verified; a compressed one is first unpacked into a temporary file, which
    needs its size on disk and goes with the set.

    Args:
        path: the file.
        key: which array of an archive; default ``images``, ``x``, ``data``, or the only one.
        size, crop: centre crop to crop x crop, then resize to size x size, as in :func:`expost.data.load`.
    """

    def __init__(
        self, path: str | Path, *, key: str | None = None, size: int | None = None, crop: int | None = None, name: str | None = None
    ) -> None:
        self.path, self._decoder = Path(path), Decoder(crop, size)
        self.name = name or self.path.name
        #: How the file becomes images: with its content, what the images are.
        self.how = f"key {key}" + ("" if self._decoder == Decoder() else f", crop {crop}, size {size}")
        try:
            if not self.path.is_file():
                raise ValueError("there is no such file: check the path")
            self._place = _unpacked(self.path, key, self) if zipfile.is_zipfile(self.path) else _header(self.path, 0)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise ValueError(
                f"{self.path} cannot be read, it is damaged or not a numpy file ({type(error).__name__}): save it again"
            ) from None
        shape = self._place.shape
        if self._place.dtype.kind not in "biuf" or self._place.dtype.itemsize > 8:
            raise ValueError(f"{self.path} is of type {self._place.dtype}: save it as numbers (uint8, or float32 in [0, 1])")
        if len(shape) not in (3, 4) or min(shape) < 1:
            raise ValueError(f"{self.path} has shape {shape}: images are (n, H, W) or (n, C, H, W)")
        self._last = len(shape) == 4 and channels_last(shape)
        self._levels: bool | None = None
        self.shape: Shape = (1, *shape[1:]) if len(shape) == 3 else (shape[3], shape[1], shape[2]) if self._last else shape[1:]  # type: ignore[assignment]
        self.shape = (self.shape[0], *self._decoder.shape(*self.shape[1:], str(self.path)))

    def __len__(self) -> int:
        return self._place.shape[0]

    def read(self, start: int, stop: int) -> Tensor:
        check_range(self, start, stop)
        place = self._place
        mapped = np.memmap(place.file, place.dtype, "r", place.offset, place.shape, place.order)
        block = np.array(mapped[start:stop], place.dtype.newbyteorder("="), order="C", subok=False)
        del mapped  # unmapped: pages that were read would count as this process's memory
        block = block[:, None] if block.ndim == 3 else block.transpose(0, 3, 1, 2) if self._last else block
        if block.dtype.kind == "b":
            block = block.astype(np.uint8) * np.uint8(255)
        elif block.dtype.kind in "iu" and block.dtype != np.uint8:
            if block.size and (block.min() < 0 or block.max() > 255):
                raise ValueError(
                    f"{self.path} has whole numbers from {block.min()} to {block.max()}: images need 0 ... 255 as uint8, or floats in [0, 1]"
                )
            block = block.astype(np.uint8)
        elif block.dtype.kind == "f" and self._grey():
            block = block.astype(np.uint8)
        found = torch.from_numpy(np.ascontiguousarray(block))
        return found if self._decoder == Decoder() else resize(found, self._decoder, self.name)

    def _grey(self) -> bool:
        """Whether floats are whole numbers 0 ... 255, some of them above 1, throughout: they are 8-bit images then, as everywhere."""
        if self._levels is None:
            place, top = self._place, 0.0
            self._levels = True
            mapped = np.memmap(place.file, place.dtype, "r", place.offset, place.shape, place.order)
            rows = max(1, 2**22 // max(1, math.prod(place.shape[1:])))
            for start in range(0, place.shape[0], rows):
                block = np.asarray(mapped[start : start + rows])
                top = max(top, float(block.max()))
                if not (block.min() >= 0 and block.max() <= 255 and bool((block == np.rint(block)).all())):
                    self._levels = False
                    break
            self._levels = self._levels and top > 1
        return self._levels

    def notes(self) -> list[str]:
        """What a reader of numbers must know of how the file was read."""
        moved = [f"{self.name}: channels were last {self._place.shape} and are first now"] if self._last else []
        grey = self._place.dtype.kind == "f" and self._grey()
        return moved + ([f"{self.name}: whole floats 0 ... 255 became uint8"] if grey else [])


@dataclass(frozen=True)
class _Place:
    """Where the numbers of an array lie."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    order: Literal["C", "F"]


def _header(file: Path, start: int, stop: int | None = None) -> _Place:
    """The array in .npy format that begins at byte ``start`` of a file (and ends at ``stop``)."""
    with file.open("rb") as stream:
        stream.seek(start)
        try:
            version = np.lib.format.read_magic(stream)
        except ValueError:
            raise ValueError("it is not an array that numpy wrote: save it again with numpy.save") from None
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"numpy format {version} is not read: save plain numbers (uint8 or float32) instead")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        offset = stream.tell()
        stop = stream.seek(0, 2) if stop is None else stop
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never unpickled: save plain numbers (uint8 or float32) instead")
    if offset + math.prod(shape) * dtype.itemsize > stop:
        raise ValueError("it is truncated, it ends before its last image: save it again")
    return _Place(file, offset, shape, dtype, "F" if fortran else "C")


def _unpacked(path: Path, key: str | None, owner: object) -> _Place:
    """An array of an archive: in place if it is stored as it is, else in a temporary file that lives as long as ``owner``."""
    with zipfile.ZipFile(path) as archive:
        held = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}
        name = key if key is not None else next((k for k in _WHOLE if k in held), next(iter(held)) if len(held) == 1 else None)
        if name is None or name not in held:
            raise ValueError(f"it holds {', '.join(held) or 'no arrays'}: name the array of images with key=..., or call it images")
        info = held[name]
        if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
            with archive.open(info) as source:
                while source.read(2**20):  # to its end, where its checksum is verified
                    pass
            with path.open("rb") as stream:
                stream.seek(info.header_offset + 26)  # the local header: 30 bytes, of which the last four say how long name and extra are
                start = info.header_offset + 30 + sum(struct.unpack("<HH", stream.read(4)))
            return _header(path, start, start + info.file_size)
        handle, temporary = tempfile.mkstemp(prefix="expost-", suffix=".npy")
        weakref.finalize(owner, Path(temporary).unlink, missing_ok=True)
        with os.fdopen(handle, "wb") as target, archive.open(info) as source:
            shutil.copyfileobj(source, target, 2**20)
    return _header(Path(temporary), 0)


class _Sized(Protocol):
    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...


def check_range(images: _Sized, start: int, stop: int) -> None:
    """``ValueError`` unless 0 <= start <= stop <= len(images)."""
    if not 0 <= start <= stop <= len(images):
        raise ValueError(f"{images.name} has images 0 to {len(images) - 1}: images {start} to {stop - 1} cannot be read")
