"""What every score of two feature matrices asks of its inputs, and an order of rows that does not depend on how they were stored.

Features are finite floating matrices (n, d), one row per image, of one extractor for both sides. Scores that draw random subsets draw them
from the rows in the order of their bytes (:func:`canonical_order`): a set of images has one score, whichever way its files were listed.

Sets may share images, or repeat them. Equal images have equal features, so it is rows that are compared (:func:`expost.system.hashes.row_keys`): this holds for files
of any kind, after any resizing, and for features without images. Estimates that assume independent draws do not hold then (:func:`dependence`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from expost.tensors import feature_matrix

__all__ = ["REPEATS", "canonical_order", "dependence", "feature_matrix", "feature_pair", "overlap"]

#: Share of a set that may repeat others, or be in the training set, as it happens in published data.
REPEATS = 0.01


def feature_pair(generated: Tensor, real: Tensor, *, least: int = 2) -> tuple[Tensor, Tensor]:
    """Both sides checked (:func:`feature_matrix`), of one dimension, with at least ``least`` rows each, on one device."""
    first, second = feature_matrix(generated, what="features of the generated set"), feature_matrix(real, what="features of the real set")
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"features of {first.shape[1]} and of {second.shape[1]} dimensions cannot be compared: use one extractor for both sets"
        )
    for side, which in ((first, "generated"), (second, "real")):
        if len(side) < least:
            raise ValueError(f"at least {least} feature vectors are needed on each side, the {which} set has {len(side)}: pass more data")
    return first, second.to(first.device)


def canonical_order(features: Tensor) -> Tensor:
    """Permutation (n,) int64 on the CPU that sorts the rows of ``features`` (n, d) by their bytes.

    Two arrangements of one set of rows become the same matrix, bit for bit: the order has no meaning but that. Exact, unlike any order by
    a computed number, whose round-off depends on the row's place.

    >>> x = torch.tensor([[0.5, 1.0], [0.25, 3.0], [0.5, 0.75]])
    >>> shuffled = x[[2, 0, 1]]
    >>> torch.equal(x[canonical_order(x)], shuffled[canonical_order(shuffled)])
    True
    """
    rows = features.detach().to("cpu", torch.float32 if features.dtype in (torch.float16, torch.bfloat16) else None).contiguous().numpy()
    keys = rows.view(f"V{rows.dtype.itemsize * rows.shape[1]}").ravel()
    return torch.from_numpy(keys.argsort(kind="stable"))


def dependence(generated: Tensor, real: Tensor) -> tuple[tuple[str, ...], bool]:
    """What keeps the rows with these keys (:func:`expost.system.hashes.row_keys`, of one dtype) from being independent draws: sentences, and whether it matters.

    One shared image matters: sets that share one were not drawn apart. Data sets hold a few repeated images by themselves: up to
    :data:`REPEATS` of a set they are said, and change an estimate by less than its error.
    """
    notes, matters = [], False
    if shared := overlap(generated, real):
        notes.append(f"{shared} of the generated images are in the reference set: FD∞ and KID assume independent sets")
        matters = True
    for keys, which in ((generated, "generated"), (real, "reference")):
        if repeats := len(keys) - len(keys.unique()):
            many = repeats > REPEATS * len(keys)
            why = ": FD∞ and KID assume independent images" if many else ""
            notes.append(f"{repeats} of the {which} images repeat others of their set{why}")
            matters |= many
    return tuple(notes), matters


def overlap(keys: Tensor, others: Tensor) -> int:
    """How many of the keys (n,) are among the others (m,)."""
    return int(np.isin(keys.numpy(), others.numpy()).sum())
