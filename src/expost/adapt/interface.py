"""How a foreign encoder and decoder are spoken to: everything between them and an :class:`~expost.autoencoder.Autoencoder`.

An :class:`Interface` is plain data (JSON), so a wrapped model can be saved beside its weights and put together again without looking at data.

    x in [0, 1] ── a + (b - a) x ──► encoder ──► (μ, scale) flattened to (n, 2 d) ──► head ──► q(z | x)
    z (n, d) ── reshaped ──► decoder ──► y ── (y - a) / (b - a) ──► head ──► p(x | z)

[a, b] is the range that the model was trained on. Codes that are maps (c, h, w) become vectors, because every density and diagnostic
speaks of vectors; the decoder gets its maps back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expost import heads
from expost.adapt.outputs import Posterior, joined, read_code, read_image
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import StandardNormal
from expost.density.base import Density

__all__ = ["LIKELIHOODS", "DecoderNet", "EncoderNet", "Interface", "interface_of"]

Likelihood = Literal["gaussian", "bernoulli", "cross-entropy"]
LIKELIHOODS: tuple[Likelihood, ...] = ("gaussian", "bernoulli", "cross-entropy")

_POSTERIOR_HEADS: dict[Posterior, Callable[[], heads.Head]] = {
    "mean": heads.Dirac,
    "mean-logvar": lambda: heads.Diagonal(heads.half_exp),
    "mean-logstd": lambda: heads.Diagonal(heads.exp),
    "mean-std": lambda: heads.Diagonal(heads.identity),
    "full": heads.FullCovariance,
}


@dataclass(frozen=True)
class Interface:
    """Shapes, ranges and meanings of a foreign model's inputs and outputs.

    Attributes:
        data_shape: of one stored datum, e.g. (1, 28, 28).
        latent_shape: of one code as the model knows it, e.g. (16,) or (4, 32, 32); flattened to d numbers.
        posterior: what the encoder returns, see :mod:`expost.adapt.outputs`.
        likelihood: of the decoder: ``gaussian``, ``bernoulli``, ``cross-entropy``, or ``custom`` for a head of the user's own.
        outputs: whether the decoder returns the image (``mean``) or what a sigmoid makes an image of (``logits``).
        gamma: variance of the Gaussian likelihood; ``optimal`` if it is the mean squared error on data (1 until measured).
        input_range: (a, b), what 0 and 1 are for the model.
        input_shape: shape that the encoder wants, if not ``data_shape``.
        prior: ``normal`` for N(0, I), or ``none``.
        notes: what whoever reads results must know.
    """

    data_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    posterior: Posterior = "mean"
    likelihood: str = "gaussian"
    outputs: Literal["mean", "logits"] = "mean"
    gamma: float | Literal["optimal"] = "optimal"
    input_range: tuple[float, float] = (0.0, 1.0)
    input_shape: tuple[int, ...] | None = None
    prior: Literal["normal", "none"] = "none"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        low, high = self.input_range
        if not low < high:
            raise ValueError(f"the range ({low:g}, {high:g}) is empty: give what black and white are for the model, e.g. (-1, 1)")
        if self.gamma != "optimal" and not (isinstance(self.gamma, float | int) and 0 < self.gamma < math.inf):
            raise ValueError(f'gamma must be "optimal" or a positive variance, not {self.gamma!r}')
        if self.likelihood not in (*LIKELIHOODS, "custom"):
            raise ValueError(f'there is no likelihood "{self.likelihood}": choose gaussian, bernoulli or cross-entropy')

    @property
    def latent(self) -> int:
        """d, the number of latent dimensions."""
        return math.prod(self.latent_shape)

    def to_json(self) -> dict[str, Any]:
        if self.likelihood == "custom":
            raise ValueError("a wrapped model with a head of its own cannot be saved: choose gaussian, bernoulli or cross-entropy")
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Interface:
        """The inverse of :meth:`to_json`; ``ValueError`` if the value describes no interface."""
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"this does not describe a wrapped model ({error}): wrap it again with `expost wrap`") from None

    def head(self) -> heads.Head:
        """The decoder's head."""
        if self.likelihood == "bernoulli":
            return heads.Bernoulli()
        if self.likelihood == "cross-entropy":
            return heads.CrossEntropy()
        return heads.Gaussian("optimal" if self.gamma == "optimal" else math.sqrt(self.gamma))

    def assemble(
        self, encoder: nn.Module, decoder: nn.Module, *, head: heads.Head | None = None, prior: Density | None = None
    ) -> Autoencoder:
        """The autoencoder of two modules, in evaluation mode, on the decoder's device; the modules are referred to, not copied.

        Args:
            head: the decoder's head, for ``likelihood="custom"``.
            prior: instead of the one that ``self.prior`` names.
        """
        if not any(True for _ in decoder.parameters()):
            raise ValueError(
                "the decoder has no parameters, so it lies on no device: register its weights as nn.Parameter (requires_grad=False will do)"
            )
        if prior is None and self.prior == "normal":
            prior = StandardNormal(self.latent)
        down = Conditional(EncoderNet(encoder, self), _POSTERIOR_HEADS[self.posterior](), condition_dims=len(self.data_shape))
        up = Conditional(DecoderNet(decoder, self), head or self.head(), event_dims=len(self.data_shape))
        model = Autoencoder(down, up, prior).eval()
        return model.to(next(decoder.parameters()).device)


def _like(x: Tensor, module: nn.Module) -> Tensor:
    """x in the precision of the module's weights."""
    return x.to(next((p.dtype for p in module.parameters() if p.is_floating_point()), x.dtype))


class EncoderNet(nn.Module):
    """A foreign encoder: x (n, *data_shape) in [0, 1] -> features (n, k) for the posterior's head."""

    def __init__(self, module: nn.Module, interface: Interface) -> None:
        super().__init__()
        self.module, self.interface = module, interface

    def answer(self, x: Tensor) -> Any:
        """What the module itself returns for x in [0, 1]."""
        low, high = self.interface.input_range
        x = low + (high - low) * x if (low, high) != (0.0, 1.0) else x
        if self.interface.input_shape is not None:
            x = x.reshape(len(x), *self.interface.input_shape)
        return self.module(_like(x, self.module))

    def forward(self, x: Tensor) -> Tensor:
        posterior, first, second = read_code(self.answer(x), self.interface.posterior)
        return joined(first, second, posterior).to(x.dtype)

    def extra_repr(self) -> str:
        return f"range={self.interface.input_range}, posterior={self.interface.posterior!r}"


class DecoderNet(nn.Module):
    """A foreign decoder: z (n, d) -> features (n, *data_shape): the image in [0, 1], or its logits for a Bernoulli or cross-entropy head."""

    def __init__(self, module: nn.Module, interface: Interface) -> None:
        super().__init__()
        self.module, self.interface = module, interface

    def answer(self, z: Tensor) -> Any:
        """What the module itself returns for codes (n, d)."""
        return self.module(_like(z.reshape(len(z), *self.interface.latent_shape), self.module))

    def forward(self, z: Tensor) -> Tensor:
        raw = read_image(self.answer(z)).to(z.dtype)
        if self.interface.likelihood == "custom":
            return raw
        raw = raw.reshape(len(z), *self.interface.data_shape)
        binary = self.interface.likelihood != "gaussian"
        if self.interface.outputs == "logits":
            return raw if binary else torch.sigmoid(raw)
        low, high = self.interface.input_range
        image = (raw - low) / (high - low) if (low, high) != (0.0, 1.0) else raw
        return torch.logit(image, eps=torch.finfo(image.dtype).eps) if binary else image

    def extra_repr(self) -> str:
        return f"range={self.interface.input_range}, outputs={self.interface.outputs!r}, latent_shape={self.interface.latent_shape}"


def interface_of(model: Autoencoder) -> Interface:
    """The interface of a wrapped model; ``ValueError`` for a model of expost's own."""
    net = model.encoder.net
    if not isinstance(net, EncoderNet):
        raise ValueError("this autoencoder is expost's own, not a wrapped one: there is nothing to adapt")
    return net.interface
