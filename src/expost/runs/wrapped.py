"""Folders of wrapped models: run folders without a training, which every later command loads like a run.

``recipe.json`` names the recipe ``wrapped/KIND`` and keeps, as settings, what :class:`expost.adapt.Origin` needs to build the networks
again; ``model.safetensors`` keeps the weights. The model's own folder is not needed any more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from expost import data
from expost.adapt import Origin, interface_of
from expost.autoencoder import Autoencoder
from expost.objectives import ELBO, RAE
from expost.runs.experiment import WRAPPED, Experiment, Task
from expost.runs.origin import describe
from expost.system.hashes import state_hash
from expost.system.locks import writing
from expost.system.state import leaving_nothing, made
from expost.train.folder import Description, RunFolder, versions
from expost.train.settings import Training

__all__ = ["code_options", "rebuild_wrapped", "save_wrapped"]

LARGE = 256
"""Latent dimensions above which the default mixture has diagonal covariances."""


def save_wrapped(
    out: str | Path, model: Autoencoder, origin: Origin, dataset: data.Dataset, *, source: str, seed: int = 0, name: str = ""
) -> RunFolder:
    """Write a wrapped model as a run folder.

    Args:
        source: the data's name or path, as the user gave it.
        name: where the model comes from, for the reader.
    """
    folder = RunFolder.at(out)
    weights = state_hash(model.state_dict(), {})
    text = json.dumps([origin.kind, origin.settings, dataset.hash, seed, weights], sort_keys=True)
    description: Description = {
        "recipe": WRAPPED + origin.kind,
        "budget": "",
        "settings": origin.settings,
        "seed": seed,
        "source": name,
        "data": describe(dataset, source),
        "identity": hashlib.sha256(text.encode()).hexdigest()[:8],
        "versions": versions(),
    }
    with made(folder.path), writing(folder.path):
        if folder.recipe_file.is_file():
            raise ValueError(f"{out} already holds a run of {folder.read_recipe()['recipe']}: choose another --out")
        with leaving_nothing(folder.path, lambda: False):
            folder.write_recipe(description)  # first: the weights are tied to it
            folder.save_model(model)
    return folder


def code_options(saved: Description) -> tuple[str, ...]:
    """What every command line that opens a run must add for the code that it names; nothing for most runs."""
    if not saved["recipe"].startswith(WRAPPED):
        return ()
    references = _origin(saved).references.values()
    return tuple(part for reference in dict.fromkeys(references) for part in ("--code", reference))


def rebuild_wrapped(folder: RunFolder, saved: Description, task: Task, code: str | Sequence[str] = ()) -> tuple[Experiment, Autoencoder]:
    """The experiment that stands for a wrapped model, and the model, still without its saved weights.

    Args:
        saved: the folder's description.
        code: names that the user allows to be run, see :func:`expost.adapt.references.allowed`.
    """
    where = str(folder.recipe_file)
    model = _origin(saved).build(where, folder.bounded(), code)
    interface = interface_of(model)
    if interface.data_shape != task.shape:
        raise ValueError(f"{where} is about data of shape {task.shape}, and its model for {interface.data_shape}: wrap the model again")
    mixture = "gmm:10" if interface.latent <= LARGE else "gmm:10:diagonal"
    experiment = Experiment(
        recipe=saved["recipe"],
        task=task,
        network="wrapped",
        latent=interface.latent,
        objective=RAE(0.0) if interface.posterior == "mean" else ELBO(),
        training=Training(steps=1),
        densities=("prior" if model.prior is not None else "gaussian", mixture),
    )
    return experiment, model


def _origin(saved: Description) -> Origin:
    return Origin(saved["recipe"].removeprefix(WRAPPED), saved["settings"])
