"""``expost compress`` and ``expost decompress``: images as bytes, and back."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from expost.cli.options import Count, OpensModel, OpensRun, SomeImages, check_suffix

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Compress", "Decompress"]


@dataclass
class Compress(OpensRun):
    """Compress images without loss, with a trained model whose decoder gives pixels a probability mass.

    Images are read as expost reads them everywhere: (n, C, H, W), uint8 where nothing is lost (k/255 and booleans too); these are what comes back.
    """

    folder: Positional[Path]
    """run folder, e.g. of yu2020/bits-back"""
    images: Positional[Path | None] = None
    """images.npz or .npy; default: a split of the run's data"""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """file to write; default: the images' or the split's name with .xpz"""
    split: Literal["train", "val", "test"] | None = None
    """of the run's data, where no images are given; default: test"""
    n: SomeImages = None
    """so many images: of a file the first, of a split of the run's data a random choice by the seed, in the split's order"""
    binarise: bool = False
    """draw binary images from the grey levels first (as yu2020/bits-back-binary is trained)"""
    density: str = "prior"
    """prior of the codes: the training prior, or a fitted density that can be made discrete: gaussian, gmm:10 (fitted to samples), stage"""
    batch: Count = 64
    """images coded together"""
    force: bool = False
    """replace the output if it exists"""
    verify: bool = True
    """decode the file before it gets its name"""
    peers: bool = True
    """compare with gzip, bz2, lzma, PNG, WebP"""
    data: str | None = None
    """where the run's data is now, if it has moved"""
    seed: int = 0
    """of the seed words, of the choice by --n and of --binarise"""

    def run(self) -> None:
        import time

        from expost.codec import compress, general_purpose, negative_elbo, write_compressed
        from expost.results import Table
        from expost.runs.densities import as_prior
        from expost.runs.run import load_model
        from expost.train.folder import RunFolder

        out = self.out or Path(f"{self.images.stem if self.images else self.split or 'test'}.xpz")
        check_free(out, self.force)
        check_suffix(out, ".xpz")
        density = as_prior(self.density)
        model = load_model(self.folder, density=density, device="cpu", code=self.code)
        x, what = self._images()
        shape = tuple(RunFolder.existing(self.folder).read_recipe()["data"]["shape"])
        if tuple(x.shape[1:]) != shape:
            raise ValueError(
                f"the run {self.folder} was trained on images of shape {shape}, and these are {tuple(x.shape[1:])}: give others"
            )
        origin = {"run": str(self.folder), "density": density}
        compressed = compress(model, x, batch_size=self.batch, seed=self.seed, origin=origin)
        start, failed = time.perf_counter(), None
        try:
            write_compressed(out, compressed, model, x, verify=self.verify, replace=self.force)
        except OSError as error:  # the rates are shown nevertheless: they took longer than the file
            failed = error
        decoding = time.perf_counter() - start
        elbo = negative_elbo(model, x, seed=self.seed) / compressed.dims
        table = Table(("what", "bits/dim", "bytes"), title=f"{what}, {tuple(x.shape[1:])}, {self.folder}")
        whole = compressed.images * compressed.dims / 8
        rates = {"net": compressed.net_rate, "with the seed": compressed.seeded_rate, "the whole file": compressed.file_rate}
        rates |= {"-ELBO of these images": float(elbo.mean())} | (general_purpose(x) if self.peers and x.element_size() == 1 else {})
        for name, rate in rates.items():
            table.add(name, rate, round(rate * whole))
        speed = f"{len(x) / compressed.seconds:.1f} images/s compressing"
        if self.verify and failed is None:
            speed += f", {len(x) / decoding:.1f} decompressing; read back from the file and decoded: every image exactly the same"
        ratio = compressed.net_rate / float(elbo.mean())
        table.notes += [speed, f"net rate / -ELBO = {ratio:.4f}; the seed is {compressed.seed_bits} bits"]
        if abs(ratio - 1) > 0.05:
            table.notes.append(
                "the net rate is far from -ELBO: the images are few, or values lie so far in the tails of p(x | z) or p(z) that the coder's "
                "least probability, 2^-24, was used: train longer, or choose a prior that fits"
            )
        print(table, flush=True)
        if isinstance(failed, FileExistsError):
            raise _exists(out) from None
        if failed is not None:
            raise failed
        print(f"wrote {out}, {len(compressed.data)} bytes", flush=True)
        if self.images is None:
            key = f"compression of {self.split or 'test'}, {len(x)} images{', binarised' if self.binarise else ''}, {density}"
            RunFolder.at(self.folder).keep(key, {**table.to_json(), "images_per_second": len(x) / compressed.seconds})

    def _images(self) -> tuple[Tensor, str]:
        """The images to compress, and which they are."""
        from expost.seeds import some

        if self.images is not None:
            from expost.data.arrays import images_of

            if self.split is not None:
                raise ValueError(f"give images or --split, not both: {self.images} and {self.split}")
            x, notes = images_of(self.images)
            for note in notes:
                print(f"note: {note}")
        else:
            from expost.cli.common import load

            x = getattr(load(self.folder, self.data, "cpu", self).dataset, self.split or "test").x
        what = f"{len(x)} images"
        if self.n is not None and self.n < len(x):  # of a file, what was asked for; of a split, what stands for it
            what = f"{'the first' if self.images is not None else 'random'} {self.n} of {what}"
            x = x[: self.n] if self.images is not None else some(x, self.n, "compress", self.seed)
        if self.binarise:
            from expost.objectives.noise import binarised

            x = binarised(x, self.seed)
        return x, what


def check_free(path: Path, force: bool, size: int = 1) -> None:
    """Before the work: nothing that exists is replaced unasked, since it may be the only copy; and the file can be written."""
    from expost.system.files import check_output

    if os.path.lexists(path) and not force and not path.is_dir():
        raise _exists(path)
    check_output(path, size)


def _exists(path: Path) -> ValueError:
    return ValueError(f"{path} exists: choose another name with -o, or replace it with --force")


@dataclass
class Decompress(OpensModel):
    """Bring back the images of a compressed file, exactly as they were compressed."""

    file: Positional[Path]
    """.xpz file"""
    out: Annotated[Path | None, arg(aliases=["-o"])] = None
    """file to write: array `images`, (n, C, H, W); default: the file's name with .npz"""
    force: bool = False
    """replace the output if it exists"""
    run_folder: Annotated[Path | None, arg(name="run")] = None
    """run folder of the model; default: the one named in the file, if it is one of a recipe"""

    def run(self) -> None:
        import time

        import numpy as np

        from expost.codec import decompress
        from expost.codec.container import unpack
        from expost.runs.run import load_model
        from expost.runs.wrapped import code_options
        from expost.system.files import atomic
        from expost.system.schema import printable
        from expost.train.folder import RunFolder

        out = self.out or Path(f"{self.file.stem}.npz")
        if not self.file.is_file():
            raise ValueError(f"{self.file} does not exist: check the path")
        data = self.file.read_bytes()
        check_free(out, self.force, len(data))
        check_suffix(out, ".npz")
        origin = unpack(data, str(self.file)).header.origin
        folder = self.run_folder or (Path(origin["run"]) if "run" in origin else None)
        if folder is None or not os.path.isfile(folder / "recipe.json"):  # Path.is_file() raises for names that are too long
            where = f"is not at {printable(str(folder))}" if folder else "is not named in it"
            raise ValueError(f"the run that wrote {self.file} {where}: give its folder with --run")
        if self.run_folder is None and (named := code_options(RunFolder.existing(folder).read_recipe())):
            options = shlex.join(["--run", str(folder), *named])
            raise ValueError(f"{self.file} names a run that names code, and no file is followed to code: if you trust it, add {options}")
        density = origin.get("density", "prior")
        fitted = RunFolder.existing(folder).density_file(density)
        if density != "prior" and not os.path.isfile(fitted):  # before anything of its size is made
            again = printable(shlex.join(["expost", "density", str(folder), density]))
            raise ValueError(
                f"{self.file} needs a prior that {folder} does not hold: fit it with `{again}`, or give another run with --run"
            )
        model = load_model(folder, density=density, device="cpu", code=self.code)
        start = time.perf_counter()
        images = decompress(model, data, name=str(self.file))
        seconds = time.perf_counter() - start
        try:
            with atomic(out, replace=self.force) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, images=images.numpy())
        except FileExistsError:  # since the work began
            raise _exists(out) from None
        print(f"wrote {len(images)} images to {out} ({len(images) / seconds:.1f} images/s)", flush=True)
