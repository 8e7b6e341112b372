"""c -> p(. | c): a network followed by a head. Encoders and decoders are both conditionals.

The network may run in a lower precision (:func:`network_precision`, or weights of another type than the condition, which is brought to
theirs); its features are brought back to at least float32 before the head sees them, so that distributions, losses and divergences are
always computed in full precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from expost.heads import Head
from expost.tensors import fold

__all__ = ["Conditional", "network_precision"]

_precision: ContextVar[torch.dtype | None] = ContextVar("network_precision", default=None)


@contextmanager
def network_precision(dtype: torch.dtype | None) -> Iterator[None]:
    """Run the networks inside the block under autocast to ``dtype`` (``torch.bfloat16``, or None for no autocast)."""
    token = _precision.set(dtype)
    try:
        yield
    finally:
        _precision.reset(token)


class Conditional(nn.Module):
    """c -> p(. | c) = head(net(c)).

    Args:
        net: maps (n, *condition) to features (n, head.size(channels), ...).
        head: features -> distribution.
        event_dims: dimensions of the distribution's event: 1 for codes, 3 for images.
        condition_dims: dimensions of the condition: 1 for codes, 3 for images. Every dimension before these is a batch dimension.

    >>> import torch
    >>> from expost import heads
    >>> encoder = Conditional(torch.nn.Linear(5, 4), heads.Diagonal())
    >>> encoder(torch.zeros(7, 3, 5)).mean.shape
    torch.Size([7, 3, 2])
    """

    def __init__(self, net: nn.Module, head: Head, event_dims: int = 1, condition_dims: int = 1) -> None:
        super().__init__()
        if event_dims < 1 or condition_dims < 1:
            raise ValueError("event_dims and condition_dims must be at least 1")
        self.net, self.head = net, head
        self.event_dims, self.condition_dims = event_dims, condition_dims

    def forward(self, c: Tensor) -> Distribution:
        if c.dim() < self.condition_dims:
            raise ValueError(f"expected a condition of {self.condition_dims} or more dimensions, got shape {tuple(c.shape)}")
        flat, batch = fold(c, self.condition_dims)
        kind = flat.dtype
        if flat.is_floating_point() and not getattr(self.net, "converts", False):
            kind = next((p.dtype for p in self.net.parameters() if p.is_floating_point()), kind)
        # A network whose first layer works in place must not change the data that the loss compares with, nor the caller's.
        flat = flat.to(kind, copy=True)
        dtype = _precision.get()
        if dtype is None:
            features = self.net(flat)
        else:
            with torch.autocast(flat.device.type, dtype=dtype):
                features = self.net(flat)
        if features.dtype in (torch.bfloat16, torch.float16):
            features = features.float()
        if len(batch) != 1:
            features = features.reshape(*batch, *features.shape[1:])
        return self.head(features, self.event_dims)

    def extra_repr(self) -> str:
        return f"event_dims={self.event_dims}, condition_dims={self.condition_dims}"
