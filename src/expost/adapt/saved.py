"""What must be kept of a wrapped model, beside its weights, to build it again: its kind and settings, plain JSON.

| kind | settings |
|---|---|
| ``modules`` | ``reference``: the user's function that returns the networks; its code must be importable again |
| ``pythae`` | ``config``: model_config.json; ``networks``; ``encoder`` / ``decoder``: references, where the networks are the user's |
| ``diffusers`` | ``config``: config.json; diffusers must be installed |

and ``interface`` for all three. Weights come from the run folder's ``model.safetensors``; the source is not needed any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from torch import Tensor

from expost.adapt.diffusers import DiffusersConfig, build_diffusers, from_diffusers, read_diffusers_config
from expost.adapt.interface import Interface, interface_of
from expost.adapt.modules import wrap
from expost.adapt.pythae import Networks, PythaeConfig, assemble_pythae, build_pythae, from_pythae, read_config
from expost.adapt.references import allowed, load_pair_weights, module_of, pair_of
from expost.autoencoder import Autoencoder
from expost.system.schema import convert

__all__ = ["Origin", "SourceKind", "kind_of", "open_source", "shape_of"]

SourceKind = Literal["modules", "pythae", "diffusers"]


class _Modules(TypedDict):
    reference: str
    interface: Interface


class _Pythae(TypedDict):
    config: PythaeConfig
    interface: Interface
    networks: NotRequired[Networks | None]
    encoder: NotRequired[str | None]
    decoder: NotRequired[str | None]


class _Diffusers(TypedDict):
    config: DiffusersConfig
    interface: Interface


_SETTINGS: dict[str, Any] = {"modules": _Modules, "pythae": _Pythae, "diffusers": _Diffusers}


@dataclass(frozen=True)
class Origin:
    """Where a wrapped model comes from: enough to build it again without its weights. Read from a file, it is checked when it is built."""

    kind: str
    settings: dict[str, Any]

    @property
    def references(self) -> dict[str, str]:
        """The code that it names, ``package.module:name`` by what it makes."""
        names = {"modules": ("reference",), "pythae": ("encoder", "decoder")}.get(self.kind, ())
        return {name: value for name in names if isinstance(value := self.settings.get(name), str) and value}

    def build(self, where: str, bounded: AbstractContextManager[Any], code: str | Sequence[str] = ()) -> Autoencoder:
        """The model with whatever weights its code gives it; load the saved ones next.

        Args:
            where: the file that says so, for sentences.
            bounded: the block in which what the file describes is built, so that it does not ask for more memory than its weights take.
            code: references that may be run because the user named them; without that of every reference here nothing is imported.
        """
        if self.kind not in _SETTINGS:
            raise ValueError(f'there is no kind of wrapped model "{self.kind}": was the folder made by a newer expost?')
        own = dict(zip(self.references, allowed(list(self.references.values()), code, where), strict=True))
        s = convert(self.settings, _SETTINGS[self.kind], f"{where} does not describe a wrapped model, wrap it again")
        interface = s["interface"]
        pair = pair_of(own["reference"]) if self.kind == "modules" else None
        made = {name: module_of(reference) for name, reference in own.items()} if self.kind == "pythae" else {}
        with bounded:
            if self.kind == "pythae":
                return assemble_pythae(interface, s["config"], *build_pythae(s["config"], s.get("networks") or "mlp", **made))
            return interface.assemble(*(pair or build_diffusers(s["config"])))


def kind_of(source: str) -> SourceKind:
    """What a source on the command line is: ``package.module:function``, or the folder of a Pythae or diffusers model."""
    folder = Path(source)
    if folder.is_dir():
        if any((folder / sub / "model_config.json").is_file() for sub in (".", "final_model")):
            return "pythae"
        if any((folder / sub / "config.json").is_file() for sub in (".", "vae")):
            return "diffusers"
        raise ValueError(
            f"{source} is no model folder of Pythae (model_config.json) or diffusers (config.json): for your own code write package.module:function"
        )
    if ":" in source and not folder.exists():
        return "modules"
    raise ValueError(f'there is no model "{source}": give a folder of Pythae or diffusers, or package.module:function for your own code')


def shape_of(source: str, kind: SourceKind) -> tuple[int, ...] | None:
    """The shape of data that a model says it is for, or None."""
    shape = read_config(source)[1].get("input_dim") if kind == "pythae" else None
    return tuple(shape) if shape else None


def open_source(source: str, x: Tensor, kind: SourceKind, options: dict[str, Any], seed: int = 0) -> tuple[Autoencoder, Origin]:
    """Wrap what a command line names.

    Args:
        x: data to try the model on and to measure γ on.
        options: keywords of :func:`expost.adapt.wrap`, ``from_pythae`` or ``from_diffusers``, where given; for modules also ``weights``, a
            safetensors file; for Pythae ``encoder`` and ``decoder`` as references.
    """
    settings: dict[str, Any] = {}
    options = dict(options)
    if kind == "modules":
        encoder, decoder = pair_of(source)
        weights = options.pop("weights", None)
        if weights is not None:
            load_pair_weights(encoder, decoder, weights)
        _known(options, ("posterior", "likelihood", "outputs", "gamma", "input_range", "input_shape", "prior"), kind)
        model = wrap(encoder, decoder, x, seed=seed, **options)
        settings["reference"] = source
    elif kind == "pythae":
        _known(options, ("likelihood", "gamma", "input_range", "networks", "encoder", "decoder"), kind)
        config = read_config(source)[1]
        settings.update(config=config, **{k: options[k] for k in ("networks", "encoder", "decoder") if k in options})
        for name in ("encoder", "decoder"):
            if name in options:
                options[name] = module_of(options[name])
        model = from_pythae(source, x=x, seed=seed, **options)
    else:
        _known(options, ("likelihood", "gamma"), kind)
        settings["config"] = read_diffusers_config(source)[1]
        model = from_diffusers(source, x, seed=seed, **options)
    return model, Origin(kind, {**settings, "interface": interface_of(model).to_json()})


def _known(options: dict[str, Any], names: tuple[str, ...], kind: SourceKind) -> None:
    foreign = [name for name in options if name not in names]
    if foreign:
        flag = "range" if foreign[0] == "input_range" else foreign[0].replace("_", "-")
        raise ValueError(f"--{flag} is not for a model of {kind}: what it says is known from the model itself, or it has none")
