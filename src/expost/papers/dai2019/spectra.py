r"""Do codes look like the prior? Singular values of code matrices, and the maximum mean discrepancy to N(0, I).

Codes z_i ~ q(z | x_i) of n data form a matrix Z (n, κ). If the aggregate q(z) is N(0, I), the κ singular values of Z / √n lie near 1: between
the edges 1 ± √(κ/n) of Marchenko and Pastur (1967), up to fluctuations that are smaller still. Z is not centred: a mean that is not 0 is a
mismatch too. Dai & Wipf 2019 (Figure 1, right) plot them for first-stage codes z, second-stage codes u ~ q(u | z) and N(0, I); they leave out
the √n. The spectrum sees first and second moments only, so the discrepancy

    MMD² = E k(a, a′) + E k(b, b′) - 2 E k(a, b),     a, a′ ~ codes,  b, b′ ~ N(0, I),

(Gretton et al. 2012, lemma 6; the unbiased estimate, without diagonals) stands beside it, for two kernels: ``imq``, seven inverse
multiquadratics (Tolstikhin et al. 2018; :func:`expost.divergences.multi_scale_imq`), and ``rbf``, exp(-‖a - b‖² / h) with h the median squared
distance *within the N(0, I) sample*. A bandwidth from the codes would change with what is measured: z and u could not be compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from expost.autoencoder import Autoencoder
from expost.divergences import multi_scale_imq
from expost.results import Curve, Result, Series, Table
from expost.seeds import generator, permutation, some
from expost.tensors import check_finite, takes_data
from expost.train.second_stage import SecondStage

__all__ = ["Codes", "LatentSpectra", "Spectrum", "latent_spectra", "singular_spectrum", "squared_mmd"]

CHUNK = 4096
#: Rows from which the estimates of the discrepancy separate good codes from bad ones.
FEW = 500
Kernel = Literal["imq", "rbf"]


@dataclass(frozen=True)
class Spectrum:
    """Singular values of Z / √n, descending.

    Attributes:
        values: (κ,), 1 for N(0, I) in the limit of many rows.
        n: rows.
        deviation: root mean square of (value - 1).
        edges: 1 - √(κ/n) and 1 + √(κ/n), between which values of N(0, I) lie.
    """

    values: tuple[float, ...]
    n: int

    @property
    def deviation(self) -> float:
        return (sum((v - 1) ** 2 for v in self.values) / len(self.values)) ** 0.5

    @property
    def edges(self) -> tuple[float, float]:
        half = (len(self.values) / self.n) ** 0.5
        return max(0.0, 1 - half), 1 + half

    def series(self, label: str) -> Series:
        places = [float(i + 1) for i in range(len(self.values))]
        return Series(label, Curve(places, list(self.values), "index", "singular value / √n"))


def singular_spectrum(codes: Tensor) -> Spectrum:
    """Singular values of codes (n, κ) divided by √n, in float64 from ZᵀZ (values below 10⁻⁸ of the largest are round-off).

    Row order and chunks change nothing beyond 10⁻¹² relative. ``ValueError`` for codes that are no finite matrix of at least κ rows.

    >>> singular_spectrum(torch.tensor([[3.0, 0.0], [0.0, 4.0], [3.0, 0.0], [0.0, 4.0]])).values  # doctest: +ELLIPSIS
    (2.828..., 2.121...)
    """
    _check(codes)
    gram = torch.zeros(codes.shape[1], codes.shape[1], dtype=torch.float64)
    for chunk in codes.split(CHUNK):
        rows = chunk.detach().to("cpu", torch.float64)
        gram.addmm_(rows.T, rows)
    values = torch.linalg.eigvalsh(gram / len(codes)).clamp_min(0).sqrt().flip(0)
    return Spectrum(tuple(values.tolist()), len(codes))


def _check(codes: Tensor) -> None:
    if codes.dim() != 2 or len(codes) < max(3, codes.shape[1]):
        raise ValueError(
            f"codes must be a matrix (n, d) of at least 3 and at least d rows, not of shape {tuple(codes.shape)}: pass more data"
        )
    check_finite(codes, "codes")


def squared_mmd(a: Tensor, b: Tensor, *, kernel: Kernel = "imq", bandwidth: float | None = None, memory: int = 256 * 2**20) -> Result:
    """Unbiased estimate of MMD² between two sets of codes, exact over all pairs; it may be negative.

    Gretton et al. 2012, lemma 6. Float64, in blocks of at most ``memory`` bytes; block size and row order change it by round-off (10⁻¹²) only.

    Args:
        a, b: (n, κ) and (m, κ), at least 3 rows each.
        kernel: ``imq`` with values up to 7, or ``rbf`` with values up to 1.
        bandwidth: h of ``rbf``, squared units; None: the median squared distance between (1000 random) rows of b.
        memory: bytes for kernel blocks.

    Returns:
        ``value``: the estimate. ``error``: delete-one jackknife over the rows of both sets; errs upwards where both have one distribution.

    Raises:
        ValueError: matrices of different width, too few rows, an unknown kernel, a bandwidth that is not positive.
    """
    for codes in (a, b):
        if codes.dim() != 2 or len(codes) < 3:
            raise ValueError(f"codes must be matrices (n, d) of at least 3 rows, not of shape {tuple(codes.shape)}: pass more data")
        check_finite(codes, "codes")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"codes of {a.shape[1]} and of {b.shape[1]} dimensions cannot be compared: use codes of one latent space")
    if kernel not in ("imq", "rbf"):
        raise ValueError(f'kernel must be "imq" or "rbf", not {kernel!r}')
    x, y = (codes.detach().to("cpu", torch.float64) for codes in (a, b))
    if kernel == "rbf" and bandwidth is None:
        bandwidth = float(torch.pdist(some(y, 1000, "bandwidth")).square().median())
    if kernel == "rbf" and not (bandwidth is not None and bandwidth > 0):
        raise ValueError(f"the bandwidth must be positive, not {bandwidth}: more than half of the rows of b are equal, pass bandwidth")
    n, m = len(x), len(y)
    r, q, t, u = (
        _sums(x, x, kernel, bandwidth, memory)[0],
        _sums(y, y, kernel, bandwidth, memory)[0],
        *_sums(x, y, kernel, bandwidth, memory),
    )
    top = 7.0 if kernel == "imq" else 1.0
    r, q = r - top, q - top  # without the diagonals
    xx, yy, xy = r.sum(), q.sum(), t.sum()
    value = xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)
    no_x = (xx - 2 * r) / ((n - 1) * (n - 2)) + yy / (m * (m - 1)) - 2 * (xy - t) / ((n - 1) * m)
    no_y = xx / (n * (n - 1)) + (yy - 2 * q) / ((m - 1) * (m - 2)) - 2 * (xy - u) / (n * (m - 1))
    variance = sum(float((v - v.mean()).square().sum()) * (len(v) - 1) / len(v) for v in (no_x, no_y))
    notes = () if min(n, m) >= FEW else (f"n = {min(n, m)} is below {FEW}: the noise is large",)
    context: dict[str, str | int | float] = {"kernel": kernel, **({"bandwidth": bandwidth} if kernel == "rbf" and bandwidth else {})}
    return Result(f"MMD² ({kernel})", float(value), variance**0.5, min(n, m), notes=notes, context=context)


def _sums(x: Tensor, y: Tensor, kernel: Kernel, bandwidth: float | None, memory: int) -> tuple[Tensor, Tensor]:
    """Row and column sums of the kernel matrix (diagonal included where x is y); about four blocks live at once."""
    rows, columns = torch.zeros(len(x), dtype=torch.float64), torch.zeros(len(y), dtype=torch.float64)
    block = max(1, memory // (4 * 8 * len(y)))
    for start in range(0, len(x), block):
        part = x[start : start + block]
        squared = (part.square().sum(1)[:, None] + y.square().sum(1)).addmm_(part, y.T, alpha=-2).clamp_min_(0)
        k = multi_scale_imq(squared, x.shape[1]) if kernel == "imq" else torch.exp(-squared / (bandwidth or math.nan))
        rows[start : start + block] = k.sum(1)
        columns += k.sum(0)
    return rows, columns


#: Which codes: of the first stage, of the second, or drawn from N(0, I).
Codes = Literal["z", "u", "normal"]


@dataclass(frozen=True, eq=False)
class LatentSpectra:
    """Spectra and discrepancies of the codes of one model.

    Attributes:
        spectra: by kind of code, ``z`` first stage, ``u`` second stage (if there is one), ``normal`` as many rows of N(0, I).
        mmd: MMD² to N(0, I) by kind of code and kernel; ``normal`` is a second independent sample, the level of no mismatch.
        notes: what the reader must know.
    """

    spectra: dict[Codes, Spectrum]
    mmd: dict[tuple[Codes, Kernel], Result]
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        names = {"z": "q(z)", "u": "q(u), second stage", "normal": "N(0, I)"}
        table = Table(("codes", "smallest", "largest", "rms deviation from 1", "MMD² imq", "± imq", "MMD² rbf", "± rbf"))
        table.title = "Singular values / √n and discrepancy to N(0, I)"
        for kind, found in self.spectra.items():
            imq, rbf = self.mmd[kind, "imq"], self.mmd[kind, "rbf"]
            table.add(names[kind], found.values[-1], found.values[0], found.deviation, imq.value, imq.error, rbf.value, rbf.error)
        low, high = self.spectra["normal"].edges
        table.notes += [f"values of N(0, I) lie within {low:.3f} and {high:.3f}", *self.notes]
        return table

    def series(self) -> tuple[Series, ...]:
        names = {"z": "q(z)", "u": "q(u), second stage", "normal": "N(0, I)"}
        return tuple(found.series(names[kind]) for kind, found in self.spectra.items())


@takes_data("x")
def latent_spectra(
    model: Autoencoder, x: Tensor, *, stage: SecondStage | None = None, rows: int = 2000, batch_size: int = 500, seed: int = 0
) -> LatentSpectra:
    """Singular spectra of z ~ q(z | x_i), of u ~ q(u | z_i) and of N(0, I), with MMD² of the first two to N(0, I).

    Dai & Wipf 2019, Figure 1 (right) and, in its camera-ready version, Table 3.

    Args:
        model: the first stage.
        x: data (n, *event), at least as many as latent dimensions.
        stage: the fitted second stage.
        rows: of the codes that enter MMD², O(rows²), chosen by the seed.
        batch_size: data encoded at once; changes nothing beyond round-off.
        seed: of codes, normal samples and rows.

    Raises:
        ValueError: too few data, or a second stage that is not fitted.
    """
    z = model.latents(x, at="sample", batch_size=batch_size, seed=seed)
    codes: dict[Codes, Tensor] = {"z": z.cpu()}
    notes: tuple[str, ...] = ()
    if stage is not None:
        stage()  # raises if it is not fitted
        codes["u"] = stage.model.latents(z, at="sample", batch_size=batch_size, seed=seed).cpu()
    else:
        notes += ("without a second stage there are no codes u: pass stage=...",)
    n, kappa = z.shape
    normal, target = (torch.randn(n, kappa, generator=generator("spectra", seed, name)) for name in ("normal", "target"))
    codes["normal"] = normal
    spectra = {kind: singular_spectrum(value) for kind, value in codes.items()}
    kept = permutation(n, "spectra", seed, "rows")[:rows]
    kernels: tuple[Kernel, ...] = ("imq", "rbf")
    mmd = {
        (kind, kernel): squared_mmd(_same_width(value, kappa)[kept], target[kept], kernel=kernel)
        for kind, value in codes.items()
        for kernel in kernels
    }
    return LatentSpectra(spectra, mmd, notes)


def _same_width(codes: Tensor, kappa: int) -> Tensor:
    if codes.shape[1] != kappa:
        raise ValueError(
            f"second-stage codes of {codes.shape[1]} dimensions stand beside {kappa}: use a second stage of equal latent dimension"
        )
    return codes
