"""Where a run's data came from, as its recipe.json keeps it: enough to load them again from any folder, and to say how on a command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expost import data
from expost.data.splits import separate
from expost.system.schema import convert
from expost.train.folder import DataDescription

__all__ = ["arguments", "describe", "load_again"]

#: What :func:`expost.data.load` may have been told beside the name, as far as a command line can say it.
OPTIONS = ("size", "crop", "pad_to", "val")


def describe(dataset: data.Dataset, source: str) -> DataDescription:
    """The entry ``data`` of a recipe.json: what was typed, the absolute path of a place, the options of loading, and what came out.

    Args:
        source: the data's name or path, as the user gave it; for data that were not made by ``data.load``.
    """
    origin = {"name": source, **dataset.origin}
    found = {"source": origin.pop("name"), **{key: value for key, value in origin.items() if value is not None}, "name": dataset.name}
    found |= {"hash": dataset.hash, "shape": list(dataset.shape), "train": len(dataset.train)}
    return convert(found, DataDescription, "these data cannot be described")


def load_again(
    saved: DataDescription, run: str | Path, *, data_name: str | None = None, loading: Mapping[str, Any] | None = None
) -> data.Dataset:
    """The data set of a recipe.json's entry ``data``, loaded as it was for the training.

    Args:
        run: the run's folder, for the sentences.
        data_name: where the data are now, if they have moved.
        loading: options of :func:`expost.data.load` that replace the recorded ones.

    Raises:
        ValueError: the data are not where they were; what was a folder is never looked for on the hub.
    """
    known: Mapping[str, Any] = saved
    shape = saved["shape"]
    if ((side := saved.get("pad_to") or saved.get("size")) and shape[1:] != [side, side]) or saved.get("size", 0) > max(shape):
        raise ValueError(f"{run} does not describe its data: images of shape {tuple(shape)} are not what size and pad_to make; train again")
    options = {key: known[key] for key in (*OPTIONS, "max_items", "seed") if key in known} | dict(loading or {})
    name, path = data_name or saved["source"], None if data_name is not None else saved.get("path")
    if path is not None and not Path(path).exists():
        raise ValueError(f"the data of the run {run} are not at {path} any more: say where they are now (data_name=...)")
    try:
        found = data.load(name, path=path, **options)
        if found.shape != tuple(shape) and len(shape) == 3 and "pad_to" not in options:
            found = data.load(name, path=path, pad_to=shape[-1], **options)  # written before padding was recorded
    except ValueError as error:
        if data_name is not None:
            raise
        raise ValueError(f"the data of the run {run} cannot be loaded ({error}); if they have moved, say where (data_name=...)") from None
    return found


def arguments(saved: DataDescription) -> list[str]:
    """The data of a recipe.json as options of a command line that can be typed anywhere."""
    place = saved["source"]
    if saved.get("path") is not None:
        place = saved["path"] + "".join(f":{kind}={value}" for kind, value in separate(place)[1])
    given: Mapping[str, Any] = saved
    return ["--data", place, *(word for key in OPTIONS if key in given for word in (f"--{key.replace('_', '-')}", str(given[key])))]
