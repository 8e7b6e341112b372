"""From maps to vectors and back, in channels-last order, and the checks of image sizes that the nets share.

The order (rows, columns, channels) is TensorFlow's, hence that of the papers' code, and costs no copy where maps are channels-last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Crop", "Maps", "Pad", "Rows", "Shape", "glorot", "image", "multiple"]

#: (C, H, W) of one image.
Shape = Sequence[int]


class Rows(nn.Module):
    """(B, C, H, W) -> (B, H W C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


class Maps(nn.Module):
    """(B, H W C) -> (B, C, H, W), channels-last in memory."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.size).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return "height={}, width={}, channels={}".format(*self.size)


class Pad(nn.Module):
    """Zeros around the image, ``before`` above and left, ``after`` below and right: TensorFlow's unequal 'SAME' padding."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (self.before, self.after, self.before, self.after))

    def extra_repr(self) -> str:
        return f"before={self.before}, after={self.after}"


class Crop(nn.Module):
    """Drop the last ``by`` rows and columns: what makes a transposed convolution TensorFlow's 'SAME'."""

    def __init__(self, by: int = 1) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : -self.by, : -self.by]

    def extra_repr(self) -> str:
        return f"by={self.by}"


def image(shape: Shape, out: int) -> tuple[int, int, int]:
    """``shape`` as (C, H, W); ``ValueError`` unless it is that and ``out`` is positive."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be (channels, height, width), not {tuple(shape)}: pass the shape of one image, as x.shape[1:]")
    if out < 1:
        raise ValueError(f"a net needs at least 1 output, not {out}: take head.size(...)")
    channels, height, width = shape
    return int(channels), int(height), int(width)


def multiple(shape: Shape, of: int, net: str) -> None:
    """``ValueError`` with the remedy unless height and width are multiples of ``of``."""
    height, width = shape[1:]
    if height % of or width % of:
        to = -(-max(height, width) // of) * of
        raise ValueError(
            f"{net} needs height and width to be multiples of {of}, not {height}x{width}: "
            f"pad the images to {to}x{to} (pad_to={to}), or take networks for any size (network=small)"
        )


def glorot(net: nn.Module) -> None:
    """Keras' and TF layers' default: weights uniform on ±√(6 / (fan_in + fan_out)) (Glorot & Bengio 2010), biases 0. In place."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            with torch.no_grad():
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    module.bias.zero_()
