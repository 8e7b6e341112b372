"""Which rows of a source become train, val and test.

* A source's own parts are kept as they are, in their order.
* No validation part: for data sets of the papers the last 10 000 training rows (Ghosh et al. 2020; their code's validation set
  overlapped the training set), of a partial training part its last tenth; for all others, and where rows come sorted by class, a seeded random
  tenth.
* No test part: a seeded random tenth each for val and test.

Rows that are drawn at random are also shuffled, so that the beginning of a split is representative.

Parts of a data set by class, named by a suffix: ``mnist:without=9``, ``cifar10:only=3,5``, ``mnist:per-class=10``.

* ``without=9``: training and validation lose these classes; the test split keeps all, because what a model does with classes that it has never
  seen is the question (Bozkurt et al. 2018).
* ``only=3,5``: all three splits keep these classes.
* ``per-class=10``: so many random training examples of every class ("mini-MNIST"); validation and test stay whole.

Labels keep their numbers. Several parts are joined by ``:``. The part is in the name and the hash of the data set, so runs on it are runs of their own.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from expost.data.base import Dataset, Split
from expost.data.mapped import taken
from expost.data.source import SPLITS, Source
from expost.seeds import generator, permutation

__all__ = ["Rule", "assign", "by_class", "fraction", "separate", "subset"]


@dataclass(frozen=True)
class Rule:
    """How a data set of the papers is split: ``val`` last rows of ``train`` training rows are held out (0: it has its own part)."""

    train: int
    val: int


def assign(
    counts: dict[str, int], rule: Rule | None, name: str, *, val: int | float | None, seed: int, max_items: int | None
) -> tuple[dict[str, Tensor], list[str]]:
    """Row numbers of each split, and notes.

    Args:
        counts: rows of each part of the source, in the order of their numbering.
        rule: of a known data set whose rows lie in their official order; None else.
        val: rows (int) or share (float in (0, 1)) of the training part to hold out instead of the usual number.
        seed: of the random splits.
        max_items: at most so many rows of each split: the first ones under a rule, else a random choice in the order they had.
    """
    if sum(counts.values()) == 0:
        raise ValueError(f"{name} is empty: give at least 3 examples")
    if empty := [part for part in counts if counts[part] == 0]:
        raise ValueError(f"{name}: the {empty[0]} split is empty: give at least one example, or leave the split out")
    if max_items is not None and max_items < 1:
        raise ValueError(f"max_items must be at least 1, not {max_items}")
    rows, start = {}, 0
    for part, count in counts.items():
        rows[part] = torch.arange(start, start + count)
        start += count
    notes = []
    if "train" not in rows:
        if len(rows) > 1:
            raise ValueError(f"{name} has no train split, only {' and '.join(rows)}: call one of them train")
        rows = {"train": next(iter(rows.values()))}
    if "val" in rows and val is not None:
        raise ValueError(f"{name} comes with a validation split of {len(rows['val'])}: leave val out")
    whole = len(rows["train"])
    if rule is not None and whole != rule.train:
        notes.append(f"a part of {name}: {whole} of {rule.train} training images")
    tenth = max(1, round(whole / 10))
    if "test" not in rows:
        size = tenth if val is None else fraction(val, whole, name)
        held = tenth + (size if "val" not in rows else 0)
        if whole <= held:
            raise ValueError(f"{name}: {whole} examples are too few to split: give at least 3, or a smaller val")
        order = rows["train"][permutation(whole, "split", seed)]
        rows["train"], rows["test"] = order[: whole - held], order[whole - tenth :]
        notes.append(f"test = a random tenth (seed {seed})")
        if "val" not in rows:
            rows["val"] = order[whole - held : whole - tenth]
            notes[-1] = f"no test split in the source: {whole - held}/{size}/{tenth} at random (seed {seed})"
    elif "val" not in rows:
        full = rule is not None and whole == rule.train
        size = fraction(val, whole, name) if val is not None else rule.val if rule is not None and full and rule.val else tenth
        if whole <= size:
            raise ValueError(f"{name}: {whole} training examples leave none for train after {size} for val: give more, or a smaller val")
        order = rows["train"] if rule is not None else rows["train"][permutation(whole, "split", seed)]
        rows["train"], rows["val"] = order[: whole - size], order[whole - size :]
        notes.append(f"val = {f'the last {size}' if rule is not None else f'{size} random (seed {seed})'} of {whole} training examples")
    rows = {part: rows[part] for part in SPLITS}
    if max_items is not None and any(len(r) > max_items for r in rows.values()):
        notes.append(f"at most {max_items} examples of each split (max_items)")
        for part, found in rows.items():
            keep = torch.arange(len(found)) if rule is not None else permutation(len(found), "max_items", part, seed)
            rows[part] = found[keep[:max_items].sort().values]
    return rows, notes


def by_class(source: Source) -> bool:
    """Whether a part comes sorted by class: neighbours differ in class less than half as often as in random order. False without labels."""
    if source.labels is None:
        return False
    for labels in source.labels.split(list(source.counts.values())):
        shares = labels.unique(return_counts=True)[1].double() / len(labels)
        differ = (labels[1:] != labels[:-1]).double().mean()
        if len(shares) > 1 and float(differ) < 0.5 * float(1 - shares.square().sum()):
            return True
    return False


def fraction(val: int | float, whole: int, name: str) -> int:
    """A number of rows from a number or a share in (0, 1)."""
    size = val if isinstance(val, int) else round(val * whole) if 0 < val < 1 else 0
    if isinstance(val, bool) or not 0 < size < whole:
        raise ValueError(f"{name}: val={val} of {whole} training examples is not possible: give a number below {whole} or a share like 0.1")
    return size


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
