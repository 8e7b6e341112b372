"""What papers add to the tables of recipes, networks and densities is found by walking their folders; nothing here names one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module, util
from pkgutil import iter_modules
from typing import NamedTuple

from expost.density.base import Density

__all__ = ["Stage", "add_density", "discover", "stages"]


@cache
def discover() -> None:
    """Import ``expost.papers.*.models`` (and single files of rows), which add their recipes, networks and densities to the tables."""
    package = import_module("expost.papers")
    for found in iter_modules(package.__path__, "expost.papers."):
        models = f"{found.name}.models" if found.ispkg else found.name
        if (found.ispkg and util.find_spec(models) is None) or (not found.ispkg and not found.name.endswith(".classics")):
            continue
        import_module(models)


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
