"""The residual and the WAE networks of Dai & Wipf (2019), Diagnosing and enhancing VAE models (Figure 1, sample figures, CelebA).

    ResBlock(x)  = conv3(x) + [BN, ReLU, conv3] twice (x)          ScaleBlock = ``blocks`` ResBlocks
    encoder      conv3 to ``base`` channels, then per scale a ScaleBlock and a stride-2 conv3 that doubles the channels,
                 to a vector, a ScaleBlock of width 512 with linear layers for convolutions, linear
    decoder      linear to maps of 2x2, then up to full size: stride-2 conv-transpose3 that halves the channels, ScaleBlock; conv3

The paper has base 32, 2 ResBlocks per scale and flattens (``pool="flatten"``); the authors' code has base 16, 1 ResBlock, averages over
positions (``pool="mean"``) and leaves out the last halving. Channels stop at 1024. The sheet of facts does not say whether the
linear ScaleBlock is batch normalised; here it is built exactly like the others. Convolutions are TensorFlow's 'SAME', Glorot uniform.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from expost.fast.layers import Conv2d, ConvTranspose2d, Linear
from expost.nets.shapes import Crop, Maps, Pad, Rows, Shape, glorot, image, multiple

__all__ = ["dai_residual_decoder", "dai_residual_encoder", "dai_wae_decoder", "dai_wae_encoder"]

LARGEST = 1024


class Residual(nn.Module):
    """x -> shortcut(x) + body(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class Mean(nn.Module):
    """(B, C, H, W) -> (B, C): average over positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def _scale(channels: int, blocks: int) -> list[nn.Module]:
    def conv() -> nn.Module:
        return Conv2d(channels, channels, 3, 1, 1)

    def norm() -> list[nn.Module]:
        return [nn.BatchNorm2d(channels, momentum=0.001), nn.ReLU()]

    return [Residual(nn.Sequential(*norm(), conv(), *norm(), conv()), conv()) for _ in range(blocks)]


def _scale_linear(inputs: int, features: int, blocks: int) -> list[nn.Module]:
    found: list[nn.Module] = []
    for _ in range(blocks):
        body = nn.Sequential(
            nn.BatchNorm1d(inputs, momentum=0.001),
            nn.ReLU(),
            Linear(inputs, features),
            nn.BatchNorm1d(features, momentum=0.001),
            nn.ReLU(),
            Linear(features, features),
        )
        found.append(Residual(body, Linear(inputs, features)))
        inputs = features
    return found


def dai_residual_encoder(
    shape: Shape,
    out: int,
    *,
    base: int = 32,
    blocks: int = 2,
    scales: int | None = None,
    pool: Literal["flatten", "mean"] = "flatten",
) -> nn.Module:
    """x (B, C, H, W) -> (B, out). ``scales`` is 4 for 64 pixels and 3 below in the paper, which is the default."""
    channels, height, width = image(shape, out)
    if pool not in ("flatten", "mean"):
        raise ValueError(f"pool must be 'flatten' (the paper) or 'mean' (the code), not {pool!r}")
    scales = (4 if min(height, width) >= 64 else 3) if scales is None else scales
    if scales < 1 or blocks < 1:
        raise ValueError(f"scales and blocks must be at least 1, not {scales} and {blocks}")
    halvings = scales if pool == "flatten" else scales - 1
    multiple(shape, 1 << halvings, "the residual encoder of Dai & Wipf")
    layers: list[nn.Module] = [Conv2d(channels, base, 3, 1, 1)]
    for scale in range(scales):
        layers += _scale(base, blocks)
        if scale < halvings:
            layers += [Pad(0, 1), Conv2d(base, min(2 * base, LARGEST), 3, 2)]
            base = min(2 * base, LARGEST)
    features = base * (height >> halvings) * (width >> halvings) if pool == "flatten" else base
    end = Rows() if pool == "flatten" else Mean()
    net = nn.Sequential(*layers, end, *_scale_linear(features, 512, blocks), Linear(512, out))
    glorot(net)
    return net


def dai_residual_decoder(latent: int, shape: Shape, out: int, *, base: int = 32, blocks: int = 2) -> nn.Module:
    """z (B, latent) -> maps (B, out, H, W) before the link; H = W a power of two: the net starts from 2x2."""
    _, height, width = image(shape, out)
    if blocks < 1:
        raise ValueError(f"blocks must be at least 1, not {blocks}")
    if height != width or height < 4 or height & (height - 1):
        to = 1 << (max(height, width, 4) - 1).bit_length()
        raise ValueError(
            f"the residual decoder of Dai & Wipf needs square images of a power of two, not {height}x{width}: "
            f"pad the images to {to}x{to} (pad_to={to})"
        )
    widths = [min(base << i, LARGEST) for i in range(height.bit_length() - 1)][::-1]
    layers: list[nn.Module] = [Linear(latent, 4 * widths[0]), Maps(widths[0], 2, 2)]
    for n_in, n_out in pairwise(widths):
        layers += [ConvTranspose2d(n_in, n_out, 3, 2), Crop(), *_scale(n_out, blocks)]
    net = nn.Sequential(*layers, Conv2d(widths[-1], out, 3, 1, 1))
    glorot(net)
    return net


def dai_wae_encoder(shape: Shape, out: int) -> nn.Module:
    """The repository's WAE net, for 64x64: [conv 5x5, BN, ReLU] of 128 (s1), 256, 512, 1024 (s2), linear. Multiples of 8."""
    channels, height, width = image(shape, out)
    multiple(shape, 8, "the WAE encoder of Dai & Wipf")
    layers: list[nn.Module] = []
    for filters in (128, 256, 512, 1024):
        layers += [Conv2d(channels, filters, 5, 1, 2)] if filters == 128 else [Pad(1, 2), Conv2d(channels, filters, 5, 2)]
        layers += [nn.BatchNorm2d(filters, momentum=0.001), nn.ReLU()]
        channels = filters
    net = nn.Sequential(*layers, Rows(), Linear(channels * (height // 8) * (width // 8), out))
    glorot(net)
    return net


def dai_wae_decoder(latent: int, shape: Shape, out: int) -> nn.Module:
    """Linear to 1024 maps, ReLU without BN, [conv-transpose 5x5 s2, BN, ReLU] of 512, 256, 128, conv-transpose 5x5 s1. Multiples of 8."""
    _, height, width = image(shape, out)
    multiple(shape, 8, "the WAE decoder of Dai & Wipf")
    layers: list[nn.Module] = [
        Linear(latent, 1024 * (height // 8) * (width // 8)),
        nn.ReLU(),
        Maps(1024, height // 8, width // 8),
    ]
    for filters in (512, 256, 128):
        layers += [ConvTranspose2d(2 * filters, filters, 5, 2, 1), Crop(), nn.BatchNorm2d(filters, momentum=0.001), nn.ReLU()]
    net = nn.Sequential(*layers, ConvTranspose2d(128, out, 5, 1, 2))
    glorot(net)
    return net
