"""How good are reconstructions, samples and interpolations? One protocol for every model (Ghosh et al. 2020, section 5).

* reconstruction: FD of reconstructed validation images against the test set, and the mean squared error per pixel on the test set.
* samples: FD of n samples, from the training prior or a density fitted ex post, against the test set.
* interpolation: FD of decoded spherical midpoints of random pairs of validation codes against the test set.

Beside them stand a floor (real images against real images) and a ceiling (images with shuffled pixels), without which no FD means anything.
All sets have the same size n, because FD is biased in n.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from expost.autoencoder import Autoencoder
from expost.density.base import Density
from expost.evaluate.controls import controls
from expost.evaluate.features import Extractor, cached_features, extract
from expost.evaluate.frechet import FeatureStats, frechet_distance
from expost.evaluate.interpolate import pairs, slerp
from expost.results import Table
from expost.tensors import batches, unit

__all__ = ["Scores", "score"]


@dataclass(frozen=True)
class Scores:
    """Fréchet distances of one model under one extractor.

    Attributes:
        label: e.g. ``FD[classifier-mnist@1a2b3c]``.
        values: row name -> FD: ``reconstruction``, ``samples <density>``, ``interpolation``, ``floor``, ``ceiling``.
        mse: mean squared error per pixel of test reconstructions.
        n: images on each side.
        seed: of samples and pairs.
        notes: about the extractor and sample sizes.
    """

    label: str
    values: dict[str, float]
    mse: float
    n: int
    seed: int
    notes: tuple[str, ...] = field(default=())

    def table(self, title: str = "") -> Table:
        table = Table(
            ("what", self.label, "MSE per pixel"), title=title, notes=[f"n = {self.n} images on each side, seed {self.seed}", *self.notes]
        )
        for name, value in self.values.items():
            table.add(name, value, self.mse if name == "reconstruction" else None)
        return table

    def to_json(self) -> dict[str, Any]:
        return {"label": self.label, "values": self.values, "mse": self.mse, "n": self.n, "seed": self.seed, "notes": list(self.notes)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Scores:
        return cls(value["label"], dict(value["values"]), value["mse"], value["n"], value["seed"], tuple(value["notes"]))


def score(
    model: Autoencoder,
    val: Tensor,
    test: Tensor,
    extractor: Extractor,
    densities: Mapping[str, Density],
    *,
    n: int = 10_000,
    seed: int = 0,
    notes: tuple[str, ...] = (),
) -> Scores:
    """Score a trained model.

    Args:
        model: trained; its own prior is not used here, pass it in ``densities`` as ``prior``.
        val: validation images (m, C, H, W): reconstructed and interpolated.
        test: test images: the reference of every distance.
        extractor: features.
        densities: name -> density of codes, each a row ``samples <name>``.
        n: images per set, at most the size of the smaller split.
    """
    n = min(n, len(val), len(test))
    if n < 2:
        raise ValueError("scoring needs at least two validation and two test images")
    reference = FeatureStats.from_features(cached_features(extractor, test[:n], device=model.device))

    def distance(images: Tensor) -> float:
        return float(frechet_distance(extract(extractor, images.clamp(0, 1), device=model.device), reference))

    values = {"reconstruction": distance(model.reconstruct(val[:n]))}
    for name, density in densities.items():
        values[f"samples {name}"] = distance(model.with_prior(density).generate(n, seed=seed))
    codes = model.latents(val[:n], at="mean")
    first, second = pairs(len(codes), n, seed)
    values["interpolation"] = distance(model.decode_points(slerp(0.5, codes[first], codes[second])))
    real = controls(extractor, torch.cat([val, test]), n=n, seed=seed, device=model.device)
    values["floor"], values["ceiling"] = float(real.floor), float(real.ceiling)
    return Scores(extractor.label, values, _mse(model, test), n, seed, (*notes, *real.floor.notes))


def _mse(model: Autoencoder, x: Tensor) -> float:
    total = sum(float((model.reconstruct(b) - unit(b.to(model.device))).square().sum(dtype=torch.float64)) for b in batches(x, 1000))
    return total / x.numel()
