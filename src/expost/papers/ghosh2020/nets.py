"""The networks of Ghosh, Sajjadi, Vergari, Black, Schölkopf (2020), From variational to deterministic autoencoders.

                MNIST (padded to 32x32), CIFAR-10: k = 4               CelebA (64x64): k = 5
    encoder     2x - 1, [conv s2, BN, ReLU] of 128, 256, 512, 1024,    the same without 2x - 1
                linear
    decoder     linear to 1024 maps of 8x8,                            linear to 1024 maps of 8x8,
                [conv-transpose s2, BN, ReLU] of 512, 256,             [conv-transpose s2, BN, ReLU] of 512, 256, 128,
                conv-transpose s1                                      conv-transpose s1

Convolutions are TensorFlow's 'SAME'; where its padding is unequal it is written out (:class:`Pad`, :class:`Crop`). Initial values are
Keras' (Glorot uniform), batch normalisation has momentum .99 (PyTorch: .01) and ε = 1e-3. Where paper and code differ these follow the
code: 2x - 1 is not in the paper; the paper's table has BN-ReLU after the decoder's linear layer. The VAE's second head,
log σ = 5 tanh(·), is one more linear layer on the same features: ask for ``out = 2 d`` and let the head bound it.
"""

from __future__ import annotations

from torch import Tensor, nn

from expost.fast.layers import Conv2d, ConvTranspose2d, Linear
from expost.nets.shapes import Crop, Maps, Pad, Rows, Shape, glorot, image, multiple
from expost.nets.spectral import spectrally_normalised

__all__ = ["ghosh_celeba_decoder", "ghosh_celeba_encoder", "ghosh_decoder", "ghosh_encoder"]


class Signed(nn.Module):
    """2x - 1: [0, 1] -> [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 1


def _norm(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01), nn.ReLU()]


def _encoder(shape: Shape, out: int, width: int, kernel: int, spectral: bool) -> nn.Sequential:
    channels, height, width_ = image(shape, out)
    multiple(shape, 16, "the encoder of Ghosh et al.")
    layers: list[nn.Module] = [Signed()] if kernel == 4 else []
    for filters in (width, 2 * width, 4 * width, 8 * width):
        if kernel == 4:
            layers += [Conv2d(channels, filters, 4, 2, 1), *_norm(filters)]
        else:
            layers += [Pad(1, 2), Conv2d(channels, filters, 5, 2), *_norm(filters)]
        channels = filters
    net = nn.Sequential(*layers, Rows(), Linear(channels * (height // 16) * (width_ // 16), out))
    glorot(net)
    return spectrally_normalised(net) if spectral else net


def _decoder(latent: int, shape: Shape, out: int, width: int, kernel: int, ups: int, spectral: bool) -> nn.Sequential:
    _, height, width_ = image(shape, out)
    multiple(shape, 1 << ups, "the decoder of Ghosh et al.")
    channels, h, w = 8 * width, height >> ups, width_ >> ups
    layers: list[nn.Module] = [Linear(latent, channels * h * w), Maps(channels, h, w)]
    for _ in range(ups):
        layers += [ConvTranspose2d(channels, channels // 2, kernel, 2, 1), *([Crop()] if kernel == 5 else []), *_norm(channels // 2)]
        channels //= 2
    last = [ConvTranspose2d(channels, out, 4, 1, 1), Crop()] if kernel == 4 else [ConvTranspose2d(channels, out, 5, 1, 2)]
    net = nn.Sequential(*layers, *last)
    glorot(net)
    return spectrally_normalised(net) if spectral else net


def ghosh_encoder(shape: Shape, out: int, *, width: int = 128, spectral: bool = False) -> nn.Module:
    """MNIST and CIFAR-10: x (B, C, H, W) in [0, 1] -> (B, out). The paper's out is d = 16 or 128, twice that for a VAE.

    ``width`` is the first layer's number of channels; ``spectral`` normalises every layer (RAE-SN: encoder and decoder in the
    code, decoder only in the paper). ``ValueError`` unless H and W are multiples of 16: pad MNIST to 32x32.
    """
    return _encoder(shape, out, width, 4, spectral)


def ghosh_decoder(latent: int, shape: Shape, out: int, *, width: int = 128, spectral: bool = False) -> nn.Module:
    """MNIST and CIFAR-10: z (B, latent) -> maps (B, out, H, W) before the link; H and W multiples of 4. See :func:`ghosh_encoder`."""
    return _decoder(latent, shape, out, width, 4, 2, spectral)


def ghosh_celeba_encoder(shape: Shape, out: int, *, width: int = 128, spectral: bool = False) -> nn.Module:
    """CelebA: x (B, C, H, W) -> (B, out), 5x5 kernels; H and W multiples of 16. See :func:`ghosh_encoder`."""
    return _encoder(shape, out, width, 5, spectral)


def ghosh_celeba_decoder(latent: int, shape: Shape, out: int, *, width: int = 128, spectral: bool = False) -> nn.Module:
    """CelebA: z (B, latent) -> maps (B, out, H, W) before the link; H and W multiples of 8. See :func:`ghosh_encoder`."""
    return _decoder(latent, shape, out, width, 5, 3, spectral)
