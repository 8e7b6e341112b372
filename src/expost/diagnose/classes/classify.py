r"""A latent space cut into classes (Manoj 2018, slides on class radius and diversity of latent spaces).

A generator g maps codes to data and a classifier c maps data to classes, so c∘g maps codes to classes: K_i = {z : c(g(z)) = i}. All that
these diagnostics know of a latent space is such a function,

    classify: z (n, d)  ->  logits (n, K), or labels (n,) of an integer type, -1 where a code belongs to no class.

Two readings of logits:

* *partition* (``threshold=None``): the class is the arg max, every code has one, there are no holes. The bounds of ``bounds.py`` assume it;
* *threshold τ*: a code whose largest softmax probability is below τ belongs to no class: it lies in a *hole*.

:class:`LatentClasses` is that function for an autoencoder and a classifier of data. It is differentiable in z, which the attack needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from expost.autoencoder import Autoencoder, evaluating
from expost.distributions import point
from expost.seeds import generator
from expost.tensors import batches, check_finite

__all__ = ["TAU", "HOLE", "Classify", "LatentClasses", "assign", "outputs", "prior_codes"]

#: The threshold of the softmax probability where one is needed.
TAU = 0.9

#: z (n, d) -> logits (n, K) or integer labels (n,).
Classify = Callable[[Tensor], Tensor]
#: The label of a code that belongs to no class.
HOLE = -1


@dataclass(frozen=True, eq=False)
class LatentClasses:
    """z (n, d) -> logits (n, K): the classifier's view of point(p(x | z)), in batches, differentiable in z.

    Args:
        model: its decoder is used, in evaluation mode.
        classifier: images (n, C, H, W) in [0, 1], or points (n, D), -> logits (n, K). Means of images are clamped to [0, 1] first.
        batch_size: codes decoded together; results agree to rounding for any.

    Raises:
        ValueError: (when called) z is no matrix of codes, or the classifier's answer no matrix of logits.
    """

    model: Autoencoder = field(repr=False)
    classifier: Callable[[Tensor], Tensor] = field(repr=False)
    batch_size: int = 250

    def __call__(self, z: Tensor) -> Tensor:
        if z.dim() != 2:
            raise ValueError(f"codes must be a matrix (n, d), not of shape {tuple(z.shape)}: stack them")
        gradients = torch.is_grad_enabled()
        weights = next(self.model.decoder.parameters())
        parts = []
        with evaluating(self.model), torch.set_grad_enabled(gradients):
            for part in batches(z, self.batch_size):
                x = point(self.model.decode(part.to(weights)))
                logits = self.classifier(x.clamp(0, 1) if x.dim() == 4 else x)
                if logits.dim() != 2 or len(logits) != len(part) or not logits.is_floating_point():
                    raise ValueError(
                        f"the classifier must give logits (n, K), not {logits.dtype} of shape {tuple(logits.shape)}: pass a function of a batch"
                    )
                parts.append(logits)
        return torch.cat(parts).to(z.device)

    @property
    def d(self) -> int | None:
        """Dimension of the codes, where the model has a prior that tells it."""
        return None if self.model.prior is None else self.model.latent().event_shape[0]


def prior_codes(n: int, d: int, *, seed: int = 0) -> Tensor:
    """n codes z ~ N(0, I) of dimension d, (n, d) float32 on the CPU; the same for the same seed."""
    if n < 1 or d < 1:
        raise ValueError(f"prior codes need n and d of at least 1, not n = {n}, d = {d}")
    return torch.randn(n, d, generator=generator("prior codes", seed))


def outputs(classify: Classify, z: Tensor, *, batch_size: int = 4096) -> Tensor:
    """What ``classify`` says of codes (n, d): logits (n, K) or labels (n,), without gradients, in batches, checked.

    >>> outputs(lambda z: (z[:, 0] > 0).long(), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).tolist()
    [1, 0]
    """
    if z.dim() != 2 or len(z) == 0:
        raise ValueError(f"codes must be a matrix (n, d) with at least one row, not of shape {tuple(z.shape)}")
    check_finite(z, "codes")
    with torch.no_grad():
        out = torch.cat([classify(part) for part in batches(z, batch_size)])
    if len(out) != len(z) or out.dim() not in (1, 2) or (out.dim() == 1 and (out.is_floating_point() or out.is_complex())):
        raise ValueError(f"a classification gives logits (n, K) or integer labels (n,), not {out.dtype} of shape {tuple(out.shape)}")
    check_finite(out, "logits")
    return out


def assign(out: Tensor, threshold: float | None = None) -> Tensor:
    """Labels (n,) int64 of logits (n, K): the arg max, or :data:`HOLE` where the largest softmax probability is below ``threshold``.

    Labels (n,) pass through; they have no probabilities, so a threshold is a ``ValueError``.

    >>> assign(torch.tensor([[3.0, 0.0], [0.1, 0.0]]), threshold=0.9).tolist()
    [0, -1]
    """
    if not isinstance(out, Tensor):
        raise TypeError(f"logits or labels must be a tensor, not {type(out).__name__}: convert them with torch.as_tensor(...)")
    if out.dim() not in (1, 2) or (out.dim() == 2 and not out.is_floating_point()) or (out.dim() == 1 and out.is_floating_point()):
        raise ValueError(f"expected logits (n, K), floating, or labels (n,), integers, not {out.dtype} of shape {tuple(out.shape)}")
    check_finite(out, "logits")
    if out.dim() == 1:
        if threshold is not None:
            raise ValueError("labels have no probabilities to compare with a threshold: let the classification return logits (n, K)")
        return out.long()
    if threshold is None:
        return out.argmax(1)
    if not 0 < threshold < 1:
        raise ValueError(f"a threshold is a probability between 0 and 1, not {threshold}")
    probability, label = out.double().softmax(1).max(1)
    return torch.where(probability >= threshold, label, HOLE)
