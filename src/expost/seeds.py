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

__all__ = ["generator", "permutation", "seed_from", "seeded"]

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
