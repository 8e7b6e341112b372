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
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from expost import heads
from expost.adapt.outputs import Posterior, joined, read_code, read_image
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import StandardNormal
from expost.density.base import Density
from expost.system.schema import Meta, convert, printable

__all__ = ["LIKELIHOODS", "DecoderNet", "EncoderNet", "Interface", "Shape", "fits", "interface_of", "own"]

#: Of one datum or code, as files may state it: what is larger would be allocated before it is found wrong.
Shape = Annotated[tuple[Annotated[int, Meta(ge=1, le=2**24)], ...], Meta(min_length=1, max_length=5)]
LARGEST = 2**26
"""Numbers in one datum or code."""

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

    data_shape: Shape
    latent_shape: Shape
    posterior: Posterior = "mean"
    likelihood: str = "gaussian"
    outputs: Literal["mean", "logits"] = "mean"
    gamma: float | Literal["optimal"] = "optimal"
    input_range: tuple[float, float] = (0.0, 1.0)
    input_shape: Shape | None = None
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
        if max(map(math.prod, (self.data_shape, self.latent_shape))) > LARGEST:
            raise ValueError(f"data and codes have at most {LARGEST} numbers, not {self.data_shape} and {self.latent_shape}")
        if self.input_shape is not None and not fits(self.input_shape, self.data_shape):
            flat = math.prod(self.data_shape)
            raise ValueError(
                f"data of shape {self.data_shape} cannot be laid out as {self.input_shape} without mixing up their values: give ({flat},), or "
                "let the encoder permute them"
            )

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
        return convert(value, cls, "this does not describe a wrapped model, wrap it again with `expost wrap`")

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


def fits(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether the values of one shape, in order, are those of the other: they agree but for axes of length one, or one of them is flat.

    >>> fits((28, 28), (1, 28, 28)), fits((784,), (1, 28, 28)), fits((1, 8, 16), (1, 16, 8))
    (True, True, False)
    """
    if 1 in (len(shape), len(other)):
        return math.prod(shape) == math.prod(other)
    return [n for n in shape if n != 1] == [n for n in other if n != 1]


def _ask(module: nn.Module, x: Tensor, what: str, remedy: str) -> Any:
    """The answer of somebody else's module to x, in the precision of its weights; whatever it raises, ``SystemExit`` too, is one sentence.

    It gets a copy, which it may overwrite.
    """
    x = x.to(next((p.dtype for p in module.parameters() if p.is_floating_point()), x.dtype), copy=True)
    try:
        return module(x)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{what} ({printable(said, 200)}): {remedy}") from error


def own(answer: Tensor, dtype: torch.dtype, part: str) -> Tensor:
    """A copy of what a module returned, which it may overwrite, in the precision of what it was given."""
    if answer.is_complex():
        raise ValueError(f"the {part} returns complex numbers ({answer.dtype}): let it return real ones, e.g. their .real")
    return answer.to(dtype, copy=True)


class EncoderNet(nn.Module):
    """A foreign encoder: x (n, *data_shape) in [0, 1] -> features (n, k) for the posterior's head."""

    #: Inputs are brought to the module's precision here, after scaling.
    converts = True

    def __init__(self, module: nn.Module, interface: Interface) -> None:
        super().__init__()
        self.module, self.interface = module, interface

    def answer(self, x: Tensor) -> Any:
        """What the module itself returns for x in [0, 1]."""
        low, high = self.interface.input_range
        x = low + (high - low) * x if (low, high) != (0.0, 1.0) else x
        if self.interface.input_shape is not None:
            x = x.reshape(len(x), *self.interface.input_shape)
        given = f"the encoder fails on data of shape {tuple(x.shape[1:])} in [{low:g}, {high:g}]"
        return _ask(self.module, x, given, "give the shape or range it was trained on")

    def forward(self, x: Tensor) -> Tensor:
        posterior, first, second = read_code(self.answer(x), self.interface.posterior)
        if first.dim() < 2 or len(first) != len(x) or not fits(tuple(first.shape[1:]), self.interface.latent_shape):
            raise ValueError(
                f"the encoder returns codes of shape {tuple(first.shape)} for {len(x)} examples with codes of {self.interface.latent_shape}: it "
                "must return one code per example"
            )
        return own(joined(first, second, posterior), x.dtype, "encoder")

    def extra_repr(self) -> str:
        return f"range={self.interface.input_range}, posterior={self.interface.posterior!r}"


class DecoderNet(nn.Module):
    """A foreign decoder: z (n, d) -> features (n, *data_shape): the image in [0, 1], or its logits for a Bernoulli or cross-entropy head."""

    converts = True

    def __init__(self, module: nn.Module, interface: Interface) -> None:
        super().__init__()
        self.module, self.interface = module, interface

    def answer(self, z: Tensor) -> Any:
        """What the module itself returns for codes (n, d)."""
        z = z.reshape(len(z), *self.interface.latent_shape)
        return _ask(self.module, z, f"the decoder fails on codes of shape {self.interface.latent_shape}", "does it belong to this encoder?")

    def image(self, z: Tensor) -> Tensor:
        """The module's image as it makes it, in the shape of the data: it must have that shape, the encoder's, or be flat."""
        raw = own(read_image(self.answer(z)), z.dtype, "decoder")
        if self.interface.likelihood == "custom":
            return raw
        if not raw.dim() or len(raw) != len(z):
            raise ValueError(f"the decoder makes {tuple(raw.shape)} of {len(z)} codes: it must return one image per code")
        made, wanted = tuple(raw.shape[1:]), self.interface.data_shape
        size = math.prod(wanted)
        if made in (wanted, (size,), self.interface.input_shape):
            return raw.reshape(len(z), *wanted)
        if math.prod(made) != size:
            raise ValueError(
                f"the decoder makes {made} for data of shape {wanted}: pad or choose the data so that both agree (a model that halves "
                "three times needs sides divisible by 8)"
            )
        last = "images with channels last, " if made == (*wanted[1:], wanted[0]) else ""
        raise ValueError(
            f"the decoder makes {last}{made} for data of shape {wanted}: permute its output to {wanted}, or let it be flat, ({size},)"
        )

    def forward(self, z: Tensor) -> Tensor:
        raw = self.image(z)
        if self.interface.likelihood == "custom":
            return raw
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
