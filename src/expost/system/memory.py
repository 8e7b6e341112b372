"""Memory: bounded while something is built from numbers that were not made here, and kept in the process while networks run for long on a CPU.

Sizes in a file or on a command line ("latent": 10^9, gmm:1000000000) are asked of torch's own constructors of tensors (``torch.empty`` and
its kin), so inside :class:`Bounded` these are counted first and refused beyond a limit: nothing is allocated.

glibc gives every block above 32 MB back to the system when it is freed, and gets it back page by page, zeroed, in the next step: a sixth of a
step of a network of 20 million weights, up to half of the time that images of 64x64 take through a small one. Inside :func:`retained` freed blocks stay in the heap and are used again; on leaving, glibc's
defaults return and what is free is given back. Elsewhere (other C libraries, macOS, Windows) it does nothing.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["Bounded", "check_room", "machine", "retained"]

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


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # names of mallopt(3)
_RETAINED = {_TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**28, _MMAP_THRESHOLD: 2**30}
_DEFAULTS = {_TRIM_THRESHOLD: 2**17, _TOP_PAD: 2**17, _MMAP_THRESHOLD: 2**17}
_retaining = 0


@contextmanager
def retained(enabled: bool = True) -> Iterator[None]:
    """Freed memory stays in the process inside the block, and inside blocks within it; no effect on results."""
    global _retaining
    if not enabled or platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    for name, value in _RETAINED.items():
        library.mallopt(name, value)
    _retaining += 1
    try:
        yield
    finally:
        _retaining -= 1
        if not _retaining:
            for name, value in _DEFAULTS.items():
                library.mallopt(name, value)
            library.malloc_trim(0)
