"""Densities by name, as the command line and run folders write them: "gmm:10", "kde:0.425"; and densities as files.

A spec names a class and its one or two usual arguments; everything else is Python. A file holds the state (safetensors) and, as JSON, the
spec and dimension to build it from, so that loading executes nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypedDict

import torch

from expost.density.base import Density
from expost.density.fitting import FitReport
from expost.density.flow import Flow
from expost.density.gaussian import FullGaussian, StandardNormal
from expost.density.kde import KDE
from expost.density.mixture import GMM
from expost.system.files import load_tensors, save_tensors
from expost.system.memory import Bounded, machine
from expost.system.schema import Meta

__all__ = ["SPECS", "load_density", "parse", "save_density", "spec_of"]

#: Dimension and arguments (the parts after colons) -> density. Other modules may add entries.
Builder = Callable[..., Density]

FORMS = {
    "normal": "normal",
    "gaussian": "gaussian",
    "gmm": "gmm:10 or gmm:10:diagonal",
    "kde": "kde, kde:cv or kde:0.425",
    "flow": "flow or flow:maf",
}


def _gmm(d: int, components: str = "10", covariance: str = "full") -> GMM:
    return GMM(d, int(components), covariance)  # type: ignore[arg-type]


def _kde(d: int, bandwidth: str = "scott") -> KDE:
    return KDE(d, bandwidth if bandwidth in ("scott", "cv") else float(bandwidth))  # type: ignore[arg-type]


def _flow(d: int, kind: str = "nsf") -> Flow:
    return Flow(d, kind=kind)  # type: ignore[arg-type]


SPECS: dict[str, Builder] = {"normal": StandardNormal, "gaussian": FullGaussian, "gmm": _gmm, "kde": _kde, "flow": _flow}


def parse(spec: str, d: int, also: Mapping[str, str] = MappingProxyType({})) -> Density:
    """A fresh density for codes of dimension ``d``.

    Args:
        also: names that the caller reads, with their forms: they are choices too, but none of these stands here.

    Raises:
        ValueError: naming the nearest known spec, or the form that the arguments should have.

    >>> parse("gmm:3:diagonal", 2)
    GMM(d=2, components=3, covariance='diagonal')
    """
    name, *arguments = spec.split(":")
    if name not in SPECS:
        if name in also:
            raise ValueError(f'cannot read the density "{spec}": write {also[name]}')
        known = [*SPECS, *also]
        close = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f'did you mean "{close[0]}"?' if close else f"choose one of {', '.join(known)}"
        raise ValueError(f'unknown density "{spec}": {hint}')
    large = f'the density "{spec}" does not fit into this machine\'s memory: choose a smaller one'
    try:
        with Bounded(machine(), large):
            return SPECS[name](d, *arguments)
    except (TypeError, ValueError) as error:
        if name not in FORMS or str(error) == large:
            raise
        raise ValueError(f'cannot read the density "{spec}": write {FORMS[name]}') from error


def spec_of(density: Density) -> str:
    """The spec that :func:`parse` turns into a density of this class and shape; raises ``ValueError`` for classes without one."""
    if isinstance(density, StandardNormal):
        return "normal"
    if isinstance(density, FullGaussian):
        return "gaussian"
    if isinstance(density, GMM):
        return f"gmm:{density.components}" + ("" if density.covariance == "full" else f":{density.covariance}")
    if isinstance(density, KDE):
        return "kde" if density.bandwidth == "scott" else f"kde:{density.bandwidth}"
    if isinstance(density, Flow):
        return "flow" if density.kind == "nsf" else f"flow:{density.kind}"
    raise ValueError(f"a {type(density).__name__} has no spec: save the whole model with its run folder instead")


def _extra_arguments(density: Density) -> dict[str, Any]:
    """What the shapes of the state depend on and a spec does not say."""
    if isinstance(density, KDE):
        return {"points": density.points}
    if isinstance(density, Flow):
        return {"transforms": density.transforms, "hidden": list(density.hidden), "bins": density.bins}
    return {}


def save_density(path: str | Path, density: Density) -> None:
    """Write a density to one safetensors file, whole or not at all."""
    report = getattr(density, "report", None)
    meta = {
        "kind": "density",
        "spec": spec_of(density),
        "d": density.d,
        "arguments": _extra_arguments(density),
        "report": report.as_dict() if report is not None else None,
    }
    save_tensors(path, dict(density.state_dict()) or {"empty": torch.zeros(0)}, meta)


def load_density(path: str | Path, device: str | torch.device = "cpu") -> Density:
    """What :func:`save_density` wrote; ``ValueError`` in one sentence if the file is missing, truncated or something else."""
    tensors, meta = load_tensors(path, "a fitted density", meta=_Meta)
    tensors.pop("empty", None)
    held = sum(value.numel() * value.element_size() for value in tensors.values())
    try:
        with Bounded(4 * held + 2**20, "its sizes are not those of its tensors"):
            density = _rebuild(meta)
        density.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a density that this version can read: fit it again, or load it with the version that wrote it"
        ) from error
    density.report = meta["report"]  # type: ignore[assignment]
    return density.to(device).eval()


class _Arguments(TypedDict, total=False):
    points: Annotated[int, Meta(ge=1)]
    transforms: Annotated[int, Meta(ge=1)]
    hidden: tuple[Annotated[int, Meta(ge=1)], ...]
    bins: Annotated[int, Meta(ge=1)]


class _Meta(TypedDict):
    """What the file of a density says beside its tensors."""

    spec: str
    d: Annotated[int, Meta(ge=1)]
    arguments: _Arguments
    report: FitReport | None


def _rebuild(meta: _Meta) -> Density:
    arguments: dict[str, Any] = dict(meta["arguments"])
    density = parse(meta["spec"], meta["d"])
    if isinstance(density, KDE):
        return KDE(density.d, density.bandwidth, **arguments)
    if isinstance(density, Flow):
        return Flow(density.d, kind=density.kind, **arguments)
    return density
