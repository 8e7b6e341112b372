r"""Figure 3 of ghosh2020: what the two knobs of a VAE do to its scores.

* left: FD of test reconstructions while training, with k = 1, 2, 5, 10 latent samples per image in E_q[-log p(x | z)]. The paper does not
  give its values of k, nor how long it trained; all k see the same images here, half as many as the recipe's.
* right: FD of reconstructions and of samples from N(0, I) against the weight β of the KL term, at the recipe's full length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from expost.autoencoder import Autoencoder
from expost.evaluate.features.base import cached_features, extract
from expost.evaluate.metrics.frechet import FeatureStats, frechet_distance
from expost.objectives import ELBO
from expost.results import Curve
from expost.runs.lab import Lab
from expost.seeds import some
from expost.train.fit import Watch

__all__ = ["FACTORS", "RECIPE", "SAMPLES", "Weighted", "during_training", "kl_weights"]

RECIPE = "ghosh2020/vae"
SAMPLES = (1, 2, 5, 10)
#: β as a multiple of the recipe's.
FACTORS = (1 / 64, 1 / 16, 1 / 4, 1.0, 4.0, 16.0, 64.0)
WATCHED = "reconstruction FD"


def during_training(lab: Lab) -> dict[int, Curve]:
    """k -> FD of test reconstructions against epochs. The FD has the lab's extractor and at most 10 000 test images."""
    _, dataset = lab.plan(RECIPE)
    extractor, _ = lab.extractor(dataset)
    test = some(dataset.test.x, 10_000, "watched", lab.seed)
    reference = FeatureStats.from_features(cached_features(extractor, test))

    def watch(model: Autoencoder) -> dict[str, float]:
        return {WATCHED: float(frechet_distance(extract(extractor, model.reconstruct(test).clamp(0, 1)), reference))}

    curves = {}
    for k in SAMPLES:
        rows = _rows(lab, _shorter(lab, k), watch)
        curves[k] = Curve([float(r["epoch"]) for r in rows], [float(r[WATCHED]) for r in rows], "epoch", extractor.label)
    return curves


def _shorter(lab: Lab, k: int) -> dict[str, Any]:
    """Settings of one run: k samples, half the recipe's length."""
    experiment, _ = lab.plan(RECIPE)
    unit = "epochs" if experiment.training.epochs is not None else "steps"
    return {"objective.samples": k, f"training.{unit}": max(1, getattr(experiment.training, unit) // 2)}


def _rows(lab: Lab, settings: dict[str, Any], watch: Watch) -> list[dict[str, Any]]:
    run = lab.run(RECIPE, settings, watch=watch)
    assert run.folder is not None
    rows = [row for row in run.folder.rows() if WATCHED in row]
    if not rows:
        raise ValueError(f"{run.folder.path} was trained without measuring its reconstructions: remove the folder, and it is trained again")
    return rows


@dataclass(frozen=True)
class Weighted:
    """Scores at one weight of the KL term; ``label`` names the Fréchet distance."""

    beta: float
    reconstruction: float
    samples: float
    mse: float
    label: str


def kl_weights(lab: Lab) -> list[Weighted]:
    """Scores of the VAE over β, in increasing order of β."""
    experiment, _ = lab.plan(RECIPE)
    assert isinstance(experiment.objective, ELBO)
    default = experiment.objective.beta
    found = []
    for factor in FACTORS:
        settings = {} if factor == 1 else {"objective.beta": default * factor}
        scores = lab.scores(RECIPE, ("prior",), settings=settings)
        found.append(Weighted(default * factor, scores.values["reconstruction"], scores.values["samples prior"], scores.mse, scores.label))
    return found
