"""Two sets of images against each other, whatever made them: the suite without a model.

Sets are folders, numpy files or data sets by name, read part by part. Features and moments go to the cache, in files that are mapped, not
loaded, under the hash of the set's files: a reference set is decoded and sent through a network once. Beside the generated set stand controls:
training images, the same moved by a pixel, and real images with shuffled pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from expost import data
from expost.data.arrays import pad
from expost.evaluate.controls import blind, jitter, shuffle_pixels
from expost.evaluate.features.base import Extractor
from expost.evaluate.features.choose import extractor_of, without_labels
from expost.evaluate.features.processes import Processes
from expost.evaluate.features.sets import ArraySet, FolderSet, ImageSet, InMemory, Mapped, set_features, set_statistics
from expost.evaluate.metrics.frechet import FeatureStats, frechet_distance
from expost.evaluate.metrics.suite import GROUPS, MEMORY, Reference, check_groups, measure, placed
from expost.results import Result
from expost.seeds import draw, seed_from
from expost.system.files import Room, cache_folder, cached, is_sealed, keep, seal
from expost.system.hashes import content_hash
from expost.system.storage import Tensors, code_hash, remember

__all__ = ["compare", "extractor_for", "image_set"]

#: Real images from which an untrained extractor takes its scale or components.
CALIBRATION = 4096


def image_set(
    source: str,
    *,
    size: int | None = None,
    crop: int | None = None,
    pad_to: int | None = None,
    channels: int | None = None,
    key: str | None = None,
    n: int | None = None,
    split: str = "test",
    seed: int = 0,
) -> ImageSet:
    """Images of a data set by name (one split of it), a folder, or a ``.npy`` or ``.npz`` file; ``n`` of them drawn by the seed.

    Args:
        size, crop, pad_to: as in :func:`expost.data.load`.
        channels: of pictures in a folder.
        key: of an array in an archive.
    """
    path = Path(source)
    found: ImageSet
    if path.suffix in (".npy", ".npz"):
        found = ArraySet(path, key=key, size=size, crop=crop)
    elif path.is_dir() and not any(path.glob("*.parquet")) and source not in {name for name, _, _ in data.names()}:
        found = FolderSet(path, size=size, crop=crop, channels=channels)
    else:
        dataset = data.load(source, size=size, crop=crop)
        found = InMemory(getattr(dataset, split).x, f"{dataset.name} {split}")
    return drawn(found if pad_to is None else _Padded(found, pad_to), n, seed)


def drawn(images: ImageSet, n: int | None, seed: int) -> ImageSet:
    """``n`` images of a set, drawn at random (a folder's first ones may all be of one class), in their order; all, if there are no more."""
    if n is not None and n < 1:
        raise ValueError(f"the number of images must be at least 1, not {n}")
    return images if n is None or n >= len(images) else _Drawn(images, n, seed)


class _Drawn:
    """n images of a set, in order."""

    def __init__(self, images: ImageSet, n: int, seed: int) -> None:
        self.images, self.seed, self.name, self.shape = images, seed, images.name, images.shape
        self.index = draw(len(images), n, "drawn images", seed).tolist()

    def __len__(self) -> int:
        return len(self.index)

    def read(self, start: int, stop: int) -> Tensor:
        if stop <= start:
            return self.images.read(0, 0)
        return torch.cat([self.images.read(i, i + 1) for i in self.index[start:stop]])


class _Padded(Mapped):
    """A set whose images have a border of zeros."""

    def __init__(self, images: ImageSet, side: int) -> None:
        self.side = side
        super().__init__(images, lambda x: pad(x, side, images.name))


def extractor_for(name: str, images: ImageSet) -> Extractor:
    """An extractor for images of this kind: untrained ones take their scale from :data:`CALIBRATION` of them, drawn at random."""
    kind, _, rest = name.partition(":")
    if kind == "classifier":
        if not rest:
            raise ValueError("a classifier needs labelled images to train on: write classifier:mnist, or any labelled data set")
        return extractor_of("classifier", data.load(rest))[0]
    some = drawn(images, CALIBRATION, 0)
    found = without_labels(name, lambda: some.read(0, 1 if kind == "pixels" else len(some)))
    if found is None:
        raise ValueError(
            f'there is no extractor "{name}": choose random, pixels, pca:64, classifier:DATA, or inception:WEIGHTS.safetensors'
        )
    return found[0]


def compare(
    generated: str | ImageSet | Tensor,
    real: str | ImageSet | Tensor,
    train: str | ImageSet | Tensor | None = None,
    *,
    extractor: str | Extractor = "random",
    groups: Iterable[str] = GROUPS,
    size: int | None = None,
    crop: int | None = None,
    pad_to: int | None = None,
    channels: int | None = None,
    key: str | None = None,
    n: int | None = None,
    memory: int = MEMORY,
    seed: int = 0,
    device: torch.device | str | None = None,
    cache: str | Path | None = None,
    controls: bool = True,
) -> dict[str, dict[str, Result]]:
    """All metrics of ``generated`` against ``real`` images: {"generated": {metric: result}, "training images": ..., other controls}.

    Args:
        generated, real, train: sets, tensors (n, C, H, W), or what :func:`image_set` reads. Without ``train`` nothing is said of memorisation.
        extractor: an extractor, or the name of one for :func:`extractor_for`.
        groups: of metrics; ``("fd",)`` alone needs moments only, in memory that does not depend on the number of images.
        size, crop, pad_to: of sets that are given by name or place, as in :func:`expost.data.load`.
        channels: of pictures in folders.
        key: of arrays in archives.
        n: images of ``generated`` and of ``real`` at most, drawn by the seed; ``train`` is used in full.
        memory: bytes that distances between images may take.
        cache: folder of cached features.
        controls: also measure control sets, of as many images as the smallest set has; without ``train`` only shuffled pixels.

    Under torch.distributed every process must call it with the same arguments, and gets the same numbers as a single one.
    """
    chosen = check_groups(groups)
    if train is None and set(chosen) <= {"memorisation", "fld"}:
        raise ValueError(f"{' and '.join(chosen)} compare with training images: give them as train (--train)")

    def read(source: str | ImageSet | Tensor, split: str, many: int | None) -> ImageSet:
        if isinstance(source, str):
            return image_set(source, size=size, crop=crop, pad_to=pad_to, channels=channels, key=key, n=many, split=split, seed=seed)
        return drawn(source if isinstance(source, ImageSet) else InMemory(source), many, seed)

    made, true = read(generated, "test", n), read(real, "test", n)
    seen = None if train is None else read(train, "train", None)
    for images in (made, *([seen] if seen is not None else [])):
        if images.shape != true.shape:
            remedies = [f"to one size with size={min(true.shape[1:])}, say"] * (images.shape[1:] != true.shape[1:])
            if images.shape[0] != true.shape[0]:  # colour is never dropped
                remedies.append(
                    "to one number of channels (channels=3 reads grey pictures of a folder as colour, arrays are converted before)"
                )
            raise ValueError(
                f"{images.name} has images of shape {images.shape}, {true.name} of {true.shape}: bring them {' and '.join(remedies)}"
            )
    judge = extractor_for(extractor, true) if isinstance(extractor, str) else extractor
    rows: dict[str, ImageSet] = {"generated": made}
    if controls:
        rows |= _controls(true, seen, min(len(images) for images in (made, true, seen) if images is not None), seed)
    if chosen == ("fd",):
        moments = _statistics(judge, true, device, cache)
        found = {}
        for name, images in rows.items():
            own = _statistics(judge, images, device, cache)
            result = frechet_distance(own, moments).result(judge.label)
            found[name] = {"FD": placed(result, judge.identity, images.name, true.name, (own.n, moments.n, 0), seed)}
        return _noted(found, made, true, seen)
    known = None if seen is None else _features(judge, seen, device, cache)
    reference = Reference(judge.identity, judge.label, true.name, _features(judge, true, device, cache), known, cache, memory)
    found = {
        name: measure(_features(judge, images, device, cache), reference, name=images.name, groups=chosen, seed=seed)
        for name, images in rows.items()
    }
    return _noted(found, made, true, seen)


def _noted(found: dict[str, dict[str, Result]], *sets: ImageSet | None) -> dict[str, dict[str, Result]]:
    """The results, those of the generated set with what must be said of how the files were read, and of an extractor that prefers shuffled pixels."""
    inner = [_whole(images) for images in sets if images is not None]
    said = [note for images in inner if isinstance(images, FolderSet | ArraySet) for note in images.notes()]
    blinded = blind(found["generated"], found.get("shuffled pixels", {}))
    notes = tuple(dict.fromkeys([*said, *([blinded] if blinded else [])]))
    return {
        row: {name: replace(r, notes=(*r.notes, *notes)) for name, r in results.items()} if row == "generated" else results
        for row, results in found.items()
    }


def _whole(images: ImageSet) -> ImageSet:
    """The set that was read, of images drawn from it or padded."""
    while isinstance(images, _Drawn | _Padded):
        images = images.images
    return images


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
        copies = drawn(train, n, seed)
        found = {"training images": copies, "jittered training images": _Altered(copies, jitter, "jittered training images", seed)}
    return found | {"shuffled pixels": _Altered(drawn(real, n, seed), shuffle_pixels, "shuffled pixels", seed)}


def _statistics(extractor: Extractor, images: ImageSet, device: torch.device | str | None, cache: str | Path | None) -> FeatureStats:
    """Moments of a set's features, from the cache where its files are known to it."""
    key = _key(images)
    if key is None:
        return set_statistics(extractor, images, device=device)

    def make() -> Tensors:
        made = set_statistics(extractor, images, device=device)
        return {"n": torch.tensor(made.n), "mean": made.mean, "scatter": made.scatter}

    what = extractor.identity, key, len(images), images.shape
    kept = remember(cache_folder("moments", root=cache), "moments", make, *what, kind=Tensors, code=(extractor,))
    return FeatureStats(int(kept["n"]), kept["mean"], kept["scatter"])


def _features(extractor: Extractor, images: ImageSet, device: torch.device | str | None, cache: str | Path | None) -> Tensor:
    """Features of a set, from the cache where its files are known to it; a mapped file, not memory."""
    key = _key(images)
    if key is None:
        return set_features(extractor, images, device=device)
    code = code_hash(*sorted({__name__, type(extractor).__module__}))
    name = hashlib.sha256(f"{extractor.identity} {key} {len(images)} {images.shape} {code}".encode()).hexdigest()[:24]
    path = cache_folder("features", root=cache) / f"{name}.npy"
    shape, processes = (len(images), extractor.dim), Processes()

    def read(file: Path) -> Tensor | None:
        kept = np.load(file, mmap_mode="c", allow_pickle=False) if is_sealed(file) else None
        return torch.from_numpy(kept) if kept is not None and kept.shape == shape and kept.dtype == np.float32 else None

    def make() -> Tensor:
        room = processes.rank > 0
        if not room:
            with keep(path.parent), Room(path.parent, 4 * len(images) * extractor.dim):
                room = True
        if not processes.agreed(room):
            return set_features(extractor, images, device=device)
        made = set_features(extractor, images, device=device, out=path)  # written as they are computed
        if processes.rank == 0:
            with keep(path.parent):
                seal(path)
        return made

    return cached(path, read, make, lambda file, made: None, agreed=processes.agreed)


def _key(images: ImageSet) -> str | None:
    """What a set is filed under: SHA-256 of its files and how they are read, or of its tensor; None for what is computed on the way."""
    if isinstance(images, _Drawn):
        inner = _key(images.images)
        return None if inner is None else f"{inner} {len(images)} drawn by {images.seed}"
    if isinstance(images, _Padded):
        inner = _key(images.images)
        return None if inner is None else f"{inner} padded to {images.side}"
    if isinstance(images, InMemory):
        return content_hash(images.x)
    if not isinstance(images, FolderSet | ArraySet):
        return None
    digest = hashlib.sha256(images.how.encode())
    for file in images.files if isinstance(images, FolderSet) else [images.path]:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
