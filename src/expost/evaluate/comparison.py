"""Two sets of images against each other, whatever made them: the suite without a model.

Sets are folders, numpy files or data sets by name, read part by part. Features go to the cache, in files that are mapped, not loaded, under
the hash of the set's files: a reference set is decoded and sent through a network once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from expost import data
from expost.evaluate.choose import extractor_of, whole
from expost.evaluate.features import Extractor, Pixels, RandomNetwork
from expost.evaluate.frechet import frechet_distance
from expost.evaluate.inception import Inception2015
from expost.evaluate.pca import PCAFeatures
from expost.evaluate.sets import ArraySet, FolderSet, ImageSet, InMemory, set_features, set_statistics
from expost.evaluate.suite import GROUPS, MEMORY, Reference, check_groups, measure, placed
from expost.files import cache_folder
from expost.hashes import content_hash
from expost.results import Result

__all__ = ["compare", "extractor_for", "image_set"]

#: Real images from which an untrained extractor takes its scale or components.
CALIBRATION = 4096


def image_set(source: str, *, size: int | None = None, n: int | None = None, split: str = "test") -> ImageSet:
    """Images of a folder, a ``.npy`` or ``.npz`` file, or a split of a data set by name; the first ``n``."""
    path = Path(source)
    found: ImageSet
    if path.suffix in (".npy", ".npz"):
        found = ArraySet(path)
    elif path.is_dir() and not any(path.glob("*.parquet")):
        found = FolderSet(path, size=size)
    else:
        dataset = data.load(source)
        found = InMemory(getattr(dataset, split).x, f"{dataset.name} {split}")
    return found if n is None or n >= len(found) else _First(found, n)


class _First:
    """The first n images of a set."""

    def __init__(self, images: ImageSet, n: int) -> None:
        if n < 1:
            raise ValueError(f"the number of images must be at least 1, not {n}")
        self.images, self.n, self.name, self.shape = images, n, images.name, images.shape

    def __len__(self) -> int:
        return self.n

    def read(self, start: int, stop: int) -> Tensor:
        return self.images.read(start, stop)


def extractor_for(name: str, images: ImageSet) -> Extractor:
    """An extractor for images of this kind: untrained ones take their scale from the first :data:`CALIBRATION` of them."""
    kind, _, rest = name.partition(":")
    if kind == "classifier":
        if not rest:
            raise ValueError("a classifier needs labelled images to train on: write classifier:mnist, or any labelled data set")
        return extractor_of("classifier", data.load(rest))[0]
    if kind == "inception":
        return Inception2015.load(rest or None)
    if kind == "pixels":
        return Pixels(images.shape)
    first = images.read(0, min(len(images), CALIBRATION))
    if kind == "pca":
        return PCAFeatures.of(first, whole(rest or "64", "pca"))
    if kind == "random":
        return RandomNetwork(images.shape).calibrated(first)
    raise ValueError(f'there is no extractor "{name}": choose random, pixels, pca:64, classifier:DATA, or inception:WEIGHTS.safetensors')


def compare(
    generated: str | ImageSet,
    real: str | ImageSet,
    train: str | ImageSet | None = None,
    *,
    extractor: str | Extractor = "random",
    groups: Iterable[str] = GROUPS,
    size: int | None = None,
    n: int | None = None,
    memory: int = MEMORY,
    seed: int = 0,
    device: torch.device | str | None = None,
    cache: str | Path | None = None,
) -> dict[str, Result]:
    """All metrics of ``generated`` against ``real`` images.

    Args:
        generated, real, train: sets, or what :func:`image_set` reads.
        extractor: an extractor, or the name of one for :func:`extractor_for`.
        groups: of metrics; ``("fd",)`` alone needs moments only, in memory that does not depend on the number of images.
        size: side to which pictures of folders are resized.
        n: images of each set at most.
        memory: bytes that distances between images may take.
        cache: folder of cached features.

    Under torch.distributed every process must call it with the same arguments, and gets the same numbers as a single one.
    """
    chosen = check_groups(groups)
    sets = [image_set(s, size=size, n=n) if isinstance(s, str) else s for s in (generated, real)]
    seen = image_set(train, size=size, split="train") if isinstance(train, str) else train
    for images in (sets[0], *([seen] if seen is not None else [])):
        if images.shape != sets[1].shape:
            raise ValueError(
                f"{images.name} has images of shape {images.shape}, {sets[1].name} of {sets[1].shape}: resize one of them (--size for folders)"
            )
    judge = extractor_for(extractor, sets[1]) if isinstance(extractor, str) else extractor
    if chosen == ("fd",):
        a, b = (set_statistics(judge, images, device=device) for images in sets)
        result = frechet_distance(a, b).result(judge.label)
        return {"FD": placed(result, judge.identity, sets[0].name, sets[1].name, (a.n, b.n, 0), seed)}
    features = [_features(judge, images, device, cache) for images in sets]
    known = None if seen is None else _features(judge, seen, device, cache)
    reference = Reference(judge.identity, judge.label, sets[1].name, features[1], known, cache, memory)
    return measure(features[0], reference, name=sets[0].name, groups=chosen, seed=seed)


def _features(extractor: Extractor, images: ImageSet, device: torch.device | str | None, cache: str | Path | None) -> Tensor:
    """Features of a set, from the cache where its files are known to it; a mapped file, not memory."""
    key = _key(images)
    if key is None:
        return set_features(extractor, images, device=device)
    name = hashlib.sha256(f"{extractor.identity} {key} {len(images)} {images.shape}".encode()).hexdigest()[:24]
    path = cache_folder("features", root=cache) / f"{name}.npy"
    if path.is_file():
        found = np.load(path, mmap_mode="c", allow_pickle=False)
        if found.shape == (len(images), extractor.dim):
            return torch.from_numpy(found)
    return set_features(extractor, images, device=device, out=path)


def _key(images: ImageSet) -> str | None:
    """What the content of a set is filed under: SHA-256 of its files or of its tensor; None for what is computed."""
    if isinstance(images, _First):
        inner = _key(images.images)
        return None if inner is None else f"{inner} first {images.n}"
    if isinstance(images, InMemory):
        return content_hash(images.x)
    files = images.files if isinstance(images, FolderSet) else [images.path] if isinstance(images, ArraySet) else None
    if files is None:
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
