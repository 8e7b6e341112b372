r"""The encoder's variances λ_j(x): which latent dimensions carry something, and how many a datum needs.

λ_j(x), j = 1 ... κ, are the eigenvalues of Σ_z(x), the covariance of q(z | x): σ_j² of a diagonal encoder. If the data lie on a manifold of
dimension r < κ, an optimal Gaussian VAE with small γ has r eigenvalues near 0 (directions that are used, and known precisely) and κ - r at 1
(directions that equal the prior and that the decoder ignores) (Dai & Wipf 2019, section 4 and supplement, Figure 10). So the histogram has two
peaks, and the count of small eigenvalues estimates r.

The threshold ½ between the two peaks is *ours*: the paper prints the histogram only. Where the histogram is empty around it, the count does not
depend on it; :attr:`EncoderVariances.outside` says how empty [.2, .8] is. Two things a count cannot tell: if it reaches κ, only that r ≥ κ or
that γ is small enough for every direction to pay; and for a diagonal encoder it counts *coordinates*, which posterior and data need not follow.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from expost.autoencoder import Autoencoder, evaluating
from expost.distributions import deterministic
from expost.results import Curve, Result, Series, Table
from expost.tensors import batches, takes_data, unit

__all__ = ["BIMODAL", "TOP", "EncoderVariances", "encoder_variances", "posterior_variances", "summarise_variances"]

#: Upper end of the histogram, as in the paper.
TOP = 1.2
#: A peak counts as one from this share of all λ on.
BIMODAL = 0.01
LOW, HIGH = 0.2, 0.8
FEW = 100


def posterior_variances(q: Distribution) -> Tensor:
    """Eigenvalues of the covariance of Gaussians on vectors: (*batch, κ); σ_j² in the order of the coordinates, ascending for a full covariance.

    Raises ``ValueError`` for a deterministic encoder.

    >>> posterior_variances(torch.distributions.MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 1.0], [1.0, 2.0]]))).tolist()
    [1.0, 3.0]
    """
    if deterministic(q):
        raise ValueError("a deterministic encoder has no variances: use a Diagonal() or FullCovariance() head")
    if isinstance(q, MultivariateNormal):
        return torch.linalg.eigvalsh(q.covariance_matrix).clamp_min(0)
    return q.variance


@dataclass(frozen=True, eq=False)
class EncoderVariances:
    """All λ_j(x_i) in summary.

    Attributes:
        edges: of the histogram, bins + 1 numbers from 0 to :data:`TOP`.
        counts: λ per bin; a λ above the last edge is in ``above`` instead.
        above: number of λ greater than the last edge.
        medians: median over data of λ_j, (κ,) by coordinate (by rank for a full covariance).
        outside: share of all λ outside [.2, .8]; error over data.
        small, large: shares below .2 and above .8.
        dimension: mean over data of the number of λ_j < threshold, the estimate of r; error over data.
        live: number of j with median λ_j < threshold.
        threshold: ½ unless chosen.
        notes: what the reader must know.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    above: int
    medians: tuple[float, ...]
    outside: Result
    small: float
    large: float
    dimension: Result
    live: int
    threshold: float
    notes: tuple[str, ...] = ()

    @property
    def kappa(self) -> int:
        """Number of latent dimensions, κ."""
        return len(self.medians)

    @property
    def bimodal(self) -> bool:
        """Whether both peaks are there: each holds at least :data:`BIMODAL` of all λ, and [.2, .8] less than either."""
        between = 1 - self.outside.value
        return min(self.small, self.large) >= BIMODAL and between < min(self.small, self.large)

    def series(self, label: str = "encoder variances") -> Series:
        """The histogram, as shares of all λ."""
        total = sum(self.counts) + self.above
        centres = [(a + b) / 2 for a, b in itertools.pairwise(self.edges)]
        return Series(label, Curve(centres, [c / total for c in self.counts], "encoder variance λ", "share of all λ"), "bars")

    def table(self) -> Table:
        table = Table(("quantity", "value"), title="Encoder variances")
        table.add("latent dimensions", self.kappa)
        table.add("share below .2", self.small)
        table.add("share in [.2, .8]", 1 - self.outside.value)
        table.add("share above .8", self.large)
        table.add(f"mean number below {self.threshold:g} (dimension r)", self.dimension.value)
        table.add(f"dimensions with median below {self.threshold:g}", self.live)
        table.notes.extend(self.notes)
        return table


@takes_data("x")
def encoder_variances(model: Autoencoder, x: Tensor, *, bins: int = 60, threshold: float = 0.5, batch_size: int = 500) -> EncoderVariances:
    """Eigenvalues λ_j(x_i) of the covariances of q(z | x_i): histogram, share outside [.2, .8], estimated dimension r of the data's manifold.

    Dai & Wipf 2019, supplement, Figure 10. r is the mean number of λ_j below ``threshold``, ours. Memory: n · κ floats.

    Args:
        model: an autoencoder with a Gaussian encoder.
        x: data (n, *event), uint8 or floats.
        bins: of the histogram on [0, 1.2].
        threshold: between used and unused directions.
        batch_size: data encoded at once; changes λ by round-off.

    Raises:
        ValueError: a deterministic encoder, fewer than two data, no bins, a threshold outside (0, 1).
    """
    with evaluating(model):
        parts = [posterior_variances(model.encode(unit(b.to(model.device)))).cpu() for b in batches(x, batch_size)]
    return summarise_variances(torch.cat(parts), bins=bins, threshold=threshold)


def summarise_variances(variances: Tensor, *, bins: int = 60, threshold: float = 0.5) -> EncoderVariances:
    """:func:`encoder_variances` from the λ themselves, (n, κ).

    >>> found = summarise_variances(torch.tensor([[0.01, 0.02, 1.0], [0.01, 0.6, 1.0]]))
    >>> found.dimension.value, found.live, round(found.outside.value, 3)
    (1.5, 2, 0.833)
    """
    if variances.dim() != 2 or len(variances) < 2 or not bool((variances >= 0).all()):
        raise ValueError(
            f"variances must be a matrix (n, d) of at least 2 rows, none negative or NaN, not of shape {tuple(variances.shape)}"
        )
    if bins < 1 or not 0 < threshold < 1:
        raise ValueError(f"at least one bin and a threshold in (0, 1) are needed, not {bins} and {threshold}")
    n, kappa = variances.shape
    values = variances.detach().double()
    edges = torch.linspace(0, TOP, bins + 1, dtype=torch.float64)
    counts = torch.histogram(values.flatten(), bins=edges).hist  # the last bin is closed
    outside = ((values < LOW) | (values > HIGH)).double().mean(1)
    used = (values < threshold).double().sum(1)
    medians = values.median(0).values
    small, large = float((values < LOW).double().mean()), float((values > HIGH).double().mean())
    notes = [f"the threshold {threshold:g} between used and unused directions is ours, not the paper's"]
    if n < FEW:
        notes.append(f"n = {n} is below {FEW}: medians and errors are rough")
    if float(used.mean()) > kappa - 0.5:
        notes.append(f"all {kappa} directions are used: r is at least {kappa}, train with more latent dimensions to find it")
    error = n**-0.5
    return EncoderVariances(
        tuple(edges.tolist()),
        tuple(int(c) for c in counts.tolist()),
        int((values > TOP).sum()),
        tuple(medians.tolist()),
        Result("share of encoder variances outside [.2, .8]", float(outside.mean()), float(outside.std()) * error, n),
        small,
        large,
        Result(
            "estimated manifold dimension", float(used.mean()), float(used.std()) * error, n, notes=tuple(notes), context={"kappa": kappa}
        ),
        int((medians < threshold).sum()),
        threshold,
        tuple(notes),
    )
