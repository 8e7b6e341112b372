"""How the claims of yu2020 are measured: plane densities, training curves, coding, the tutorial's demonstrations, and the discretised logistic."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.data.toy import entropy_bits
from expost.density import StandardNormal
from expost.discrete import DiscretizedLogistic
from expost.papers.base import Claim
from expost.papers.yu2020.demonstrations import Demonstration, linear_flow, noisy_channel, rescaling, two_solutions
from expost.papers.yu2020.lossless import coders, rates
from expost.papers.yu2020.plane import DENSITIES, dark_mass, likelihoods
from expost.results import Verdict, format_number
from expost.runs.lab import Lab
from expost.seeds import seeded

__all__ = ["CLAIMS"]


MODELS = ("yu2020/vae", "yu2020/iwae")


def _verdict(demonstration: Demonstration) -> Verdict:
    text = "; ".join(f"{name}: {format_number(value)}" for name, value in demonstration.figures.items())
    return Verdict(text, demonstration.holds, demonstration.figures)


def e7(lab: Lab) -> Verdict:
    return _verdict(rescaling(lab.seed))


def e8(lab: Lab) -> Verdict:
    return _verdict(linear_flow(lab.seed))


def e9(lab: Lab) -> Verdict:
    return _verdict(noisy_channel(lab.seed))


def e13(lab: Lab) -> Verdict:
    return _verdict(two_solutions(lab.seed))


def _unfolded(loc: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """Total of the masses without folded ends, as in Kingma et al. 2016: the logistic's mass within the outermost bin edges."""
    low, high = -0.5 / (levels - 1), 1 + 0.5 / (levels - 1)
    return torch.sigmoid((high - loc) / log_scale.exp()) - torch.sigmoid((low - loc) / log_scale.exp())


def e11(lab: Lab) -> Verdict:
    """Sums of 256 masses over locations in and beyond [0, 1] and scales from 1e-4 to 3, and the mass of the location's own bin as s -> 0."""
    levels = 256
    with seeded("e11", lab.seed):
        loc = torch.cat([torch.rand(200, dtype=torch.float64), 3 * torch.randn(56, dtype=torch.float64)])
        inside = torch.rand(200, dtype=torch.float64) - 0.5
    log_scale = torch.linspace(-9.2, 1.1, 12, dtype=torch.float64)
    grid = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    at, spread = loc[:, None].expand(-1, 12), log_scale.expand(256, 12)
    masses = DiscretizedLogistic(at, spread, levels, event_dims=0).log_mass(grid[:, None, None]).exp()
    error = float((masses.sum(0) - 1).abs().max())
    least = float(_unfolded(loc[:200, None], log_scale[-1:], levels).min())

    bins = torch.arange(28, 228, dtype=torch.float64)
    centre = (bins + 0.8 * inside) / (levels - 1)  # at least a tenth of a bin from its edges
    own = {}
    for width in (10.0, 1.0, 0.1, 0.01):  # s in bins
        p = DiscretizedLogistic(centre, torch.full_like(centre, width / (levels - 1)).log(), levels, event_dims=0)
        own[f"{width:g}"] = float(p.log_mass(bins / (levels - 1)).exp().min())
    values = list(own.values())
    rises = all(later > earlier for earlier, later in itertools.pairwise(values))
    text = (
        f"sums off by at most {error:.1e} (without folded ends as low as {least:.3f}); least mass of the location's bin "
        f"for s = 10, 1, .1, .01 bins: {', '.join(f'{v:.4f}' for v in values)}"
    )
    return Verdict(
        text, error < 1e-9 and rises and values[-1] > 0.999, {"sum": error, "unfolded": least, **{f"s = {k}": v for k, v in own.items()}}
    )


def short(recipe: str) -> str:
    return recipe.partition("/")[2]


def e2(lab: Lab) -> Verdict:
    figures: dict[str, float] = {}
    holds = True
    for recipe in MODELS:
        for name in DENSITIES:
            found = likelihoods(lab, recipe, name)
            nll, bound = found.nll[max(found.nll)], found.nll[1]
            holds = holds and found.entropy - 0.005 <= nll <= bound  # 0.005: Monte Carlo error of the grid estimate
            figures |= {f"{short(recipe)} {name} NLL - H": nll - found.entropy, f"{short(recipe)} {name} -ELBO - NLL": bound - nll}
    least = min(figures.values())
    return Verdict(
        f"smallest of NLL - H and -ELBO - NLL over {len(figures) // 2} models: {least:.4f} bits; "
        + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()),
        holds,
        figures,
    )


def e3(lab: Lab) -> Verdict:
    """At equally many decoded codes: the recipes' batches at the cpu budget."""
    gains = {}
    for name in DENSITIES:
        vae, iwae = (likelihoods(lab, recipe, name) for recipe in MODELS)
        gains[name] = vae.nll[max(vae.nll)] - iwae.nll[max(iwae.nll)]
    text = "NLL of the VAE minus the IWAE's (bits): " + ", ".join(f"{k} {v:.3f}" for k, v in gains.items())
    return Verdict(text, gains["checkerboard"] > 0 and gains["2spirals"] > 0, gains)


def e4(lab: Lab) -> Verdict:
    gaps = {}
    for recipe in MODELS:
        for name in DENSITIES:
            found = likelihoods(lab, recipe, name)
            gaps[f"{short(recipe)} {name}"] = found.nll[max(found.nll)] - found.entropy
    holds = all(gaps[f"{m} 8gaussians"] == min(gaps[f"{m} {n}"] for n in DENSITIES) for m in ("vae", "iwae"))
    return Verdict("NLL - H (bits): " + ", ".join(f"{k} {v:.3f}" for k, v in gaps.items()), holds, gaps)


def e5(lab: Lab) -> Verdict:
    masses = {f"{short(recipe)} {name}": dark_mass(lab, recipe, name) for recipe in MODELS for name in DENSITIES}
    holds = all(masses[f"iwae {name}"] < masses[f"vae {name}"] for name in DENSITIES)
    return Verdict("dark prior mass: " + ", ".join(f"{k} {v:.4f}" for k, v in masses.items()), holds, masses)


def e6(lab: Lab) -> Verdict:
    """Means of the history's quarters: the first against the last."""
    figures: dict[str, float] = {}
    holds = True
    for name in DENSITIES:
        history = lab.run("yu2020/vae", source=name)
        assert history.folder is not None
        rows = [row for row in history.folder.rows() if row["split"] == "train"]
        for part in ("distortion", "rate"):
            values = [row[part] for row in rows if part in row]
            quarter = max(1, len(values) // 4)
            first, last = (sum(v) / len(v) / math.log(2) for v in (values[:quarter], values[-quarter:]))
            figures |= {f"{name} {part} first": first, f"{name} {part} last": last}
            holds = holds and (last < first if part == "distortion" else last > first)
    return Verdict("bits, first and last quarter of training: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()), holds, figures)


def e10(lab: Lab) -> Verdict:
    figures: dict[str, float] = {}
    holds, images = True, 0
    for coder in coders(lab):
        found = rates(lab, coder)
        figures[short(str(coder))] = found["net"] / found["elbo"]
        holds = holds and found["exact"] and abs(found["net"] / found["elbo"] - 1) < 0.05
        images = found["images"]
    text = f"{images} images of {lab.dataset.name} each came back exactly; net length / -ELBO: " if holds else "net length / -ELBO: "
    return Verdict(text + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()), holds, figures)


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
        with seeded("e12 posterior", lab.seed):
            z = posterior.sample((3,))
        weights = loose.decode(z).log_prob(x) + loose.latent().log_prob(z) - posterior.log_prob(z)
        error = float((weights - exact).abs().max())
    truth = float(exact.mean())
    monotone = all(later >= earlier - 1e-3 for earlier, later in itertools.pairwise(bounds)) and bounds[-1] <= truth + 5e-3
    text = f"bounds {', '.join(f'{b:.4f}' for b in bounds)} (K = 1 ... 256), exact {truth:.4f}; with the true posterior off by {error:.1e}"
    return Verdict(text, monotone and error < 1e-6, {"exact": truth, **{f"bound {i}": b for i, b in enumerate(bounds)}})


CLAIMS = (
    Claim("E1", "M", "grid entropies of the three densities: -1.916776, -1.000000, -2.3358 bits", "1024 x 1024 grid", e1),
    Claim("E2", "M", "H <= NLL(250) <= one-sample -ELBO", "grid NLL", e2),
    Claim("E3", "S", "IWAE's NLL is below the VAE's on each density (8 Gaussians: W)", "grid NLL", e3),
    Claim("E4", "S", "NLL - H is smallest for 8 Gaussians", "grid NLL", e4),
    Claim("E5", "S", "dark-pixel mass is lower for IWAE", "latent map", e5),
    Claim("E6", "S", "while a VAE trains, distortion falls and rate rises", "history of yu2020/vae", e6),
    Claim(
        "E7",
        "M",
        "rescaled inputs change the -ELBO under an MSE loss, but only by a constant under a learned variance",
        "linear model",
        e7,
    ),
    Claim("E8", "M", "Sigma-VAE with linear f: gap to the flow is half eps^2 tr(J^-1 J^-T)", "closed form", e8),
    Claim("E9", "M", "noisy channel: KL = -(d/2) log N; decoding error falls with d below capacity", "identity and codebook", e9),
    Claim("E10", "M", "bits-back round trip is exact; net length within 5 % of -ELBO", "codec", e10),
    Claim("E11", "M", "a discretised logistic with folded ends sums to 1", "enumeration", e11),
    Claim(
        "E12",
        "M",
        "the K-sample bound is non-decreasing in K, equals the ELBO at K = 1, is exact for the true posterior",
        "linear-Gaussian model",
        e12,
    ),
    Claim("E13", "M", "both 'z is not a parameter' solutions reach the entropy", "closed form", e13),
)
