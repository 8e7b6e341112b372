"""Memory kept in the process while networks run for long on a CPU.

glibc gives every block above 32 MB back to the system when it is freed, and gets it back page by page, zeroed, in the next step: a sixth of a
step of a network of 20 million weights, up to half of the time that images of 64x64 take through a small one. Inside :func:`retained` freed blocks stay in the heap and are used again; on leaving, glibc's
defaults return and what is free is given back. Elsewhere (other C libraries, macOS, Windows) it does nothing.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["retained"]

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
