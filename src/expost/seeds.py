"""Randomness: everything random is a function of named keys, and the global generators are left as they were found.

``seeded("fit", 0, step)`` makes the noise inside the block a function of these keys alone. That is what makes a resumed run
bit-identical without saving generator states: step t draws from keys that contain t.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["draw", "generator", "permutation", "seed_from", "seeded", "some"]

Key = str | int


def seed_from(*keys: Key) -> int:
    """A 63-bit seed from names and numbers; different keys give unrelated seeds (SHA-256)."""
    digest = hashlib.sha256("\x1f".join(f"{type(k).__name__}:{k}" for k in keys).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*keys: Key, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own, seeded by the keys."""
    return torch.Generator(device).manual_seed(seed_from(*keys))


def permutation(n: int, *keys: Key) -> Tensor:
    """A permutation of 0 ... n-1 that depends on the keys alone: (n,) int64 on the CPU."""
    return torch.randperm(n, generator=generator(*keys))


def draw(n: int, count: int, *keys: Key) -> Tensor:
    """Row numbers of ``count`` of n rows, drawn without replacement by the keys, ascending; all n where there are no more: int64 on the CPU.

    Whatever stands for a whole (a part of a data set, of its codes, images to be shown) is drawn by this function. Rows are never cut off the
    beginning: data come sorted by class, by time, by file. The numbers are ascending, so that files and mapped memory are read forwards; a part
    of a part is therefore drawn again, under other keys. Sets that are compared with each other get keys of their own.

    >>> draw(1000, 3, "doc", 0).tolist(), draw(2, 3, "doc", 0).tolist()
    ([273, 345, 678], [0, 1])
    """
    return torch.arange(n) if count >= n else permutation(n, *keys)[: max(count, 0)].sort().values


def some(x: Tensor, count: int, *keys: Key) -> Tensor:
    """The rows of x (n, ...) that :func:`draw` names; x itself, not a copy, where there are no more."""
    return x if count >= len(x) else x[draw(len(x), count, *keys).to(x.device)]


@contextmanager
def seeded(*keys: Key) -> Iterator[None]:
    """Seed torch's global generators (CPU, and CUDA if in use) from the keys; restore them on leaving."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    cpu_state = torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state_all() if cuda else None
    seed = seed_from(*keys)
    torch.default_generator.manual_seed(seed)
    if cuda:
        torch.cuda.manual_seed_all(seed)
    try:
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state_all(cuda_state)
