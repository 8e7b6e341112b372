"""Parts of a data set by class, named by a suffix: ``mnist:without=9``, ``cifar10:only=3,5``, ``mnist:per-class=10``.

* ``without=9``: training and validation lose these classes; the test split keeps all, because what a model does with classes that it has never
  seen is the question (Bozkurt et al. 2018).
* ``only=3,5``: all three splits keep these classes.
* ``per-class=10``: so many random training examples of every class ("mini-MNIST"); validation and test stay whole.

Labels keep their numbers. Several parts are joined by ``:``. The part is in the name and the hash of the data set, so runs on it are runs of their own.
"""

from __future__ import annotations

import os
import re

import torch
from torch import Tensor

from expost.data.base import Dataset, Split
from expost.data.mapped import taken
from expost.seeds import generator

__all__ = ["separate", "subset"]

_PART = re.compile(r":(without|only|per-class)=([^:/]*)$")


def separate(name: str) -> tuple[str, list[tuple[str, str]]]:
    """The data set's own name and its parts in order: ``"mnist:without=9"`` -> ("mnist", [("without", "9")]).

    >>> separate("a/mnist:only=1,2:per-class=10")
    ('a/mnist', [('only', '1,2'), ('per-class', '10')])
    """
    parts: list[tuple[str, str]] = []
    while (found := _PART.search(name)) is not None and not os.path.exists(name):
        parts.insert(0, (found[1], found[2]))
        name = name[: found.start()]
    return name, parts


def subset(dataset: Dataset, kind: str, value: str, seed: int = 0) -> Dataset:
    """The data set reduced to a part; ``ValueError`` if it has no labels, or no such classes, or nothing would be left."""
    what = f"{dataset.name}:{kind}={value}"
    if dataset.train.labels is None:
        raise ValueError(f"{what} chooses by class, but {dataset.name} has no labels: leave the suffix out")
    try:
        numbers = [int(v) for v in value.split(",")]
    except ValueError:
        raise ValueError(f'cannot read "{kind}={value}": write class numbers, e.g. without=9, only=3,5, or a count, per-class=10') from None
    if kind == "per-class":
        return _few(dataset, what, numbers, seed)
    missing = sorted(set(numbers) - set(range(dataset.classes)))
    if missing:
        raise ValueError(f"{what}: there is no class {missing[0]}, classes are 0 ... {dataset.classes - 1}")
    wanted = torch.tensor(numbers)

    def kept(split: Split) -> Split:
        assert split.labels is not None
        inside = torch.isin(split.labels, wanted)
        return _rows(split, inside if kind == "only" else ~inside, what)

    parts = {"train": kept(dataset.train), "val": kept(dataset.val), "test": kept(dataset.test) if kind == "only" else dataset.test}
    listed = ", ".join(map(str, numbers))
    note = f"only classes {listed}" if kind == "only" else f"training and validation without class {listed}; the test split has all classes"
    return Dataset.of(f"{dataset.name}-{kind}-{'-'.join(map(str, numbers))}", **parts, notes=(*dataset.notes, note))


def _few(dataset: Dataset, what: str, numbers: list[int], seed: int) -> Dataset:
    if len(numbers) != 1 or numbers[0] < 1:
        raise ValueError(f"{what}: give one count of at least 1, e.g. per-class=10")
    count, labels = numbers[0], dataset.train.labels
    assert labels is not None
    chosen = []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) < count:
            raise ValueError(f"{what}: class {label} has only {len(rows)} training examples: ask for fewer")
        chosen.append(rows[torch.randperm(len(rows), generator=generator("per-class", seed, label))[:count]])
    rows = torch.cat(chosen)
    train = Split(taken([dataset.train.x], rows), labels[rows])
    note = f"{count} random training examples of every class (seed {seed}); validation and test are whole"
    return Dataset.of(f"{dataset.name}-per-class-{count}", train, dataset.val, dataset.test, (*dataset.notes, note))


def _rows(split: Split, mask: Tensor, what: str) -> Split:
    assert split.labels is not None
    if not mask.any():
        raise ValueError(f"{what}: nothing would be left: choose other classes")
    return Split(taken([split.x], mask.nonzero()[:, 0]), split.labels[mask])
