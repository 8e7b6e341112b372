"""Sets of images that need not fit in memory, and their features and statistics, by one process or several.

An :class:`ImageSet` has a length, one image shape and ``read(start, stop)``; nothing is read before that, and nothing is kept afterwards.

| set | images | read from |
|---|---|---|
| :class:`InMemory` | a tensor | memory |
| :class:`FolderSet` | picture files below a folder, in sorted order | decoded when read |
| :class:`ArraySet` | a ``.npy`` file, or an array of an ``.npz`` archive | mapped for the time of a read |
| :class:`Generated` | samples of a model | codes are drawn at once, decoded when read |
| :class:`Mapped` | any of these under a function | computed when read |

Features are computed in blocks of about 500 images: whole batches, cut at the same places whatever the number of processes. Under
torch.distributed (torchrun, accelerate) the processes share the blocks and every one ends with all features, bit for bit those of a single
process on the same kind of machine (see ``gather``). The batch size does matter in the last bits, as it does to every float32 network.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from expost.autoencoder import Autoencoder, evaluating
from expost.evaluate.features.base import Extractor, Shape, extract
from expost.evaluate.features.processes import Processes, in_order
from expost.evaluate.features.stored import ArraySet, FolderSet, check_range
from expost.evaluate.metrics.frechet import FeatureStats
from expost.seeds import seed_from, seeded
from expost.system.files import atomic
from expost.system.progress import Bar
from expost.tensors import NonFinite, as_data, numbered

__all__ = ["ArraySet", "FolderSet", "Generated", "ImageSet", "InMemory", "Mapped", "set_features", "set_statistics"]

#: Images in a block of work, rounded up to whole batches; also the batches in which ``Autoencoder.generate`` decodes.
BLOCK = 500
#: Rows of features that enter statistics at once, whatever the batches.
ROWS = 4096


@runtime_checkable
class ImageSet(Protocol):
    """A sequence of images of one shape, of which parts can be read: what :func:`set_features` takes.

    Attributes:
        name: what the images are called in errors and results.
        shape: (C, H, W) of every image.
    """

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> Shape: ...

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Tensor:
        """Images start ... stop-1 as uint8 or floats in [0, 1], (stop - start, C, H, W); the same whenever they are read."""
        ...


class InMemory:
    """A tensor of images (n, C, H, W), uint8 or floats in [0, 1], as a set.

    >>> InMemory(torch.zeros(7, 1, 2, 2)).read(3, 5).shape
    torch.Size([2, 1, 2, 2])
    """

    def __init__(self, x: Tensor, name: str = "images") -> None:
        x = as_data(x, name)
        if x.dim() != 4:
            raise ValueError(f"{name} must be of shape (n, C, H, W), not {tuple(x.shape)}: reshape them")
        self.x, self.name = x, name
        self.shape: Shape = (x.shape[1], x.shape[2], x.shape[3])

    def __len__(self) -> int:
        return len(self.x)

    def read(self, start: int, stop: int) -> Tensor:
        check_range(self, start, stop)
        return self.x[start:stop]


class Generated:
    """n samples of a model, bit for bit those of ``model.generate(n, seed=seed)``, decoded when they are read.

    The codes (n, d) are drawn at once and kept; images are decoded in generate's own batches, of which the last one used is kept. The model
    must not change meanwhile. Means of a decoder may leave [0, 1]; extractors refuse that, so say what you want:
    ``Mapped(Generated(model, n), lambda x: x.clamp(0, 1))``.
    """

    def __init__(self, model: Autoencoder, n: int, seed: int = 0, name: str = "samples") -> None:
        if n < 1:
            raise ValueError(f"the number of samples must be at least 1, not {n}")
        self.model, self.name = model, name
        with evaluating(model), seeded("generate", seed):
            self.codes = model.latent().sample((n,))
        self._kept: tuple[int, Tensor] = (0, self._decode(0))
        shape = self._kept[1].shape[1:]
        if len(shape) != 3:
            raise ValueError(f"this model generates data of shape {tuple(shape)}, not images (C, H, W): use model.generate")
        self.shape: Shape = (shape[0], shape[1], shape[2])

    def __len__(self) -> int:
        return len(self.codes)

    def read(self, start: int, stop: int) -> Tensor:
        check_range(self, start, stop)
        parts = []
        for number in range(start // BLOCK, (stop - 1) // BLOCK + 1 if stop > start else 0):
            if self._kept[0] != number:
                self._kept = (number, self._decode(number))
            parts.append(self._kept[1][max(start - number * BLOCK, 0) : stop - number * BLOCK])
        return torch.cat(parts) if parts else self._kept[1][:0]

    def _decode(self, number: int) -> Tensor:
        return self.model.decode_points(self.codes[number * BLOCK : (number + 1) * BLOCK], batch_size=BLOCK)


class Mapped:
    """A set under a function of blocks of images, (n, C, H, W) -> (n, C', H', W'), that treats every image alone.

    >>> Mapped(InMemory(torch.tensor([[[[2.0]]]])), lambda x: x.clamp(0, 1)).read(0, 1).item()
    1.0
    """

    def __init__(self, images: ImageSet, function: Callable[[Tensor], Tensor], name: str | None = None) -> None:
        self.images, self.function, self.name = images, function, name or images.name
        if len(images) == 0:
            raise ValueError(f"{self.name} holds no images: give at least one")
        shape = self.read(0, 1).shape[1:]
        if len(shape) != 3:
            raise ValueError(f"the function on {self.name} returned data of shape {tuple(shape)}, not images (C, H, W)")
        self.shape: Shape = (shape[0], shape[1], shape[2])

    def __len__(self) -> int:
        return len(self.images)

    def read(self, start: int, stop: int) -> Tensor:
        check_range(self, start, stop)
        out = self.function(self.images.read(start, stop))
        if len(out) != stop - start:
            raise ValueError(f"the function on {self.name} made {len(out)} images of {stop - start}: it must return one for each")
        return out


def set_features(
    extractor: Extractor,
    images: ImageSet | Tensor,
    *,
    batch_size: int = 250,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    progress: bool | None = None,
    alone: bool = False,
) -> Tensor:
    """Features (n, dim) float32 on the CPU of a set of images, a block at a time: peak memory is one block and the features.

    Args:
        extractor: what to compute.
        images: a set, or a tensor (n, C, H, W).
        batch_size: images at a time. It changes single features by float32 round-off, and a Fréchet distance by less than 1e-5 of it.
        device: where to compute; by default where the images come from.
        out: a ``.npy`` file to which the features are written as they are computed (under another name until it is whole); the tensor
            returned maps the file, so that features need not fit in memory either. Changes to the tensor do not reach the file.
        progress: False for silence, True to be heard off a terminal too; default: see :mod:`expost.system.progress`.
        alone: compute everything in this process, even if torch.distributed is initialised. Otherwise every process must call this, with
            the same arguments (``out`` on a file system they share); every one gets all features.

    Raises:
        ValueError: no images, bad images (named by set and number), or different arguments in different processes.

    >>> from expost.evaluate.features.base import Pixels
    >>> set_features(Pixels((1, 2, 2)), torch.ones(3, 1, 2, 2)).shape
    torch.Size([3, 4])
    """
    work = _Work(extractor, images, batch_size, device, progress, Processes(alone=alone))
    n, dim = len(work.images), extractor.dim
    if out is None:
        features, done = torch.empty(n, dim), 0

        def keep(rows: Tensor) -> None:
            nonlocal done
            features[done : done + len(rows)] = rows
            done += len(rows)

        work.run(keep)
        return features

    path = Path(out)
    if path.suffix != ".npy":
        raise ValueError(f"features are written as a .npy file, not {path.name}: change the name")
    with ExitStack() as stack:
        file: BinaryIO | None = None
        with work.processes.together():
            if work.processes.rank == 0:
                file = stack.enter_context(stack.enter_context(atomic(path)).open("wb"))
                np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (n, dim)})

        def write(rows: Tensor) -> None:
            if file is not None:
                file.write(rows.contiguous().numpy().astype("<f4", copy=False).data)

        work.run(write)
        with work.processes.together():
            stack.close()
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def set_statistics(
    extractor: Extractor,
    images: ImageSet | Tensor,
    *,
    batch_size: int = 250,
    device: torch.device | str | None = None,
    progress: bool | None = None,
    alone: bool = False,
) -> FeatureStats:
    """Number, mean and scatter of the features of a set: what a Fréchet distance needs, in memory that does not depend on n.

    Those of ``FeatureStats.from_features(set_features(...))`` up to float64 round-off, and bit for bit below 4097 images. Arguments, errors and
    several processes as for :func:`set_features`.

    >>> from expost.evaluate.features.base import Pixels
    >>> set_statistics(Pixels((1, 1, 2)), torch.tensor([0.0, 0.5, 0.5, 1.0]).reshape(2, 1, 1, 2)).mean.tolist()
    [0.25, 0.75]
    """
    work = _Work(extractor, images, batch_size, device, progress, Processes(alone=alone))
    stats, rows, filled = FeatureStats.empty(extractor.dim), torch.empty(ROWS, extractor.dim), 0

    def add(block: Tensor) -> None:
        nonlocal stats, filled
        while len(block):
            part = block[: ROWS - filled]
            rows[filled : filled + len(part)] = part
            filled, block = filled + len(part), block[len(part) :]
            if filled == ROWS:
                stats, filled = stats.update(rows), 0

    work.run(add)
    return stats.update(rows[:filled])


class _Work:
    """A set cut into blocks, and how the features of a block are made."""

    def __init__(
        self,
        extractor: Extractor,
        images: ImageSet | Tensor,
        batch_size: int,
        device: torch.device | str | None,
        progress: bool | None,
        processes: Processes,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch size must be at least 1, not {batch_size}")
        self.images: ImageSet = images if isinstance(images, ImageSet) else InMemory(as_data(images, "images"))
        self.batch_size, self.device, self.processes = batch_size, device, processes
        self.extractor = extractor if device is None else extractor.to(device)
        n, self.block = len(self.images), batch_size * -(-BLOCK // batch_size)
        processes.same(n, *self.images.shape, batch_size, seed_from(extractor.identity))
        if n == 0:
            raise ValueError(f"{self.images.name} holds no images: give at least one")
        self.counts = [min(self.block, n - start) for start in range(0, n, self.block)]
        self.progress = progress if processes.rank == 0 else False

    def run(self, consume: Callable[[Tensor], None]) -> None:
        done = 0
        with Bar(len(self.images), enabled=self.progress, what=f"features of {self.images.name}") as bar:

            def take(rows: Tensor) -> None:
                nonlocal done
                consume(rows)
                done += len(rows)
                bar.update(done)

            in_order(self.processes, self.counts, self.extractor.dim, self._features, take)

    def _features(self, number: int) -> Tensor:
        start = number * self.block
        stop = start + self.counts[number]
        try:
            x = self.images.read(start, stop)
            if tuple(x.shape) != (stop - start, *self.images.shape):
                raise ValueError(f"they were read with shape {tuple(x.shape)}, not {(stop - start, *self.images.shape)}: repair the set")
            with numbered(start):
                return extract(self.extractor, x, batch_size=self.batch_size, device=self.device)
        except NonFinite as error:
            raise ValueError(f"{self.images.name}: {error}") from None
        except (ValueError, TypeError) as error:
            raise type(error)(f"{self.images.name}, images {start} to {stop - 1}: {error}") from None
