r"""Expectation-maximisation for Gaussian mixtures: scikit-learn's iteration, a start of our own.

Three things make it cheap without changing its fixed points.

* **Whitened float32.** EM is equivariant under affine maps, so it runs on A = Λ^{-1/2} Vᵀ (z - μ), where V Λ Vᵀ is the covariance of all
  codes (diagonal mixtures: standardised dimensions). Components are then well conditioned, and single precision suffices; should a
  factorisation fail all the same, everything is repeated in float64. ``reg`` is added to variances *here*: reg times the covariance of all
  codes, in their own units. Directions without variance (below the floor of :mod:`.fitting`) are left out and put back afterwards.
* **Outliers do not set the scale.** μ, V and Λ, and the start, are those of codes whose outliers are drawn in (:func:`.fitting.drawn_in`). Else a
  single broken code would make ``reg`` wider than all the others.
* **Torch arrays.** scikit-learn takes torch tensors through the array API: its elementwise steps then use all threads, or the GPU.
* **A growing subsample.** Several starts run on a few thousand codes; every few iterations those under which *other* codes are less
  likely are dropped, half of them at a time. The one that remains goes on with three times as many codes, and then with all.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expost.density.fitting import Moments, drawn_in, lower, variance_floor
from expost.seeds import generator
from expost.system.progress import Bar

__all__ = ["Run", "expectation_maximisation"]

#: Codes in the first stage: so many per component, but also so many per dimension of a component.
_PER_COMPONENT, _PER_DIMENSION = 300, 10
#: Iterations after which the worse half of the starts is dropped.
_ROUND = 5
#: Growth to the second stage, and most iterations there: it need not converge.
_GROWTH, _EARLY_ITERATIONS = 3, 15


@dataclass(frozen=True)
class Run:
    """Iterations on all codes, and whether the last of them gained less than the tolerance."""

    iterations: int
    converged: bool


def expectation_maximisation(
    z: Tensor, components: int, *, full: bool, restarts: int, tol: float, max_iter: int, reg: float, seed: int
) -> tuple[Tensor, Tensor, Tensor, Run]:
    """Fit to codes z (n, d); returns float64 weights (K,), means (K, d), and factors (K, d, d) or standard deviations (K, d)."""
    device = z.device
    if device.type not in ("cpu", "cuda"):
        z = z.cpu()  # not every accelerator has float64
    z = z[torch.randperm(len(z), generator=generator("em", seed)).to(z.device)]
    near = drawn_in(z) if components > 1 else z
    # A component that holds an outlier and much else may be singular in float64 even, unless the outlier sets the scale after all.
    for scale, dtype in ((near, torch.float32), (near, torch.float64), *([] if near is z else [(z, torch.float64)])):
        found = _whitened(z, scale, dtype, components, full, restarts, tol, max_iter, reg, seed)
        if found is not None:
            weights, means, factors, run = found
            return weights.to(device), means.to(device), factors.to(device), run
    raise ValueError("the mixture could not be fitted: a component collapsed; use fewer components or raise reg")


def _whitened(
    z: Tensor,
    near: Tensor,
    dtype: torch.dtype,
    components: int,
    full: bool,
    restarts: int,
    tol: float,
    max_iter: int,
    reg: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Run] | None:
    """EM on codes whitened by the moments of ``near``, and its result in the codes' units; None if it failed in this precision."""
    moments = Moments.of(near)
    d = z.shape[1]
    if full:
        values, basis = torch.linalg.eigh(moments.covariance)
    else:
        values, basis = moments.covariance.diagonal(), torch.eye(d, dtype=torch.float64, device=z.device)
    floor = variance_floor(values)
    used = values > floor
    scales = values.clamp_min(floor).sqrt()
    r = int(used.sum())

    weights = torch.full((components,), 1 / components, dtype=torch.float64, device=z.device)
    means = torch.zeros(components, d, dtype=torch.float64, device=z.device)
    inner = torch.eye(d, dtype=torch.float64, device=z.device).repeat(components, 1, 1)
    run = Run(0, True)
    if r:
        white = (((z.double() - moments.mean) / moments.unit) @ basis[:, used]) / scales[used]
        plain = (near.double() - moments.mean) / moments.unit[moments.covariance.diagonal() > 0].max()
        fitted = _staged(plain.float(), white.to(dtype), components, full, restarts, tol, max_iter, reg, seed)
        if fitted is None:
            return None
        weights, means[:, used], covariances, run = fitted
        rows = used.nonzero()[:, 0]
        inner[:, rows[:, None], rows] = covariances
    back = moments.unit[:, None] * basis * scales  # z = mean + back a
    if full:
        values, vectors = torch.linalg.eigh(inner)  # positive up to round-off: EM has added reg
        factors = lower(back @ (vectors * values.clamp_min(max(reg / 2, 1e-12))[:, None].sqrt()))
    else:
        factors = back.diagonal() * inner.diagonal(dim1=-2, dim2=-1).sqrt()
    return weights, moments.mean + means @ back.mT, factors, run


def _staged(
    plain: Tensor, white: Tensor, components: int, full: bool, restarts: int, tol: float, max_iter: int, reg: float, seed: int
) -> tuple[Tensor, Tensor, Tensor, Run] | None:
    """EM on growing parts of whitened codes, started on the codes themselves (both shuffled); None if a factorisation failed in this precision."""
    n, r = white.shape
    first = min(n, components * max(_PER_COMPONENT, _PER_DIMENSION * r))
    judged = white[first : 2 * first] if n >= 2 * first else white[:first]
    try:
        starts = restarts if components > 1 else 1
        with _torch_arrays():
            with Bar(starts, what="starts of the mixture", after=1.0) as bar:
                runners = [
                    _estimator(_start(plain[:first], white[:first], components, full, seed + k), components, full, reg)
                    for k in bar.over(range(starts))
                ]
            while len(runners) > 1:
                for model in runners:
                    _iterate(model, white[:first], tol, _ROUND)
                runners.sort(key=lambda model: float(model.score(judged)), reverse=True)
                del runners[len(runners) // 2 :]
            best = runners[0]
            if n > 1.5 * _GROWTH * first:
                _iterate(best, white[: _GROWTH * first], tol, _EARLY_ITERATIONS)
            _iterate(best, white, tol, max_iter)
    except (torch.linalg.LinAlgError, ValueError):  # scikit-learn translates numpy's error only
        return None
    found = best.weights_, best.means_, best.covariances_ if full else torch.diag_embed(best.covariances_)
    if not all(bool(torch.isfinite(part).all()) for part in found):
        return None
    weights, means, covariances = (part.double() for part in found)
    return weights, means, covariances, Run(int(best.n_iter_), bool(best.converged_))


def _start(plain: Tensor, white: Tensor, components: int, full: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and precisions from k-means on the codes themselves: directions of large variance tell clusters apart best.

    Each cluster's covariance is drawn towards a small multiple of the identity, as if by r further codes, so that it is never singular.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    # scikit-learn's k-means adds up partial sums in the order in which threads finish: one thread makes it reproducible.
    with threadpool_limits(1, user_api="openmp"):
        labels = KMeans(components, n_init=1, random_state=seed).fit(plain.cpu().numpy()).labels_
    member = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), components).to(white)
    count = member.sum(0)
    r = white.shape[1]
    rows = torch.randint(len(white), (components,), generator=generator("em", "empty", seed)).to(white.device)
    means = torch.where(count[:, None] > 0, member.mT @ white / count[:, None].clamp_min(1), white[rows])
    within = torch.stack([(white - means[k]).mT @ ((white - means[k]) * member[:, k, None]) for k in range(components)]).double()
    eye = torch.eye(r, dtype=torch.float64, device=white.device)
    covariances = (within + 0.1 * r * eye) / (count.double() + r)[:, None, None]
    weights = count.clamp_min(1)
    precisions = torch.linalg.inv(covariances) if full else 1 / covariances.diagonal(dim1=-2, dim2=-1)
    if full:
        precisions = (precisions + precisions.mT) / 2
    return weights / weights.sum(), means, precisions.to(white)


def _estimator(start: tuple[Tensor, Tensor, Tensor], components: int, full: bool, reg: float) -> Any:
    from sklearn.mixture import GaussianMixture

    weights, means, precisions = start
    return GaussianMixture(
        components,
        covariance_type="full" if full else "diag",
        reg_covar=reg,
        init_params="random_from_data",  # unused, since all three starting values are given, but the default is refused for tensors
        weights_init=weights,
        means_init=means,
        precisions_init=precisions,
        warm_start=True,
    )


def _iterate(model: Any, white: Tensor, tol: float, max_iter: int) -> None:
    """Go on from the model's present parameters; its likelihood of other codes must not count as progress."""
    model.set_params(tol=tol, max_iter=max_iter)
    model.lower_bound_ = -math.inf
    with Bar(max_iter, what="mixture", unit="iteration", after=1.0) as bar:
        model._print_verbose_msg_iter_end = lambda done, *rest: bar.update(done)  # what scikit-learn calls after each
        model.fit(white)


@contextmanager
def _torch_arrays() -> Iterator[None]:
    """Let scikit-learn compute on torch tensors inside the block, and say nothing about convergence.

    scikit-learn asks for ``SCIPY_ARRAY_API=1`` in the environment although the mixture uses none of SciPy on tensors. The variable is set
    only inside the block, after SciPy (which reads it once, when imported) has been imported, and so SciPy stays as it is.
    """
    import sklearn.cluster
    import sklearn.mixture
    from sklearn.exceptions import ConvergenceWarning

    before = os.environ.get("SCIPY_ARRAY_API")
    os.environ["SCIPY_ARRAY_API"] = "1"
    try:
        with sklearn.config_context(array_api_dispatch=True), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            yield
    finally:
        if before is None:
            del os.environ["SCIPY_ARRAY_API"]
        else:
            os.environ["SCIPY_ARRAY_API"] = before
