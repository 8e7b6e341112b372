r"""The noisy Gaussian channel behind the rate of a VAE (Yu 2020, section on the noisy channel; Shannon 1948).

A code z ~ q(z | x) = N(μ, N I) is the mean μ, of power P = ‖μ‖²/d, seen through noise of power N. If posterior and prior agree in power,
P + N = 1, then exactly

    KL(N(μ, N I) || N(0, I)) = -(d/2) log N = d · ½ log(1 + P/N):

d uses of a channel of that capacity. Geometrically, N^(-d/2) balls of radius √(dN) fit into the ball of radius √d.

That the capacity C is a sharp limit is seen with random codebooks: 2^(dR) words drawn from N(0, P I), one is sent, and the nearest word to
what arrives is decoded (maximum likelihood). Below capacity the error falls with d, above it rises to one. Averaged over codebooks, the
error given what arrived, y, at squared distance r² from the word sent, is

    1 - (1 - F(r² / P))^(2^(dR) - 1),    F the noncentral χ² cumulative with d degrees of freedom and noncentrality ‖y‖² / P,

since every other word is drawn independently: :func:`random_coding_error` averages this over y and needs no codebook, so that 2^(dR) may
be far beyond what :func:`simulated_error` can search.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch.distributions import Independent, Normal

from expost.density import StandardNormal
from expost.divergences import kl
from expost.results import Curve, Demonstration, Series, Table
from expost.seeds import seeded

__all__ = ["identity_error", "noisy_channel", "random_coding_error", "simulated_error"]

NOISE = 0.25  # capacity ½ log2(1 / N) = 1 bit per dimension
#: rate in bits per dimension -> dimensions; the number of words is 2^(dR).
DIMENSIONS = {0.5: (2, 4, 8, 12, 16, 24, 32, 40), 0.75: (4, 8, 16, 24, 32, 48), 1.5: (2, 4, 8, 16, 24), 2.0: (1, 2, 4, 8, 16)}
SEARCHED = 14  # bits: codebooks up to 2^14 words are searched


def identity_error(seed: int = 0) -> float:
    """Largest relative error of KL = -(d/2) log N over dimensions 1 to 4096, noise .01 to .99 and random directions of μ."""
    worst = 0.0
    with seeded("channel identity", seed):
        for d in (1, 2, 16, 256, 4096):
            for noise in (0.01, 0.1, 0.5, 0.9, 0.99):
                mu = torch.randn(d, dtype=torch.float64)
                mu *= math.sqrt(d * (1 - noise)) / mu.norm()
                q = Independent(Normal(mu, torch.full_like(mu, math.sqrt(noise))), 1)
                expected = -0.5 * d * math.log(noise)
                worst = max(worst, abs(float(kl(q, StandardNormal(d).double()())) / expected - 1))
    return worst


def random_coding_error(d: int, rate: float, noise: float, *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Decoding error averaged over all random codebooks of 2^(dR) words, and the standard error of the average over what arrives.

    Args:
        d: dimensions, i.e. uses of the channel.
        rate: R in bits per dimension; dR may be up to 1000.
        noise: N in (0, 1); words have power P = 1 - N.
        draws: of the word sent and its noise.
    """
    from scipy.stats import ncx2

    power = 1 - noise
    with seeded("random coding", seed, d, str(rate), str(noise)):
        hiss = math.sqrt(noise) * torch.randn(draws, d, dtype=torch.float64)
        arrived = math.sqrt(power) * torch.randn(draws, d, dtype=torch.float64) + hiss
    nearer = torch.from_numpy(ncx2.cdf(hiss.square().sum(1).numpy() / power, d, arrived.square().sum(1).numpy() / power))
    error = -torch.expm1((2.0 ** (d * rate) - 1) * torch.log1p(-nearer.clamp(0, 1)))
    return float(error.mean()), float(error.std()) / math.sqrt(draws)


def simulated_error(d: int, rate: float, noise: float, *, codebooks: int = 100, messages: int = 20, seed: int = 0) -> tuple[float, float]:
    """Fraction of messages decoded to a wrong word, ``messages`` in each of ``codebooks`` fresh codebooks, and its standard error.

    Messages in one codebook are not independent: the error is the larger of the binomial one and the one between codebooks.
    Raises ``ValueError`` for more than 2^16 words.
    """
    bits = d * rate
    if bits > 16:
        raise ValueError(f"a codebook of 2^{bits:g} words is too large to search: use random_coding_error(...), or at most 16 bits")
    words, wrong = round(2**bits), []
    with seeded("codebook", seed, d, str(rate), str(noise)):
        for _ in range(codebooks):
            book = math.sqrt(1 - noise) * torch.randn(words, d)
            chosen = torch.randint(words, (messages,))
            arrived = book[chosen] + math.sqrt(noise) * torch.randn(messages, d)
            # nearest word: the largest y·c - ‖c‖²/2
            decoded = torch.addmm(-0.5 * book.square().sum(1), arrived, book.T).argmax(1)
            wrong.append(int((decoded != chosen).sum()))
    sent, fractions = codebooks * messages, torch.tensor(wrong, dtype=torch.float64) / messages
    smoothed = (sum(wrong) + 1) / (sent + 2)  # so that no error in 2000 does not claim certainty
    return float(fractions.mean()), max(math.sqrt(smoothed * (1 - smoothed) / sent), float(fractions.std()) / math.sqrt(codebooks))


def noisy_channel(seed: int = 0) -> Demonstration:
    """The identity, and the decoding error against d for rates below and above the capacity of 1 bit per dimension.

    Holds if the identity is exact to 1e-6, the averaged error falls with every larger d below capacity and rises above it, and every
    search of a codebook agrees with it within 4.5 standard errors.
    """
    capacity = -0.5 * math.log2(NOISE)
    identity = identity_error(seed)
    table = Table(
        ("rate", "d", "log2 words", "d C", "error", "s.e.", "searched", "s.e. searched"),
        title=f"noise power {NOISE:g}, capacity {capacity:g} bit per dimension",
    )
    series, ends = [], {}
    monotone, deviation = True, 0.0
    for rate, dimensions in DIMENSIONS.items():
        averaged, found = [], []
        for d in dimensions:
            error, spread = random_coding_error(d, rate, NOISE, seed=seed)
            searched: tuple[float | None, float | None] = (None, None)
            if d * rate <= SEARCHED:
                fraction, uncertainty = simulated_error(d, rate, NOISE, seed=seed)
                # few wrong words understate their own error: take the one of the averaged probability if larger (2000 messages)
                uncertainty = max(uncertainty, math.sqrt(error * (1 - error) / 2000))
                searched = (fraction, uncertainty)
                found.append((float(d), fraction, uncertainty))
                deviation = max(deviation, abs(fraction - error) / math.hypot(spread, uncertainty))
            averaged.append(error)
            table.add(rate, d, d * rate, d * capacity, error, spread, *searched)
        sign = 1 if rate > capacity else -1
        monotone = monotone and all(sign * (b - a) > 0 for a, b in itertools.pairwise(averaged))
        ends[f"error at rate {rate:g}, d = {dimensions[0]}"] = averaged[0]
        ends[f"error at rate {rate:g}, d = {dimensions[-1]}"] = averaged[-1]
        axes = ("dimensions d (uses of the channel)", "probability of a decoding error")
        series.append(Series(f"rate {rate:g} bit", Curve([float(d) for d in dimensions], averaged, *axes)))
        x, y, s = (list(column) for column in zip(*found, strict=True))
        series.append(Series(f"rate {rate:g} bit, codebook searched", Curve(x, y, *axes), "points", tuple(s)))
    return Demonstration(
        name="noisy-channel",
        title=f"What a channel with a capacity of {capacity:g} bit per dimension carries",
        claim="KL(N(mu, N I) || N(0, I)) = -(d/2) log N if |mu|^2/d + N = 1, and random codebooks decode ever better with d below that "
        "capacity, ever worse above it",
        table=table,
        series=tuple(series),
        holds=identity < 1e-6 and monotone and deviation < 4.5,
        figures={
            "relative error of the identity": identity,
            "capacity (bits)": capacity,
            **ends,
            "searched, standard errors off": deviation,
        },
        notes=(f"codebooks of up to 2^{SEARCHED} words are searched; beyond, the average over all codebooks is computed without one",),
    )
