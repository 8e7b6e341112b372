"""Trackers of experiments (TensorBoard, Weights & Biases, MLflow ...), through accelerate's common interface to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Trackers", "check_trackers"]


def check_trackers(names: Sequence[str]) -> None:
    """``ValueError`` unless every tracker is known, and installed: one that is asked for is never left out."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(f'there is no tracker "{name}": choose {", ".join(sorted(LOGGER_TYPE_TO_CLASS))}')
        if name not in installed:
            raise ValueError(f"the tracker {name} is not installed here: pip install {name.replace('_', '-')}")


class Trackers:
    """The started trackers of one training; of the main process alone."""

    def __init__(self, names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        check_trackers(names)
        kinds = [LOGGER_TYPE_TO_CLASS[name] for name in dict.fromkeys(names)]
        self._trackers = [kind("expost", str(folder)) if kind.requires_logging_directory else kind("expost") for kind in kinds]
        for tracker in self._trackers:
            tracker.start()
            tracker.store_init_configuration(dict(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.log(dict(values), step=step)

    def finish(self) -> None:
        for tracker in self._trackers:
            tracker.finish()
