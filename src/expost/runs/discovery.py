"""What papers add to the tables of recipes, networks and densities is found by walking their folders; nothing here names one."""

from __future__ import annotations

from functools import cache
from importlib import import_module, util
from pkgutil import iter_modules

__all__ = ["discover"]


@cache
def discover() -> None:
    """Import ``expost.papers.*.models`` (and single files of rows), which add their recipes, networks and densities to the tables."""
    package = import_module("expost.papers")
    for found in iter_modules(package.__path__, "expost.papers."):
        models = f"{found.name}.models" if found.ispkg else found.name
        if (found.ispkg and util.find_spec(models) is None) or (not found.ispkg and not found.name.endswith(".classics")):
            continue
        import_module(models)
