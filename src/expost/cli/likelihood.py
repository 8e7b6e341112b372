"""``expost likelihood``: log p(x) of held-out images, in nats and bits/dim, and what the ELBO consists of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from expost.cli.options import Count, Images, OpensRun

__all__ = ["Likelihood"]


@dataclass
class Likelihood(OpensRun):
    """Log-likelihood of test images in nats and bits/dim, with the effective sample size that says whether to believe it."""

    folder: Positional[Path]
    """run folder"""
    samples: Count = 1000
    """importance samples per image"""
    n: Images = 1000
    """test images, drawn at random, at most all"""
    density: str | None = None
    """prior of the codes, fitted to samples of the posteriors; default: the training prior, or the recipe's last density where there is none"""
    annealed: bool = False
    """also annealed importance sampling on some of these images, with upper and lower bounds on simulated ones"""
    annealed_n: Count = 20
    """images of --annealed, test and simulated"""
    chains: Count = 16
    """chains per image of --annealed"""
    temperatures: Count = 500
    """temperatures of --annealed"""
    path: Literal["prior", "encoder"] = "encoder"
    """where the path of --annealed starts: q(z | x), which is nearer where the encoder is good, or p(z)"""
    surgery: bool = False
    """also split the rate into mutual information and marginal KL"""
    dequantise: bool = False
    """add uniform noise to 8-bit images, (byte + u) / 256, so that a continuous head's density bounds a code length"""
    binarise: bool = False
    """draw binary images from the grey levels first (as yu2020/bits-back-binary is trained)"""
    data: str | None = None
    """where the data is now, if it has moved"""
    seed: int = 0
    """seed of the images drawn and of all samples"""
    device: str | None = None
    """cpu, cuda, mps"""

    def run(self) -> None:
        from expost.cli.common import load
        from expost.distributions import Marginal
        from expost.evaluate.likelihood.annealed import annealed_bound
        from expost.evaluate.likelihood.importance import importance_bound
        from expost.evaluate.likelihood.surgery import elbo_surgery
        from expost.objectives.noise import binarised, dequantised
        from expost.runs.densities import as_prior
        from expost.seeds import draw, some

        run = load(self.folder, self.data, self.device, self)
        x = some(run.dataset.test.x, self.n, "likelihood", self.seed)
        if self.dequantise and self.binarise:
            raise ValueError("images are either binary or dequantised: give --binarise or --dequantise, not both")
        if self.dequantise:
            x = dequantised(x, self.seed)
        elif self.binarise:
            x = binarised(x, self.seed)
        spec = as_prior(self.density or ("prior" if run.model.prior is not None else run.experiment.densities[-1]))
        model = run.model.with_prior(run.density(spec))
        title = f"{run.experiment.recipe} on {run.dataset.name}{', dequantised' if self.dequantise else ''}, p(z): {spec}"
        suffix = ("" if spec == "prior" else f" {spec}") + (" dequantised" if self.dequantise else " binarised" if self.binarise else "")

        def keep(name: str, value: dict[str, object]) -> None:
            run.keep(name + suffix, value)

        bound = importance_bound(model, x, samples=self.samples, seed=self.seed, dequantised=self.dequantise)
        print(bound.table(f"Likelihood: {title}"), flush=True)
        keep("likelihood", bound.to_json())
        if self.annealed and isinstance(model.latent(), Marginal):
            print("\nno annealed bound: the prior is itself an autoencoder, whose log p(z) is only estimated", flush=True)
        elif self.annealed:
            few = draw(len(x), self.annealed_n, "annealed", self.seed)
            annealed = annealed_bound(
                model,
                x[few],
                chains=self.chains,
                temperatures=self.temperatures,
                path=self.path,
                simulated=self.annealed_n,
                seed=self.seed,
            )
            print(f"\n{annealed.table(f'Annealed importance sampling: {title}')}", flush=True)
            print(f"importance bound of the same {len(few)} images: {float(bound.log_prob[few].mean()):.6g} nats", flush=True)
            keep("annealed", annealed.to_json())
        if self.surgery:
            parts = elbo_surgery(model, x, seed=self.seed)
            print(f"\n{parts.table(f'ELBO surgery: {title}')}", flush=True)
            keep("surgery", parts.to_json())
