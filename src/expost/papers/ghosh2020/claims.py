"""How the claims of ghosh2020 are measured: orderings of its tables, the sweeps of Figure 3, copies in pixel space, closed forms."""

from __future__ import annotations

import math

import torch

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import GMM, StandardNormal
from expost.evaluate.features.base import extract
from expost.evaluate.interpolate import slerp
from expost.evaluate.metrics.prd import prd
from expost.objectives import ELBO, RAE
from expost.papers.base import Claim
from expost.papers.ghosh2020.figures import copies_table, figure3_left, figure3_right
from expost.papers.ghosh2020.table import MODELS, ORDERINGS, RAES, SINGLE, measured, recall_rises, scores_of
from expost.results import Verdict, format_number
from expost.runs.lab import Lab
from expost.seeds import seeded, some

__all__ = ["CLAIMS"]


def _ordering(lab: Lab, name: str) -> Verdict:
    ordering = ORDERINGS[name]
    columns = measured(lab, ordering.models)
    text, holds = ordering.check(columns, lab.dataset.name)
    figures = {f"{column} {model}": value for column, values in columns.items() for model, value in values.items()}
    return Verdict(text, holds, figures)


def c1(lab: Lab) -> Verdict:
    return _ordering(lab, "C1")


def c2(lab: Lab) -> Verdict:
    return _ordering(lab, "C2")


def c3(lab: Lab) -> Verdict:
    return _ordering(lab, "C3")


def c4(lab: Lab) -> Verdict:
    distances = _ordering(lab, "C4")
    error = {m: scores_of(lab, m).mse for m in ("VAE", *RAES)}
    holds = distances.holds and all(error[m] < error["VAE"] for m in RAES)
    text = f"FD: {distances.measured}; MSE: {', '.join(f'{m} {e:.5f}' for m, e in error.items())}"
    return Verdict(text, holds, {**distances.figures, **{f"MSE {m}": e for m, e in error.items()}})


def c5(lab: Lab) -> Verdict:
    return _ordering(lab, "C5")


def c6(lab: Lab) -> Verdict:
    return _ordering(lab, "C6")


def c7(lab: Lab) -> Verdict:
    return _ordering(lab, "C7")


def c8(lab: Lab) -> Verdict:
    run = lab.run(MODELS["RAE"])
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


def c9(lab: Lab) -> Verdict:
    columns = measured(lab, ("WAE", *RAES), "F8")
    text, rises = recall_rises(columns)
    every = [v for m in SINGLE for metric in ("F8", "F1/8") for v in scores_of(lab, m).of(metric).values()]
    run = lab.run(MODELS["RAE"])
    extractor, _ = lab.extractor(run.dataset)
    test = extract(extractor, some(run.dataset.test.x, 10_000, "c9", lab.seed), device=lab.device)
    same = prd(test, test, seed=lab.seed)
    fresh = scores_of(lab, "RAE").of("F8")["control: held-out images"]
    itself = min(same.f8.value, same.f1_8.value)
    holds = rises and all(0 <= v <= 1 for v in every) and itself > 0.97
    text = f"recall F8, N -> GMM: {text}; test set against itself {itself:.3f}, held-out images {fresh:.3f}"
    return Verdict(
        text, holds, {"itself": itself, "held-out": fresh, **{f"{c} {m}": v for c in ("N", "GMM10") for m, v in columns[c].items()}}
    )


def c10(lab: Lab) -> Verdict:
    made = figure3_left(lab)
    text = "; ".join(f"k = {k}: {end:.4g} (mean over epochs {mean:.4g})" for k, end, mean in made.table.rows)
    return Verdict(f"reconstruction FD at the end: {text}", made.holds, made.figures)


def c11(lab: Lab) -> Verdict:
    made = figure3_right(lab)
    text = "; ".join(f"β {b:.3g}: reconstruction {r:.3g} (MSE {mse:.4f}), samples {s:.3g}" for b, r, s, mse in made.table.rows)
    figures = {f"samples at β={b:.3g}": s for b, _, s, _ in made.table.rows}
    return Verdict(f"{text}; best samples at β = {made.figures['best weight']:.3g}", made.holds, {**made.figures, **figures})


def c12(lab: Lab) -> Verdict:
    table, good = copies_table(lab)
    figures = dict(zip(table.column("model"), table.column("relative distance"), strict=True))
    text = ", ".join(f"{m} {format_number(v)}" for m, v in figures.items())
    return Verdict(f"median pixel distance to the nearest training image, relative to the test set's: {text}", good, figures)


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


CLAIMS = (
    Claim(
        "C1",
        "S",
        "GMM-10 sample FD is below the N column's for VAE, CV-VAE, WAE, RAE-GP/L2/SN, RAE, AE",
        "FD of 10 000 samples; N is N(0, I) for VAE and WAE, else a fitted Gaussian",
        c1,
    ),
    Claim("C2", "S", "plain AE: the Gaussian's FD is at least twice the GMM's", "FD of 10 000 samples", c2),
    Claim("C3", "S", "the best GMM FD belongs to a RAE, AE or WAE, not to VAE or CV-VAE", "FD of 10 000 samples", c3),
    Claim(
        "C4",
        "S",
        "every RAE variant reconstructs better than the VAE (FD and MSE)",
        "FD of reconstructed validation images, test MSE",
        c4,
    ),
    Claim("C5", "S", "RAE + GMM beats VAE + N(0, I) in sample FD", "FD of 10 000 samples", c5),
    Claim("C6", "W", "a RAE is first in the N column except on MNIST", "FD of 10 000 samples, all nine models", c6),
    Claim("C7", "S", "interpolation midpoints of RAEs are not worse than the VAE's", "FD of 10 000 decoded midpoints", c7),
    Claim(
        "C8",
        "S",
        "the GMM does not overfit: validation log-likelihood within 2 % of training; 100 components change FD marginally",
        "mean log-likelihood per code of ghosh2020/rae; FD with gmm:10 and gmm:100",
        c8,
    ),
    Claim("C9", "S", "PRD: GMM at least equals N in recall for WAE and RAE; self-comparison > .97", "F8 and F1/8 of 10 000 samples", c9),
    Claim(
        "C10",
        "S",
        "more latent samples lower the reconstruction FD (k = 1 worst)",
        "test reconstructions after equal epochs, k = 1, 2, 5, 10",
        c10,
    ),
    Claim(
        "C11",
        "S",
        "a larger KL weight worsens reconstruction and improves samples up to an optimum",
        "FD of ghosh2020/vae over seven weights",
        c11,
    ),
    Claim(
        "C12",
        "S",
        "samples are not copies: nearest-training distance > 50 % of the test set's",
        "medians over 2000 samples (GMM-10) and test images, pixels",
        c12,
    ),
    Claim("C13", "M", "slerp: exact endpoints, constant norm for equal norms, symmetric midpoint", "closed forms on random codes", c13),
    Claim("C14", "M", "the expression scorer gives the nine golden values", "grammar models"),
    Claim("C15", "S", "validity: GRAE and GVAE at least .95, above CVAE", "grammar models"),
    Claim("C16", "W", "molecules: validity GRAE > GVAE > CVAE", "grammar models"),
    Claim(
        "C17",
        "M",
        "complete grammar decodes parse; both gradient penalties agree on a linear decoder up to the known factor",
        "grammar models",
    ),
    Claim(
        "C18",
        "M",
        "AE = RAE at beta = lambda = 0; CV-VAE with sigma -> 0 and matched beta equals RAE",
        "losses of the same network on the same batch",
        c18,
    ),
)
