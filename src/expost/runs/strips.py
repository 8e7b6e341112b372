"""Labelled strips of images: what figures of samples, reconstructions and neighbours are made of. :mod:`expost.report` draws them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["SHOWN", "Strips"]

#: Images in a strip, unless a figure says otherwise.
SHOWN = 16


@dataclass(frozen=True)
class Strips:
    """Labelled strips of images, ``columns`` images each; ``captions`` stand under the images of a row."""

    name: str
    title: str
    caption: str
    rows: dict[str, Tensor]
    columns: int = SHOWN
    captions: dict[str, list[str]] = field(default_factory=dict)
