"""Multilayer perceptrons, and their use on images and points: flatten, multiply, unflatten."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from expost.fast.layers import Linear
from expost.nets.shapes import Shape, image

__all__ = ["mlp", "mlp_decoder", "mlp_encoder"]


def mlp(sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """x (B, sizes[0]) -> (B, sizes[-1]): affine maps with ``activation()`` between them, none at the end.

    >>> sum(p.numel() for p in mlp([784, 400, 100]).parameters())
    354100
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"an MLP needs at least an input and an output size, all positive, not {list(sizes)}")
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


def mlp_encoder(shape: Shape, out: int, hidden: Sequence[int] = (400,), activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """x (B, *shape) -> (B, out). ``hidden`` in the order of the layers; () is a linear map. ``shape`` of any rank."""
    return nn.Sequential(nn.Flatten(), mlp([math.prod(shape), *hidden, out], activation))


def mlp_decoder(
    latent: int, shape: Shape, out: int, hidden: Sequence[int] = (400,), activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """z (B, latent) -> maps (B, out, H, W) before the link, or (B, out) for points. ``hidden`` in the order of the layers, ``shape`` (C, H, W) or (d,)."""
    rest = () if len(shape) == 1 else image(shape, out)[1:]
    layers = mlp([latent, *hidden, out * math.prod(rest)], activation)
    return nn.Sequential(layers, nn.Unflatten(1, (out, *rest))) if rest else nn.Sequential(layers)
