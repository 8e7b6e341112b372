"""``expost compress`` and ``expost decompress``: images as bytes, and back."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from torch import Tensor

    from expost.autoencoder import Autoencoder

__all__ = ["Compress", "Decompress"]


@dataclass
class Compress:
    """Compress images without loss, with a trained model whose decoder gives pixels a probability mass."""

    folder: Positional[Path]
    """run folder, e.g. of yu2020/bits-back"""
    images: Positional[Path | None] = None
    """images.npz or .npy; default: a split of the run's data"""
    out: Annotated[Path, arg(aliases=["-o"])] = Path("images.xpz")
    """file to write"""
    split: Literal["train", "val", "test"] = "test"
    """of the run's data, where no images are given"""
    n: int | None = None
    """only the first so many images"""
    binarise: bool = False
    """draw binary images from the grey levels first (as yu2020/bits-back-binary is trained)"""
    density: str = "prior"
    """prior of the codes: the training prior, or a density fitted to the run that can be made discrete (gaussian, gmm:10, stage)"""
    batch: int = 64
    """images coded together"""
    verify: bool = True
    """decode the file before it gets its name"""
    peers: bool = True
    """compare with gzip, bz2, lzma, PNG, WebP"""
    data: str | None = None
    """where the run's data is now, if it has moved"""
    seed: int = 0
    """of the seed words and of --binarise"""

    def run(self) -> None:
        import time

        from expost.checkpoint import RunFolder
        from expost.codec import compress, general_purpose, negative_elbo, write_compressed
        from expost.recipes.runs import load_model
        from expost.results import Table

        model = load_model(self.folder, density=self.density, device="cpu")
        x = self._images(model)
        show = sys.stderr.isatty()
        origin = {"run": str(self.folder), "density": self.density}
        compressed = compress(model, x, batch_size=self.batch, seed=self.seed, origin=origin, progress=show)
        start = time.perf_counter()
        write_compressed(self.out, compressed, model, x, verify=self.verify, progress=show)
        decoding = time.perf_counter() - start
        elbo = negative_elbo(model, x, seed=self.seed) / compressed.dims
        table = Table(("what", "bits/dim", "bytes"), title=f"{len(x)} images of {tuple(x.shape[1:])}, {self.folder}")
        whole = compressed.images * compressed.dims / 8
        rates = {"net": compressed.net_rate, "with the seed": compressed.seeded_rate, "the whole file": compressed.file_rate}
        rates |= {"-ELBO of these images": float(elbo.mean())} | (general_purpose(x) if self.peers and x.element_size() == 1 else {})
        for name, rate in rates.items():
            table.add(name, rate, round(rate * whole))
        speed = f"{len(x) / compressed.seconds:.1f} images/s compressing"
        if self.verify:
            speed += f", {len(x) / decoding:.1f} decompressing; read back from the file and decoded: every image exactly the same"
        table.notes += [
            speed,
            f"net rate / -ELBO = {compressed.net_rate / float(elbo.mean()):.4f}; the seed is {compressed.seed_bits} bits",
        ]
        RunFolder.at(self.folder).add_results(
            f"compression {self.density}", {**table.to_json(), "images_per_second": len(x) / compressed.seconds}
        )
        print(table)
        print(f"wrote {self.out}, {len(compressed.data)} bytes", flush=True)

    def _images(self, model: Autoencoder) -> Tensor:
        if self.images is not None:
            from expost.data.arrays import images_of

            x = images_of(self.images)
        else:
            from expost.recipes.runs import load_run

            x = getattr(load_run(self.folder, data_name=self.data, device="cpu").dataset, self.split).x
        if self.n is not None:
            if self.n < 1:
                raise ValueError(f"--n must be at least 1, not {self.n}")
            x = x[: self.n]
        if self.binarise:
            import torch

            from expost.seeds import seeded
            from expost.tensors import unit

            with seeded("binarise", self.seed):
                x = (torch.bernoulli(unit(x)) * 255).to(torch.uint8)
        return x


@dataclass
class Decompress:
    """Bring back the images of a compressed file, exactly."""

    file: Positional[Path]
    """.xpz file"""
    out: Annotated[Path, arg(aliases=["-o"])] = Path("images.npz")
    """file to write: array `images`, (n, C, H, W)"""
    run_folder: Annotated[Path | None, arg(name="run")] = None
    """run folder of the model; default: the one named in the file"""

    def run(self) -> None:
        import time

        import numpy as np

        from expost.codec import read_compressed
        from expost.codec.container import unpack
        from expost.files import atomic
        from expost.recipes.runs import load_model

        if not self.file.is_file():
            raise ValueError(f"{self.file} does not exist: check the path")
        origin = unpack(self.file.read_bytes(), str(self.file)).header.origin
        folder = self.run_folder or (Path(origin["run"]) if "run" in origin else None)
        if folder is None or not (folder / "recipe.json").is_file():
            raise ValueError(f"the run that wrote {self.file} is not at {folder}: give its folder with --run")
        model = load_model(folder, density=origin.get("density", "prior"), device="cpu")
        start = time.perf_counter()
        images = read_compressed(self.file, model, progress=sys.stderr.isatty())
        seconds = time.perf_counter() - start
        with atomic(self.out) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, images=images.numpy())
        print(f"wrote {len(images)} images to {self.out} ({len(images) / seconds:.1f} images/s)", flush=True)
