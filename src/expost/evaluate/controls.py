"""A floor and a ceiling for every distance between real and generated images.

A Fréchet distance means nothing alone: its unit is the extractor's, and it is biased by the number of images. Two numbers of the same
extractor, at the same n, give it a scale:

* **floor**: one random half of the real images against the other. No generator can be expected below it at this n.
* **ceiling**: the pixels of each real image of one half shuffled, against the other half. Every image keeps its histogram of colours and
  loses all structure; a model near the ceiling has learned colours only.

For metrics that look for copies a scale has more marks, :func:`control_sets`: images that no model has seen, training images themselves, and
training images moved by a pixel, which are copies to the eye and not to the pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from expost.evaluate.features.base import Extractor, extract
from expost.evaluate.metrics.frechet import FrechetDistance, frechet_distance
from expost.results import Result, format_number
from expost.seeds import generator, permutation, some

__all__ = ["CONTROLS", "Controls", "blind", "ceiling", "control_sets", "controls", "floor", "jitter", "scored", "shuffle_pixels"]

CONTROLS = ("held-out images", "training images", "jittered training images", "shuffled pixels")


@dataclass(frozen=True)
class Controls:
    """Floor and ceiling of one extractor on one set of real images; ``n`` is the number of images on each side of both."""

    floor: FrechetDistance
    ceiling: FrechetDistance
    n: int
    label: str
    seed: int

    def place(self, distance: float | FrechetDistance) -> float:
        """Where a distance lies: 0 at the floor, 1 at the ceiling (a fraction, not clipped)."""
        return (float(distance) - self.floor.value) / (self.ceiling.value - self.floor.value)

    def __str__(self) -> str:
        return f"{self.label} at n={self.n}: floor {self.floor.value:.4g} (real halves), ceiling {self.ceiling.value:.4g} (shuffled pixels)"


def shuffle_pixels(x: Tensor, *, seed: int = 0) -> Tensor:
    """Every image (C, H, W) with its own permutation of pixel positions; the channels of a pixel stay together."""
    n, channels, height, width = x.shape
    draws = generator("shuffle-pixels", seed)
    order = torch.stack([torch.randperm(height * width, generator=draws) for _ in range(n)]) if n else torch.empty(0, height * width).long()
    flat = x.reshape(n, channels, -1)
    return flat.gather(2, order.to(x.device)[:, None].expand_as(flat)).reshape(x.shape)


def jitter(x: Tensor, *, seed: int = 0) -> Tensor:
    """Every image (C, H, W) moved by one pixel in one of eight directions; the border's pixels are repeated."""
    n, _, height, width = x.shape
    steps = torch.tensor([(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)])
    drawn = steps[torch.randint(8, (n,), generator=generator("jitter", seed))].to(x.device)
    rows = (torch.arange(height, device=x.device) + drawn[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + drawn[:, 1:]).clamp(0, width - 1)
    moved = x.gather(2, rows[:, None, :, None].expand_as(x))
    return moved.gather(3, columns[:, None, None, :].expand_as(x))


def scored(x: Tensor, n: int, part: str, seed: int) -> Tensor:
    """The n images of a split that are scored, drawn by the seed; splits (``test``, ``validation``, ``training``) are drawn independently."""
    return some(x, n, "scored", part, seed)


def control_sets(held_out: Tensor, train: Tensor, n: int, *, seed: int = 0) -> dict[str, Tensor]:
    """What stands beside generated images: at most n images each, by the names of :data:`CONTROLS`.

    Args:
        held_out: real images that are neither the reference nor the training set (validation images).
        train: training images. Of both n are drawn at random.
        seed: of these, of moves and of shuffled pixels.
    """
    drawn = train[permutation(len(train), "control images", seed)[:n]]
    fresh = scored(held_out, n, "held-out", seed)
    sets = (fresh, drawn, jitter(drawn, seed=seed), shuffle_pixels(fresh, seed=seed))
    return dict(zip(CONTROLS, sets, strict=True))


def blind(generated: Mapping[str, Result], shuffled: Mapping[str, Result], what: str = "the generated images") -> str | None:
    """The sentence that is due where images with shuffled pixels come nearer to real ones than generated images do, by FD or else KID; or None."""
    metric = next((m for m in ("FD", "KID") if m in generated and m in shuffled), None)
    if metric is None or not shuffled[metric].value < generated[metric].value:
        return None
    ours, theirs = (format_number(side[metric].value) for side in (generated, shuffled))
    return (
        f"shuffled pixels come nearer to real images ({metric} {theirs}) than {what} do ({ours}): the extractor cannot tell images from noise of "
        "their colours, so judge by another one"
    )


def floor(
    extractor: Extractor, x: Tensor, *, n: int | None = None, seed: int = 0, device: torch.device | str | None = None
) -> FrechetDistance:
    """Fréchet distance between two disjoint random parts of the real images ``x`` (N, C, H, W), n images each.

    Args:
        extractor: of features.
        x: real images, uint8 or floats in [0, 1].
        n: images on each side: the n of the scores to compare with. Where 2n > N, N // 2 are used and the result's notes say so.
        seed: of the split.
        device: where to compute features; by default where ``x`` is.
    """
    first, second, notes = _halves(len(x), n, seed)
    return _distance(extract(extractor, x[first], device=device), extract(extractor, x[second], device=device), notes)


def ceiling(
    extractor: Extractor, x: Tensor, *, n: int | None = None, seed: int = 0, device: torch.device | str | None = None
) -> FrechetDistance:
    """As :func:`floor`, with the pixels of the second part shuffled (:func:`shuffle_pixels`)."""
    first, second, notes = _halves(len(x), n, seed)
    shuffled = shuffle_pixels(x[second], seed=seed)
    return _distance(extract(extractor, x[first], device=device), extract(extractor, shuffled, device=device), notes)


def controls(extractor: Extractor, x: Tensor, *, n: int | None = None, seed: int = 0, device: torch.device | str | None = None) -> Controls:
    """Floor and ceiling together, sharing their first part."""
    first, second, notes = _halves(len(x), n, seed)
    parts = (x[first], x[second], shuffle_pixels(x[second], seed=seed))
    real, other, shuffled = (extract(extractor, part, device=device) for part in parts)
    return Controls(_distance(real, other, notes), _distance(real, shuffled, notes), len(first), extractor.label, seed)


def _distance(a: Tensor, b: Tensor, notes: tuple[str, ...]) -> FrechetDistance:
    distance = frechet_distance(a, b)
    return replace(distance, notes=(*distance.notes, *notes))


def _halves(total: int, n: int | None, seed: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    most = total // 2
    if total < 4 or (n is not None and n < 2):
        raise ValueError(f"two parts of at least 2 images cannot be taken from {total} images with n = {n}: pass more images or a larger n")
    size = most if n is None else min(n, most)
    notes = (
        () if n is None or n <= most else (f"two disjoint parts of {n} images cannot be taken from {total}: this control has n = {size}",)
    )
    order = permutation(total, "halves", seed)
    return order[:size], order[size : 2 * size], notes
