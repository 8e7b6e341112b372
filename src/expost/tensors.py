"""Shapes and units of tensors, in one place.

An *event* is one datum (an image, a code); every dimension before it is a *batch* dimension. Images are kept as ``uint8``
on the device and become floats in [0, 1] only when a batch is used (:func:`unit`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["batches", "check_finite", "fold", "full_precision", "like", "sum_event", "unit"]


def unit(x: Tensor) -> Tensor:
    """Floats from stored data: ``uint8`` is scaled to [0, 1] (x / 255), floating point passes through unchanged."""
    if x.dtype == torch.uint8:
        return x.to(torch.get_default_dtype()).div_(255)
    if not x.is_floating_point():
        raise TypeError(f"expected uint8 or floating-point data, not {x.dtype}: convert it with .to(torch.uint8) or .float()")
    return x


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


def check_finite(x: Tensor, what: str) -> None:
    """Raise ``ValueError`` naming ``what`` and the first bad row if ``x`` holds NaN or infinity."""
    if x.is_floating_point():
        bad = ~torch.isfinite(x.flatten(1) if x.dim() > 1 else x[:, None]).all(1)
        if bad.any():
            raise ValueError(
                f"{what} hold NaN or infinity in {int(bad.sum())} of {len(x)} rows (first: row {int(bad.nonzero()[0])}): "
                "remove or repair these rows"
            )


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
