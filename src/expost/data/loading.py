"""``load(name)``: from a name, a hub data set, a folder or a file to a checked :class:`Dataset`.

The way of every source is the same: find it, open it (or its cache), assign rows to splits, decode the rows that are wanted, pad, check.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expost.data import folder, mapped, toy
from expost.data.arrays import pad
from expost.data.base import Dataset, Split
from expost.data.cache import cached
from expost.data.decode import Decoder
from expost.data.source import Source
from expost.data.splits import Rule, assign, by_class, separate, subset

__all__ = ["load", "names"]


@dataclass(frozen=True)
class Known:
    """A data set of the papers: where it is on the hub, how it is split, and how its pictures are prepared."""

    about: str
    hub: str
    rule: Rule
    labelled: bool = True
    lossless: bool = True
    crop: int | None = None
    size: int | None = None


KNOWN = {
    "mnist": Known("handwritten digits, 28x28 grey, 60 000 + 10 000 (LeCun et al. 1998)", "ylecun/mnist", Rule(60_000, 10_000)),
    "fashion_mnist": Known(
        "clothes, 28x28 grey, 60 000 + 10 000 (Xiao et al. 2017)", "zalando-datasets/fashion_mnist", Rule(60_000, 10_000)
    ),
    "cifar10": Known("objects, 32x32 RGB, 50 000 + 10 000 (Krizhevsky 2009)", "uoft-cs/cifar10", Rule(50_000, 10_000)),
    "celeba": Known(
        "faces, centre crop 140 resized to 64x64 RGB, 162 770 + 19 867 + 19 962 (Liu et al. 2015)",
        "flwrlabs/celeba",
        Rule(162_770, 0),
        labelled=False,
        lossless=False,
        crop=140,
        size=64,
    ),
}

_DIGITS = Rule(1497, 297)
_TOY_SIZES = {"train": 100_000, "val": 10_000, "test": 10_000}


def names() -> list[tuple[str, str, str]]:
    """(name, description, source) of every data set that has a name; any other hub data set, folder or array file can be loaded too."""
    toys = {"8gaussians": "eight Gaussians on a ring", "checkerboard": "eight of sixteen squares", "2spirals": "two spiral arms"}
    return [
        ("digits", "handwritten digits, 8x8 grey, 1 797 (Alpaydin and Kaynak 1998)", "ships with scikit-learn"),
        *((name, known.about, f"hub: {known.hub}") for name, known in KNOWN.items()),
        *((name, f"points in the plane: {about} (Yu 2020)", "drawn") for name, about in toys.items()),
    ]


def load(
    name: str | os.PathLike[str],
    *,
    path: str | os.PathLike[str] | None = None,
    pad_to: int | None = None,
    size: int | None = None,
    crop: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    val: int | float | None = None,
    seed: int = 0,
    max_items: int | None = None,
) -> Dataset:
    """A data set as three checked splits of ``uint8`` images (n, C, H, W), or floating data (n, ...).

    Args:
        name: a name out of :func:`names`; ``owner/name`` of any data set of pictures on the Hugging Face hub; or a folder or file, see ``path``.
            A suffix chooses a part by class: ``mnist:without=9``, ``mnist:only=3,5``, ``mnist:per-class=10`` (:mod:`expost.data.splits`).
        path: a folder of parquet files laid out like a hub repository, of pictures (``[train/][class/]x.png``), or of ``.npz`` / ``.npy``
            arrays; or one such file. A folder that bears the name of a known data set gets its rules.
        pad_to: images get a border of zeros up to pad_to x pad_to, the image in the centre (MNIST 28 -> 32: Ghosh et al. 2020).
        size: images are resized to size x size when decoded (bilinear with antialiasing), after cropping.
        crop: images are cropped to their centre crop x crop when decoded. CelebA: 140 and ``size=64`` (Ghosh et al. 2020) unless given;
            ``crop=128`` is rows 45-173, columns 25-153 (Dai & Wipf 2019).
        cache: folder for the decoded images; default $XDG_CACHE_HOME/expost or ~/.cache/expost.
        val: how many training examples to hold out (int), or their share (float), instead of the data set's rule.
        seed: of random splits and of drawn points. The splits of known data sets do not depend on it.
        max_items: at most so many examples of each split.

    The result's ``origin`` has the arguments that were given, a place as an absolute path: ``load(**dataset.origin)`` loads the same again from
    wherever one stands.

    Raises:
        ValueError: in one sentence, if there is no such data set, or something is wrong with the data.

    Example:
        >>> load("digits")
        digits: 1200/297/300 train/val/test images of 1x8x8 uint8, 10 classes, hash 50b644fe01a5aaa8
    """
    for what, number in {"pad_to": pad_to, "size": size, "crop": crop}.items():
        if number is not None and number < 1:
            raise ValueError(f"{what} must be at least 1 pixel, not {number}")
    base, parts = separate(os.fspath(name))
    dataset, place = _whole(base, path, pad_to, size, crop, cache, val, seed, max_items)
    for kind, value in parts:
        dataset = subset(dataset, kind, value, seed)
    chosen = {"pad_to": pad_to, "size": size, "crop": crop, "val": val, "seed": seed or None, "max_items": max_items}
    origin = {"name": os.fspath(name), "path": None if place is None else str(place)}
    return replace(dataset, origin={**origin, **{option: value for option, value in chosen.items() if value is not None}})


def _whole(
    name: str,
    path: str | os.PathLike[str] | None,
    pad_to: int | None,
    size: int | None,
    crop: int | None,
    cache: str | os.PathLike[str] | None,
    val: int | float | None,
    seed: int,
    max_items: int | None,
) -> tuple[Dataset, Path | None]:
    """A data set without parts by class, and the absolute path that it was read from, if it lies in a folder or file."""
    if name in toy.TOYS and path is None:
        if any(option is not None for option in (pad_to, size, crop)):
            raise ValueError(f"{name} is points, not images: leave out pad_to, size and crop")
        return _toy(name, val, seed, max_items), None
    identity, opener, known, title, place = _find(name, path)
    if known is not None:
        crop = known.crop if crop is None else crop
        size = known.size if size is None else size
    decoder = Decoder(crop, size)
    source = cached(identity, opener, decoder, cache)
    rule = _DIGITS if opener is _digits else known.rule if known is not None and source.ordered and not by_class(source) else None
    rows, notes = assign(source.counts, rule, title, val=val, seed=seed, max_items=max_items)
    wanted = None
    if sum(map(len, rows.values())) < sum(source.counts.values()):
        wanted = torch.cat(list(rows.values())).sort().values
    sizes = {part: len(numbers) for part, numbers in rows.items()}
    order = torch.cat(list(rows.values()))
    file = None
    if place is not None or identity is not None:
        mark = identity if identity is not None or place is None else folder.mark(place)
        file = mapped.place(mark, crop, size, pad_to, list(sizes.values()), hashlib.sha256(order.numpy().data).hexdigest(), root=cache)
        if (found := mapped.reopen(file)) is not None:
            x, meta = found
            dataset = _splits(x, sizes, source, order, title, (*source.notes, *notes, *meta["said"]))
            if dataset.hash == meta["hash"]:
                return dataset, place
            file.unlink(missing_ok=True)  # damaged: made again
    x, said = source.fetch(wanted, decoder)
    side = pad_to or 0
    shape = tuple(x.shape[1:]) if x.dim() != 4 else (x.shape[1], max(side, x.shape[2]), max(side, x.shape[3]))
    if file is not None and mapped.large((len(order), *shape), x.element_size()):
        at = order if wanted is None else torch.searchsorted(wanted, order)
        said += [f"{str(x.dtype).removeprefix('torch.')} became float32"] if x.dtype not in (torch.uint8, torch.float32) else []
        x = mapped.arrange(file, x, at, shape, lambda part: pad(part if part.dtype == torch.uint8 else part.float(), pad_to, title))
        said = [*said, f"larger than memory is for: mapped from {file}, {x.nbytes / 1e9:.2g} GB"]
        dataset = _splits(x, sizes, source, order, title, (*source.notes, *notes, *said))
        mapped.keep(file, x, dataset.hash, said)
        return dataset, place
    splits = {}
    for part, numbers in rows.items():
        labels = None if source.labels is None else _take(source.labels, numbers)
        at = numbers if wanted is None else torch.searchsorted(wanted, numbers)
        splits[part] = Split(pad(_take(x, at), pad_to, title), None if labels is None or bool((labels == -1).all()) else labels)
    if known is not None and known.lossless:
        said = [note.replace("(lossy)", f"(lossy; {title} itself is not): say so beside any number") for note in said]
    return Dataset.of(title, **splits, notes=(*source.notes, *notes, *said)), place


def _splits(x: Tensor, sizes: dict[str, int], source: Source, order: Tensor, name: str, notes: tuple[str, ...]) -> Dataset:
    """The data set whose splits lie one after the other in ``x``; ``order`` are their rows in the source."""
    splits = {}
    labels = None if source.labels is None else source.labels[order]
    start = 0
    for part, count in sizes.items():
        own = None if labels is None else labels[start : start + count]
        splits[part] = Split(x[start : start + count], None if own is None or bool((own == -1).all()) else own)
        start += count
    return Dataset.of(name, **splits, notes=notes)


def _toy(name: str, val: int | float | None, seed: int, max_items: int | None) -> Dataset:
    if val is not None:
        raise ValueError(f"{name} is drawn, not split: leave out val")
    if max_items is not None and max_items < 1:
        raise ValueError(f"max_items must be at least 1, not {max_items}")
    splits = {}
    for part, count in _TOY_SIZES.items():
        splits[part] = Split(*toy.sample(name, min(count, max_items or count), part, seed))
    return Dataset.of(name, **splits, notes=(f"drawn with seed {seed}",))


def _find(name: str, path: str | os.PathLike[str] | None) -> tuple[Any, Callable[[], Source], Known | None, str, Path | None]:
    """What a name or a path means: its identity for the cache, how to open it, the rules it follows, what it is called, and its place here."""
    title = _canonical(name)
    if path is None and title == "digits":
        return None, _digits, None, title, None
    if path is None and title in KNOWN:
        known = KNOWN[title]
        return {"hub": known.hub}, partial(_hub, known.hub, known), known, title, None
    place = Path(os.path.abspath(os.path.expanduser(os.fspath(path) if path is not None else name)))
    if not place.exists():
        is_file = name.lower().endswith(folder.SUFFIXES)
        if path is None and name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/") and not is_file:
            return {"hub": name}, partial(_hub, name, None), None, name.split("/")[1], None
        if path is None and os.sep not in name and not is_file:
            raise _unknown(name)
        raise ValueError(f"{place} does not exist: check the path")
    if path is not None and (title in toy.TOYS or title == "digits"):
        raise ValueError(f"{title} needs no path: leave it out, or give your data another name")
    called = place if path is None or Path(name).name in ("", "..") else Path(name)
    title = _canonical(called.name if place.is_dir() else called.stem)
    title = title if title in KNOWN else called.name
    chosen = KNOWN.get(title)
    identity, opener = folder.open_folder(place, celeba=title == "celeba", labelled=chosen is None or chosen.labelled)
    return identity, opener, chosen, title, place


def _canonical(name: str) -> str:
    """mnist for MNIST, fashion_mnist for Fashion-MNIST, cifar10 for cifar-10; others as they are."""
    plain = "".join(c for c in name.lower() if c.isalnum())
    return next((known for known in (*KNOWN, "digits") if known.replace("_", "") == plain), name)


def _unknown(name: str) -> ValueError:
    known = [entry[0] for entry in names()]
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
    return ValueError(f'there is no data set or folder called "{name}": {hint} (or give owner/name on the hub, or a folder)')


def _digits() -> Source:
    """scikit-learn's 1 797 digits in a fixed random order; the first 1 497 are the training part."""
    from sklearn.datasets import load_digits

    from expost.seeds import permutation

    data = load_digits()
    order = permutation(1797, "digits")
    x = torch.from_numpy(data.images).mul(255 / 16).round().to(torch.uint8)[:, None][order]
    labels = torch.from_numpy(data.target).to(torch.int64)[order]

    def fetch(rows: Tensor | None, decoder: Decoder) -> tuple[Tensor, list[str]]:
        from expost.data.arrays import resize

        kept = x if rows is None else x[rows]
        return (kept if decoder == Decoder() else resize(kept, decoder, "digits")), decoder.notes()

    notes = ["order fixed at random before splitting; grey levels 0 ... 16 are scaled to 0 ... 255"]
    return Source({"train": 1497, "test": 300}, labels, fetch, notes=notes)


def _hub(repository: str, known: Known | None) -> Source:
    from expost.data.tables import fetch, hub_source

    tables, notes = fetch(repository, folder_too=known is None)
    source = hub_source(tables, repository, labelled=known is None or known.labelled)
    source.notes += notes
    return source


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows], without a copy where the rows are consecutive."""
    if len(rows) and int(rows[-1] - rows[0]) == len(rows) - 1 and bool((rows[1:] > rows[:-1]).all()):
        return x[int(rows[0]) : int(rows[-1]) + 1]
    return x[rows]
