"""Pictures: grids of images, labelled panels. Pillow comes with matplotlib; both are imported when first used.

Images of one channel are drawn grey and of three in colour; of any other number the first three are red, green and blue (:func:`colours`
says so, wherever such a picture is shown). A picture that cannot be drawn costs a note, never the command (:func:`attempt`).

Labelled rows of square maps: densities in one colour scale, or coloured maps as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expost.system.files import atomic
from expost.tensors import check_finite

__all__ = ["PICTURES", "attempt", "colours", "grid", "panels", "save_maps", "save_panels", "save_picture"]


#: Suffix -> format of the pictures that are written.
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF"}


def colours(channels: int) -> str:
    """What must be said beside a picture of images of so many channels; nothing of grey and colour images."""
    if channels in (1, 3):
        return ""
    shown = "both channels as red and green" if channels == 2 else f"channels 1 to 3 of {channels} as red, green and blue"
    return f"pictures show {shown}"


def attempt(path: str | Path, draw: Callable[[], None]) -> str:
    """Draw into a file; what went wrong in a sentence, or nothing."""
    try:
        draw()
    except Exception as error:  # whatever a picture may fail at, it is not what was computed
        return f"no picture {path}: {' '.join(str(error).split()) or type(error).__name__}"
    return ""


def grid(images: Tensor, columns: int | None = None, gap: int = 1, scale: int = 1) -> Tensor:
    """One picture (3, H, W) uint8 of many images (n, C, h, w) in [0, 1] or uint8, row by row, enlarged by whole pixels."""
    if images.dim() != 4 or len(images) == 0:
        raise ValueError(f"a grid needs images of shape (n, C, H, W), not {tuple(images.shape)}")
    if images.dtype != torch.uint8:
        check_finite(images, "images of a picture")
        images = (images.float().clamp(0, 1) * 255).round().to(torch.uint8)
    n, channels, height, width = images.shape
    if channels != 1:
        images = torch.nn.functional.pad(images[:, :3], (0, 0, 0, 0, 0, max(0, 3 - channels)))
    images = images.cpu().expand(n, 3, height, width).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    height, width = height * scale, width * scale
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = torch.full((3, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8)
    for i in range(n):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = images[i]
    return sheet


def save_picture(path: str | Path, picture: Tensor) -> None:
    """Write a (3, H, W) uint8 picture in the format of the path's suffix, see :data:`PICTURES`."""
    from PIL import Image

    suffix = Path(path).suffix.lower()
    if suffix not in PICTURES:
        raise ValueError(f"{path}: pictures are written as {', '.join(PICTURES)}, not {suffix or 'without a suffix'}: change the name")
    with atomic(path) as temporary:
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(temporary, format=PICTURES[suffix])


def panels(rows: Mapping[str, Tensor], columns: int = 16, title: str = "", captions: Mapping[str, Sequence[str]] | None = None) -> Any:
    """A matplotlib figure: one labelled strip of images per entry; ``captions`` stand under the images of a row, one each."""
    from matplotlib.figure import Figure

    images = next(iter(rows.values()))
    height, width = images.shape[-2:]
    aspect = height / width
    captions = captions or {}
    under = 0.16 * len(captions)
    figure = Figure(figsize=(9.0, 0.55 + under + len(rows) * (7.0 / columns * aspect + 0.06)), dpi=150)
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, (name, images) in zip(axes, rows.items(), strict=True):
        scale = max(1, 56 // height)
        axis.imshow(grid(images[:columns], columns, gap=scale, scale=scale).permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        if name in captions:
            step = scale * (width + 1)
            axis.set_xticks([step * i + scale * width / 2 for i in range(len(captions[name]))], captions[name], fontsize=7)
            axis.tick_params(length=0, pad=1)
    if title:
        figure.suptitle(title, fontsize=9)
    figure.tight_layout(h_pad=0.25)
    return figure


def save_panels(
    path: str | Path, rows: Mapping[str, Tensor], columns: int = 16, title: str = "", captions: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Write :func:`panels` as PNG."""
    figure = panels(rows, columns, title, captions)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")


def save_maps(path: str | Path, rows: Mapping[str, Mapping[str, Tensor]], title: str = "") -> None:
    """Write one row of maps per entry as PNG: (H, W) in [0, 1] is drawn in a colour scale, (3, H, W) as RGB; columns are named once."""
    from matplotlib.figure import Figure

    columns = list(next(iter(rows.values())))
    figure = Figure(figsize=(2.3 * len(columns) + 0.6, 2.3 * len(rows) + 0.5), dpi=130)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for number, (line, (name, maps)) in enumerate(zip(axes, rows.items(), strict=True)):
        for axis, (column, picture) in zip(line, maps.items(), strict=True):
            if picture.dim() == 2:
                axis.imshow(picture.numpy(), cmap="magma", vmin=0, vmax=1)
            else:
                axis.imshow(picture.permute(1, 2, 0).clamp(0, 1).numpy())
            axis.set_xticks([])
            axis.set_yticks([])
            if number == 0:
                axis.set_title(column, fontsize=9)
        line[0].set_ylabel(name, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
