"""Small models and data that the tests of the core share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import Density, StandardNormal
from expost.heads import Head
from expost.seeds import generator, seeded

D, LATENT = 6, 2


def vectors(n: int = 64, d: int = D, seed: int = 0) -> Tensor:
    """Correlated Gaussian vectors: something a small linear model can learn."""
    g = generator("vectors", seed)
    return torch.randn(n, 2, generator=g) @ torch.randn(2, d, generator=generator("loadings")) + 0.1 * torch.randn(n, d, generator=g)


def pictures(n: int = 32, size: int = 8, seed: int = 0) -> Tensor:
    """uint8 images (n, 1, size, size)."""
    return torch.randint(0, 256, (n, 1, size, size), generator=generator("pictures", seed), dtype=torch.uint8)


def model(
    encoder_head: Head | None = None,
    decoder_head: Head | None = None,
    prior: Density | None = None,
    *,
    d: int = D,
    latent: int = LATENT,
    width: int = 16,
    seed: int = 0,
    plain: bool = False,
) -> Autoencoder:
    """An autoencoder of two-layer networks on vectors; ``plain`` leaves the prior empty."""
    encoder_head, decoder_head = encoder_head or heads.Diagonal(), decoder_head or heads.Gaussian(0.5)
    with seeded("toy", seed):
        encoder = nn.Sequential(nn.Linear(d, width), nn.Tanh(), nn.Linear(width, encoder_head.size(latent)))
        decoder = nn.Sequential(nn.Linear(latent, width), nn.Tanh(), nn.Linear(width, decoder_head.size(d)))
    chosen = None if plain else prior or StandardNormal(latent)
    return Autoencoder(Conditional(encoder, encoder_head), Conditional(decoder, decoder_head), chosen)


def convolutional(decoder_head: Head | None = None, *, latent: int = LATENT, size: int = 8, seed: int = 0) -> Autoencoder:
    """Batch-normalised convolutions on images (1, size, size)."""
    encoder_head, decoder_head = heads.Diagonal(), decoder_head or heads.Gaussian("shared", torch.sigmoid)
    quarter = size // 4
    with seeded("toy", seed):
        encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Flatten(), nn.Linear(8 * quarter**2, encoder_head.size(latent)),
        )  # fmt: skip
        decoder = nn.Sequential(
            nn.Linear(latent, 8 * quarter**2), nn.Unflatten(1, (8, quarter, quarter)), nn.BatchNorm2d(8), nn.ReLU(),
            nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, decoder_head.size(1), 4, 2, 1),
        )  # fmt: skip
    return Autoencoder(
        Conditional(encoder, encoder_head, event_dims=1, condition_dims=3),
        Conditional(decoder, decoder_head, event_dims=3, condition_dims=1),
        StandardNormal(latent),
    )


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer with these weights (out, in) and bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).to(weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def bits(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state."""
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bitwise equality of two states."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
