r"""A stack of bits that distributions push values onto and pop values from: asymmetric numeral systems (Duda 2013).

Pushing a value of probability p makes the stack longer by -log2 p bits; popping from a distribution turns bits of the stack into a
sample of it, and makes the stack shorter by -log2 p. The two are exact inverses: that is what bits-back coding needs (Townsend, Bird,
Barber 2019). The coder is constriction's (Bamler 2022): a 64-bit head, 32-bit words, probabilities in 24 bits fixed point.

Four hazards are met here:

* Popping from an empty stack silently gives the left-most symbol. The stack starts with seed words from a fixed generator, and every pop
  that leaves fewer than 64 bits raises :class:`Shortage`; the caller starts again with more seed.
* Every symbol of an alphabet keeps a probability of 2^-24, however unlikely. A Gaussian on a wide alphabet would so be popped from its
  far tail, in (2 W + 1) 2^-24 of cases. Posteriors therefore get a window of 8 standard deviations around their mean, one per octave of σ.
* Both sides must compute the same probabilities to the last bit: parameters are rounded to a grid by the caller (:mod:`.networks`).
* The coder panics, which is no ``Exception`` and prints a trace, on parameters that it cannot hold. What it is given is therefore checked
  before: :class:`Outside` for values and scales beyond its alphabets, ``ValueError`` for what is no parameter at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Outside", "Shortage", "Stack", "seed_words"]

_WINDOW = 8  # standard deviations on either side
_WIDEST = 2.0**19  # from here on a window has more than 2^24 bins, and each must keep a probability of 2^-24
_FARTHEST = 2.0**31
_LEAST_BITS = 64


class Outside(ValueError):
    """A value lies outside the coder's alphabet: start again with a larger one."""


class Shortage(Exception):
    """The stack ran out of bits: start again with more seed words."""


def seed_words(count: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """``count`` words of the SplitMix64 sequence (Steele, Lea, Flood 2014), upper halves, none of them zero: a function of ``seed`` alone."""
    state = np.uint64(seed % 2**64)
    with np.errstate(over="ignore"):
        z = state + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return np.maximum((z >> np.uint64(32)).astype(np.uint32), np.uint32(1))


def _constriction() -> Any:
    try:
        import constriction
    except ImportError:
        raise ValueError("lossless compression needs the package constriction: pip install 'expost[compress]'") from None
    return constriction.stream


class Stack:
    """Bits, last in first out. Values are integer tensors; every ``pop`` is the inverse of the ``push`` with the same arguments.

    Args:
        words: what the stack holds at first: seed words, or a compressed message with ``sealed=False``.
        sealed: whether the words are arbitrary bits (True) or what :meth:`words` returned (False).
    """

    def __init__(self, words: np.ndarray[Any, np.dtype[np.uint32]], *, sealed: bool) -> None:
        stream = _constriction()
        self._models = stream.model
        self._coder = stream.stack.AnsCoder(words, seal=True) if sealed else stream.stack.AnsCoder(words)
        self._bernoulli = self._models.Bernoulli(perfect=False)
        self._categorical = self._models.Categorical(perfect=False)

    @property
    def bits(self) -> int:
        """Length in bits."""
        return int(self._coder.num_valid_bits())

    def words(self) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """The whole stack as 32-bit words."""
        return self._coder.get_compressed()

    def unsealed(self) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """The seed words, once all that was pushed has been popped; ``ValueError`` if something is left over."""
        return self._coder.get_compressed(unseal=True)

    def _guard(self) -> None:
        if self.bits < _LEAST_BITS:
            raise Shortage

    # -- binary values ----------------------------------------------------------------------------------------------------------------

    def push_bits(self, x: Tensor, p: Tensor) -> None:
        """x in {0, 1} under probabilities p of one, both (n,)."""
        self._coder.encode_reverse(_symbols(x, 0, 1), self._bernoulli, _probabilities(p))

    def pop_bits(self, p: Tensor) -> Tensor:
        return self._popped(self._coder.decode(self._bernoulli, _probabilities(p)))

    # -- tables -----------------------------------------------------------------------------------------------------------------------

    def push_table(self, x: Tensor, masses: Tensor) -> None:
        """x (n,) in 0 ... L - 1 under masses (n, L), non-negative, any positive sum."""
        self._coder.encode_reverse(_symbols(x, 0, masses.shape[1] - 1), self._categorical, masses.numpy())

    def pop_table(self, masses: Tensor) -> Tensor:
        return self._popped(self._coder.decode(self._categorical, masses.numpy()))

    # -- integers under Gaussians -----------------------------------------------------------------------------------------------------

    def push_gaussian(self, k: Tensor, mean: Tensor, scale: Tensor, span: int) -> None:
        """k (n,) in -span ... span under N(mean, scale²) integrated over unit bins; mean and scale (n,) float64. For priors."""
        family = self._models.QuantizedGaussian(-span, span)
        self._coder.encode_reverse(_symbols(k, -span, span), family, mean.numpy(), _positive(scale).numpy())

    def pop_gaussian(self, mean: Tensor, scale: Tensor, span: int) -> Tensor:
        family = self._models.QuantizedGaussian(-span, span)
        return self._popped(self._coder.decode(family, mean.numpy(), _positive(scale).numpy()))

    def pop_window(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Integers (n,) drawn from N(mean, scale²) within a window around each mean. For posteriors."""
        k = torch.empty(len(mean), dtype=torch.int64)
        centre, rest = _centre(mean)
        for rows, width in _octaves(scale):
            family = self._models.QuantizedGaussian(-width, width)
            k[rows] = self._popped(self._coder.decode(family, rest[rows].numpy(), scale[rows].numpy()))
        return k + centre

    def push_window(self, k: Tensor, mean: Tensor, scale: Tensor) -> None:
        """The inverse of :meth:`pop_window`."""
        centre, rest = _centre(mean)
        for rows, width in reversed(_octaves(scale)):
            family = self._models.QuantizedGaussian(-width, width)
            symbols = _symbols((k - centre)[rows], -width, width)
            self._coder.encode_reverse(symbols, family, rest[rows].numpy(), scale[rows].numpy())

    def _popped(self, symbols: Any) -> Tensor:
        self._guard()
        return torch.from_numpy(np.asarray(symbols, dtype=np.int64))


def _symbols(x: Tensor, low: int, high: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    if len(x) and not (low <= int(x.min()) and int(x.max()) <= high):
        raise Outside(f"a value lies outside {low} ... {high}, which the coder holds here")
    return np.ascontiguousarray(x.numpy().astype(np.int32))


def _probabilities(p: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError("a probability of the decoder is not a number in [0, 1]: did its training diverge?")
    return p.to(torch.float64).numpy()


def _positive(scale: Tensor) -> Tensor:
    if not bool((scale > 0).all()):
        raise ValueError("a standard deviation of the model is zero or not a number: did its training diverge?")
    return scale


def _centre(mean: Tensor) -> tuple[Tensor, Tensor]:
    if not bool((mean.abs() < _FARTHEST).all()):
        raise Outside("a posterior's mean lies 2^31 steps or more from the origin, outside the coder's span: give larger steps")
    rounded = mean.round()
    return rounded.to(torch.int64), mean - rounded


def _octaves(scale: Tensor) -> list[tuple[Tensor, int]]:
    """Rows grouped by the octave of their scale, each group with its window: 8 times the largest scale of the octave."""
    if not bool((_positive(scale) < _WIDEST).all()):
        raise Outside(
            f"a posterior is {float(scale.max()):.3g} steps wide, outside the coder's span, which holds fewer than 2^19: give larger steps"
        )
    octave = torch.frexp(scale.clamp(min=2.0**-4))[1]  # scale in [2^(e-1), 2^e)
    return [((octave == e).nonzero()[:, 0], max(2, _WINDOW << max(0, e))) for e in sorted(set(octave.tolist()))]
