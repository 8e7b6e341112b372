"""Residual networks that work at half and quarter resolution: strong for their cost on two cores, made for likelihoods.

    encoder  squeeze 2, conv 3x3, blocks at H/2; squeeze 2, conv 1x1, blocks at H/4; linear (or conv 1x1 to latent maps)
    decoder  linear (or conv 1x1 from latent maps), blocks at H/4; conv 1x1, unsqueeze 2, blocks at H/2; conv 1x1, unsqueeze 2

Squeezing (Dinh et al. 2017) turns 2x2 pixels into 4 channels, so that nothing is computed at full resolution: the last layer gives the
features of four pixels at once. A block is x + conv(relu(conv(relu x))), both 3x3, whose second convolution starts at zero (Zhang et al.
2019: then no normalisation is needed, and images of one batch do not touch each other, which lossless coding likes).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expost.fast.layers import Conv2d, Linear
from expost.nets.shapes import Maps, Rows, Shape, image, multiple

__all__ = ["maps_decoder", "maps_encoder", "squeezed_decoder", "squeezed_encoder"]


class Block(nn.Module):
    """x + conv(relu(conv(relu x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = Conv2d(width, width, 3, 1, 1), Conv2d(width, width, 3, 1, 1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(torch.relu(x))))


def _quarter(shape: Shape, out: int) -> tuple[int, int, int]:
    channels, height, width = image(shape, out)
    multiple(shape, 4, "the squeezed net")
    return channels, height // 4, width // 4


def squeezed_encoder(shape: Shape, out: int, width: int = 32, blocks: tuple[int, int] = (1, 2), *, maps: bool = False) -> nn.Module:
    """x (B, C, H, W) -> (B, out), or with ``maps`` -> (B, out, H/4, W/4)."""
    channels, height, width_ = _quarter(shape, out)
    deep = 2 * width
    layers: list[nn.Module] = [nn.PixelUnshuffle(2), Conv2d(4 * channels, width, 3, 1, 1), *(Block(width) for _ in range(blocks[0]))]
    layers += [nn.PixelUnshuffle(2), Conv2d(4 * width, deep, 1), *(Block(deep) for _ in range(blocks[1])), nn.ReLU()]
    layers += [Conv2d(deep, out, 1)] if maps else [Rows(), Linear(deep * height * width_, out)]
    return nn.Sequential(*layers)


def squeezed_decoder(
    latent: int, shape: Shape, out: int, width: int = 32, blocks: tuple[int, int] = (2, 2), *, maps: bool = False
) -> nn.Module:
    """z (B, latent), or with ``maps`` (B, latent, H/4, W/4) -> features (B, out, H, W)."""
    _, height, width_ = _quarter(shape, out)
    deep = 2 * width
    layers: list[nn.Module] = (
        [Conv2d(latent, deep, 3, 1, 1)] if maps else [Linear(latent, deep * height * width_), Maps(deep, height, width_)]
    )
    layers += [
        *(Block(deep) for _ in range(blocks[0])),
        Conv2d(deep, 4 * width, 1),
        nn.PixelShuffle(2),
        *(Block(width) for _ in range(blocks[1])),
    ]
    layers += [nn.ReLU(), Conv2d(width, 4 * out, 1), nn.PixelShuffle(2)]
    return nn.Sequential(*layers)


def maps_encoder(shape: Shape, out: int, width: int = 64, blocks: int = 2) -> nn.Module:
    """Maps (B, C, H, W) -> (B, out), all at one resolution: the second level of a hierarchy."""
    channels, height, width_ = image(shape, out)
    return nn.Sequential(
        Conv2d(channels, width, 3, 1, 1), *(Block(width) for _ in range(blocks)), nn.ReLU(), Rows(), Linear(width * height * width_, out)
    )


def maps_decoder(latent: int, shape: Shape, out: int, width: int = 64, blocks: int = 2) -> nn.Module:
    """z (B, latent) -> features (B, out, H, W) of maps, all at one resolution."""
    _, height, width_ = image(shape, out)
    return nn.Sequential(
        Linear(latent, width * height * width_),
        Maps(width, height, width_),
        *(Block(width) for _ in range(blocks)),
        nn.ReLU(),
        Conv2d(width, out, 1),
    )
