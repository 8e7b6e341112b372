"""What papers add to the tables of recipes, networks and densities is found by walking their folders; nothing here names one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module, util
from pkgutil import iter_modules
from typing import NamedTuple

from expost.density.base import Density

__all__ = ["Stage", "add_density", "discover", "forms", "stages"]


@cache
def discover() -> None:
    """Import ``expost.papers.*.models``, which add their recipes, networks and densities to the tables."""
    for found in iter_modules(import_module("expost.papers").__path__, "expost.papers."):
        if found.ispkg and util.find_spec(f"{found.name}.models") is not None:
            import_module(f"{found.name}.models")


class Stage(NamedTuple):
    """A density that is trained: how its name is written, and what makes it from (experiment, seed, what stands after the colon)."""

    form: str
    build: Callable[..., Density]


_STAGES: dict[str, Stage] = {}


def add_density(name: str, form: str, build: Callable[..., Density]) -> None:
    """Make a density known that is trained on the codes of a run."""
    _STAGES[name] = Stage(form, build)


def stages() -> dict[str, Stage]:
    """All of these by name, with those of papers."""
    discover()
    return _STAGES


def forms() -> dict[str, str]:
    """How the densities are written that a run has beside :data:`expost.density.SPECS`: these, and its prior."""
    return {name: stage.form for name, stage in stages().items()} | {"prior": "prior"}
