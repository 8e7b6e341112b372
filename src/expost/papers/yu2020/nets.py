"""The network of Yu (2020), A tutorial on VAEs: from Bayes' rule to lossless compression.

A dense block: each layer sees the input and every layer before it,

    h_0 = x,   h_{i+1} = [h_i, ReLU(W_i h_i + b_i)],   y = W h_L + b,

with weight normalisation (W = g v/‖v‖ per output; Salimans & Kingma 2016) and no batch normalisation, on purpose: it acts on
two-dimensional data one point at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from expost.fast.layers import Linear

__all__ = ["DenseBlock", "yu_decoder", "yu_encoder"]


class DenseBlock(nn.Module):
    """x (B, inputs) -> (B, out), ``depth`` layers of ``growth`` units each."""

    def __init__(self, inputs: int, out: int, growth: int = 1024, depth: int = 6) -> None:
        super().__init__()
        if min(inputs, out, growth) < 1 or depth < 0:
            raise ValueError(f"inputs, out and growth must be positive and depth not negative, not {(inputs, out, growth, depth)}")
        self.hidden = nn.ModuleList(weight_norm(Linear(inputs + i * growth, growth)) for i in range(depth))
        self.last = weight_norm(Linear(inputs + depth * growth, out))

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.hidden:
            h = torch.cat((h, torch.relu(layer(h))), -1)
        return self.last(h)


def yu_encoder(inputs: int, out: int, growth: int = 1024, depth: int = 6) -> nn.Module:
    """x (B, inputs) -> (B, out); the paper's out is 4: μ and log σ² of a two-dimensional z.

    >>> sum(p.numel() for p in yu_encoder(2, 4).parameters())
    15777808
    """
    return DenseBlock(inputs, out, growth, depth)


def yu_decoder(latent: int, out: int, growth: int = 1024, depth: int = 6) -> nn.Module:
    """z (B, latent) -> (B, out); the paper's out is 4: μ and log σ² of a two-dimensional x, free per coordinate."""
    return DenseBlock(latent, out, growth, depth)
