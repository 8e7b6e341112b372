"""Encoder / decoder pairs by name. A pair builds networks for a data shape; heads are the recipe's business.

Convolutional pairs take images (C, H, W), the dense ones of 004 points (d,), perceptrons both.

``small`` is the one for two CPU cores; the others are the papers'. ``+sn`` means spectral normalisation of encoder and decoder (what 002's
code does), ``+sn-decoder`` of the decoder only (what its text says).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from expost import nets

__all__ = ["IMAGES", "NETWORKS", "POINTS", "Pair", "find_network", "kind_of"]

Shape = tuple[int, ...]
IMAGES, POINTS = "images", "points"


def kind_of(shape: Shape) -> str:
    """What data of a shape are called: images (C, H, W) or points (d,)."""
    return {3: IMAGES, 1: POINTS}.get(len(shape), f"arrays of {len(shape)} dimensions")


@dataclass(frozen=True)
class Pair:
    """``encoder(shape, out)`` maps data to ``out`` features, ``decoder(latent, shape, out)`` maps codes to ``out`` channels of the data's size.

    ``takes`` names the kinds of data, see :func:`kind_of`.
    """

    encoder: Callable[[Shape, int], nn.Module]
    decoder: Callable[[int, Shape, int], nn.Module]
    summary: str
    takes: tuple[str, ...] = (IMAGES,)


NETWORKS: dict[str, Pair] = {}


def _add(
    name: str, encoder: Callable[..., nn.Module], decoder: Callable[..., nn.Module], summary: str, takes: tuple[str, ...] = (IMAGES,)
) -> None:
    NETWORKS[name] = Pair(encoder, decoder, summary, takes)


def _points(build: Callable[..., nn.Module], **options: int) -> Callable[..., nn.Module]:
    """A network on vectors as an encoder of points (d,)."""
    return lambda shape, out: build(shape[0], out, **options)


def _point_decoder(**options: int) -> Callable[..., nn.Module]:
    return lambda latent, shape, out: nets.yu_decoder(latent, out, **options)


def _mlp(name: str, hidden: tuple[int, ...], summary: str) -> None:
    NETWORKS[name] = _perceptron(hidden, summary)


def _perceptron(hidden: tuple[int, ...], summary: str) -> Pair:
    return Pair(*_mirrored(hidden), summary, (IMAGES, POINTS))


def _mirrored(hidden: tuple[int, ...]) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
    return partial(nets.mlp_encoder, hidden=hidden), partial(nets.mlp_decoder, hidden=hidden[::-1])


def find_network(name: str) -> Pair:
    """The pair of a name: one of :data:`NETWORKS`, or ``mlp-`` and widths of the encoder, mirrored in the decoder (``mlp-linear``: none).

    Any of these may end in ``+sn`` or ``+sn-decoder``.

    >>> find_network("mlp-300-50").summary
    'hidden layers 300-50, mirrored'
    """
    if name in NETWORKS:
        return NETWORKS[name]
    if name.endswith(("+sn", "+sn-decoder")):
        base, _, suffix = name.partition("+")
        return _spectral_pair(base, find_network(base), decoder_only=suffix == "sn-decoder")
    if name == "mlp-linear":
        return _perceptron((), "linear maps")
    if re.fullmatch(r"mlp(-[1-9]\d*)+", name):
        widths = name.removeprefix("mlp-")
        return _perceptron(tuple(map(int, widths.split("-"))), f"hidden layers {widths}, mirrored")
    raise ValueError(f'there is no network "{name}": choose one of {", ".join(NETWORKS)}, or mlp-WIDTH-WIDTH-...')


def _spectral(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def built(*arguments: object) -> nn.Module:
        return nets.spectrally_normalised(build(*arguments))

    return built


def _spectral_pair(name: str, pair: Pair, *, decoder_only: bool) -> Pair:
    if decoder_only:
        return Pair(pair.encoder, _spectral(pair.decoder), f"{name}, spectral normalisation of the decoder", pair.takes)
    return Pair(_spectral(pair.encoder), _spectral(pair.decoder), f"{name}, spectral normalisation everywhere", pair.takes)


def _with_spectral(name: str) -> None:
    for suffix in ("+sn", "+sn-decoder"):
        NETWORKS[name + suffix] = find_network(name + suffix)


_add("small", nets.small_encoder, nets.small_decoder, "small convolutional pair for two CPU cores, 8 to 64 pixels a side")
_with_spectral("small")
_mlp("mlp", (512,), "one hidden layer of 512")
_mlp("mlp-400", (400,), "000, shallow: one hidden layer of 400")
_mlp("mlp-400-200-100", (400, 200, 100), "000, deep: 400-200-100, mirrored")
_add("dai", nets.dai_encoder, nets.dai_decoder, "001, neutral InfoGAN net, spectrally normalised encoder")
_add("dai-residual", nets.dai_residual_encoder, nets.dai_residual_decoder, "001, residual net of the paper (flattened, two blocks)")
_add(
    "dai-residual-code",
    partial(nets.dai_residual_encoder, blocks=1, pool="mean"),
    partial(nets.dai_residual_decoder, blocks=1),
    "001, residual net of the released code (pooled, one block)",
)
_add("dai-wae", nets.dai_wae_encoder, nets.dai_wae_decoder, "001, the repository's WAE net")
_add("ghosh", nets.ghosh_encoder, nets.ghosh_decoder, "002, MNIST (32 x 32) and CIFAR-10")
_with_spectral("ghosh")
_add("ghosh-celeba", nets.ghosh_celeba_encoder, nets.ghosh_celeba_decoder, "002, CelebA (64 x 64)")
_with_spectral("ghosh-celeba")
_add(
    "ghosh-celeba-64",
    partial(nets.ghosh_celeba_encoder, width=64),
    partial(nets.ghosh_celeba_decoder, width=64),
    "002, CelebA, half as wide: what its code uses for the CV-VAE",
)
_add("manoj-fc", nets.manoj_fc_encoder, nets.manoj_fc_decoder, "003, fully connected alternative", (IMAGES, POINTS))
_add("manoj", nets.manoj_encoder, nets.manoj_decoder, "003, MNIST")


def _squeezed(name: str, summary: str, width: int, encoder_blocks: tuple[int, int], decoder_blocks: tuple[int, int]) -> None:
    for maps in (False, True):
        encoder = partial(nets.squeezed_encoder, width=width, blocks=encoder_blocks, maps=maps)
        decoder = partial(nets.squeezed_decoder, width=width, blocks=decoder_blocks, maps=maps)
        _add(f"{name}-maps" if maps else name, encoder, decoder, f"{summary}{', latent maps' if maps else ''}")


_squeezed("squeezed", "residual blocks at half and quarter resolution, for likelihoods", 32, (1, 2), (2, 2))
_squeezed("squeezed-wide", "the same, wider and deeper, for a GPU", 96, (2, 4), (4, 4))
_add("yu", _points(nets.yu_encoder), _point_decoder(), "004, weight-normed dense block, growth 1024, depth 6", (POINTS,))
_add(
    "yu-small", _points(nets.yu_encoder, growth=96, depth=4), _point_decoder(growth=96, depth=4), "004 at CPU scale: growth 96, depth 4",
    (POINTS,),
)  # fmt: skip
