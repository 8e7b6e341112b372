"""The papers' checkable claims as data: id, sentence, level, how it is measured. ``expost claims`` runs those whose code exists.

Levels: M must hold (mathematics, or very robust), S should hold at CPU scale, W was published but is fragile: reported, never gated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from expost.papers import measures as m
from expost.papers.bozkurt2018 import claims as novel
from expost.papers.dai2019 import claims as variance
from expost.papers.ghosh2020 import claims as rae
from expost.papers.manoj2018 import claims as radius
from expost.papers.verdict import Verdict
from expost.papers.yu2020 import claims as tutorial
from expost.papers.yu2020 import likelihood_claims as likelihood
from expost.runs.lab import Lab

__all__ = ["CLAIMS", "Claim", "Verdict", "claims_of"]

PAPERS = {"000": "bozkurt2018", "001": "dai2019", "002": "ghosh2020", "003": "manoj2018", "004": "yu2020"}


@dataclass(frozen=True)
class Claim:
    """One checkable sentence of a paper.

    Attributes:
        id: A1 ... E13 of the facts sheet; the letter stands for the paper 000 ... 004.
        level: M, S or W.
        sentence: what is claimed.
        how: how it is measured here.
        measure: lab -> verdict, or None if its code is not built yet.
    """

    id: str
    level: Literal["M", "S", "W"]
    sentence: str
    how: str
    measure: Callable[[Lab], Verdict] | None = None

    @property
    def paper(self) -> str:
        return "00" + str("ABCDE".index(self.id[0]))


def claims_of(paper: str | None) -> list[Claim]:
    """All claims, or those of one paper (``002``, ``ghosh2020``) or one id (``C1``); ``ValueError`` names what exists."""
    if paper is None:
        return list(CLAIMS)
    number = {v: k for k, v in PAPERS.items()}.get(paper, paper)
    chosen = [c for c in CLAIMS if c.paper == number or c.id == paper.upper()]
    if not chosen:
        raise ValueError(
            f'there are no claims of "{paper}": give a paper ({", ".join(f"{k} = {v}" for k, v in PAPERS.items())}) or an id such as C1'
        )
    return chosen


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "A1",
        "M",
        "optimal-decoder weights sum to 1, the largest is at least 1/N, perplexity lies in [1, N], the weighted average in [0, 1] and equals the free-decoder optimum",
        "optimal-decoder kernel",
        novel.a1,
    ),
    Claim(
        "A2",
        "S",
        "the perplexity of the optimal-decoder weights peaks at 1 (> 40 % of test digits below 1.2)",
        "d = 50, shallow and deep, with and without the digit",
        novel.a2,
    ),
    Claim(
        "A3",
        "S",
        "shallow, held-out digit: reconstructions are closer to the input than to the weighted average (fraction > .7)",
        "BCE to input and to weighted average",
        novel.a3,
    ),
    Claim(
        "A4",
        "S",
        "deep, held-out digit: the same fraction is below .5 and lower than the shallow one by more than .2",
        "BCE to input and to weighted average",
        novel.a4,
    ),
    Claim("A5", "S", "deep reconstructions are closer to the input when the digit was in training", "mean BCE", novel.a5),
    Claim(
        "A6",
        "S",
        "for a digit in training, reconstruction and weighted average are nearer each other than for a held-out one",
        "mean BCE minus entropy, deep",
        novel.a6,
    ),
    Claim(
        "A7", "S", "over 20 architectures, depth predicts memorisation better than the number of parameters", "rank correlations", novel.a7
    ),
    Claim(
        "A8", "S", "all single-hidden-layer models reconstruct the held-out digit closer to input than to weighted average", "BCE", novel.a8
    ),
    Claim("A9", "S", "mini-MNIST: posterior stds shrink with training (median below .1)", "posterior scales", novel.a9),
    Claim("A10", "S", "the prior-weighted share of the latent plane with largest weight > .9 exceeds .8", "grid", novel.a10),
    Claim(
        "A11",
        "S",
        "shallow reconstructions of held-out 9s are classified as 9 more often than deep ones",
        "classifier of the evaluation",
        novel.a11,
    ),
    Claim(
        "B1",
        "S",
        "learned variance has lower test reconstruction error than variance 1",
        "test MSE per pixel of dai2019/vae-learned and vae-fixed",
        m.b1,
    ),
    Claim(
        "B2",
        "S",
        "the second stage improves sample FD over the first",
        "FD of 10 000 samples, dai2019/vae-learned: prior against stage",
        m.b2,
    ),
    Claim("B3", "S", "the two-stage VAE's sample FD is below the fixed-variance VAE's", "FD of 10 000 samples", m.b3),
    Claim(
        "B4",
        "W",
        "learned variance improves sample FD over variance 1 (not stable between the authors' versions)",
        "FD of 10 000 samples",
        m.b4,
    ),
    Claim(
        "B5",
        "M",
        "at convergence the learned variance is within 10 % of the training MSE per pixel",
        "γ against the mean squared error of sampled reconstructions of training images",
        m.b5,
    ),
    Claim("B6", "S", "log γ decreases from 0 to a plateau", "logged log γ, smoothed over five rows", m.b6),
    Claim("B7", "S", "encoder variances are bimodal: over 90 % lie outside [.2, .8]", "MNIST, κ = 64", variance.b7),
    Claim("B8", "S", "image variance under latent noise falls with the encoder variance (Spearman < -.8)", "noise rows", variance.b8),
    Claim("B9", "S", "the estimated manifold dimension of CIFAR or CelebA exceeds MNIST's", "count of variances below 1/2", variance.b9),
    Claim(
        "B10",
        "S",
        "singular values of second-stage codes are nearer 1 than those of first-stage codes",
        "singular spectra, MMD",
        variance.b10,
    ),
    Claim(
        "B11",
        "M",
        "linear data of rank r: exactly r small encoder variances, slope (d - r) of the cost in log γ",
        "synthetic manifolds",
        variance.b11,
    ),
    Claim("B12", "S", "encoder variances equal 1 / (1 + S / γ) with S from the decoder's Jacobian", "Jacobian identity", variance.b12),
    Claim(
        "B13", "M", "the second stage does not alter reconstructions; with r = d the variance stays above 0", "toy mixture", variance.b13
    ),
    Claim("B14", "W", "WAE-MMD with too many latents is poor on MNIST", "FD at κ = 64", variance.b14),
    Claim(
        "C1",
        "S",
        "GMM-10 sample FD is below the N column's for VAE, CV-VAE, WAE, RAE-GP/L2/SN, RAE, AE",
        "FD of 10 000 samples; N is N(0, I) for VAE and WAE, else a fitted Gaussian",
        rae.c1,
    ),
    Claim("C2", "S", "plain AE: the Gaussian's FD is at least twice the GMM's", "FD of 10 000 samples", rae.c2),
    Claim("C3", "S", "the best GMM FD belongs to a RAE, AE or WAE, not to VAE or CV-VAE", "FD of 10 000 samples", rae.c3),
    Claim(
        "C4",
        "S",
        "every RAE variant reconstructs better than the VAE (FD and MSE)",
        "FD of reconstructed validation images, test MSE",
        rae.c4,
    ),
    Claim("C5", "S", "RAE + GMM beats VAE + N(0, I) in sample FD", "FD of 10 000 samples", rae.c5),
    Claim("C6", "W", "a RAE is first in the N column except on MNIST", "FD of 10 000 samples, all nine models", rae.c6),
    Claim("C7", "S", "interpolation midpoints of RAEs are not worse than the VAE's", "FD of 10 000 decoded midpoints", rae.c7),
    Claim(
        "C8",
        "S",
        "the GMM does not overfit: validation log-likelihood within 2 % of training; 100 components change FD marginally",
        "mean log-likelihood per code of ghosh2020/rae; FD with gmm:10 and gmm:100",
        rae.c8,
    ),
    Claim(
        "C9", "S", "PRD: GMM at least equals N in recall for WAE and RAE; self-comparison > .97", "F8 and F1/8 of 10 000 samples", rae.c9
    ),
    Claim(
        "C10",
        "S",
        "more latent samples lower the reconstruction FD (k = 1 worst)",
        "test reconstructions after equal epochs, k = 1, 2, 5, 10",
        rae.c10,
    ),
    Claim(
        "C11",
        "S",
        "a larger KL weight worsens reconstruction and improves samples up to an optimum",
        "FD of ghosh2020/vae over seven weights",
        rae.c11,
    ),
    Claim(
        "C12",
        "S",
        "samples are not copies: nearest-training distance > 50 % of the test set's",
        "medians over 2000 samples (GMM-10) and test images, pixels",
        rae.c12,
    ),
    Claim("C13", "M", "slerp: exact endpoints, constant norm for equal norms, symmetric midpoint", "closed forms on random codes", rae.c13),
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
        rae.c18,
    ),
    Claim("D1", "M", "measured class radius <= isoperimetric bound <= theorem's bound", "partitions", radius.d1),
    Claim("D2", "M", "half-spaces and sectors match their closed forms", "Monte Carlo", radius.d2),
    Claim("D3", "M", "the theorem's bound is smallest at uniform masses and falls with the number of classes", "formulas", radius.d3),
    Claim("D4", "S", "the attack's radius is at most the segment search's", "both estimators", radius.d4),
    Claim("D5", "S", "with the omega regulariser and clipping, class centroids come closer", "codes of test images", radius.d5),
    Claim("D6", "S", "coverage and code variance fall with the regulariser", "codes and prior samples", radius.d6),
    Claim("D7", "S", "sample FD changes by less than 20 % with the regulariser", "FD", radius.d7),
    Claim("D8", "S", "centroid distance relative to the code norm changes much less than the raw one", "codes", radius.d8),
    Claim("D9", "S", "over models with more classes the class radius is smaller", "2-D grids", radius.d9),
    Claim("E1", "M", "grid entropies of the three densities: -1.916776, -1.000000, -2.3358 bits", "1024 x 1024 grid", m.e1),
    Claim("E2", "M", "H <= NLL(250) <= one-sample -ELBO", "grid NLL", likelihood.e2),
    Claim("E3", "S", "IWAE's NLL is below the VAE's on each density (8 Gaussians: W)", "grid NLL", likelihood.e3),
    Claim("E4", "S", "NLL - H is smallest for 8 Gaussians", "grid NLL", likelihood.e4),
    Claim("E5", "S", "dark-pixel mass is lower for IWAE", "latent map", likelihood.e5),
    Claim("E6", "S", "while a VAE trains, distortion falls and rate rises", "history of yu2020/vae", likelihood.e6),
    Claim(
        "E7",
        "M",
        "rescaled inputs change the -ELBO under an MSE loss, but only by a constant under a learned variance",
        "linear model",
        tutorial.e7,
    ),
    Claim("E8", "M", "Sigma-VAE with linear f: gap to the flow is half eps^2 tr(J^-1 J^-T)", "closed form", tutorial.e8),
    Claim("E9", "M", "noisy channel: KL = -(d/2) log N; decoding error falls with d below capacity", "identity and codebook", tutorial.e9),
    Claim("E10", "M", "bits-back round trip is exact; net length within 5 % of -ELBO", "codec", likelihood.e10),
    Claim("E11", "M", "a discretised logistic with folded ends sums to 1", "enumeration", tutorial.e11),
    Claim(
        "E12",
        "M",
        "the K-sample bound is non-decreasing in K, equals the ELBO at K = 1, is exact for the true posterior",
        "linear-Gaussian model",
        m.e12,
    ),
    Claim("E13", "M", "both 'z is not a parameter' solutions reach the entropy", "closed form", tutorial.e13),
)
