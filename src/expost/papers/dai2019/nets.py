"""The "neutral" networks of Dai & Wipf (2019), Diagnosing and enhancing VAE models.

*Neutral* (their Table 1; the InfoGAN net of Lucic et al. 2018), for s x s images, s a multiple of 4:

    encoder  conv 4x4 s2 64, lReLU | conv 4x4 s2 128, BN, lReLU | linear 1024, BN, lReLU | linear
    decoder  linear 1024, BN, ReLU | linear 128 (s/4)², BN, ReLU | conv-transpose 4x4 s2 64, BN, ReLU | conv-transpose 4x4 s2

with slope .2 and, in the encoder, spectral normalisation of every weight. Weights start from N(0, .02²) (convolutions truncated at
two standard deviations), biases from 0; batch normalisation has decay .999 (PyTorch: momentum .001).

The residual and the WAE networks are in ``residual``, those of the second stage in :mod:`expost.train.second_stage`. The scalar log γ belongs to the head.
"""

from __future__ import annotations

from torch import nn

from expost.fast.layers import Conv2d, ConvTranspose2d, Linear
from expost.nets.shapes import Maps, Rows, Shape, image, multiple
from expost.nets.spectral import spectrally_normalised

__all__ = ["dai_decoder", "dai_encoder"]


def _norm1(features: int) -> nn.Module:
    return nn.BatchNorm1d(features, momentum=0.001)


def _norm2(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, momentum=0.001)


def _small_normal(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
        elif isinstance(module, Linear | ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, Conv2d | Linear | ConvTranspose2d) and module.bias is not None:
            nn.init.zeros_(module.bias)


def dai_encoder(shape: Shape, out: int, *, spectral: bool = True) -> nn.Module:
    """x (B, C, H, W) -> (B, out); the paper's out is 2 x 64. ``spectral=False`` is the net of Lucic et al.'s own VAE."""
    channels, height, width = image(shape, out)
    multiple(shape, 4, "the neutral net of Dai & Wipf")
    net = nn.Sequential(
        Conv2d(channels, 64, 4, 2, 1),
        nn.LeakyReLU(0.2),
        Conv2d(64, 128, 4, 2, 1),
        _norm2(128),
        nn.LeakyReLU(0.2),
        Rows(),
        Linear(128 * (height // 4) * (width // 4), 1024),
        _norm1(1024),
        nn.LeakyReLU(0.2),
        Linear(1024, out),
    )
    _small_normal(net)
    return spectrally_normalised(net) if spectral else net


def dai_decoder(latent: int, shape: Shape, out: int) -> nn.Module:
    """z (B, latent) -> maps (B, out, H, W) before the link. Never spectrally normalised."""
    _, height, width = image(shape, out)
    multiple(shape, 4, "the neutral net of Dai & Wipf")
    features = 128 * (height // 4) * (width // 4)
    net = nn.Sequential(
        Linear(latent, 1024),
        _norm1(1024),
        nn.ReLU(),
        Linear(1024, features),
        _norm1(features),
        nn.ReLU(),
        Maps(128, height // 4, width // 4),
        ConvTranspose2d(128, 64, 4, 2, 1),
        _norm2(64),
        nn.ReLU(),
        ConvTranspose2d(64, out, 4, 2, 1),
    )
    _small_normal(net)
    return net
