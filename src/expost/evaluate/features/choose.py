"""Which extractor scores a data set: by name on the command line, or the data set's own classifier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from expost.data import Dataset
from expost.evaluate.features.base import Extractor, Pixels, RandomNetwork
from expost.evaluate.features.classifier import TrainedClassifier, default_extractor
from expost.evaluate.features.inception import Inception2015
from expost.evaluate.features.pca import PCAFeatures

__all__ = ["extractor_of", "without_labels"]


def extractor_of(name: str, dataset: Dataset, *, cache: str | Path | None = None) -> tuple[Extractor, tuple[str, ...]]:
    """An extractor and what must be said beside its scores.

    Args:
        name: ``classifier`` (trained once on the data set; a random network where there are no labels), ``pixels``, ``pca`` or ``pca:64``,
            ``random``, or ``inception:WEIGHTS`` with a safetensors file or hub path, or ``inception:WEIGHTS@SHA256`` to have it checked.
        dataset: what is scored.
    """
    kind, _, rest = name.partition(":")
    if len(dataset.shape) != 3:
        raise ValueError(
            f"scores of features are for images (C, H, W), and {dataset.name} has data of shape {tuple(dataset.shape)}: "
            "use `expost diagnose` and `expost likelihood`"
        )
    if kind == "classifier":
        if rest:
            raise ValueError(
                f'"classifier" takes nothing after a colon here, not "{rest}": a run is scored by the extractor of its own data'
            )
        train, test = dataset.train, dataset.test
        extractor = default_extractor(dataset.name, train.x, train.labels, test.x, test.labels, dataset.hash, cache=cache)
        return extractor, _about(extractor)
    found = without_labels(name, lambda: dataset.train.x)
    if found is None:
        raise ValueError(f'there is no extractor "{name}": choose classifier, pixels, pca:64, random, or inception:WEIGHTS.safetensors')
    return found


def without_labels(name: str, images: Callable[[], Tensor]) -> tuple[Extractor, tuple[str, ...]] | None:
    """``pixels``, ``pca:64``, ``random`` or ``inception:WEIGHTS`` and what must be said beside its scores; None for any other name.

    ``images`` gives real ones (n, C, H, W): their shape, and what principal components and the scale of an untrained network are taken from.
    """
    kind, _, rest = name.partition(":")
    if rest and kind in ("pixels", "random"):
        raise ValueError(f'"{kind}" takes nothing after a colon, not "{rest}": write {kind}')
    if kind == "inception":
        inception = inception_of(rest)
        return inception, (f"Inception 2015-12-05, weights {inception.sha256[:12]}",)
    if kind == "pca":
        pca = PCAFeatures.of(images(), whole(rest or "64", "pca"))
        return pca, (f"{pca.dim} principal components, {100 * pca.explained:.1f} % of the variance of pixels",)
    if kind in ("pixels", "random"):
        x = images()
        shape = (x.shape[1], x.shape[2], x.shape[3])
        if kind == "pixels":
            return Pixels(shape), ("features are raw pixels",)
        return RandomNetwork(shape).calibrated(x), ("features of an untrained network",)
    return None


def inception_of(text: str) -> Inception2015:
    """Inception from ``PATH`` or ``PATH@SHA256``, which is then checked; the path may be one on the hub."""
    path, _, sha256 = text.rpartition("@")
    if len(sha256) == 64 and path:
        return Inception2015.load(path, sha256=sha256)
    return Inception2015.load(text or None)


def whole(text: str, what: str) -> int:
    """A positive whole number after a colon, e.g. of ``pca:64``."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f'cannot read "{what}:{text}": write {what}:64, a number of dimensions')
    return int(text)


def _about(extractor: Extractor) -> tuple[str, ...]:
    if isinstance(extractor, TrainedClassifier):
        return (f"{extractor.identity}: test accuracy {100 * extractor.accuracy:.2f} %",)
    return (f"{extractor.identity}: no labels, so features are those of an untrained network",)
