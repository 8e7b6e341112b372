"""What a data set is: three splits of one shape, checked once, with a fingerprint.

Images are stored as ``uint8`` of shape (n, C, H, W) and become floats in [0, 1] when a batch is used (``tensors.unit``); points
are float32, (n, d). Whatever reaches a :class:`Dataset` has been checked: no empty split, nothing non-finite, not all pixels equal,
one shape and one type in all splits, as many labels as data. Later code relies on it and checks nothing again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from expost.seeds import some
from expost.system.devices import choose_device
from expost.tensors import as_data, check_finite

__all__ = ["Dataset", "Split"]


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set.

    Attributes:
        x: ``uint8`` images (n, C, H, W), or floating data (n, ...).
        labels: ``int64`` classes 0 ... k-1, (n,), or None.
    """

    x: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device | str) -> Split:
        """The same split on another device."""
        place = choose_device(device)
        return Split(self.x.to(place), None if self.labels is None else self.labels.to(place))

    def __repr__(self) -> str:
        labels = "no labels" if self.labels is None else "labels"
        return f"Split({len(self)} x {_sizes(self.x.shape[1:])} {_type(self.x)}, {labels})"


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Three splits under one name; made by :func:`Dataset.of`, which checks them.

    Attributes:
        name: what reports print.
        train, val, test: the splits.
        hash: the first 16 hexadecimal digits of a SHA-256 over shapes, types, bytes and labels of all three: equal data, equal hash.
        notes: what a reader of numbers must know (how the splits were made, lossy images ...).
        origin: the arguments of :func:`expost.data.load` that make it again, places as absolute paths; empty if it was not loaded.
    """

    name: str
    train: Split
    val: Split
    test: Split
    hash: str
    notes: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, train: Split, val: Split, test: Split, notes: tuple[str, ...] = ()) -> Dataset:
        """Check three splits and fingerprint them; ``ValueError`` in one sentence names the split and what is wrong with it.

        Floats of another precision than float32 become float32, with a note: networks compute in it.
        """
        parts = {}
        for part, given in {"train": train, "val": val, "test": test}.items():
            what = f"{name}, {part} split"
            x = as_data(given.x, what)
            if x.is_floating_point() and x.dtype != torch.float32:
                check_finite(x, what)
                notes = tuple(dict.fromkeys((*notes, f"{_type(x)} became float32")))
                x = x.to(torch.float32)
                if not bool(torch.isfinite(x).all()):
                    raise ValueError(f"{what}: numbers beyond the range of float32, {torch.finfo(x.dtype).max:.2g}: scale the data")
            parts[part] = split = Split(x, given.labels)
            check_split(split, what)
        train, val, test = parts.values()
        if train.x.dim() == 2:
            size = float(some(train.x, 100_000, "size of points").double().square().mean().sqrt())
            if not 1e-2 <= size <= 100:
                notes = (*notes, f"values are of size {size:.2g} (root mean square), networks are made for about 1: divide the data by it")
        for part, split in parts.items():
            if split.x.shape[1:] != train.x.shape[1:] or split.x.dtype != train.x.dtype:
                raise ValueError(
                    f"{name}: the train split holds {_type(train.x)} of {_sizes(train.x.shape[1:])}, the {part} split "
                    f"{_type(split.x)} of {_sizes(split.x.shape[1:])}: all splits must have one shape and type"
                )
        digest = hashlib.sha256()
        for part, split in parts.items():
            digest.update(f"{part} {tuple(split.x.shape)} {split.x.dtype} {split.labels is not None}".encode())
            digest.update(_bytes(split.x))
            if split.labels is not None:
                digest.update(_bytes(split.labels))
        return cls(name, train, val, test, digest.hexdigest()[:16], notes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one datum: (C, H, W) or (d,)."""
        return tuple(self.train.x.shape[1:])

    @property
    def classes(self) -> int:
        """Number of classes, 0 without labels."""
        labels = [s.labels for s in (self.train, self.val, self.test) if s.labels is not None]
        return 1 + max(int(y.max()) for y in labels) if labels else 0

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set on another device (this one stays as it is)."""
        return replace(self, train=self.train.to(device), val=self.val.to(device), test=self.test.to(device))

    def __repr__(self) -> str:
        kind = {4: "images", 2: "points"}.get(self.train.x.dim(), "data")
        classes = f", {self.classes} classes" if self.classes else ""
        sizes = "/".join(str(len(s)) for s in (self.train, self.val, self.test))
        return f"{self.name}: {sizes} train/val/test {kind} of {_sizes(self.shape)} {_type(self.train.x)}{classes}, hash {self.hash}"


def check_split(split: Split, what: str) -> None:
    """``ValueError`` if a split is empty, of a wrong type or shape, non-finite, constant, or has labels that do not fit."""
    x, labels = split.x, split.labels
    if len(x) == 0:
        raise ValueError(f"{what} is empty: give at least one example")
    if x.dtype == torch.uint8:
        if x.dim() != 4:
            raise ValueError(f"{what}: uint8 data must be images (n, C, H, W), not of shape {tuple(x.shape)}: reshape them")
    elif not x.is_floating_point():
        raise ValueError(f"{what}: expected uint8 images or floating-point data, not {_type(x)}: convert it first")
    elif x.dim() < 2:
        raise ValueError(f"{what}: expected data of shape (n, ...), not {tuple(x.shape)}: add a dimension with x[:, None]")
    if 0 in x.shape:
        raise ValueError(f"{what}: data of shape {tuple(x.shape)} hold no numbers: check the array")
    check_finite(x, what)
    head = x[0].flatten()[:4096]
    if bool((head == head[0]).all()) and bool(x.amin() == x.amax()):  # the head alone settles it for all but odd images
        raise ValueError(f"{what}: all {x.numel()} values equal {x.flatten()[0].item():g}, nothing can be learned: check the data")
    if labels is None:
        return
    if labels.dtype != torch.int64 or labels.shape != x.shape[:1]:
        raise ValueError(
            f"{what}: {len(x)} examples but labels of shape {tuple(labels.shape)} and type {_type(labels)}: give one int64 label per example"
        )
    if labels.min() < 0:
        raise ValueError(f"{what}: labels go from {int(labels.min())} to {int(labels.max())}: number the classes 0, 1, 2 ...")


def _bytes(x: Tensor) -> memoryview:
    return x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _type(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _sizes(shape: tuple[int, ...] | torch.Size) -> str:
    return "x".join(map(str, shape))
