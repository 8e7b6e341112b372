"""Spectral normalisation: every weight divided by its largest singular value.

    W̄ = W / σ(W),    σ(W) ≈ uᵀ W v,    v <- Wᵀu / ‖Wᵀu‖,   u <- W v / ‖W v‖     (one power iteration per training forward)

u and v are buffers (``parametrizations.weight.0._u``), so that they are saved and loaded with the weights; no gradient flows
through them. In evaluation mode they stand still, so two evaluations agree.

Miyato, Kataoka, Koyama, Yoshida (2018), Spectral normalization for generative adversarial networks. Which matrix a kernel is: as in the
code of Ghosh et al. (2020) and Dai & Wipf (2019), a convolution is (k k C_in) x C_out and a transposed one (k k C_out) x C_in,
that is, in torch's layout both are flattened behind their first dimension. (``torch``'s own default for transposed kernels is the second.)
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["spectrally_normalised"]

Net = TypeVar("Net", bound=nn.Module)


def spectrally_normalised(net: Net, *, iterations: int = 1) -> Net:
    """Normalise every linear, convolutional and transposed convolutional layer of ``net``, in place; returns ``net``.

    Draws the first u and v from torch's global generator: build the net under ``seeds.seeded(...)`` to make them reproducible.
    Batch normalisation and biases are left alone, as in the papers.

    Raises ``ValueError`` if the net has no such layer, or if one is normalised already.
    """
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d)]
    if not layers:
        raise ValueError(f"{type(net).__name__} has no linear or convolutional layer to normalise: pass the net itself, not its head")
    for layer in layers:
        if hasattr(layer, "parametrizations"):
            raise ValueError("a layer of this net is normalised already: call spectrally_normalised once, on the outermost net")
    for layer in layers:
        spectral_norm(layer, n_power_iterations=iterations, dim=0)
    return net
