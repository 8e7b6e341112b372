"""Shapes, types and units of data, in one place.

An *event* is one datum (an image, a code); every dimension before it is a *batch* dimension. Images are kept as ``uint8``
on the device and become floats in [0, 1] only when a batch is used (:func:`unit`). What people hand over instead of a tensor becomes
one, or a sentence, in :func:`as_data`; every function that takes stored data begins with it, or is decorated with :func:`takes_data`.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = [
    "NonFinite",
    "as_data",
    "batches",
    "check_finite",
    "check_levels",
    "feature_matrix",
    "fold",
    "full_precision",
    "in_range",
    "largest",
    "like",
    "numbered",
    "shifted",
    "spelled",
    "sum_event",
    "takes_data",
    "unit",
]

P = ParamSpec("P")
R = TypeVar("R")

#: Powers of two between which the largest number of a set may lie without being scaled: d squares of it, and their squares, are float32 numbers.
RANGE = 24


def as_data(x: Any, what: str = "the data") -> Tensor:
    """Stored data (n, ...) as a tensor: a tensor itself; an array of any layout, byte order and protection, without a copy where that is
    possible; a :class:`expost.data.Split`; a list of these.

    Raises:
        TypeError: anything else; the sentence names what to pass instead.

    >>> import numpy as np
    >>> as_data(np.arange(6, dtype=">f8").reshape(2, 3).T).dtype
    torch.float64
    """
    if isinstance(x, Tensor):
        if x.layout != torch.strided:
            raise TypeError(f"{what} are a sparse tensor: pass x.to_dense()")
        if x.is_meta:
            raise TypeError(f"{what} are on the device meta, where tensors have no values: pass them from another device")
        return x
    if isinstance(part := getattr(x, "x", None), Tensor):
        return part
    if hasattr(x, "__array__"):
        import numpy as np

        array = np.asarray(x)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{what} are an array of {array.dtype}: pass numbers (uint8 images, or float32)")
        dtype = np.dtype(np.float64) if array.dtype.kind == "f" and array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the array may be protected: nothing here ever writes into data
            return torch.from_numpy(np.ascontiguousarray(array, dtype))
    if isinstance(x, list | tuple) and x:
        try:
            return torch.stack([torch.tensor(row) if isinstance(row, int | float) else as_data(row) for row in x])
        except (TypeError, RuntimeError):
            raise TypeError(f"{what} are a list that does not make one tensor: pass a tensor (n, ...)") from None
    if hasattr(x, "train") and hasattr(x, "test"):
        raise TypeError(f"{what} are a whole data set: pass one part of it, e.g. dataset.train")
    if hasattr(x, "__iter__") or hasattr(x, "__getitem__"):
        raise TypeError(f"{what} are a {type(x).__name__}: pass one tensor, e.g. torch.cat([batch[0] for batch in loader])")
    raise TypeError(f"{what} must be a tensor (n, ...), uint8 images or floats, not {type(x).__name__}")


def unit(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Floats from stored data: ``uint8`` is scaled to [0, 1] (x / 255), floating point passes through unchanged, or to ``dtype`` if given."""
    if x.dtype == torch.uint8:
        return x.to(dtype or torch.get_default_dtype()).div_(255)
    if not x.is_floating_point():
        raise TypeError(f"expected uint8 or floating-point data, not {x.dtype}: convert it with .to(torch.uint8) or .float()")
    return x if dtype is None else x.to(dtype)


def takes_data(*names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: the arguments of these names are stored data, given in any form that :func:`as_data` reads; None stays None.

    >>> import numpy as np
    >>> takes_data("x")(lambda x, n: type(x).__name__)(np.zeros(3), n=2)
    'Tensor'
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def taking(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            for name in names:
                if bound.arguments.get(name) is not None:
                    bound.arguments[name] = as_data(bound.arguments[name], f'the data "{name}"')
            return function(*bound.args, **bound.kwargs)

        return taking

    return decorate


def sum_event(x: Tensor, dims: int) -> Tensor:
    """Sum over the last ``dims`` dimensions: (*batch, *event) -> (*batch,)."""
    return x if dims == 0 else x.flatten(-dims).sum(-1)


def fold(x: Tensor, event_dims: int) -> tuple[Tensor, torch.Size]:
    """Merge all leading dimensions: (*batch, *event) -> (prod(batch), *event) and the batch shape."""
    batch = x.shape[: x.dim() - event_dims]
    return x.reshape(-1, *x.shape[x.dim() - event_dims :]), batch


def batches(x: Tensor, size: int) -> Iterator[Tensor]:
    """Consecutive slices of at most ``size`` rows."""
    if size < 1:
        raise ValueError(f"batch size must be at least 1, not {size}")
    yield from x.split(size)


def like(value: Tensor, model: Tensor) -> Tensor:
    """``value`` in the memory layout, type and place of ``model``; a tensor of another shape only moves.

    What was saved comes back contiguous, whatever it belonged to; code that walks raw memory (torch's fused optimisers) then pairs it with
    other elements, and code that walks elements may round otherwise. Everything that is restored beside a parameter goes through here.
    """
    if value.shape != model.shape:
        return value.to(model.device)
    return torch.empty_like(model, memory_format=torch.preserve_format).copy_(value)


class NonFinite(ValueError):
    """Data hold NaN or infinity; ``row`` is the first, ``found`` says in how many if all were looked at."""

    def __init__(self, what: str, row: int, found: str = "") -> None:
        super().__init__(f"{what} hold NaN or infinity{found} (first: row {row}): remove or repair these rows")
        self.what, self.row = what, row


def check_finite(x: Tensor, what: str) -> None:
    """Raise :class:`NonFinite`, naming ``what`` and the first bad row, if ``x`` holds NaN or infinity; a part at a time, whatever its size."""
    if not x.is_floating_point():
        return
    rows = max(1, 2**24 // max(1, x[:1].numel()))
    bad = [~torch.isfinite(part.flatten(1) if x.dim() > 1 else part[:, None]).all(1) for part in x.split(rows)]
    first, count = next((i for i, part in enumerate(bad) if part.any()), None), sum(int(part.sum()) for part in bad)
    if first is not None:
        raise NonFinite(what, first * rows + int(bad[first].nonzero()[0]), f" in {count} of {len(x)} rows")


def check_levels(x: Tensor, what: str) -> Tensor:
    """``x``, unless they are images of grey levels 0 ... 255 as floats, which no model here is made for: ``ValueError``."""
    grey = x.dim() == 4 and x.is_floating_point() and len(x) and 64 < float(x.max()) <= 255 and float(x.min()) >= 0
    if grey and all(bool((part == part.round()).all()) for part in batches(x, 1024)):
        raise ValueError(
            f"{what} are whole numbers from {spelled(x.min())} to {spelled(x.max())}: pass x.to(torch.uint8), or divide by 255"
        )
    return x


def spelled(value: Tensor) -> str:
    """The shortest text that names a single value in its precision, so that 1.0000001 is not called 1."""
    return str(value.detach().cpu().numpy()) if value.dtype != torch.bfloat16 else repr(float(value))


@contextmanager
def numbered(start: int) -> Iterator[None]:
    """What is checked inside the block begins at row ``start`` of something larger: the numbers of its bad rows are counted from there."""
    try:
        yield
    except NonFinite as error:
        raise NonFinite(error.what, start + error.row) from None


def largest(*sets: Tensor) -> float:
    """The largest absolute value in these sets; 0 if they are empty."""
    return max((float(max(abs(side) for side in part.aminmax())) for part in sets if part.numel()), default=0.0)


def in_range(*sets: Tensor, single: bool = False) -> tuple[int, tuple[Tensor, ...]]:
    """An exponent e and the sets times 2^-e, exactly: finite numbers of 1e200 or 1e-200 whose squares would overflow or vanish.

    e = 0, and the very sets are returned, where their largest number lies within 2^±24; otherwise it is brought to about 1, in float64. What is
    lost is below 1e-300 of the largest number. Lengths of the scaled sets come back with :func:`shifted`.

    Args:
        single: arithmetic will be in float32. In float64, squares of float32 numbers need no look.
    """
    if not single and all(part.dtype != torch.float64 for part in sets):
        return 0, sets
    most = largest(*sets)
    if not math.isfinite(most) or most == 0 or 2.0**-RANGE <= most <= 2.0**RANGE:
        return 0, sets
    e = math.frexp(most)[1]
    return e, tuple(shifted(part.double(), -e) for part in sets)


def shifted(x: Tensor, e: int) -> Tensor:
    """x · 2^e, where 2^e itself may be no float64; ``x`` itself for e = 0."""
    while e:
        step = max(-1000, min(1000, e))
        x, e = x * 2.0**step, e - step
    return x


def feature_matrix(features: Tensor, dim: int | None = None, what: str = "features") -> Tensor:
    """``features`` without their graph, if they are a finite floating matrix (n, d); otherwise ``ValueError``."""
    if not isinstance(features, Tensor):
        raise TypeError(f"{what} must be a tensor (n, d), not {type(features).__name__}: convert them with torch.as_tensor(...)")
    if features.dim() != 2 or features.shape[1] == 0 or not features.is_floating_point():
        raise ValueError(
            f"{what} must be a floating-point matrix (n, d), not {features.dtype} of shape {tuple(features.shape)}: pass one row per image"
        )
    if dim is not None and features.shape[1] != dim:
        raise ValueError(f"features of {features.shape[1]} dimensions cannot join statistics of {dim}: use one extractor for both")
    if not bool(torch.isfinite(features.sum(dtype=torch.float64))):  # one pass of sums; which row it is, only when there is one
        check_finite(features, what)
    return features.detach()


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 products in float32, whatever the user allows elsewhere (TF32, bfloat16): error bounds rest on it."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
