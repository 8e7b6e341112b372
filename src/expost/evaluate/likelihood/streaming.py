"""Importance weights by the stream: blocks of samples, chunks that fit the cache, and the running sums of which a bound is made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

__all__ = ["BLOCK", "ELEMENTS", "Running", "blocks", "chunks", "cut"]

#: Samples whose noise is drawn together. Chunks are cut inside a block, so that the chunk size changes no random number.
BLOCK = 64
#: Elements of one decoded chunk. On a CPU: small enough for the cache and for memory that the allocator keeps (above about 2 MB every
#: temporary is fresh pages, and three passes over it cost as much as the matrix product that made it).
ELEMENTS = {"cpu": 160_000}
ELEMENTS_ELSEWHERE = 1 << 26


class Running:
    """max, Σ w / e^max, (Σ w²) / e^2max and Σ log w of each image, over the samples seen so far; float64."""

    def __init__(self, n: int, device: torch.device) -> None:
        place: Any = {"dtype": torch.float64 if device.type != "mps" else torch.float32, "device": device}
        self.top = torch.full((n,), -math.inf, **place)
        self.sum, self.squares, self.total = (torch.zeros(n, **place) for _ in range(3))
        self.count = 0

    def update(self, log_weights: Tensor) -> None:
        """Take in log weights (samples, n)."""
        new = log_weights.to(self.top.dtype)
        top = torch.maximum(self.top, new.amax(0))
        safe = torch.where(torch.isinf(top), torch.zeros_like(top), top)  # all weights zero so far
        old, weights = torch.exp(self.top - safe), torch.exp(new - safe)
        self.sum = self.sum * old + weights.sum(0)
        self.squares = self.squares * old.square() + weights.square().sum(0)
        self.total = self.total + new.sum(0)
        self.top, self.count = top, self.count + len(new)

    def log_mean(self) -> Tensor:
        return self.top + self.sum.log() - math.log(self.count)

    def effective(self) -> Tensor:
        return self.sum.square() / self.squares


def blocks(samples: int) -> Iterator[int]:
    """Block sizes that add up to ``samples``."""
    for start in range(0, samples, BLOCK):
        yield min(BLOCK, samples - start)


def chunks(z: Tensor, chunk: int | None, images: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Slices of codes (samples, batch, d) along the samples, with where they start."""
    if chunk is None:
        chunk = max(1, ELEMENTS.get(images.device.type, ELEMENTS_ELSEWHERE) // images.numel())
    at = 0
    for part in z.split(chunk):
        yield at, part
        at += len(part)


def cut(log_weights: Tensor, start: int, marks: list[int]) -> list[Tensor]:
    """A block's log weights, cut where the running count reaches a mark."""
    ends = [m - start for m in marks if 0 < m - start < len(log_weights)]
    edges = [0, *ends, len(log_weights)]
    return [log_weights[a:b] for a, b in pairwise(edges)]
