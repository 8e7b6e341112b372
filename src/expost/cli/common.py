"""What commands share: how they print, fail, and open a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expost.cli.options import OpensRun

if TYPE_CHECKING:
    from expost.runs.run import Run

__all__ = ["Failure", "echo", "load"]


class Failure(Exception):
    """The command ran and its outcome is a failure: a sentence for stderr, exit status 1."""


def echo(text: object = "") -> None:
    print(text, flush=True)


def load(folder: Path, data: str | None, device: str | None, options: OpensRun, *, failed: bool = False) -> Run:
    """The run of a folder: the one way in which commands open it."""
    from expost.runs.run import load_run
    from expost.system.devices import choose_device

    choose_device(device)  # before anything is read
    return load_run(folder, data_name=data, device=device, code=options.code, loading=options.loading(), failed=failed)
