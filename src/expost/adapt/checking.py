"""Does a wrapped model reconstruct? If it is worse than showing the mean image, its range or activation was guessed wrong."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expost import heads
from expost.adapt.interface import DecoderNet, EncoderNet, Interface, interface_of
from expost.adapt.modules import finite
from expost.autoencoder import Autoencoder
from expost.density import StandardNormal
from expost.results import Table
from expost.seeds import some
from expost.tensors import batches, unit

__all__ = ["Check", "check"]

FEW = 200
"""Examples on which other ranges and activations are tried."""
RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))


@dataclass(frozen=True)
class Check:
    """What :func:`check` found.

    Attributes:
        interface: how the model is spoken to.
        n: number of examples.
        mse: mean squared error per value of reconstructions from posterior means, data in [0, 1].
        baseline: the same for the mean image in place of every reconstruction.
        mean, std: of all entries of the posterior means, (1/nd) Σ μ and its standard deviation.
        scale: root mean square of the posterior standard deviations; 0 for deterministic codes.
        gamma: variance of a Gaussian likelihood, or None.
        prior: of the training, in words.
        notes: what does not look right, and what the interface says.
    """

    interface: Interface
    n: int
    mse: float
    baseline: float
    mean: float
    std: float
    scale: float
    gamma: float | None = None
    prior: str = "none"
    notes: tuple[str, ...] = ()

    def table(self, title: str = "Wrapped model") -> Table:
        i = self.interface
        shape = "x".join(map(str, i.latent_shape))
        outputs = " from logits" if i.outputs == "logits" else ""
        low, high = i.input_range
        rows: list[tuple[str, Any]] = [
            ("latent dimensions", f"{i.latent}" if len(i.latent_shape) == 1 else f"{i.latent} ({shape})"),
            ("posterior", "deterministic" if i.posterior == "mean" else f"Gaussian ({i.posterior})"),
            ("prior", self.prior),
            ("likelihood", f"{i.likelihood}{outputs}"),
            *([("gamma (variance)", self.gamma)] if self.gamma is not None else []),
            ("input range", f"[{low:g}, {high:g}]"),
            ("reconstruction MSE", self.mse),
            ("MSE of the mean image", self.baseline),
            ("codes: mean", self.mean),
            ("codes: standard deviation", self.std),
            ("posterior σ (root mean square)", self.scale),
        ]
        table = Table(("what", "value"), title=title)
        for row in rows:
            table.add(*row)
        table.notes.extend(self.notes)
        return table

    def __str__(self) -> str:
        return str(self.table())


def check(model: Autoencoder, x: Tensor, *, mean_image: Tensor | None = None, batch_size: int = 100) -> Check:
    """Reconstructions and codes of stored data x (n, *event), compared with the mean image.

    Args:
        mean_image: (*event) in [0, 1], e.g. of the training data; default: of x, the best constant.

    A note names the range or activation with which the error would be less than half as large, if the model is worse than the mean image.
    """
    interface = interface_of(model)
    if len(x) == 0:
        raise ValueError("there are no data to check the model on: pass at least one example")
    data = unit(x)
    mean_image = data.mean(0) if mean_image is None else mean_image.to(data)
    baseline = float((data - mean_image).double().square().mean())
    mse = _mse(model, x, batch_size)
    codes = model.latents(x, at="mean", batch_size=batch_size).double()
    finite(codes, "codes of the encoder")
    scale = 0.0
    if interface.posterior != "mean":
        variance = model.posteriors(x, batch_size=batch_size).variance.double()
        finite(variance, "variances of the encoder's codes")
        scale = float(variance.mean().sqrt())
    notes = list(interface.notes)
    if not mse < baseline:
        few = some(x, FEW, "check")
        better = min(((_mse(other, few, batch_size), what) for other, what in _alternatives(model, interface)), default=(mse, ""))
        hint = f"{better[1]} would give {better[0]:.3g}" if better[0] < 0.5 * mse else "is the range right, and are these its data?"
        if not math.isfinite(mse):
            raise ValueError(f"reconstructions hold NaN or infinity: {hint}")
        notes.append(f"the reconstructions (MSE {mse:.3g}) are no better than the mean image ({baseline:.3g}): {hint}")
    spread = float(codes.std()) if codes.numel() > 1 else 0.0
    if spread < 1e-6 * max(1.0, float(codes.abs().max())):
        notes.append("all codes are the same: the encoder ignores its input (a collapsed posterior, or weights that were not loaded)")
    head = model.decoder.head
    gamma = float(head.variance) if isinstance(head, heads.Gaussian) and head.kind != "pixel" else None
    if gamma is not None and interface.gamma == "optimal" and gamma > 10 * baseline:
        notes.append(
            f"gamma ({gamma:.3g}) is far above the variance of the data ({baseline:.3g}): images decoded from samples of q(z | x) are nothing like "
            "them, is the posterior's scale taken for the right thing?"
        )
    prior = "none" if model.prior is None else "N(0, I)" if isinstance(model.prior, StandardNormal) else type(model.prior).__name__
    return Check(interface, len(x), mse, baseline, float(codes.mean()), spread, scale, gamma, prior, tuple(notes))


def _mse(model: Autoencoder, x: Tensor, batch_size: int) -> float:
    total, count = 0.0, 0
    for data in batches(x, batch_size):
        squared = (model.reconstruct(data, batch_size=batch_size) - unit(data.to(model.device))).double().square()
        total, count = total + float(squared.sum()), count + squared.numel()
    value = total / count
    return value if value == value else float("inf")


def _alternatives(model: Autoencoder, interface: Interface) -> Iterator[tuple[Autoencoder, str]]:
    """The same modules with other ranges and activations."""
    encoder, decoder = model.encoder.net, model.decoder.net
    if interface.likelihood == "custom" or not isinstance(encoder, EncoderNet) or not isinstance(decoder, DecoderNet):
        return
    for low, high in RANGES:
        for outputs in ("mean", "logits"):
            other = dataclasses.replace(interface, input_range=(low, high), outputs=outputs, prior="none")
            if (other.input_range, other.outputs) != (interface.input_range, interface.outputs):
                words = f"a range of ({low:g}, {high:g})" if other.input_range != interface.input_range else ""
                words += f"{' and ' if words else ''}outputs={outputs!r}" if outputs != interface.outputs else ""
                with torch.no_grad():
                    yield other.assemble(encoder.module, decoder.module), words
