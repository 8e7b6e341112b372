r"""Kernel density estimate: p(z) = 1/m Σ_i N(z; z_i, H), a Gaussian at each of m stored codes (Parzen 1962).

The bandwidth matrix H decides everything. A rule (Scott 1992): H = m^{-2/(d+4)} Σ with Σ the covariance of the codes; a number h:
H = h² I, in the units of the codes (Ghosh et al. 2020 use h = 0.425 in their code); or H = h² Σ with the h under which held-out codes are
most likely. In more than a few dimensions the last is the one to trust. For Σ, far outliers are drawn in (:func:`.fitting.drawn_in`).
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.utils.checkpoint import checkpoint

from expost.density.base import Codes, Density, register
from expost.density.fitting import FitReport, Moments, codes_for, drawn_in, held_out_split, require_fitted, spreads
from expost.seeds import permutation
from expost.system.progress import Bar

__all__ = ["KDE", "KernelMixture"]

#: Elements of the largest temporary in ``log_prob``: 32 MiB of float64.
_CHUNK = 1 << 22

#: Squared norm, in bandwidths, from which a sum of products in float64 is off by 1e-3 or more.
_ROUGH = 1e12

#: Bandwidths that cross-validation tries, as factors of the codes' own covariance factor.
_SMALLEST, _LARGEST, _GOLDEN_STEPS = 1e-2, 2.0, 20


class KernelMixture(Distribution):
    r"""1/m Σ_i N(z; z_i, L Lᵀ) over vectors, of empty batch shape. ``log_prob`` works in chunks, so memory does not grow with the batch.

    Args:
        points: z_i, (m, d).
        scale_tril: L, (d, d), lower-triangular.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, points: Tensor, scale_tril: Tensor) -> None:
        self.points, self.scale_tril = points, scale_tril
        self._white: Tensor | None = None
        super().__init__(torch.Size(), points.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.points.mean(0)

    @property
    def variance(self) -> Tensor:
        return self.points.var(0, correction=0) + self.scale_tril.square().sum(-1)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            i = torch.randint(len(self.points), (shape.numel(),), device=self.points.device)
            noise = torch.randn(shape.numel(), self.points.shape[1], dtype=self.points.dtype, device=self.points.device)
            return (self.points[i] + noise @ self.scale_tril.mT).reshape(shape + self.event_shape)

    def _whiten(self, z: Tensor) -> Tensor:
        """L^{-1} (z - mean) in float64: distances between far points would otherwise lose the digits that matter."""
        centred = z.double() - self.points.double().mean(0)
        return torch.linalg.solve_triangular(self.scale_tril.double(), centred.mT, upper=False).mT

    def log_prob(self, value: Tensor) -> Tensor:
        if value.shape[-1:] != self.event_shape:
            raise ValueError(f"expected codes of dimension {self.event_shape[0]}, got shape {tuple(value.shape)}")
        m, d = self.points.shape
        if self._white is None:
            self._white = self._whiten(self.points)
        norms = self._white.square().sum(1)

        z = self._whiten(value.reshape(-1, d))
        # Codes a million bandwidths apart: the products below would round away the distance to the nearest kernel.
        rough = float(norms.max()) > _ROUGH or (z.numel() > 0 and float(z.detach().square().sum(1).max()) > _ROUGH)

        def chunk(z: Tensor) -> Tensor:
            if rough:
                squared = torch.cdist(z, self._white, compute_mode="donot_use_mm_for_euclid_dist").square()  # type: ignore[arg-type]
                return torch.logsumexp(-0.5 * squared, 1).to(value.dtype)
            squared = torch.addmm(norms + z.square().sum(1, keepdim=True), z, self._white.mT, alpha=-2)  # type: ignore[union-attr]
            return torch.logsumexp(-0.5 * squared.clamp_min(0).to(value.dtype), 1)

        # With gradients, each chunk is computed again on the way back instead of being kept.
        keep = torch.is_grad_enabled() and z.requires_grad
        rows = z.split(max(1, _CHUNK // m))
        with Bar(len(z), what="kernels", after=1.0) as bar:
            parts = [
                checkpoint(chunk, part, use_reentrant=False, preserve_rng_state=False) if keep else chunk(part)
                for part in bar.over(rows, len)
            ]
        constant = math.log(m) + 0.5 * d * math.log(2 * math.pi) + self.scale_tril.diagonal().log().sum()
        return (torch.cat(parts) - constant).reshape(value.shape[:-1])


class KDE(Density):
    r"""p(z) = 1/m Σ_i N(z; z_i, H) at a random subset of the codes.

    Args:
        d: dimension of the codes.
        bandwidth: "scott", "cv" (held-out likelihood on a tenth of the codes kept, which then all become kernels), or the standard
            deviation h of H = h² I. Where codes do not span their space, "scott" and "cv" use the floor of :class:`FullGaussian`.
        points: m at most. Evaluating costs m kernels per code; 10 000 of 60 000 codes lose little.

    >>> z = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> KDE(2, points=100).fit(z)().log_prob(z).shape
    torch.Size([200])
    """

    def __init__(self, d: int, bandwidth: float | Literal["scott", "cv"] = "scott", points: int = 10_000) -> None:
        super().__init__()
        if d < 1 or points < 2:
            raise ValueError(f"d must be at least 1 and points at least 2, not {d} and {points}")
        if isinstance(bandwidth, str):
            if bandwidth not in ("scott", "cv"):
                raise ValueError(f'bandwidth must be "scott", "cv" or a positive number, not {bandwidth!r}')
        elif not 0 < bandwidth < math.inf:
            raise ValueError(f"bandwidth must be positive, not {bandwidth}")
        self.d, self.bandwidth, self.points = d, bandwidth, points
        self.kernels: Tensor
        self.count: Tensor
        self.scale_tril: Tensor
        self.fitted: Tensor
        self.register_buffer("kernels", torch.zeros(points, d))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("scale_tril", torch.eye(d))
        self.register_buffer("fitted", torch.tensor(False))
        self.report: FitReport | None = None

    def forward(self) -> KernelMixture:
        require_fitted(self)
        return KernelMixture(self.kernels[: int(self.count)], self.scale_tril)

    def fit(self, z: Codes, *, seed: int = 0) -> Self:
        z = codes_for(self, self.d, z, seed=seed)
        order = permutation(len(z), "kde", seed).to(z.device)
        kept, others = z[order[: self.points]].to(self.kernels.dtype), z[order[self.points : self.points + 1000]]
        m, note = len(kept), ""
        if isinstance(self.bandwidth, str):
            factor = Moments.of(drawn_in(z)).factor().to(kept)
            if self.bandwidth == "scott":
                h = m ** (-1 / (self.d + 4))
            else:
                h = _most_likely(kept, factor, seed)
            note = f"kernels have {h:.4g} times the codes' standard deviation"
            scale = h * factor
        else:
            scale = self.bandwidth * torch.eye(self.d, device=kept.device, dtype=kept.dtype)
            ratio = self.bandwidth / float(spreads(drawn_in(z))[1].median())
            if not 1e-3 < ratio < 1e3:
                note = f"kernels have {ratio:.2g} times the codes' standard deviation: choose another bandwidth, or scott or cv"
        self.kernels.zero_()
        self.kernels[:m] = kept
        self.count.fill_(m)
        self.scale_tril.copy_(scale)
        self.fitted.fill_(True)
        held_out = float(self().log_prob(others.to(kept)).mean()) if len(others) else None
        self.report = FitReport(float(self().log_prob(kept[:1000]).mean()), held_out, note=note)
        return self

    def extra_repr(self) -> str:
        return f"d={self.d}, bandwidth={self.bandwidth!r}, points={self.points}"

    @property
    def spec(self) -> str:
        return "kde" if self.bandwidth == "scott" else f"kde:{self.bandwidth}"

    def arguments(self) -> dict[str, Any]:
        return {"points": self.points}

    def like(self, **arguments: Any) -> KDE:
        return KDE(self.d, self.bandwidth, **arguments)


def _most_likely(z: Tensor, factor: Tensor, seed: int) -> float:
    """The h whose kernels h² Σ on 90 % of the codes make the others most likely: golden-section search in log h.

    The likelihood is that of one split; it has a single maximum in h for any codes worth smoothing, and ties end at a boundary.
    """
    kernels, judged = held_out_split(len(z), 0.1, permutation(len(z), "kde", "cv", seed))
    kernels, judged = kernels.to(z.device), judged[:2000].to(z.device)

    def likelihood(log_h: float) -> float:
        return float(KernelMixture(z[kernels], math.exp(log_h) * factor).log_prob(z[judged]).mean())

    low, high = math.log(_SMALLEST), math.log(_LARGEST)
    golden = (math.sqrt(5) - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    at_a, at_b = likelihood(a), likelihood(b)
    with Bar(_GOLDEN_STEPS, what="bandwidth", after=1.0) as bar:
        for _ in bar.over(range(_GOLDEN_STEPS)):
            if at_a > at_b:
                high, b, at_b = b, a, at_a
                a = high - golden * (high - low)
                at_a = likelihood(a)
            else:
                low, a, at_a = a, b, at_b
                b = low + golden * (high - low)
                at_b = likelihood(b)
    return math.exp((low + high) / 2)


def _named(d: int, bandwidth: str = "scott") -> KDE:
    return KDE(d, bandwidth if bandwidth in ("scott", "cv") else float(bandwidth))  # type: ignore[arg-type]


register("kde, kde:cv or kde:0.425", _named)
