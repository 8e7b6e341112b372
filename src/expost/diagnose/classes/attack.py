r"""The class radius by gradients: an attack on the classifier through the decoder, and a refinement of any estimate.

Attack. For a code z of class i the nearest code of another class solves a constrained problem; its penalty form (Carlini and Wagner 2017,
"Towards evaluating the robustness of neural networks", here in the latent space) is minimised by Adam,

    ‖δ‖² + c · relu(l_i(z + δ) - l_j(z + δ) + m),        l = logits, j = the strongest other class at each step, or one of ``targets`` fixed ones,

with c raised fourfold and the rate doubled in the next restart wherever no other class was met. With a threshold τ the second term is
relu(log τ/(1 - τ) - (l_j - log Σ_{k≠j} e^{l_k}) + m): another class alone is not enough, its probability must reach τ. The nearest code of another class
on the way is kept, and the segment to it is halved.

Refinement. At a point b on the boundary between classes i and j the boundary's tangent plane has the normal g = ∇(l_j - l_i)(b), and the foot of z on
it, z + ((b - z)·g / ‖g‖²) g, is the nearest point if the boundary is flat. So go in that direction (or half or a quarter of the way there),
keep it if another class is met at a smaller distance, halve, and repeat: projections onto the boundary, alternating with shrinking.

Both return codes that were seen to be of another class, so both are upper bounds of r(z) (see ``radius.py``).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from expost.diagnose.classes.classify import Classify, assign, outputs
from expost.diagnose.classes.radius import TOLERANCE, ClassRadius, Located, halved, is_other, locate, measured
from expost.seeds import generator
from expost.system.progress import Bar
from expost.tensors import batches

__all__ = ["attack_radius", "refined_radius"]

#: Scale of the random start of restarts after the first, which starts (almost) at z.
FAR_START, NEAR_START = 0.5, 1e-2
#: How much c and the rate grow where nothing was found, and how many restarts more the codes get from which nothing was found at all.
RAISE, FASTER, RESCUES = 4.0, 2.0, 4
#: Parts of the way to the foot that a refinement tries.
BLENDS = (1.0, 0.5, 0.25)


def attack_radius(
    classify: Classify,
    z: Tensor,
    *,
    targets: int | None = None,
    steps: int = 20,
    restarts: int = 3,
    rate: float = 0.1,
    weight: float = 1.0,
    margin: float = 0.1,
    threshold: float | None = None,
    tolerance: float = TOLERANCE,
    chunk: int = 1024,
    seed: int = 0,
) -> ClassRadius:
    """Penalty attack in z (see the top of this file).

    Args:
        classify: z (n, d) -> logits (n, K), differentiable.
        z: codes (n, d).
        targets: None: the strongest other class of each step; k: the k strongest other classes at z one after another, k times the work.
        steps, rate: of Adam; the rate falls linearly to a tenth, so a code moves by about ``steps * rate / 2`` per dimension at most, and
            twice as far after every restart that found nothing.
        restarts: from random starts; codes from which nothing was found get four more, since leaving out the farthest would lower the mean.
        weight: c of the first restart.
        margin: m, in logits.
        threshold, tolerance, chunk, seed: as in :func:`~expost.diagnose.classes.radius.segment_radius`.

    Raises:
        ValueError: labels instead of logits, a classification without gradients, no code of another class found at all.
    """
    if min(steps, restarts) < 1 or (targets is not None and targets < 1):
        raise ValueError("an attack needs at least one step, one restart and one target")
    where = locate(classify, z, threshold)
    if where.out.dim() != 2 or where.out.shape[1] < 2:
        raise ValueError(
            "an attack follows the gradient of at least two logits: let the classification return logits (n, K), or use segment_radius"
        )
    starts = torch.randn(restarts + RESCUES, *where.z.shape, generator=generator("attack", seed), dtype=torch.float64).to(where.z)
    nearest = torch.full_like(where.z, math.nan)
    with Bar(len(where.z), what="attack", after=1.0) as bar:
        for rows in bar.over(batches(torch.arange(len(where.z), device=z.device), chunk), len):
            nearest[rows] = _attack(classify, where, rows, starts[:, rows], targets, steps, rate, weight, margin, threshold, tolerance)
    return measured(f"attack, {steps} steps, {restarts} restarts", where, nearest, tolerance)


def _attack(
    classify: Classify, where: Located, rows: Tensor, starts: Tensor, targets: int | None, steps: int, rate: float, weight: float, margin: float,
    threshold: float | None, tolerance: float,
) -> Tensor:  # fmt: skip
    z, own = where.z[rows], where.labels[rows]
    ranked = _without(where.out[rows], own).argsort(dim=1, descending=True)[:, : targets or 0].T  # (targets, n)
    best, nearest = torch.full((len(z),), math.inf, dtype=torch.float64, device=z.device), torch.full_like(z, math.nan)
    for target in [None] if targets is None else list(ranked):
        c, speed = z.new_full((len(z),), weight), z.new_full((len(z),), rate)
        for restart, start in enumerate(starts):
            tried = torch.arange(len(z), device=z.device) if restart < len(starts) - RESCUES else torch.nonzero(best.isinf()).flatten()
            if not len(tried):
                break
            delta, goal = start[tried] * (FAR_START if restart else NEAR_START), None if target is None else target[tried]
            met = _descend(classify, z[tried], own[tried], delta, goal, c[tried], speed[tried], steps, margin, threshold)
            missed = met.isnan().any(1)
            c[tried[missed]] *= RAISE
            speed[tried[missed]] *= FASTER
            hit = tried[~missed]
            points = halved(classify, z[hit], own[hit], met[~missed], threshold=threshold, tolerance=tolerance)
            radii = (points.double() - z[hit].double()).norm(dim=1)
            better = radii < best[hit]
            best[hit[better]], nearest[hit[better]] = radii[better], points[better]
    return nearest


def _descend(
    classify: Classify, z: Tensor, own: Tensor, delta: Tensor, target: Tensor | None, c: Tensor, rate: Tensor, steps: int, margin: float,
    threshold: float | None,
) -> Tensor:  # fmt: skip
    """One run of Adam from ``delta``; the nearest code of another class that was met, NaN where there was none."""
    first, second = torch.zeros_like(delta), torch.zeros_like(delta)
    least, met = torch.full_like(c, math.inf), torch.full_like(z, math.nan)
    with Bar(steps + 1, what="descent", unit="step", after=1.0) as bar:
        for step in bar.over(range(steps + 1)):
            with torch.enable_grad():
                moved = delta.detach().requires_grad_()
                logits = classify(z + moved)
                _check_gradient(logits)
                loss = moved.square().sum(1) + c * (_excess(logits, own, target, threshold) + margin).relu()
                gradient = _gradient(loss, moved)
            labels = assign(logits.detach(), threshold)
            norm = delta.norm(dim=1)
            nearer = (labels >= 0) & (labels != own) & (norm < least)
            least, met = torch.where(nearer, norm, least), torch.where(nearer[:, None], z + delta, met)
            if step == steps:
                break
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square()
            mean, scale = first / (1 - 0.9 ** (step + 1)), (second / (1 - 0.999 ** (step + 1))).sqrt()
            delta = delta - (1 - 0.9 * step / steps) * rate[:, None] * mean / (scale + 1e-12)
    return met


def _check_gradient(logits: Tensor) -> None:
    if not logits.requires_grad:
        raise ValueError(
            "the classification gives logits without a gradient: use a differentiable decoder and classifier, or segment_radius"
        )


def _gradient(of: Tensor, at: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(of.sum(), at)
    return gradient.nan_to_num(0.0, 0.0, 0.0)


def _without(logits: Tensor, own: Tensor) -> Tensor:
    return logits.scatter(1, own[:, None], -math.inf)


def _excess(logits: Tensor, own: Tensor, target: Tensor | None, threshold: float | None) -> Tensor:
    """How many logits are missing for another class: <= 0 where it is reached."""
    j = _without(logits, own).argmax(1) if target is None else target
    strength = logits.gather(1, j[:, None])[:, 0]
    if threshold is None:
        return logits.gather(1, own[:, None])[:, 0] - strength
    return math.log(threshold / (1 - threshold)) - (strength - logits.scatter(1, j[:, None], -math.inf).logsumexp(1))


def refined_radius(
    classify: Classify,
    z: Tensor,
    start: ClassRadius,
    *,
    rounds: int = 10,
    threshold: float | None = None,
    tolerance: float = TOLERANCE,
    chunk: int = 1024,
) -> ClassRadius:
    """Improve an estimate by projections onto the boundary's tangent plane (see the top of this file); never worse than ``start``.

    Args:
        classify: z (n, d) -> logits (n, K), differentiable.
        z: the codes that ``start`` was measured at, and its ``threshold``.
        start: any estimate from samples.
        rounds: at most; codes that gained less than a ten-thousandth in a round stop.
        tolerance, chunk: as in :func:`~expost.diagnose.classes.radius.segment_radius`.

    Raises:
        ValueError: an estimate of other codes, labels instead of logits, a classification without gradients.

    >>> from expost.diagnose.classes.radius import segment_radius
    >>> halves, z = lambda z: z[:, :1] * torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 0.3], [-2.0, 1.0]])
    >>> [round(r, 5) for r in refined_radius(halves, z, segment_radius(halves, z)).radii.tolist()]
    [0.5, 2.0]
    """
    where = locate(classify, z, threshold)
    if start.weights is not None or start.n != len(where.z) or not torch.equal(start.labels.to(where.labels), where.labels):
        raise ValueError("the estimate to refine is of other codes: pass the z and the threshold that it was measured with")
    if where.out.dim() != 2:
        raise ValueError("a refinement follows the gradient of logits: let the classification return logits (n, K)")
    nearest = start.nearest.to(where.z).clone()
    found = torch.nonzero(start.found).flatten().to(z.device)
    with Bar(len(found), what="refinement", after=1.0) as bar:
        for rows in bar.over(batches(found, chunk), len):
            nearest[rows] = _refine(classify, where.z[rows], where.labels[rows], nearest[rows], rounds, threshold, tolerance)
    refined = measured(f"{start.method}, refined", where, nearest, max(tolerance, start.tolerance))
    return replace(refined, radii=torch.minimum(refined.radii, start.radii))


def _refine(classify: Classify, z: Tensor, own: Tensor, nearest: Tensor, rounds: int, threshold: float | None, tolerance: float) -> Tensor:
    nearest = nearest.clone()
    active = torch.arange(len(z), device=z.device)
    for _ in range(rounds):
        if not len(active):
            break
        here, there, mine = z[active].double(), nearest[active], own[active]
        normal = _normal(classify, there, mine).double()
        delta = there.double() - here
        radius = delta.norm(dim=1)
        foot = ((delta * normal).sum(1) / normal.square().sum(1).clamp_min(1e-300))[:, None] * normal
        tried, points = torch.zeros(len(active), dtype=torch.bool, device=z.device), there.clone()
        for blend in BLENDS:
            left = torch.nonzero(~tried).flatten()
            direction = (1 - blend) * delta[left] + blend * foot[left]
            size = direction.norm(dim=1)
            candidate = (here[left] + (radius[left] / size.clamp_min(1e-300))[:, None] * direction).to(z.dtype)
            across = is_other(classify, candidate, mine[left], threshold) & (size > 0)
            tried[left[across]], points[left[across]] = True, candidate[across]
        gained = torch.nonzero(tried).flatten()
        points = halved(classify, z[active[gained]], mine[gained], points[gained], threshold=threshold, tolerance=tolerance)
        shorter = (points.double() - here[gained]).norm(dim=1)
        better = shorter < radius[gained]
        nearest[active[gained[better]]] = points[better]
        active = active[gained[shorter < radius[gained] * (1 - 1e-4)]]
    return nearest


def _normal(classify: Classify, b: Tensor, own: Tensor) -> Tensor:
    """∇(l_j - l_i) at b, j the class there and i the code's own."""
    with torch.no_grad():
        other = _without(outputs(classify, b), own).argmax(1)
    with torch.enable_grad():
        at = b.detach().requires_grad_()
        logits = classify(at)
        _check_gradient(logits)
        return _gradient(logits.gather(1, other[:, None])[:, 0] - logits.gather(1, own[:, None])[:, 0], at)
