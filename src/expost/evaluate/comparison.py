"""Two sets of images against each other, whatever made them: the suite without a model.

Sets are folders, numpy files or data sets by name, read part by part. Features and moments go to the cache, in files that are mapped, not
loaded, under the hash of the set's files: a reference set is decoded and sent through a network once. Beside the generated set stand controls:
training images, the same moved by a pixel, and real images with shuffled pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from expost import data
from expost.evaluate.choose import extractor_of, inception_of, whole
from expost.evaluate.controls import jitter, shuffle_pixels
from expost.evaluate.features import Extractor, Pixels, RandomNetwork
from expost.evaluate.frechet import FeatureStats, frechet_distance
from expost.evaluate.gather import Processes
from expost.evaluate.pca import PCAFeatures
from expost.evaluate.sets import ArraySet, FolderSet, ImageSet, InMemory, set_features, set_statistics
from expost.evaluate.suite import GROUPS, MEMORY, Reference, check_groups, measure, placed
from expost.files import cache_folder, load_tensors, save_tensors
from expost.hashes import content_hash
from expost.results import Result
from expost.seeds import seed_from

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
        return inception_of(rest)
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
    controls: bool = True,
) -> dict[str, dict[str, Result]]:
    """All metrics of ``generated`` against ``real`` images: {"generated": {metric: result}, "training images": ..., other controls}.

    Args:
        generated, real, train: sets, or what :func:`image_set` reads.
        extractor: an extractor, or the name of one for :func:`extractor_for`.
        groups: of metrics; ``("fd",)`` alone needs moments only, in memory that does not depend on the number of images.
        size: side to which pictures of folders are resized.
        n: images of each set at most.
        memory: bytes that distances between images may take.
        cache: folder of cached features.
        controls: also measure control sets, of as many images as the smallest set has; without ``train`` only shuffled pixels.

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
    rows: dict[str, ImageSet] = {"generated": sets[0]}
    if controls:
        rows |= _controls(sets[1], seen, min(len(images) for images in (*sets, seen) if images is not None), seed)
    if chosen == ("fd",):
        moments = _statistics(judge, sets[1], device, cache)
        found = {}
        for name, images in rows.items():
            own = _statistics(judge, images, device, cache)
            result = frechet_distance(own, moments).result(judge.label)
            found[name] = {"FD": placed(result, judge.identity, images.name, sets[1].name, (own.n, moments.n, 0), seed)}
        return found
    known = None if seen is None else _features(judge, seen, device, cache)
    reference = Reference(judge.identity, judge.label, sets[1].name, _features(judge, sets[1], device, cache), known, cache, memory)
    return {
        name: measure(_features(judge, images, device, cache), reference, name=images.name, groups=chosen, seed=seed)
        for name, images in rows.items()
    }


class _Altered:
    """A set whose images are each changed by a function of the image and a seed of its own, so that reads of any range agree."""

    def __init__(self, images: ImageSet, change: Callable[..., Tensor], name: str, seed: int) -> None:
        self.images, self.change, self.seed, self.name, self.shape = images, change, seed, name, images.shape

    def __len__(self) -> int:
        return len(self.images)

    def read(self, start: int, stop: int) -> Tensor:
        read = self.images.read(start, stop)
        if len(read) == 0:
            return read
        return torch.cat([self.change(x[None], seed=seed_from(self.name, self.seed, start + i)) for i, x in enumerate(read)])


def _controls(real: ImageSet, train: ImageSet | None, n: int, seed: int) -> dict[str, ImageSet]:
    found: dict[str, ImageSet] = {}
    if train is not None:
        copies = _First(train, n)
        found = {"training images": copies, "jittered training images": _Altered(copies, jitter, "jittered training images", seed)}
    return found | {"shuffled pixels": _Altered(_First(real, n), shuffle_pixels, "shuffled pixels", seed)}


def _statistics(extractor: Extractor, images: ImageSet, device: torch.device | str | None, cache: str | Path | None) -> FeatureStats:
    """Moments of a set's features, from the cache where its files are known to it."""
    key = _key(images)
    if key is None:
        return set_statistics(extractor, images, device=device)
    facts = {"extractor": extractor.identity, "images": f"{key} {len(images)} {images.shape}"}
    name = hashlib.sha256(" ".join(facts.values()).encode()).hexdigest()[:24]
    path = cache_folder("moments", root=cache) / f"{name}.safetensors"
    if path.is_file():
        tensors, found = load_tensors(path, "cached moments of features")
        if found == facts:
            return FeatureStats(int(tensors["n"]), tensors["mean"], tensors["scatter"])
    made = set_statistics(extractor, images, device=device)
    if Processes().rank == 0:
        save_tensors(path, {"n": torch.tensor(made.n), "mean": made.mean, "scatter": made.scatter}, facts)
    return made


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
