"""``expost wrap``: a model that expost did not train becomes a folder that every command takes like a run."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from expost.cli.options import DataOptions, as_options

__all__ = ["Wrap"]


@dataclass
class Wrap(DataOptions):
    """Make a run folder of a model from elsewhere: your own networks, a Pythae folder, a diffusers AutoencoderKL."""

    source: Positional[str]
    """folder of a Pythae or diffusers model, or package.module:function, which returns (encoder, decoder)"""
    data: str
    """data set name, folder, .npz or .npy file"""
    kind: Literal["auto", "modules", "pythae", "diffusers"] = "auto"
    """what the source is"""
    posterior: Literal["auto", "mean", "mean-logvar", "mean-logstd", "mean-std", "full"] = "auto"
    """what the encoder returns; mean: a deterministic code"""
    likelihood: Literal["auto", "gaussian", "bernoulli", "cross-entropy"] = "auto"
    """of the decoder; auto: what the model says, else gaussian"""
    outputs: Literal["auto", "mean", "logits"] = "auto"
    """whether the decoder returns images or their logits"""
    gamma: str = "auto"
    """variance of a gaussian likelihood: a number, or optimal: the mean squared error; auto: what the model's loss says, else optimal"""
    range: str = "0,1"
    """what black and white are for the model: 0,1 or --range=-1,1"""
    input_shape: str = ""
    """shape of one image as the encoder wants it, if not the data's, e.g. 784"""
    prior: Literal["auto", "normal", "none"] = "auto"
    """of the training; auto: normal for a Gaussian posterior"""
    weights: Path | None = None
    """.safetensors to load into the networks of package.module:function"""
    encoder: str | None = None
    """package.module:function of a Pythae model's own encoder: a function or class without arguments"""
    decoder: str | None = None
    """package.module:function of a Pythae model's own decoder: a function or class without arguments"""
    networks: Literal["auto", "mlp", "mnist-conv"] = "auto"
    """networks of a Pythae model that does not use the default ones: mnist-conv, those of its MNIST benchmark"""
    out: Path | None = None
    """folder to write; default: runs/wrapped-NAME"""
    seed: int = 0
    """of the data that gamma and the summary are measured on, of their codes, and of later fits"""
    device: str | None = None
    """cpu, cuda, mps; default: a GPU if there is one"""

    def run(self) -> None:
        from expost import data
        from expost.adapt import check, kind_of, open_source, shape_of
        from expost.runs.wrapped import code_options, save_wrapped
        from expost.seeds import some
        from expost.system.devices import choose_device
        from expost.system.state import check_folder
        from expost.train.folder import RunFolder

        device = choose_device(self.device)
        kind = kind_of(self.source) if self.kind == "auto" else self.kind
        folder = self.out or Path("runs") / f"wrapped-{_name(self.source)}"
        if RunFolder.at(folder).recipe_file.is_file():
            raise ValueError(f"{folder} already holds a run: choose another --out")
        check_folder(folder)
        options = self.loading()
        dataset = data.load(self.data, **options)
        wanted = shape_of(self.source, kind)
        if self.pad_to is None and wanted is not None and len(wanted) == len(dataset.shape) == 3 and max(dataset.shape[1:]) < wanted[-1]:
            dataset = data.load(self.data, **options, pad_to=wanted[-1])
        model, origin = open_source(self.source, dataset.train.x, kind, self._options(), self.seed)
        model = model.to(device)
        found = check(model, some(dataset.test.x, 2000, "wrap", self.seed), mean_image=_mean_image(dataset.train.x))
        saved = save_wrapped(folder, model, origin, dataset, source=self.data, seed=self.seed, name=self.source)
        print(as_options(str(found.table(f"{self.source} ({kind}) on {found.n} test images of {dataset.name}")), self), flush=True)
        densities = "gmm:10" if found.interface.latent <= 256 else "gmm:10:diagonal"
        code = code_options(saved.read_recipe())
        print(f"wrote {folder}; next{' (the folder names your code, which runs only where you name it, too)' if code else ''}:")
        for command in (
            ["diagnose", str(folder)],
            ["density", str(folder), densities],
            ["sample", str(folder), "--density", densities, "--grid", "samples.png"],
            ["evaluate", str(folder)],
        ):
            print(f"  {shlex.join(['expost', *command, *code])}", flush=True)

    def _options(self) -> dict[str, Any]:
        """The options that were given, as keywords of :func:`expost.adapt.open_source`."""
        options: dict[str, Any] = {}
        for name in ("posterior", "likelihood", "outputs", "prior", "networks"):
            if getattr(self, name) != "auto":
                options[name] = getattr(self, name)
        for name in ("weights", "encoder", "decoder"):
            if getattr(self, name) is not None:
                options[name] = getattr(self, name)
        if self.gamma != "auto":
            options["gamma"] = "optimal" if self.gamma == "optimal" else _numbers(self.gamma, "gamma", float)[0]
        if self.range != "0,1":
            low_high = _numbers(self.range, "range", float)
            if len(low_high) != 2:
                raise ValueError(f'cannot read --range "{self.range}": write two numbers, e.g. --range=-1,1')
            options["input_range"] = low_high
        if self.input_shape:
            options["input_shape"] = _numbers(self.input_shape, "input-shape", int)
        return options


def _numbers(text: str, flag: str, kind: type) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise ValueError(f'cannot read --{flag} "{text}": write numbers, separated by commas') from None


def _name(source: str) -> str:
    """A name for the folder: the function's module, or the model's folder."""
    return source.partition(":")[0].rpartition(".")[2] if ":" in source and not Path(source).exists() else Path(source).resolve().name


def _mean_image(x: Any) -> Any:
    """The mean of stored data in [0, 1], summed without a float copy of all of it."""
    from expost.tensors import batches, unit

    return sum(unit(b).double().sum(0) for b in batches(x, 5000)) / len(x)
