"""Feature extractors: images in, vectors out, under a name that cannot be mistaken for another extractor's.

A Fréchet distance, a kernel distance, precision and recall are statements about *features*, and numbers from different feature networks
are not comparable at all. So an extractor is a frozen thing that carries a name and a hash of everything its features depend on (weights,
architecture, scale), and every score is printed under that identity: ``FD[classifier-mnist@3f2a...]``. Only
:class:`~expost.evaluate.features.inception.Inception2015` may be quoted as FID.

| extractor | features | scale |
|---|---|---|
| ``classifier.TrainedClassifier`` | penultimate layer of a small network trained once on the data set | mean square norm 1 on training data |
| ``inception.Inception2015`` | pool_3 of the network behind published FIDs | as published |
| :class:`RandomNetwork` | an untrained convolutional network: data without labels | mean square norm 1 once calibrated |
| :class:`Pixels` | the pixels: the baseline that any other should beat | [0, 1] |
| :class:`Wrapped` | your own network or function | yours |

Inputs are images as stored (uint8) or as used (floats in [0, 1]), never anything else: a silent clip would hide a broken decoder.
The features of one image do not depend on its batch beyond float32 round-off, and the same call on the same machine gives the same bits.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from expost.evaluate.features.networks import SmallConvNet
from expost.seeds import permutation, seeded
from expost.system.devices import choose_device
from expost.system.files import cache_folder
from expost.system.hashes import content_hash, state_hash
from expost.system.progress import Bar
from expost.system.storage import Tensors, remember
from expost.tensors import check_finite, numbered, spelled

__all__ = ["Extractor", "Pixels", "RandomNetwork", "Wrapped", "cached_features", "extract", "images", "rms_norm"]

Shape = tuple[int, int, int]
#: A smaller batch is filled up: below about four images libraries multiply in another order, and equal images should have equal features.
SMALL = 8
E = TypeVar("E", bound="Extractor")


def images(x: Tensor, shape: Shape | None = None) -> Tensor:
    """``x`` as float32 in [0, 1], checked: (n, C, H, W), uint8 or floating, finite, in range and, if given, of event shape ``shape``."""
    if x.dim() != 4:
        raise ValueError(f"images must be of shape (n, C, H, W), not {tuple(x.shape)}: reshape them")
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(f"this extractor takes images of shape {tuple(shape)}, not {tuple(x.shape[1:])}: use one made for these images")
    if x.dtype == torch.uint8:
        return x.to(torch.float32).div_(255)
    if not x.is_floating_point():
        raise TypeError(f"images must be uint8 or floats in [0, 1], not {x.dtype}: convert them with .to(torch.uint8)")
    check_finite(x, "images")
    if x.numel() and (x.min() < 0 or x.max() > 1):
        low, high = spelled(x.min()), spelled(x.max())
        raise ValueError(f"float images must lie in [0, 1], these reach from {low} to {high}: rescale them, or .clamp(0, 1) means")
    return x.to(torch.float32)


class Extractor(ABC):
    """Images (n, C, H, W) -> features (n, dim) float32. Abstract: a subclass is a frozen dataclass that defines :meth:`features`.

    Attributes:
        name: what the features are, in a word or two.
        hash: 12 hexadecimal digits of the SHA-256 of everything that determines them.
        dim: their number.
        shape: the only image shape (C, H, W) accepted, or None for any.
    """

    name: str
    hash: str
    dim: int
    shape: Shape | None

    @property
    def identity(self) -> str:
        """``name@hash``: what scores and cache files are filed under."""
        return f"{self.name}@{self.hash}"

    @property
    def label(self) -> str:
        """What a Fréchet distance of these features is called."""
        return f"FD[{self.identity}]"

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Features of float32 images in [0, 1], without gradients; the input has been checked and lies on the network's device."""

    def to(self, device: torch.device | str) -> Self:
        """This extractor with its weights on ``device``; itself, if there is nothing to move."""
        return self

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Features (n, dim) float32 of one batch of images, uint8 or floats in [0, 1]. For many images: :func:`extract`."""
        with torch.autocast(x.device.type, enabled=False):
            f = self.features(images(x, self.shape))
        if f.shape != (len(x), self.dim):
            raise ValueError(f"{self.name} returned shape {tuple(f.shape)}, not ({len(x)}, {self.dim}): give its true number of features")
        return f.to(torch.float32)

    def __str__(self) -> str:
        return f"{self.identity} ({self.dim} features)"


def extract(extractor: Extractor, x: Tensor, *, batch_size: int = 250, device: torch.device | str | None = None) -> Tensor:
    """Features (n, dim) float32, on the CPU, of images (n, C, H, W), a batch at a time.

    Args:
        extractor: what to compute.
        x: uint8, or floats in [0, 1], on any device.
        batch_size: images at a time; changes the result by float32 round-off at most.
        device: where to compute; by default where ``x`` is.

    >>> extract(Pixels((1, 2, 2)), torch.full((3, 1, 2, 2), 255, dtype=torch.uint8)).shape
    torch.Size([3, 4])
    """
    if batch_size < 1:
        raise ValueError(f"batch size must be at least 1, not {batch_size}")
    place = x.device if device is None else choose_device(device)
    there = extractor.to(place)
    out = torch.empty(len(x), extractor.dim, dtype=torch.float32)
    with Bar(len(x), what="features", after=1.0) as bar:
        for start in range(0, len(x), batch_size):
            bar.update(start)
            batch = x[start : start + batch_size]
            with numbered(start):
                out[start : start + batch_size] = there(_filled(batch.to(place)))[: len(batch)]
    return out


def _filled(batch: Tensor) -> Tensor:
    """At least :data:`SMALL` images, the last one repeated."""
    if len(batch) >= SMALL:
        return batch
    check_finite(batch, "images")
    return torch.cat([batch, batch[-1:].expand(SMALL - len(batch), *batch.shape[1:])])


def cached_features(
    extractor: Extractor,
    x: Tensor,
    *,
    data_hash: str | None = None,
    cache: str | Path | None = None,
    batch_size: int = 250,
    device: torch.device | str | None = None,
) -> Tensor:
    """:func:`extract`, remembered on disk: for the real data that every score is compared with.

    Args:
        extractor, x, batch_size, device: as for :func:`extract`.
        data_hash: hash of *these* images (one split, in order); computed from ``x`` if not given.
        cache: folder in which ``features/`` is made; the user's cache folder by default.
    """
    key = f"{data_hash or content_hash(x)}/{'x'.join(map(str, x.shape))}"

    def make() -> Tensors:
        return {"features": extract(extractor, x, batch_size=batch_size, device=device)}

    def fits(found: Tensors) -> bool:
        f = found["features"]
        return f.shape == (len(x), extractor.dim) and f.dtype == torch.float32 and bool(f.isfinite().all())

    folder = cache_folder("features", root=cache)
    return remember(folder, "features", make, extractor.identity, key, kind=Tensors, code=(extractor,), enough=fits)["features"]


def rms_norm(features: Tensor) -> float:
    """√(mean over rows of |f|²), in float64: dividing by it brings the mean square norm of ``features`` to 1."""
    norm = float(features.double().square().sum(1).mean().sqrt())
    if not 0 < norm < float("inf"):
        raise ValueError("all features are zero (or not finite), so they have no scale: choose another extractor, or look at the images")
    return norm


@dataclass(frozen=True, eq=False)
class Pixels(Extractor):
    """The pixels in [0, 1], flattened: dim = C·H·W."""

    shape: Shape
    name: str = field(default="pixels", init=False)
    hash: str = field(init=False)
    dim: int = field(init=False)

    def __post_init__(self) -> None:
        _set(self, shape=tuple(self.shape), dim=self.shape[0] * self.shape[1] * self.shape[2])
        _set(self, hash=state_hash({}, {"kind": "pixels", "shape": list(self.shape)}))

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1)


@dataclass(frozen=True, eq=False)
class RandomNetwork(Extractor):
    """Features of an untrained convolutional network: the choice for data without labels.

    They see texture and layout with no class in mind, as the randomly initialised networks of Naeem et al. 2020 ("Reliable fidelity and
    diversity metrics for generative models"). A function of ``seed`` alone; use a few seeds where a small difference matters. They are a
    weak judge of content: dropping the digit 3 from MNIST's 10 000 test images moves this distance by 0.0014, no more than exchanging test
    for training images does (0.0015); the trained classifier gives 0.039 against 0.0027.

    Args:
        shape: (C, H, W).
        seed: of the weights.
        dim: number of features.
        scale: features are divided by it; see :meth:`calibrated`.
    """

    shape: Shape
    seed: int = 0
    dim: int = 128
    scale: float = 1.0
    name: str = field(default="random-network", init=False)
    hash: str = field(init=False)
    network: SmallConvNet = field(init=False, repr=False)

    def __post_init__(self) -> None:
        with seeded("random-network", self.seed), torch.device("cpu"):
            network = SmallConvNet(self.shape, classes=1, features=self.dim).he().eval().requires_grad_(False)
        config = {"kind": self.name, "shape": list(self.shape), "scale": self.scale}
        _set(self, shape=tuple(self.shape), network=network, hash=state_hash(network.state_dict(), config))

    def calibrated(self, x: Tensor) -> RandomNetwork:
        """The same network with the scale at which training images ``x`` have mean square feature norm 1 (at most 10 000 are used)."""
        raw = replace(self, scale=1.0)
        return replace(self, scale=rms_norm(extract(raw, x[permutation(len(x), "calibrate")[:10_000]], device="cpu")))

    def to(self, device: torch.device | str) -> RandomNetwork:
        return _moved(self, device)

    def features(self, x: Tensor) -> Tensor:
        return self.network.features(x) / self.scale


@dataclass(frozen=True, eq=False)
class Wrapped(Extractor):
    """Features of your own: ``function`` maps float32 images in [0, 1] (n, C, H, W) to (n, dim).

    Args:
        function: a module (a copy in evaluation mode is kept; its state, structure and the code of its classes enter the hash), or any function.
        name: what the features are called in every score.
        dim: their number.
        version: what else determines them (the code, its preprocessing). Required for a plain function, whose inside cannot be hashed.
        shape: the only image shape accepted, if there is one.

    >>> means = Wrapped(lambda x: x.mean((2, 3)), name="channel-means", dim=3, version="1")
    >>> means(torch.ones(2, 3, 4, 4))
    tensor([[1., 1., 1.],
            [1., 1., 1.]])
    """

    function: Callable[[Tensor], Tensor] = field(repr=False)
    name: str
    dim: int
    version: str | None = None
    shape: Shape | None = None
    hash: str = field(init=False)
    network: nn.Module | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        network = copy.deepcopy(self.function).eval().requires_grad_(False) if isinstance(self.function, nn.Module) else None
        if network is None and self.version is None:
            raise ValueError("a plain function cannot be hashed: say what determines its features with version='...'")
        config = {"kind": "wrapped", "name": self.name, "version": self.version}
        if network is not None:
            config["structure"] = str(network)  # activations have no state
            config["code"] = _code_of(network)
        _set(self, network=network, hash=state_hash(network.state_dict() if network is not None else {}, config))

    def to(self, device: torch.device | str) -> Wrapped:
        return self if self.network is None else _moved(self, device)

    def features(self, x: Tensor) -> Tensor:
        own = self.function if self.network is None else self.network
        return own(x.clone()).clone()  # it may overwrite what it is given and what it has returned


def _code_of(network: nn.Module) -> str:
    """The source of every class of a network that is not torch's, in order of names; where it cannot be read, the name alone."""
    kinds = {type(m) for m in network.modules() if not type(m).__module__.startswith("torch.")}
    texts = []
    for kind in sorted(kinds, key=lambda k: (k.__module__, k.__qualname__)):
        try:
            texts.append(inspect.getsource(kind))
        except (OSError, TypeError):
            texts.append(f"{kind.__module__}.{kind.__qualname__}")
    return "\n".join(texts)


def _set(frozen: object, **values: object) -> None:
    """Fill derived fields of a frozen dataclass while it is being made."""
    for name, value in values.items():
        object.__setattr__(frozen, name, value)


def _moved(extractor: E, device: torch.device | str) -> E:
    """A copy of the extractor whose ``network`` lies on ``device``; the original keeps its own."""
    network = extractor.network  # type: ignore[attr-defined]
    state = next(iter([*network.parameters(), *network.buffers()]), None)
    chosen = torch.empty(0, device=choose_device(device)).device  # with its number
    if state is None or state.device == chosen:
        return extractor
    twin = copy.copy(extractor)
    _set(twin, network=copy.deepcopy(network).to(chosen))
    return twin
