"""The networks of Bozkurt, Esmaeili, Brooks, Dy, van de Meent (2018), Can VAEs generate novel examples?

Perceptrons with ReLU on flattened images; the decoder mirrors the encoder. *Shallow* is one hidden layer of 400, *deep* is
400-200-100. The paper sweeps "17" architectures; the authors' figure shows the 20 of :data:`BOZKURT_HIDDEN`, whose decoder sizes it prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

from torch import nn

from expost.nets.mlp import mlp_decoder, mlp_encoder
from expost.nets.shapes import Shape

__all__ = ["BOZKURT_HIDDEN", "bozkurt_decoder", "bozkurt_encoder"]

#: The 20 encoders: widths 100, 200, 400, never widening, 0 to 3 hidden layers.
BOZKURT_HIDDEN: tuple[tuple[int, ...], ...] = tuple(
    widths for depth in range(4) for widths in combinations_with_replacement((400, 200, 100), depth)
)


def bozkurt_encoder(shape: Shape, out: int, hidden: Sequence[int] = (400,)) -> nn.Module:
    """x (B, C, H, W) -> (B, out) through ``hidden``; the paper's out is 2 x 50: μ and log σ."""
    return mlp_encoder(shape, out, hidden)


def bozkurt_decoder(latent: int, shape: Shape, out: int, hidden: Sequence[int] = (400,)) -> nn.Module:
    """z (B, latent) -> (B, out, H, W). ``hidden`` is the *encoder's* tuple: it is mirrored here.

    >>> sum(p.numel() for p in bozkurt_decoder(50, (1, 28, 28), 1, (400, 200, 100)).parameters())
    420084
    """
    return mlp_decoder(latent, shape, out, tuple(reversed(hidden)))
