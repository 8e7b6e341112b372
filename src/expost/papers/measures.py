"""How claims of 001 and 004 are measured. Each function takes the :class:`~expost.runs.lab.Lab` and returns a verdict with its figures."""

from __future__ import annotations

import itertools
import math

import torch

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.data.toy import entropy_bits
from expost.density import StandardNormal
from expost.papers.verdict import Verdict
from expost.runs.lab import Lab
from expost.seeds import seeded, some
from expost.tensors import batches, unit


def short(recipe: str) -> str:
    return recipe.partition("/")[2]


def listed(values: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:.4g}" for k, v in values.items())


# -- 001 ------------------------------------------------------------------------------------------------------------------------------


def b1(lab: Lab) -> Verdict:
    learned = lab.scores("dai2019/vae-learned", ("prior",)).mse
    fixed = lab.scores("dai2019/vae-fixed", ("prior",)).mse
    return Verdict(f"test MSE per pixel: learned {learned:.5f}, fixed {fixed:.5f}", learned < fixed, {"learned": learned, "fixed": fixed})


def b2(lab: Lab) -> Verdict:
    values = lab.scores("dai2019/vae-learned", ("prior", "stage")).values
    first, second = values["samples prior"], values["samples stage"]
    return Verdict(f"FD: first stage {first:.4g}, second stage {second:.4g}", second < first, {"first": first, "second": second})


def b3(lab: Lab) -> Verdict:
    second = lab.scores("dai2019/vae-learned", ("prior", "stage")).values["samples stage"]
    fixed = lab.scores("dai2019/vae-fixed", ("prior",)).values["samples prior"]
    return Verdict(f"FD: two-stage {second:.4g}, fixed variance {fixed:.4g}", second < fixed, {"two-stage": second, "fixed": fixed})


def b4(lab: Lab) -> Verdict:
    values = {name: lab.scores(f"dai2019/vae-{name}", ("prior",)).values["samples prior"] for name in ("learned", "fixed", "cross-entropy")}
    return Verdict(f"sample FD: {listed(values)}", values["learned"] < values["fixed"], values)


def b5(lab: Lab) -> Verdict:
    run = lab.run("dai2019/vae-learned")
    head = run.model.decoder.head
    assert isinstance(head, heads.Gaussian)
    x = some(run.dataset.train.x, 10_000, "b5", lab.seed)
    z = run.model.latents(x, at="sample", seed=lab.seed)
    total = 0.0
    for codes, images in zip(batches(z, 500), batches(x, 500), strict=True):
        total += float((run.model.decode_points(codes) - unit(images.to(z.device))).square().sum(dtype=torch.float64))
    mse, gamma = total / x.numel(), float(head.variance.detach())
    return Verdict(
        f"γ {gamma:.5f}, training MSE {mse:.5f}, ratio {gamma / mse:.3f}", abs(gamma / mse - 1) < 0.1, {"gamma": gamma, "mse": mse}
    )


def b6(lab: Lab) -> Verdict:
    run = lab.run("dai2019/vae-learned")
    assert run.folder is not None
    trace = [float(row["log_gamma"]) for row in run.folder.rows() if row["split"] == "train"]
    smooth = [sum(trace[i : i + 5]) / len(trace[i : i + 5]) for i in range(max(1, len(trace) - 4))]
    falls = all(later <= earlier + 0.02 for earlier, later in itertools.pairwise(smooth))
    last = smooth[-max(1, len(smooth) // 10) :]
    flat = max(last) - min(last) < 0.1
    text = f"log γ from {trace[0]:.2f} to {trace[-1]:.2f}, change over the last tenth {max(last) - min(last):.3f}"
    return Verdict(text, falls and flat and trace[-1] < trace[0], {"start": trace[0], "end": trace[-1]})


# -- 004 ------------------------------------------------------------------------------------------------------------------------------


def e1(lab: Lab) -> Verdict:
    golden = {"8gaussians": -1.916776, "checkerboard": -1.0, "2spirals": -2.3358}
    measured = {name: entropy_bits(name) for name in golden}
    text = ", ".join(f"{name} {value:.6f}" for name, value in measured.items())
    return Verdict(text, all(abs(measured[k] - golden[k]) < 1e-4 for k in golden), measured)


def e12(lab: Lab) -> Verdict:
    d, dims, gamma = 2, 5, 0.3
    with seeded("e12", lab.seed):
        w, x = torch.randn(dims, d, dtype=torch.float64), torch.randn(32, dims, dtype=torch.float64)
    encoder, decoder = torch.nn.Linear(dims, d, bias=False).double(), torch.nn.Linear(d, dims, bias=False).double()
    precision = torch.eye(d, dtype=torch.float64) + w.T @ w / gamma
    covariance = torch.linalg.inv(precision)
    with torch.no_grad():
        decoder.weight.copy_(w)
        encoder.weight.copy_(covariance @ w.T / gamma)
    exact = torch.distributions.MultivariateNormal(
        torch.zeros(dims, dtype=torch.float64), w @ w.T + gamma * torch.eye(dims, dtype=torch.float64)
    ).log_prob(x)
    gaussian = heads.Gaussian(math.sqrt(gamma)).double()
    loose = Autoencoder(Conditional(encoder, heads.Constant(0.6)), Conditional(decoder, gaussian), StandardNormal(d).double())
    bounds = []
    with torch.no_grad():
        for k in (1, 4, 16, 64, 256):
            with seeded("e12 samples", lab.seed, k):
                bounds.append(float(torch.stack([loose(k).log_prob(x) for _ in range(200)]).mean()))
        posterior = torch.distributions.MultivariateNormal(encoder(x), covariance)
        z = posterior.sample((3,))
        weights = loose.decode(z).log_prob(x) + loose.latent().log_prob(z) - posterior.log_prob(z)
        error = float((weights - exact).abs().max())
    truth = float(exact.mean())
    monotone = all(later >= earlier - 1e-3 for earlier, later in itertools.pairwise(bounds)) and bounds[-1] <= truth + 5e-3
    text = f"bounds {', '.join(f'{b:.4f}' for b in bounds)} (K = 1 ... 256), exact {truth:.4f}; with the true posterior off by {error:.1e}"
    return Verdict(text, monotone and error < 1e-6, {"exact": truth, **{f"bound {i}": b for i, b in enumerate(bounds)}})
