"""A small convolutional pair for two CPU cores: any image from 8x8 up, any number of channels.

    encoder  [conv 3x3 s2, BN, ReLU] of w, 2w, 4w channels, linear
    decoder  linear, BN, ReLU, [conv-transpose 3x3 s2, BN, ReLU] of 2w, w channels, conv-transpose 3x3 s2

Each step halves height and width, rounding up (28 -> 14 -> 7 -> 4), and the decoder retraces the very sizes.
"""

from __future__ import annotations

from torch import nn

from expost.fast.layers import Conv2d, ConvTranspose2d, Linear
from expost.nets.shapes import Maps, Rows, Shape, image

__all__ = ["small_decoder", "small_encoder"]

HALVINGS = 3


def _sizes(shape: Shape, out: int, width: int) -> list[tuple[int, int]]:
    """(H, W) after 0, 1, 2, 3 halvings."""
    _, height, width_ = image(shape, out)
    if min(height, width_) < 8:
        raise ValueError(
            f"the small nets need images of at least 8x8, not {height}x{width_}: enlarge the images (size=8), or take a perceptron (network=mlp)"
        )
    if width < 1:
        raise ValueError(f"width, the number of channels after the first layer, must be at least 1, not {width}")
    return [(-(-height // (1 << i)), -(-width_ // (1 << i))) for i in range(HALVINGS + 1)]


def small_encoder(shape: Shape, out: int, width: int = 32) -> nn.Module:
    """x (B, C, H, W) -> (B, out). ``ValueError`` below 8x8."""
    (height, width_), channels = _sizes(shape, out, width)[-1], shape[0]
    layers: list[nn.Module] = []
    for i in range(HALVINGS):
        filters = width << i
        layers += [Conv2d(channels, filters, 3, 2, 1), nn.BatchNorm2d(filters), nn.ReLU()]
        channels = filters
    return nn.Sequential(*layers, Rows(), Linear(channels * height * width_, out))


def small_decoder(latent: int, shape: Shape, out: int, width: int = 32) -> nn.Module:
    """z (B, latent) -> maps (B, out, H, W) before the link. ``ValueError`` below 8x8."""
    sizes = _sizes(shape, out, width)
    height, width_ = sizes[-1]
    channels = width << (HALVINGS - 1)
    layers: list[nn.Module] = [Linear(latent, channels * height * width_), Maps(channels, height, width_)]
    for i in reversed(range(HALVINGS)):
        (h, w), (h_small, w_small) = sizes[i], sizes[i + 1]
        filters = width << (i - 1) if i else out
        missing = h - 2 * h_small + 1, w - 2 * w_small + 1  # 3x3 s2 p1 gives 2h - 1; even sizes lack one row
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), ConvTranspose2d(channels, filters, 3, 2, 1, output_padding=missing)]
        channels = filters
    return nn.Sequential(*layers)
