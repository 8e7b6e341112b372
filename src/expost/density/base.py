"""A density over codes: something that returns a distribution, and that may be fitted.

Hyper-parameters go to ``__init__``; what is learned lives in buffers or parameters *declared there with their final shapes*, so
that the state of a fitted density loads into a fresh one built with the same arguments.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from expost.seeds import seeded
from expost.tensors import as_data, check_finite

__all__ = ["FORMS", "SPECS", "Codes", "Density", "NotFittedError", "draw_codes", "register"]

#: Codes to fit to: a matrix (n, d), or the posteriors q(z | x_i) themselves, a distribution of batch shape (n,) and event shape (d,).
Codes = Tensor | Distribution

#: Largest code, and one over the smallest that the largest of a set may be: what float32 has room for, floors and sums included.
LARGEST = 1e33


class NotFittedError(ValueError):
    """The density has no state yet: call ``fit(z)`` or load a fitted one."""


#: Dimension and arguments (the parts after colons, as text) -> density, by name; and how each name is written.
SPECS: dict[str, Callable[..., Density]] = {}
FORMS: dict[str, str] = {}


def register(form: str, build: Callable[..., Density]) -> None:
    """Make a density known by name, beside its class.

    Args:
        form: how it is written, for people: "gmm:10 or gmm:10:diagonal". Its first word, up to a colon, is the name.
        build: (d, *arguments) -> density.
    """
    name = re.split("[:, ]", form, maxsplit=1)[0]
    SPECS[name], FORMS[name] = build, form


class Density(nn.Module, ABC):
    """() -> p(z). Abstract: a subclass defines :meth:`forward` and, where it can be fitted, :meth:`fit`."""

    @abstractmethod
    def forward(self) -> Distribution:
        """The distribution, of empty batch shape: ``density().log_prob(z)``, ``density().sample((n,))``."""

    def fit(self, z: Codes, *, seed: int = 0) -> Self:
        """Learn from codes, replacing any earlier state; returns ``self``. A density that cannot be fitted raises with the remedy."""
        raise ValueError(f"{type(self).__name__} cannot be fitted to codes: fit a FullGaussian, GMM, KDE, Flow or SecondStage instead")

    @property
    def spec(self) -> str:
        """The text that builds a density of this class and shape; ``ValueError`` where there is none."""
        raise ValueError(f"a {type(self).__name__} has no spec: save the whole model with its run folder instead")

    def arguments(self) -> dict[str, Any]:
        """What the shapes of the state depend on and the spec does not say, for files: JSON values that :meth:`like` takes."""
        return {}

    def like(self, **arguments: Any) -> Density:
        """An unfitted density of the same spec with these :meth:`arguments`."""
        return self


def draw_codes(z: Codes, *, seed: int, epoch: int = 0) -> Tensor:
    """A matrix (n, d) of codes: the codes themselves, or one fresh draw from each posterior for this seed and epoch."""
    if isinstance(z, Distribution):
        with seeded("codes", seed, epoch), torch.no_grad():
            z = z.sample()
    z = as_data(z, "codes")
    if z.dtype in (torch.float16, torch.bfloat16):
        z = z.float()
    if z.dim() != 2:
        raise ValueError(f"codes must be a matrix (n, d), not of shape {tuple(z.shape)}: flatten each code to a vector first")
    if len(z) < 2:
        raise ValueError(f"cannot fit a density to {len(z)} codes: at least 2 are needed")
    check_finite(z, "codes")
    largest = float(z.abs().max()) if z.numel() else 0.0
    if z.is_floating_point() and (largest > LARGEST or 0 < largest < 1 / LARGEST):
        raise ValueError(f"codes of a size up to {largest:.3g} are beyond float32: multiply them by a constant")
    return z.detach()
