"""Encoder / decoder pairs by name. A pair builds networks for a data shape; heads are the recipe's business.

Convolutional pairs take images (C, H, W), dense ones points (d,), perceptrons both.

``small`` is the one for two CPU cores; the others are the papers'. ``+sn`` means spectral normalisation of encoder and decoder,
``+sn-decoder`` of the decoder only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from expost import nets
from expost.runs.discovery import discover

__all__ = ["IMAGES", "NETWORKS", "POINTS", "Pair", "add_network", "find_network", "kind_of", "networks", "perceptron", "with_spectral"]

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


#: All pairs that are known by name; papers add theirs with :func:`add_network`.
NETWORKS: dict[str, Pair] = {}


def add_network(
    name: str, encoder: Callable[..., nn.Module], decoder: Callable[..., nn.Module], summary: str, takes: tuple[str, ...] = (IMAGES,)
) -> None:
    """Make a pair known under a name."""
    NETWORKS[name] = Pair(encoder, decoder, summary, takes)


def perceptron(hidden: tuple[int, ...], summary: str) -> Pair:
    """Perceptrons with these hidden layers, mirrored in the decoder."""
    return Pair(*_mirrored(hidden), summary, (IMAGES, POINTS))


def _mirrored(hidden: tuple[int, ...]) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
    return partial(nets.mlp_encoder, hidden=hidden), partial(nets.mlp_decoder, hidden=hidden[::-1])


def networks() -> dict[str, Pair]:
    """The table of pairs by name: those of every recipe, then those of papers."""
    common = [name for name in NETWORKS if name.partition("+")[0] in ("small", "mlp")]
    discover()
    return {name: NETWORKS[name] for name in (*common, *sorted(NETWORKS.keys() - set(common)))}


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
        return perceptron((), "linear maps")
    if re.fullmatch(r"mlp(-[1-9]\d*)+", name):
        widths = name.removeprefix("mlp-")
        return perceptron(tuple(map(int, widths.split("-"))), f"hidden layers {widths}, mirrored")
    discover()
    if name in NETWORKS:
        return NETWORKS[name]
    raise ValueError(f'there is no network "{name}": choose one of {", ".join(NETWORKS)}, or mlp-WIDTH-WIDTH-...')


def _spectral(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def built(*arguments: object) -> nn.Module:
        return nets.spectrally_normalised(build(*arguments))

    return built


def _spectral_pair(name: str, pair: Pair, *, decoder_only: bool) -> Pair:
    if decoder_only:
        return Pair(pair.encoder, _spectral(pair.decoder), f"{name}, spectral normalisation of the decoder", pair.takes)
    return Pair(_spectral(pair.encoder), _spectral(pair.decoder), f"{name}, spectral normalisation everywhere", pair.takes)


def with_spectral(name: str) -> None:
    """Make a pair known with spectral normalisation too."""
    for suffix in ("+sn", "+sn-decoder"):
        NETWORKS[name + suffix] = find_network(name + suffix)


add_network("small", nets.small_encoder, nets.small_decoder, "small convolutional pair for two CPU cores, 8 to 64 pixels a side")
with_spectral("small")
NETWORKS["mlp"] = perceptron((512,), "one hidden layer of 512")
