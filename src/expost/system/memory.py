"""Memory that is bounded while something is built from numbers that were not made here.

Sizes in a file or on a command line ("latent": 10^9, gmm:1000000000) are asked of torch's own constructors of tensors (``torch.empty`` and
its kin), so inside :class:`Bounded` these are counted first and refused beyond a limit: nothing is allocated.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["Bounded", "check_room", "machine"]

#: Functions that take the sizes of a new tensor, as a tuple or as numbers.
_MAKERS = frozenset(f"{new}{kind}" for new in ("", "new_") for kind in ("empty", "zeros", "ones", "full", "rand", "randn")) | {
    "eye",
    "repeat",
}


def machine() -> int:
    """Bytes of memory that this machine has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return 2**46


def check_room(size: float, what: str) -> None:
    """``ValueError`` if something would take more bytes than this machine has."""
    if size > machine():
        raise ValueError(f"{what} would take {size / 1e9:.3g} GB, and this machine has {machine() / 1e9:.3g}: ask for fewer")


class Bounded(TorchFunctionMode):
    """New tensors may take ``limit`` bytes together inside the block; beyond that ``ValueError(refusal)``, before they are allocated.

    >>> with Bounded(1000, "too large"):
    ...     torch.nn.Linear(10**9, 10**9)
    Traceback (most recent call last):
    ValueError: too large
    """

    def __init__(self, limit: int, refusal: str) -> None:
        super().__init__()
        self.left, self.refusal = limit, refusal

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _MAKERS:
            sizes = next((a for a in (*args, *kwargs.values()) if isinstance(a, tuple | list)), [a for a in args if isinstance(a, int)])
            elements = math.prod(sizes) ** (2 if name == "eye" else 1)
            if name == "repeat":
                elements *= args[0].numel()
            self.left -= elements * (kwargs.get("dtype") or torch.get_default_dtype()).itemsize
            if self.left < 0:
                raise ValueError(self.refusal)
        return func(*args, **kwargs)
