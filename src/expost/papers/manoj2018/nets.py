"""The networks of Manoj (2018), class radius and diversity of latent spaces: four halving convolutions, a small decoder.

    encoder  [conv 4x4 s2 p1, BN, ReLU] of 128, 256, 512, 1024 channels (28 -> 14 -> 7 -> 3 -> 1), linear
    decoder  linear to 256 maps of 7x7, conv-transpose 4x4 s2 p1 of 128, BN, ReLU, conv-transpose 4x4 s2 p1

The alternative without convolutions is 784-400-d and back. Initial values are PyTorch's.
"""

from __future__ import annotations

from torch import nn

from expost.fast.layers import Conv2d, ConvTranspose2d, Linear
from expost.nets.mlp import mlp_decoder, mlp_encoder
from expost.nets.shapes import Maps, Rows, Shape, image, multiple

__all__ = ["manoj_decoder", "manoj_encoder", "manoj_fc_decoder", "manoj_fc_encoder"]


def manoj_encoder(shape: Shape, out: int) -> nn.Module:
    """x (B, C, H, W) -> (B, out). ``ValueError`` below 16x16."""
    channels, height, width = image(shape, out)
    if min(height, width) < 16:
        raise ValueError(
            f"this encoder halves the image four times and needs at least 16x16, not {height}x{width}: enlarge the images (size=16), or take smaller networks (network=small)"
        )
    layers: list[nn.Module] = []
    for filters in (128, 256, 512, 1024):
        layers += [Conv2d(channels, filters, 4, 2, 1), nn.BatchNorm2d(filters), nn.ReLU()]
        channels = filters
    return nn.Sequential(*layers, Rows(), Linear(channels * (height // 16) * (width // 16), out))


def manoj_decoder(latent: int, shape: Shape, out: int) -> nn.Module:
    """z (B, latent) -> maps (B, out, H, W) before the link. ``ValueError`` unless H and W are multiples of 4."""
    _, height, width = image(shape, out)
    multiple(shape, 4, "this decoder")
    return nn.Sequential(
        Linear(latent, 256 * (height // 4) * (width // 4)),
        Maps(256, height // 4, width // 4),
        ConvTranspose2d(256, 128, 4, 2, 1),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        ConvTranspose2d(128, out, 4, 2, 1),
    )


def manoj_fc_encoder(shape: Shape, out: int) -> nn.Module:
    """x (B, C, H, W) -> (B, out) through one hidden layer of 400."""
    return mlp_encoder(shape, out, (400,))


def manoj_fc_decoder(latent: int, shape: Shape, out: int) -> nn.Module:
    """z (B, latent) -> (B, out, H, W) through one hidden layer of 400."""
    return mlp_decoder(latent, shape, out, (400,))
