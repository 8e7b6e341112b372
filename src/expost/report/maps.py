"""Labelled rows of square maps: densities in one colour scale, or coloured maps as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from expost.system.files import atomic

__all__ = ["save_maps"]


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
