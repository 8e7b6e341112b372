"""expost's end of ``train_vs_pythae.py``: ``expost.fit`` in a process of its own.

``fit`` is called once, as a user would. The gate is an objective that wraps the real one and waits in ``after_step``, which ``fit`` calls
after every step (and before the first one, in ``at``).
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import expost.train.fit
from _gate import Gate
from expost.autoencoder import Autoencoder, evaluating
from expost.conditional import Conditional
from expost.density.gaussian import StandardNormal
from expost.fast.layers import Conv2d, ConvTranspose2d, Linear
from expost.heads import Diagonal, Gaussian
from expost.objectives.base import Loss, Objective
from expost.objectives.elbo import ELBO
from expost.seeds import seeded
from expost.tensors import unit
from expost.train.history import History
from expost.train.settings import Training

CONSTANT = 784 / 2 * math.log(2 * math.pi)
"""What -log N(x; mean, I) has and Pythae's ½ ‖x - mean‖² leaves out."""


@dataclass(frozen=True)
class AtTheGate(Objective):
    """``objective``, and a stop at the gate after each step."""

    objective: Objective
    gate: Gate

    def __call__(self, model: Autoencoder, x: Tensor) -> Loss:
        return self.objective(model, x)

    def at(self, step: int) -> Objective:
        if not self.gate.opened:
            self.gate.rest()  # everything is set up: the first step waits for the first order
        return AtTheGate(self.objective.at(step), self.gate)

    def modules(self) -> dict[str, nn.Module]:
        return self.objective.modules()

    def after_step(self, model: Autoencoder) -> None:
        self.objective.after_step(model)
        self.gate.step()


def pythae_conv(latent: int) -> Autoencoder:
    """Pythae's MNIST benchmark VAE (the layers of its Encoder_Conv_VAE_MNIST and Decoder_Conv_AE_MNIST)."""
    down = [(1, 128), (128, 256), (256, 512), (512, 1024)]
    encoder: list[nn.Module] = []
    for a, b in down:
        encoder += [Conv2d(a, b, 4, 2, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
    encoder += [nn.Flatten(), Linear(1024, 2 * latent)]
    decoder = [
        Linear(latent, 1024 * 4 * 4), nn.Unflatten(1, (1024, 4, 4)),
        ConvTranspose2d(1024, 512, 3, 2, padding=1), nn.BatchNorm2d(512), nn.ReLU(),
        ConvTranspose2d(512, 256, 3, 2, padding=1, output_padding=1), nn.BatchNorm2d(256), nn.ReLU(),
        ConvTranspose2d(256, 1, 3, 2, padding=1, output_padding=1),
    ]  # fmt: skip
    return _vae(nn.Sequential(*encoder), nn.Sequential(*decoder), latent)


def pythae_mlp(latent: int) -> Autoencoder:
    """Pythae's default VAE, 784-512-latent-512-784."""
    encoder = nn.Sequential(nn.Flatten(), Linear(784, 512), nn.ReLU(), Linear(512, 2 * latent))
    decoder = nn.Sequential(Linear(latent, 512), nn.ReLU(), Linear(512, 784), nn.Unflatten(1, (1, 28, 28)))
    return _vae(encoder, decoder, latent)


def _vae(encoder: nn.Module, decoder: nn.Module, latent: int) -> Autoencoder:
    return Autoencoder(
        Conditional(encoder, Diagonal(), event_dims=1, condition_dims=3),
        Conditional(decoder, Gaussian(1.0, link=torch.sigmoid), event_dims=3),
        StandardNormal(latent),
    )


def take_weights(model: Autoencoder, path: str) -> None:
    """Start from Pythae's initial weights: the same tensors in the same order, its two output layers stacked into one."""
    theirs = {k: torch.from_numpy(v) for k, v in np.load(path).items()}
    for kind in ("weight", "bias"):
        theirs[f"encoder.layers.z.{kind}"] = torch.cat([theirs.pop(f"encoder.embedding.{kind}"), theirs.pop(f"encoder.log_var.{kind}")])
    for part, module in (("encoder", model.encoder.net), ("decoder", model.decoder.net)):
        given = [v for k, v in theirs.items() if k.startswith(f"{part}.")]
        state = module.state_dict()
        assert [v.shape for v in given] == [v.shape for v in state.values()], f"the {part} is built differently"
        module.load_state_dict(dict(zip(state, given, strict=True)))


def speed(options: dict[str, Any]) -> None:
    """Train Pythae's own model on Pythae's own batches."""
    x = torch.from_numpy(np.load(options["data"]))
    with seeded("benchmark", options["seed"]):
        model = {"conv": pythae_conv, "mlp": pythae_mlp}[options["net"]](options["latent"])
    take_weights(model, options["weights"])
    history = History()

    def loss(steps: int) -> dict[str, Any]:
        """Mean over the last ``steps`` steps; a row is the mean since the row before, so rows are weighted by their steps."""
        rows = [r for r in history.rows if r["split"] == "train"]
        starts = [0] + [r["step"] for r in rows[:-1]]
        last = [(r["total"], r["step"] - start) for r, start in zip(rows, starts, strict=True) if start >= rows[-1]["step"] - steps]
        return {"loss": sum(value * weight for value, weight in last) / sum(weight for _, weight in last) - CONSTANT}

    def evaluate(data: str) -> dict[str, Any]:
        held_out = torch.from_numpy(np.load(data))
        with evaluating(model), seeded("evaluate"):
            torch.manual_seed(0)
            return {"loss": float(torch.stack([ELBO()(model, unit(b)).total.mean() for b in held_out.split(500)]).mean()) - CONSTANT}

    gate = Gate({"loss": loss, "evaluate": evaluate})
    training = Training(
        steps=options["steps"],
        batch_size=options["batch"],
        lr=options["lr"],
        precision=options["precision"],
        log_every=options["log_every"],
    )
    history = expost.fit(model, AtTheGate(ELBO(), gate), x, training=training, seed=options["seed"], device="cpu", progress=True)
    gate.rest(finished=True)


def quality(options: dict[str, Any]) -> None:
    """Train a recipe for a number of seconds, then fit its density and sample."""
    from _recipe import recipe

    x = torch.from_numpy(np.load(options["data"]))
    model, objective, training, density = recipe(x, options["seconds"], options["seed"])
    fitted: list[Autoencoder] = []

    def sample(sampler: str, n: int, path: str, images: int) -> dict[str, Any]:
        began = time.perf_counter()
        if not fitted:
            fitted.append(density(model, x))
        np.save(path, fitted[0].generate(n, seed=0).clamp(0, 1).numpy())
        return {"seconds": time.perf_counter() - began}

    gate = Gate({"sample": sample})
    expost.train.fit.time = SimpleNamespace(monotonic=gate.clock)  # type: ignore[assignment] # `minutes` counts no rests
    expost.fit(model, AtTheGate(objective, gate), x, training=training(gate.clock), seed=options["seed"], device="cpu", progress=True)
    gate.rest(finished=True)


def main(options: dict[str, Any]) -> None:
    torch.set_num_threads(options["threads"])
    (quality if options["what"] == "quality" else speed)(options)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
