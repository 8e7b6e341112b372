"""How the claims are measured. Each function takes the :class:`~expost.recipes.lab.Lab` and returns a verdict with its figures."""

from __future__ import annotations

import itertools
import math

import torch

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.data.toy import entropy_bits
from expost.density import GMM, StandardNormal
from expost.evaluate.interpolate import slerp
from expost.objectives import ELBO, RAE
from expost.recipes.lab import Lab
from expost.recipes.verdict import Verdict
from expost.seeds import seeded
from expost.tensors import batches, unit

VARIATIONAL = ("ghosh2020/vae", "ghosh2020/cv-vae")
DETERMINISTIC = ("ghosh2020/wae", "ghosh2020/rae-gp", "ghosh2020/rae-l2", "ghosh2020/rae-sn", "ghosh2020/rae", "ghosh2020/ae")
RAES = ("ghosh2020/rae-gp", "ghosh2020/rae-l2", "ghosh2020/rae-sn", "ghosh2020/rae")


def normal_of(recipe: str) -> str:
    """What stands in the N column of 002's table: the prior for VAE and WAE, a fitted Gaussian for the others."""
    return "prior" if recipe in ("ghosh2020/vae", "ghosh2020/wae") else "gaussian"


def short(recipe: str) -> str:
    return recipe.partition("/")[2]


def column(lab: Lab, recipes: tuple[str, ...], row: str) -> dict[str, float]:
    """One FD per recipe: ``reconstruction``, ``N``, ``gmm:10`` or ``interpolation``."""
    values = {}
    for recipe in recipes:
        scores = lab.scores(recipe, (normal_of(recipe), "gmm:10")).values
        key = {"N": f"samples {normal_of(recipe)}", "gmm:10": "samples gmm:10"}.get(row, row)
        values[short(recipe)] = scores[key]
    return values


def listed(values: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:.4g}" for k, v in values.items())


# -- 001 ------------------------------------------------------------------------------------------------------------------------------


def b1(lab: Lab) -> Verdict:
    learned = lab.scores("dai2019/vae-learned", ("prior",)).mse
    fixed = lab.scores("dai2019/vae-fixed", ("prior",)).mse
    return Verdict(f"test MSE per pixel: learned {learned:.5f}, fixed {fixed:.5f}", learned < fixed, {"learned": learned, "fixed": fixed})


def b2(lab: Lab) -> Verdict:
    values = lab.scores("dai2019/two-stage", ("prior", "stage")).values
    first, second = values["samples prior"], values["samples stage"]
    return Verdict(f"FD: first stage {first:.4g}, second stage {second:.4g}", second < first, {"first": first, "second": second})


def b3(lab: Lab) -> Verdict:
    second = lab.scores("dai2019/two-stage", ("prior", "stage")).values["samples stage"]
    fixed = lab.scores("dai2019/vae-fixed", ("prior",)).values["samples prior"]
    return Verdict(f"FD: two-stage {second:.4g}, fixed variance {fixed:.4g}", second < fixed, {"two-stage": second, "fixed": fixed})


def b4(lab: Lab) -> Verdict:
    values = {name: lab.scores(f"dai2019/vae-{name}", ("prior",)).values["samples prior"] for name in ("learned", "fixed", "cross-entropy")}
    return Verdict(f"sample FD: {listed(values)}", values["learned"] < values["fixed"], values)


def b5(lab: Lab) -> Verdict:
    run = lab.run("dai2019/vae-learned")
    head = run.model.decoder.head
    assert isinstance(head, heads.Gaussian)
    x = run.dataset.train.x[:10_000]
    z = run.model.latents(x, at="sample", seed=lab.seed)
    total = 0.0
    for codes, images in zip(batches(z, 500), batches(x, 500), strict=True):
        total += float((run.model.decode_points(codes) - unit(images.to(z.device))).square().sum(dtype=torch.float64))
    mse, gamma = total / x.numel(), float(head.variance.detach())
    return Verdict(
        f"γ {gamma:.5f}, training MSE {mse:.5f}, ratio {gamma / mse:.3f}", abs(gamma / mse - 1) < 0.1, {"gamma": gamma, "mse": mse}
    )


def b6(lab: Lab) -> Verdict:
    import csv

    run = lab.run("dai2019/vae-learned")
    assert run.folder is not None
    with run.folder.history_file.open() as file:
        trace = [float(row["log_gamma"]) for row in csv.DictReader(file) if row["split"] == "train"]
    smooth = [sum(trace[i : i + 5]) / len(trace[i : i + 5]) for i in range(max(1, len(trace) - 4))]
    falls = all(later <= earlier + 0.02 for earlier, later in itertools.pairwise(smooth))
    last = smooth[-max(1, len(smooth) // 10) :]
    flat = max(last) - min(last) < 0.1
    text = f"log γ from {trace[0]:.2f} to {trace[-1]:.2f}, change over the last tenth {max(last) - min(last):.3f}"
    return Verdict(text, falls and flat and trace[-1] < trace[0], {"start": trace[0], "end": trace[-1]})


# -- 002 ------------------------------------------------------------------------------------------------------------------------------


def c1(lab: Lab) -> Verdict:
    every = VARIATIONAL + DETERMINISTIC
    normal, mixture = column(lab, every, "N"), column(lab, every, "gmm:10")
    worse = [name for name in normal if mixture[name] >= normal[name]]
    text = "; ".join(f"{name} {normal[name]:.4g} -> {mixture[name]:.4g}" for name in normal)
    figures = {f"{k} N": v for k, v in normal.items()} | {f"{k} GMM": v for k, v in mixture.items()}
    return Verdict(f"N -> GMM-10: {text}", not worse, figures)


def c2(lab: Lab) -> Verdict:
    normal, mixture = (column(lab, ("ghosh2020/ae",), row)["ae"] for row in ("N", "gmm:10"))
    return Verdict(
        f"AE: N {normal:.4g}, GMM {mixture:.4g}, ratio {normal / mixture:.2f}", normal >= 2 * mixture, {"N": normal, "GMM": mixture}
    )


def c3(lab: Lab) -> Verdict:
    values = column(lab, VARIATIONAL + DETERMINISTIC, "gmm:10")
    best = min(values, key=lambda name: values[name])
    return Verdict(f"best GMM FD: {best} ({listed(values)})", best not in ("vae", "cv-vae"), values)


def c4(lab: Lab) -> Verdict:
    recipes = ("ghosh2020/vae", *RAES)
    distance = column(lab, recipes, "reconstruction")
    error = {short(r): lab.scores(r, (normal_of(r), "gmm:10")).mse for r in recipes}
    holds = all(distance[short(r)] < distance["vae"] and error[short(r)] < error["vae"] for r in RAES)
    text = "; ".join(f"{name} FD {distance[name]:.4g} MSE {error[name]:.5f}" for name in distance)
    return Verdict(text, holds, {f"{k} FD": v for k, v in distance.items()} | {f"{k} MSE": v for k, v in error.items()})


def c5(lab: Lab) -> Verdict:
    vae = column(lab, ("ghosh2020/vae",), "N")["vae"]
    rae = column(lab, ("ghosh2020/rae",), "gmm:10")["rae"]
    return Verdict(f"RAE + GMM {rae:.4g}, VAE + N(0, I) {vae:.4g}", rae < vae, {"rae": rae, "vae": vae})


def c7(lab: Lab) -> Verdict:
    values = column(lab, ("ghosh2020/vae", *RAES), "interpolation")
    return Verdict(f"midpoint FD: {listed(values)}", all(values[short(r)] <= values["vae"] for r in RAES), values)


def c8(lab: Lab) -> Verdict:
    run = lab.run("ghosh2020/rae")
    mixture = run.density("gmm:10")
    assert isinstance(mixture, GMM)
    with torch.no_grad():
        train = float(mixture().log_prob(run.codes).mean())
        val = float(mixture().log_prob(run.model.latents(run.dataset.val.x, at="mean")).mean())
    values = lab.scores("ghosh2020/rae", ("gaussian", "gmm:10", "gmm:100")).values
    few, many = values["samples gmm:10"], values["samples gmm:100"]
    gain = (values["samples gaussian"] - many) / max(1e-12, values["samples gaussian"] - few)
    holds = abs(val / train - 1) < 0.02 and abs(few - many) < 0.5 * abs(values["samples gaussian"] - few)
    text = f"log-likelihood per code: train {train:.3f}, validation {val:.3f} nats; FD gmm:10 {few:.4g}, gmm:100 {many:.4g} (gain over N x {gain:.2f})"
    return Verdict(text, holds, {"train": train, "val": val, "gmm:10": few, "gmm:100": many})


def c13(lab: Lab) -> Verdict:
    with seeded("c13", lab.seed):
        a, b = torch.randn(1000, 16, dtype=torch.float64), torch.randn(1000, 16, dtype=torch.float64)
    ends = max(float((slerp(0.0, a, b) - a).abs().max()), float((slerp(1.0, a, b) - b).abs().max()))
    unit_b = b * (a.norm(dim=1, keepdim=True) / b.norm(dim=1, keepdim=True))
    norm = max(float((slerp(t, a, unit_b).norm(dim=1) / a.norm(dim=1) - 1).abs().max()) for t in (0.1, 0.25, 0.5, 0.9))
    middle = float((slerp(0.5, a, b) - slerp(0.5, b, a)).abs().max())
    text = f"largest errors over 1000 pairs: ends {ends:.1e}, norm {norm:.1e}, symmetry {middle:.1e}"
    return Verdict(text, max(ends, norm, middle) < 1e-9, {"ends": ends, "norm": norm, "middle": middle})


def c18(lab: Lab) -> Verdict:
    d, pixels = 4, 12
    with seeded("c18", lab.seed):
        encoder, decoder = torch.nn.Linear(pixels, d).double(), torch.nn.Linear(d, pixels).double()
        x = torch.rand(64, pixels, dtype=torch.float64)

    def model(head: heads.Head) -> Autoencoder:
        gaussian = heads.Gaussian(math.sqrt(0.5)).double()
        return Autoencoder(Conditional(encoder, head), Conditional(decoder, gaussian), StandardNormal(d).double())

    point = model(heads.Dirac())
    plain = point.decode(point.encode(x).mean)
    ae = float((RAE(0.0)(point, x).total + plain.log_prob(x)).detach().abs().max())
    beta, sigma = 0.37, 1e-7
    with seeded("c18 noise", lab.seed):
        variational = ELBO(beta)(model(heads.Constant(sigma)), x).total
    constant = beta * 0.5 * d * (sigma**2 - 1 - math.log(sigma**2))
    cv = float((variational - constant - RAE(beta)(point, x).total).detach().abs().max())
    return Verdict(
        f"largest differences: AE and RAE(0) {ae:.1e}, CV-VAE(sigma = 1e-7) and RAE {cv:.1e} nats",
        ae < 1e-9 and cv < 1e-4,
        {"ae": ae, "cv": cv},
    )


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
