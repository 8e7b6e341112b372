"""Densities by name, as the command line and run folders write them: "gmm:10", "kde:0.425"; and densities as files.

A spec names a class and its one or two usual arguments; everything else is Python. A file holds the state (safetensors) and, as JSON, the
spec and dimension to build it from, so that loading executes nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, TypedDict

import torch

from expost.density.base import FORMS, SPECS, Density
from expost.density.fitting import FitReport
from expost.system.files import load_tensors, save_tensors
from expost.system.memory import Bounded, machine
from expost.system.schema import Meta

__all__ = ["SPECS", "load_density", "parse", "save_density"]


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


def save_density(path: str | Path, density: Density) -> None:
    """Write a density to one safetensors file, whole or not at all."""
    report = getattr(density, "report", None)
    meta = {
        "kind": "density",
        "spec": density.spec,
        "d": density.d,
        "arguments": density.arguments(),
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
            density = parse(meta["spec"], meta["d"]).like(**meta["arguments"])
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
