"""The suite: features of generated and of real data in, every metric out, each with what determined it.

:class:`Reference` is the real side. What depends on real data alone (features, moments, distances between real images) is computed once per
extractor and kept on disk under the content hash of the images. :func:`measure` compares one set of generated features with it:

| group | metrics |
|---|---|
| ``fd`` | FD with both terms; FD∞, its extrapolation to infinitely many images |
| ``kid`` | KID, over all pairs of rows: no subsets, hence no noise of drawing them |
| ``prd`` | F8 (recall) and F1/8 (precision) of the precision-recall curve of distributions |
| ``neighbours`` | improved precision and recall, density, coverage |
| ``memorisation`` | authenticity (AuthPct), data-copying C_T, nearest-neighbour ratio, copy distance |
| ``fld`` | feature-likelihood divergence and its generalisation gap |

Sets that share images, or repeat many, are found by equal rows of features. What would then be no estimate is left out, and a note says why: FD∞ and
KID where generated and reference images are no independent draws; C_T, copy distance and FLD where reference images were seen in training.

FD∞, PRD, C_T and FLD draw subsets, starts of k-means and halves by the seed; rounding of features (another batch size) moves them within their
stated errors, and so does another order of the training images C_T. The other metrics are functions of the sets, and agree to 1e-4 of their value.

Every result's ``context`` names extractor, both sets, their sizes, the seed and the version of expost.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from expost.evaluate import metrics
from expost.evaluate.features.base import Extractor, cached_features
from expost.evaluate.metrics.frechet import FeatureStats
from expost.evaluate.metrics.memorisation import cells_of
from expost.evaluate.metrics.neighbours import RealNeighbours
from expost.evaluate.metrics.registry import Compared
from expost.results import Result
from expost.statistics.neighbours import MEMORY
from expost.statistics.samples import REPEATS, dependence, feature_pair, overlap
from expost.system.files import cache_folder
from expost.system.hashes import content_hash, row_keys
from expost.system.progress import Bar
from expost.system.storage import Tensors, remember

__all__ = ["COPYING", "GROUPS", "QUALITY", "Reference", "check_groups", "measure", "placed"]

GROUPS = tuple(metrics.METRICS)
#: Columns of the table of quality and of the table of memorisation.
QUALITY, COPYING = (tuple(c for m in metrics.METRICS.values() if m.copying == copying for c in m.columns) for copying in (False, True))


def check_groups(groups: Iterable[str]) -> tuple[str, ...]:
    """``groups`` in the order of :data:`GROUPS`; ``ValueError`` names what exists."""
    wanted = {groups} if isinstance(groups, str) else set(groups)
    if not wanted:
        raise ValueError(f"no metrics are asked for: choose among {', '.join(GROUPS)}")
    unknown = sorted(wanted - set(GROUPS))
    if unknown:
        raise ValueError(f'there is no group of metrics "{unknown[0]}": choose among {", ".join(GROUPS)}')
    return tuple(g for g in GROUPS if g in wanted)


@dataclass(frozen=True, eq=False)
class Reference:
    """The real side of comparisons under one extractor. Made by :meth:`of`.

    Attributes:
        extractor: its identity, ``name@hash``.
        label: what its Fréchet distance is called.
        name: of the reference set, e.g. ``mnist test``.
        test: features (n, d) float32 of the reference images.
        train: features of the training images, or None: then nothing can be said about memorisation.
        cache: folder for distances between real images, or None for the user's.
    """

    extractor: str
    label: str
    name: str
    test: Tensor
    train: Tensor | None = None
    cache: str | Path | None = None
    memory: int = MEMORY
    _cells: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    _rows: dict[torch.dtype, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls,
        extractor: Extractor,
        test: Tensor,
        train: Tensor | None = None,
        *,
        name: str = "real",
        cache: str | Path | None = None,
        device: torch.device | str | None = None,
        memory: int = MEMORY,
    ) -> Reference:
        """From images: ``test`` (n, C, H, W) is compared with, ``train`` is what the model has seen."""
        real = cached_features(extractor, test, cache=cache, device=device)
        seen = None if train is None else cached_features(extractor, train, cache=cache, device=device)
        return cls(extractor.identity, extractor.label, name, real, seen, cache, memory)

    @cached_property
    def stats(self) -> FeatureStats:
        """Moments of the reference features."""
        return FeatureStats.from_features(self.test)

    def rows(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys of the features of the reference and of the training images as values of ``dtype``, by which equal images are found."""
        if dtype not in self._rows:
            self._rows[dtype] = row_keys(self.test, dtype), row_keys(self.test[:0] if self.train is None else self.train, dtype)
        return self._rows[dtype]

    @cached_property
    def key(self) -> str:
        """SHA-256 of the real features, under which everything computed from them is filed."""
        return content_hash(self.test, self.test[:0] if self.train is None else self.train)

    @cached_property
    def neighbours(self) -> RealNeighbours:
        """Distances among real images: from the cache, or computed now and kept."""

        def make() -> Tensors:
            return RealNeighbours.of(self.test, self.train, memory=self.memory).tensors()

        kept = remember(cache_folder("neighbours", root=self.cache), "neighbours", make, self.key, kind=Tensors, code=(RealNeighbours,))
        return RealNeighbours.from_tensors(kept)

    def cells(self, seed: int) -> Tensor:
        """Centres of the cells of C_T, k-means of the training features."""
        assert self.train is not None
        if seed not in self._cells:
            self._cells[seed] = cells_of(self.train, seed=seed, memory=self.memory)
        return self._cells[seed]


def measure(
    generated: Tensor,
    reference: Reference,
    *,
    name: str,
    groups: Iterable[str] = GROUPS,
    seed: int = 0,
) -> dict[str, Result]:
    """All metrics of the asked groups for one set of generated features.

    Args:
        generated: features (m, d), by the reference's extractor.
        reference: the real side.
        name: what was generated, for the context, e.g. ``samples gmm:10``.
        groups: among :data:`GROUPS`; ``memorisation`` and ``fld`` need training features and are left out without them.
        seed: of subsets, k-means and partitions.

    Returns:
        metric -> result, with the names of :data:`QUALITY` and :data:`COPYING`.
    """
    chosen = check_groups(groups)
    if isinstance(generated, Tensor):
        generated = generated.to(reference.test.device)  # where what is known of real data lies
    generated, test = feature_pair(generated, reference.test)
    train = reference.train
    kin = _Kinship.of(generated, reference)
    sets = Compared(generated, test, train, reference, seed, kin.dependent, kin.seen)
    found: dict[str, Result] = {}
    missing: list[str] = []
    with Bar(len(chosen), what="metrics", after=1.0) as bar:
        for group in chosen:
            bar.update(bar.done, group)
            row = metrics.METRICS[group]
            if train is not None or not row.copying:
                try:
                    found |= row.measure(sets)
                except ValueError as error:  # too few images for this one
                    missing.append(f"no {group}: {error}")
            else:
                missing.append(f"no {group}: it asks how near samples are to training images, and there are none to compare with")
            bar.update(bar.done + 1)
    if not found:  # what kinship forbids stands there without a value, so that the reason does
        rows = (metrics.METRICS[group] for group in chosen)
        found = {name: Result(name, math.nan, n=len(generated)) for row in rows if row.forbidden(sets) for name in row.columns}
    if not found:
        raise ValueError(missing[0].partition(": ")[2])
    for carrier, notes in ((next(iter(found)), (*kin.notes, *missing)), (next((m for m in found if m in COPYING), ""), kin.train_notes)):
        if carrier:
            found[carrier] = dataclasses.replace(found[carrier], notes=found[carrier].notes + tuple(notes))
    sizes = (len(generated), len(test), 0 if train is None else len(train))
    return {metric: placed(result, reference.extractor, name, reference.name, sizes, seed) for metric, result in found.items()}


@dataclass(frozen=True)
class _Kinship:
    """Images that generated, reference and training sets have in common, or repeat.

    Attributes:
        dependent: generated and reference images are no independent draws; ``notes`` say why.
        seen: more than a few reference images are in the training set; ``train_notes`` say how many, and how many training images repeat others.
    """

    dependent: bool
    seen: bool
    notes: tuple[str, ...]
    train_notes: tuple[str, ...]

    @classmethod
    def of(cls, generated: Tensor, reference: Reference) -> _Kinship:
        kind = torch.promote_types(generated.dtype, reference.test.dtype)
        test, train = reference.rows(kind)
        notes, dependent = dependence(row_keys(generated, kind), test)
        shared, different = overlap(test, train), len(train.unique())
        seen = shared > REPEATS * len(test)
        told = []
        if shared:
            told.append(
                f"{shared} of the reference images are in the training set" + ": C_T, copy distance and FLD assume unseen ones" * seen
            )
        if different < len(train):
            told.append(
                f"{len(train) - different} of the training images repeat others: copying is judged among the {different} different ones"
            )
        return cls(dependent, seen, notes, tuple(told))


def placed(result: Result, extractor: str, generated: str, reference: str, sizes: tuple[int, int, int], seed: int) -> Result:
    """A result with its context: extractor, sets, their sizes (generated, reference, training images), seed, version."""
    from expost import __version__

    context: dict[str, str | int | float] = {
        "extractor": extractor, "generated": generated, "reference": reference, "n generated": sizes[0], "n reference": sizes[1],
        "n train": sizes[2], "seed": seed, "version": __version__,
    }  # fmt: skip
    return dataclasses.replace(result, context={**result.context, **context})
