r"""What noise along one latent direction does to the image (Dai & Wipf 2019, Figure 1 centre, supplement Figure 9).

For one datum, q(z | x) = N(μ, Σ). Along each eigenvector v_j of Σ with eigenvalue λ_j (the coordinate axes of a diagonal encoder) noise is added
to the mean code and decoded:

    x̂_s = f(μ + ε_s v_j),  ε_s ~ N(0, 1),  s = 1 ... S;      image variance = Σ_pixels var_s x̂_s,

pixels in [0, 1], the variance unbiased (S - 1). If the theory holds, directions with λ_j near 1 change nothing and those with small λ_j change
much. The paper defines neither the image variance nor the amplitude of its noise: sum over pixels and unit amplitude are our reading, which the
magnitudes it prints agree with (52.8 is the total pixel variance of MNIST, 27.3 the largest value printed for it). Unit noise is many posterior
standard deviations where λ_j is small: the images then leave the data, and the variance saturates.

The same ε_s serve every direction, so that directions are compared under the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from expost.autoencoder import Autoencoder, evaluating
from expost.diagnose.codes.variances import posterior_variances
from expost.distributions import point
from expost.results import Curve, Result, Series, Table
from expost.seeds import generator
from expost.tensors import batches, takes_data, unit

__all__ = ["NoiseDirections", "noise_correlation", "noise_directions", "spearman"]

#: Samples per direction, as in the paper's figures.
SAMPLES = 15
#: From this eigenvalue on a direction counts as unused.
UNUSED = 0.95


def spearman(a: Sequence[float] | Tensor, b: Sequence[float] | Tensor) -> float:
    """Rank correlation of two sequences, ties with mean ranks; NaN where one of them is constant.

    >>> spearman([1.0, 2.0, 3.0, 4.0], [1.0, 8.0, 9.0, 100.0])
    1.0
    """
    from scipy.stats import rankdata

    x, y = (torch.as_tensor(rankdata(torch.as_tensor(v).double().numpy())) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.square().sum() * y.square().sum()) ** 0.5
    return round(float((x * y).sum()) / scale, 12) if scale > 0 else math.nan


@dataclass(frozen=True, eq=False)
class NoiseDirections:
    """Noise along every latent direction of one datum, directions in ascending order of λ.

    Attributes:
        variances: λ_j, (κ,) ascending.
        image_variances: sum over pixels of the variance over samples, (κ,), squared units of x.
        directions: index of the coordinate of each (of the eigenvector in ascending order, for a full covariance).
        chosen: positions (in this order) of the directions whose images are kept.
        images: (len(chosen), samples, *event), decoded.
        centre: f(μ), (*event).
        correlation: Spearman's rank correlation of λ with the image variance; error by Fisher's z (1.03 / √(κ - 3)). NaN if all λ are equal.
        unused: largest image variance among directions with λ > .95, over the largest of all; None if there is no such direction.
        notes: what the reader must know.
    """

    variances: tuple[float, ...]
    image_variances: tuple[float, ...]
    directions: tuple[int, ...]
    chosen: tuple[int, ...]
    images: Tensor
    centre: Tensor
    correlation: Result
    unused: float | None
    notes: tuple[str, ...] = ()

    def series(self, label: str = "directions") -> Series:
        return Series(label, Curve(list(self.variances), list(self.image_variances), "encoder variance λ", "image variance"), "points")

    def table(self) -> Table:
        """λ and image variance of the chosen directions."""
        table = Table(("direction", "lambda", "image variance"), title="Noise along latent directions")
        for at in self.chosen:
            table.add(self.directions[at], self.variances[at], self.image_variances[at])
        table.notes += [f"rank correlation over all {len(self.variances)} directions: {self.correlation.value:.3f}", *self.notes]
        return table


@takes_data("x")
def noise_directions(
    model: Autoencoder, x: Tensor, *, chosen: Sequence[int] | int = 6, samples: int = SAMPLES, batch_size: int = 500, seed: int = 0
) -> NoiseDirections:
    """Image variance under unit noise along every eigenvector of q(z | x)'s covariance, for one datum.

    Dai & Wipf 2019, supplement, Figure 9; definition and its caveats at the top of this file.

    Args:
        model: an autoencoder with a Gaussian encoder.
        x: one datum (*event), uint8 or floats.
        chosen: positions in ascending order of λ whose images are kept, or how many, evenly spread from the smallest λ to the largest.
        samples: S per direction, at least 2.
        batch_size: codes decoded at once; changes the result by round-off.
        seed: of the noise.

    Raises:
        ValueError: a deterministic encoder, fewer than two samples, a position that does not exist, a batch of data instead of one.
    """
    if samples < 2:
        raise ValueError(f"a variance needs at least 2 samples, not {samples}")
    _check_one(model, x)
    with evaluating(model):
        q = model.encode(unit(x[None].to(model.device)))
        values = posterior_variances(q)[0]
        basis = (
            torch.linalg.eigh(q.covariance_matrix[0]).eigenvectors.T
            if isinstance(q, MultivariateNormal)
            else torch.eye(len(values)).to(values)
        )
        order = values.argsort(stable=True)
        kappa, mean = len(values), q.mean[0]
        positions = _positions(chosen, kappa)
        noise = torch.randn(samples, generator=generator("noise directions", seed), dtype=torch.float64).to(mean)
        spread: list[Tensor] = []
        kept: dict[int, Tensor] = {}
        for start in range(0, kappa, max(1, batch_size // samples)):
            places = range(start, min(kappa, start + max(1, batch_size // samples)))
            codes = mean + noise[None, :, None] * basis[order[start : places.stop]][:, None]
            decoded = torch.cat([point(model.decode(c)) for c in batches(codes.flatten(0, 1), batch_size)]).unflatten(0, (-1, samples))
            spread.append(decoded.double().var(1).flatten(1).sum(1).cpu())
            kept |= {at: decoded[at - start].cpu() for at in positions if at in places}
        centre = point(model.decode(mean[None]))[0].cpu()
    image = torch.cat(spread)
    ascending = values[order].double().cpu()
    return NoiseDirections(
        tuple(ascending.tolist()), tuple(image.tolist()), tuple(order.tolist()), positions,
        torch.stack([kept[at] for at in positions]), centre, *_relation(ascending, image, samples, seed),
    )  # fmt: skip


def _check_one(model: Autoencoder, x: Tensor) -> None:
    expected = model.encoder.condition_dims
    if x.dim() != expected:
        raise ValueError(f"one datum of {expected} dimensions is needed, not a tensor of shape {tuple(x.shape)}: pass x[0]")


def _positions(chosen: Sequence[int] | int, kappa: int) -> tuple[int, ...]:
    if isinstance(chosen, int):
        if chosen < 1:
            raise ValueError(f"at least one direction must be chosen, not {chosen}")
        chosen = sorted({round(i * (kappa - 1) / max(1, chosen - 1)) for i in range(chosen)})
    if not chosen or not all(0 <= at < kappa for at in chosen):
        raise ValueError(f"the chosen directions {list(chosen)} are not all positions from 0 to {kappa - 1}")
    return tuple(chosen)


def _relation(values: Tensor, image: Tensor, samples: int, seed: int) -> tuple[Result, float | None, tuple[str, ...]]:
    kappa = len(values)
    rho = spearman(values, image)
    notes: list[str] = []
    error = (1 - rho**2) * 1.03 / (kappa - 3) ** 0.5 if kappa > 3 and math.isfinite(rho) else None
    if error is None:
        notes.append("a rank correlation needs more than three directions of different λ")
    high = values > UNUSED
    largest = float(image.max())
    unused = float(image[high].max()) / largest if bool(high.any()) and largest > 0 else None
    if unused is None:
        notes.append(f"no direction has λ > {UNUSED}: that unused directions change nothing cannot be seen here")
    result = Result(
        "rank correlation of encoder variance and image variance",
        rho,
        error,
        kappa,
        notes=tuple(notes),
        context={"seed": seed, "samples": samples},
    )
    return result, unused, tuple(notes)


@takes_data("x")
def noise_correlation(model: Autoencoder, x: Tensor, *, samples: int = SAMPLES, batch_size: int = 500, seed: int = 0) -> Result:
    """Mean over data x (n, *event) of the rank correlation of λ_j with the image variance.

    ``error``: standard error over data. ``details``: ``lowest`` and ``highest`` of them, ``unused`` the largest share of the maximum reached by
    a direction with λ > .95 (absent if there is none). Every datum has noise of its own. Data where it is undefined are left out, and said so.
    """
    if len(x) < 2:
        raise ValueError(f"the error of a mean needs at least 2 data, not {len(x)}")
    every = [noise_directions(model, one, chosen=1, samples=samples, batch_size=batch_size, seed=seed + i) for i, one in enumerate(x)]
    found = torch.tensor([e.correlation.value for e in every], dtype=torch.float64)
    kept = found[found.isfinite()]
    if len(kept) < 2:
        raise ValueError(
            "the encoder gives every direction the same variance: a rank correlation needs a Diagonal() or FullCovariance() head"
        )
    details = {"lowest": float(kept.min()), "highest": float(kept.max())}
    unused = [e.unused for e in every if e.unused is not None]
    if unused:
        details["unused"] = max(unused)
    notes = tuple(dict.fromkeys(note for e in every for note in e.notes)) if not unused else ()
    if len(kept) < len(found):
        notes += (f"{len(found) - len(kept)} data without a rank correlation are left out",)
    return Result(
        "mean rank correlation of encoder variance and image variance", float(kept.mean()), float(kept.std()) / len(kept) ** 0.5, len(kept),
        notes=notes, details=details, context={"seed": seed, "samples": samples},
    )  # fmt: skip
