"""Arrays in ``.npz`` and ``.npy`` files, never unpickled.

Which array is what is read off its name: ``x_train`` / ``train`` / ``test_images`` are parts, ``y_train`` / ``train_labels`` their
labels; else the whole set is ``images``, ``x``, ``data`` or the first array, with ``labels`` or ``y``. Several files in a folder are
told apart by their names in the same way (``train.npz`` and ``test.npz``, or ``x_train.npy`` and ``y_train.npy``).

Images are (n, H, W), (n, C, H, W), or (n, H, W, C), whose channels are moved to the front (:func:`channels_last`). They become ``uint8`` if nothing
is lost: booleans, whole numbers 0 ... 255, and floats k/255 in their own precision; other floats in [0, 1] stay floats. Two-dimensional
floating arrays (n, d) are points.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from expost.data.decode import Decoder
from expost.data.mapped import converted, limit, scratch, taken
from expost.data.source import SPLITS, Source, encode_labels, need, relative, split_of
from expost.tensors import check_finite

__all__ = ["array_source", "channels_last", "images_of", "pad", "resize", "to_data"]

#: Where an array came from, and the array.
Named = tuple[str, np.ndarray]

_WHOLE = ("images", "image", "x", "data", "samples")
_LABELS = ("labels", "label", "y", "targets", "target", "classes")


def array_source(root: Path, files: list[Path]) -> Source:
    """One ``.npz`` or ``.npy`` file, or all of a folder."""
    named: dict[str, Named] = {}
    for path in sorted(files):
        for key, array in _read(path).items():
            alone = path.suffix.lower() == ".npy" or len(files) > 1
            named[f"{path.stem} {key}".strip() if alone else key] = (relative(path, root) + (f", array {key}" if key else ""), array)
    if not named:
        raise ValueError(f"{root} holds no arrays: save some with numpy.savez(path, images=...)")
    data, labels = _assign(named, root)
    parts = [part for part in SPLITS if part in data]
    notes: list[str] = []
    tensors = []
    for part in parts:
        what, array = data[part]
        tensor, said = to_data(array, what)
        tensors.append(tensor)
        notes += [note for note in said if note not in notes]
    if len({(t.shape[1:], t.dtype) for t in tensors}) > 1:
        shapes = ", ".join(
            f"{part}: {str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for part, t in zip(parts, tensors, strict=True)
        )
        raise ValueError(f"the parts of {root.name} have different shapes or types ({shapes}): make them equal but for the first number")
    counts = {part: len(t) for part, t in zip(parts, tensors, strict=True)}
    classes = [_classes(*labels[part], counts[part]) if part in labels else None for part in parts]

    def fetch(rows: Tensor | None, decoder: Decoder) -> tuple[Tensor, list[str]]:
        x = taken(tensors, rows)
        if decoder.crop is None and decoder.size is None:
            return x, []
        return resize(x, decoder, root.name), decoder.notes()

    return Source(counts, encode_labels(classes, list(counts.values()), root.name), fetch, notes=notes)


def images_of(path: Path) -> tuple[Tensor, list[str]]:
    """The images of one ``.npz`` or ``.npy`` file in their order, (n, C, H, W), and notes on what was changed. ``ValueError`` if it holds
    several arrays and none is called ``images``."""
    if path.is_dir() or not path.is_file():
        raise ValueError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: give an .npz or .npy file of images")
    arrays = _read(path)
    if not arrays:
        raise ValueError(f"{path} holds no arrays: save some with numpy.savez(path, images=...)")
    name = next((key for key in _WHOLE if key in arrays), None) or (next(iter(arrays)) if len(arrays) == 1 else None)
    if name is None:
        raise ValueError(f"{path} holds several arrays ({', '.join(arrays)}) and none is called images: name the one to use images")
    x, notes = to_data(arrays[name], f"{path}" + (f", array {name}" if name else ""))
    if x.dim() != 4:
        raise ValueError(f"{path} holds points of shape {tuple(x.shape)}, not images: give an array (n, C, H, W)")
    before = f"{arrays[name].dtype} {arrays[name].shape}"
    after = f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
    if before != after:
        notes.append(f"read as {after}, from {before}")
    ignored = [key for key in arrays if key != name]
    return x, notes + ([f"not used: {', '.join(ignored)}"] if ignored else [])


def resize(x: Tensor, decoder: Decoder, name: str) -> Tensor:
    """Crop and resize images (n, C, H, W) channel by channel as pictures from files are: ``uint8`` rounded to ``uint8``, others as float32."""
    need("PIL", "Pillow", "resizing images")
    from PIL import Image

    if x.dim() != 4:
        given = [f"{option}={value}" for option, value in (("size", decoder.size), ("crop", decoder.crop)) if value is not None]
        raise ValueError(f"{name} is points, not images: leave out {' and '.join(given)}")
    kind = np.uint8 if x.dtype == torch.uint8 else np.float32
    height, width = decoder.shape(x.shape[2], x.shape[3], name)
    out = scratch((len(x), x.shape[1], height, width), kind)
    for row, image in zip(out, x, strict=True):
        for plane, channel in zip(row, image.numpy().astype(kind, copy=False), strict=True):
            plane[:] = np.asarray(decoder.resized(Image.fromarray(channel)))
    return torch.from_numpy(out)


def pad(x: Tensor, side: int | None, name: str) -> Tensor:
    """Images (n, C, H, W) with a border of zeros, side x side, the image in the centre; as they are for None."""
    if side is None:
        return x
    if x.dim() != 4:
        raise ValueError(f"{name} is points, not images: leave out pad_to")
    height, width = x.shape[2:]
    if side < max(height, width):
        raise ValueError(
            f"{name}: pad_to={side} is smaller than the images ({height} x {width}): give at least {max(height, width)}, or size={side}"
        )
    top, left = (side - height) // 2, (side - width) // 2
    return functional.pad(x, (left, side - width - left, top, side - height - top))


def to_data(array: np.ndarray, what: str) -> tuple[Tensor, list[str]]:
    """An array -> ``uint8`` images (n, C, H, W), or floating data; and notes. ``ValueError`` in one sentence if it is neither."""
    notes: list[str] = []
    kind = array.dtype.kind
    if kind not in "biuf" or array.dtype.itemsize > 8:
        raise ValueError(f"{what} is of type {array.dtype}: save it as numbers (uint8, or float32 in [0, 1])")
    if array.ndim not in (2, 3, 4) or 0 in array.shape[1:] or (array.ndim == 2 and kind != "f"):
        raise ValueError(f"{what} has shape {array.shape}: images are (n, H, W) or (n, C, H, W), points are floats (n, d)")
    if len(array) == 0:
        raise ValueError(f"{what} is empty: give at least one example")
    array = converted(array, array.dtype.newbyteorder("="))
    if kind == "f":
        check_finite(torch.from_numpy(array), what)
    if array.ndim == 2:
        return torch.from_numpy(array), notes
    if array.ndim == 3:
        array = array[:, None]
    elif channels_last(array.shape):
        notes.append(f"channels were last {array.shape} and are first now")
        array = converted(array.transpose(0, 3, 1, 2), array.dtype)
    if array.dtype == np.uint8:
        return torch.from_numpy(array), notes
    low, high = array.min(), array.max()
    if kind == "b":
        notes.append("booleans became 0 and 255")
        return torch.from_numpy(converted(array, np.uint8)).mul_(255), notes
    if kind in "iu":
        if low < 0 or high > 255:
            raise ValueError(f"{what} has whole numbers from {low} to {high}: images need 0 ... 255 as uint8, or floats in [0, 1]")
        return torch.from_numpy(converted(array, np.uint8)), notes
    if low < 0 or (high > 1 and not (high <= 255 and _whole(array))):
        raise ValueError(
            f"{what} has values from {low} to {high}: scale images to [0, 1] first, (x + 1) / 2 for [-1, 1], x / 255 for grey levels"
        )
    if high > 1:
        notes.append("whole floats 0 ... 255 became uint8")
        return torch.from_numpy(converted(array, np.uint8)), notes
    levels = _levels(array)
    return torch.from_numpy(array if levels is None else levels), notes


def channels_last(shape: tuple[int, ...]) -> bool:
    """Whether images of this shape (n, a, b, c) have their channels last: 1, 3 or 4 of them, or up to 16 behind a square or large image."""
    _, first, second, last = shape
    if first in (1, 3, 4):
        return False
    return last in (1, 3, 4) or (last <= 16 and second != last and (first == second or first > 16) and last < first)


def _whole(array: np.ndarray) -> bool:
    return all(bool((block == np.rint(block)).all()) for block in np.array_split(array, max(1, len(array) // 1024)))


def _levels(array: np.ndarray) -> np.ndarray | None:
    """k with array = k/255 as this precision computes it (by division, or by the reciprocal), or None; block by block."""
    out = scratch(array.shape, np.uint8)
    scale = array.dtype.type(255)
    for at in range(0, len(array), 1024):
        block = array[at : at + 1024]
        levels = np.rint(block * scale)
        if not ((block == levels / scale) | (block == levels * (array.dtype.type(1) / scale))).all():
            return None
        out[at : at + 1024] = levels
    return out


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array of an archive, its checksum verified; a large one goes to a file."""
    with archive.open(info) as stream:
        if info.file_size <= limit():
            return np.lib.format.read_array(stream, allow_pickle=False)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        if dtype.hasobject or min(shape, default=0) < 1:
            raise ValueError("Object arrays" if dtype.hasobject else "a shape that is none")
        out = scratch(shape[::-1] if fortran else shape, dtype)
        into, done = out.reshape(-1).view(np.uint8).data, 0
        while piece := stream.read(2**24):
            into[done : done + len(piece)] = piece
            done += len(piece)
        if done != out.nbytes:
            raise EOFError
    return out.T if fortran else out


def _classes(what: str, array: np.ndarray, count: int) -> np.ndarray:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or len(array) != count:
        raise ValueError(f"{what} holds labels of shape {array.shape} for {count} examples: give one label per example")
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.rint(array)).all():
        array = array.astype(np.int64)
    if array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype.kind not in "iub":
        raise ValueError(f"{what} holds labels of type {array.dtype}: give whole numbers 0, 1, 2 ... or names")
    return array


def _assign(named: dict[str, Named], root: Path) -> tuple[dict[str, Named], dict[str, Named]]:
    """Sort arrays into data and labels by part."""
    data: dict[str, Named] = {}
    labels: dict[str, Named] = {}
    spare: dict[str, Named] = {}
    for name, found in named.items():
        words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
        part = split_of(name)
        target = labels if any(word in _LABELS for word in words) else data if part else spare
        if target is spare:
            spare[name] = found
        elif (part or "train") in target:
            raise ValueError(f"{root} holds two arrays for {part or 'all'} {'labels' if target is labels else 'data'}: keep one of them")
        else:
            target[part or "train"] = found
    if not data:
        if not spare:
            raise ValueError(f"{root} holds labels but no data: add an array called images")
        lower = {name.lower().split()[-1]: name for name in reversed(spare)}
        data["train"] = spare[next((lower[key] for key in _WHOLE if key in lower), next(iter(spare)))]
    return data, labels


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:  # ours to close: numpy leaves a damaged archive open
            magic = file.read(6)
            file.seek(0)
            if magic[:4] not in (b"PK\x03\x04", b"PK\x05\x06") and magic != b"\x93NUMPY":
                raise EOFError
            if magic == b"\x93NUMPY":
                big = path.stat().st_size > limit()
                return {"": np.load(path if big else file, mmap_mode="c" if big else None, allow_pickle=False)}
            with zipfile.ZipFile(file) as archive:
                members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
                return {info.filename.removesuffix(".npy"): _member(archive, info) for info in members}
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
        if "pickle" in str(error) or "Object arrays" in str(error):
            raise ValueError(
                f"{path} holds Python objects, which are never unpickled: save plain numbers (uint8 or float32) instead"
            ) from None
        raise ValueError(f"{path} is truncated or not a numpy file: save it again") from None
    except Exception as error:  # zlib.error and whatever a damaged archive brings
        raise ValueError(f"{path} is damaged ({type(error).__name__}): save it again") from None
