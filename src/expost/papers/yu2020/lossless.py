"""Lossless compression of test images on the lab's runs: net rate beside -ELBO, other compressors and the published rates."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from expost.codec import compress, decompress, general_purpose, negative_elbo
from expost.objectives.noise import binarised
from expost.results import Table
from expost.runs.lab import Lab
from expost.seeds import some
from expost.system.hashes import content_hash

__all__ = ["Coder", "coders", "compression_table", "rates"]


@dataclass(frozen=True)
class Coder:
    """A recipe, the prior of its codes, and whether its images are binarised."""

    recipe: str
    density: str = "prior"
    binary: bool = False

    def __str__(self) -> str:
        return self.recipe if self.density == "prior" else f"{self.recipe} with {self.density} ex post"


def coders(lab: Lab) -> tuple[Coder, ...]:
    """What is compared. The density ex post has 50 components where there are codes enough to fit them (48 dimensions, full covariances)."""
    ex_post = "gmm:50@sample" if len(lab.dataset.train.x) >= 20_000 else "gaussian@sample"
    return (
        Coder("yu2020/bits-back"),
        Coder("yu2020/bits-back", ex_post),
        Coder("yu2020/bits-back-nested"),
        Coder("yu2020/bits-back-binary", binary=True),
    )


PUBLISHED = {
    False: (("BB-ANS, beta-binomial VAE (Townsend et al. 2019)", 1.41), ("Bit-Swap, 2 levels (Kingma et al. 2019), net", 1.281), ("Bit-Swap, 4 levels, net", 1.270)),
    True: (("BB-ANS (Townsend et al. 2019), stochastically binarised", 0.19),),
}  # fmt: skip
"""MNIST test set, bits per pixel of 784: Bit-Swap pads to 32 x 32, its figures (its repository's arrays) are rescaled by 1024 / 784."""


def images(lab: Lab, binary: bool) -> Tensor:
    """Test images of the lab's data: all, or 100 at smoke budget; binarised once, by the seed."""
    x = lab.dataset.test.x
    x = some(x, 100, "compress", lab.seed) if lab.budget == "smoke" else x
    return binarised(x, lab.seed) if binary else x


class Rates(TypedDict):
    """Bits/dim, whether all images came back, and images per second."""

    net: float
    seeded: float
    file: float
    bytes: int
    elbo: float
    exact: bool
    images: int
    compressing: float
    decompressing: float


def rates(lab: Lab, coder: Coder) -> Rates:
    """Net rate and so on of a coder; measured once."""
    run = lab.run(coder.recipe)
    x = images(lab, coder.binary)

    def make() -> Rates:
        model = run.model if coder.density == "prior" else run.model.with_prior(run.density(coder.density))
        lab.say(f"compressing {len(x)} test images with {coder}, and back")
        compressed = compress(model, x, seed=lab.seed, progress=lab.progress)
        start = time.perf_counter()
        exact = torch.equal(decompress(model, compressed.data, progress=lab.progress), x)
        back = time.perf_counter() - start
        return {
            "net": compressed.net_rate, "seeded": compressed.seeded_rate, "file": compressed.file_rate, "bytes": len(compressed.data),
            "elbo": float(negative_elbo(model, x, seed=lab.seed).mean()) / compressed.dims, "exact": exact, "images": len(x),
            "compressing": len(x) / compressed.seconds, "decompressing": len(x) / back,
        }  # fmt: skip

    return lab.remember(run, "compression", make, coder.density, content_hash(x), kind=Rates)


def compression_table(lab: Lab) -> tuple[Table, bool]:
    """All lossless recipes against general-purpose compressors and published rates; whether every round trip was exact and within 2 %."""
    columns = ("what", "bits/dim", "with the seed", "whole file", "-ELBO", "images/s in", "images/s out")
    table = Table(columns, title=f"Lossless compression, {lab.dataset.name}")
    good = True
    for binary in (False, True):
        for coder in (c for c in coders(lab) if c.binary == binary):
            found = rates(lab, coder)
            good = good and found["exact"] and abs(found["net"] / found["elbo"] - 1) < 0.02
            speeds = round(found["compressing"], 1), round(found["decompressing"], 1)
            table.add(str(coder), found["net"], found["seeded"], found["file"], found["elbo"], *speeds)
        x = images(lab, binary)
        for name, rate in general_purpose(x).items():
            table.add(f"{name}{', binarised' if binary else ''}", rate, None, rate, None, None, None)
        for name, rate in PUBLISHED[binary] if lab.dataset.name == "mnist" else ():
            table.add(f"published: {name}", rate, None, None, None, None, None)
    table.notes += [
        f"{len(x)} test images; bits/dim is the net rate: without the seed bits, which a longer stream repays; every image decoded and compared",
        "gzip, bz2, lzma: all images as one stream; PNG, WebP: sheets of images",
    ]
    if lab.dataset.name != "mnist":
        table.notes.append(f"published rates are those of MNIST and are not shown beside {lab.dataset.name}")
    return table, good
