"""Run folders and checkpoints, without pickle.

A run folder holds ``recipe.json`` (name, overrides, seed, versions, data hash), ``model.safetensors``, ``history.csv``, ``results.json``,
``densities/``; while training runs also ``checkpoint.safetensors``, which has everything a resumed run needs: weights, optimiser moments,
averaged and best weights, sums of the running interval, and as JSON the step, schedule state and history. It is one file, replaced by
renaming, so a killed process leaves either the old or the new one.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expost.files import load_tensors, read_json, save_tensors, write_json, write_text

__all__ = ["RunFolder", "load_weights", "prefixed", "split_prefix", "versions"]


def versions() -> dict[str, str]:
    """Versions of what computed a result."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("expost", "accelerate", "scikit-learn", "numpy", "zuko"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def split_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}/"): value for name, value in tensors.items() if name.startswith(f"{prefix}/")}


def load_weights(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """``module.load_state_dict`` with one sentence that names the first difference."""
    own = module.state_dict()
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or foreign:
        name = (missing or foreign)[0]
        raise ValueError(
            f'{where} does not fit this model: "{name}" is {"missing" if missing else "unknown"}; was it another recipe or other settings?'
        )
    for name, value in state.items():
        if own[name].shape != value.shape:
            raise ValueError(f'{where} does not fit this model: "{name}" is {tuple(value.shape)} there and {tuple(own[name].shape)} here')
    module.load_state_dict(state)


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of one run."""

    path: Path

    @classmethod
    def at(cls, path: str | Path) -> RunFolder:
        return cls(Path(path))

    @classmethod
    def existing(cls, path: str | Path) -> RunFolder:
        """An existing run, or ``ValueError`` with the remedy."""
        folder = cls(Path(path))
        if not folder.recipe_file.is_file():
            raise ValueError(f"{path} is not a run folder (no recipe.json): train one with `expost train RECIPE --out {path}`")
        return folder

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.json"

    @property
    def model_file(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def checkpoint_file(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def history_file(self) -> Path:
        return self.path / "history.csv"

    @property
    def results_file(self) -> Path:
        return self.path / "results.json"

    def density_file(self, spec: str) -> Path:
        return self.path / "densities" / f"{spec.replace(':', '-')}.safetensors"

    def write_recipe(self, recipe: dict[str, Any]) -> None:
        write_json(self.recipe_file, recipe)

    def read_recipe(self) -> dict[str, Any]:
        recipe = read_json(self.recipe_file, "the description of a run")
        if not isinstance(recipe, dict) or "recipe" not in recipe:
            raise ValueError(f"{self.recipe_file} does not describe a run (no recipe name): was it made by another program?")
        return recipe

    def write_history(self, text: str) -> None:
        write_text(self.history_file, text)

    def results(self) -> dict[str, Any]:
        return read_json(self.results_file, "the results of a run") if self.results_file.is_file() else {}

    def add_results(self, key: str, value: Any) -> None:
        """Set one entry of results.json, keeping the others."""
        write_json(self.results_file, {**self.results(), key: value})

    def save_model(self, model: nn.Module, meta: dict[str, Any] | None = None) -> None:
        save_tensors(self.model_file, model.state_dict(), {"kind": "model", **(meta or {})})

    def load_model(self, model: nn.Module) -> dict[str, Any]:
        """Load the trained weights into ``model``; returns their metadata."""
        if not self.model_file.is_file() and self.checkpoint_file.is_file():
            raise ValueError(f"the run {self.path} is not finished: continue it with --resume")
        tensors, meta = load_tensors(self.model_file, "the weights of a run")
        load_weights(model, tensors, str(self.model_file))
        return meta
