"""Where to compute: one function decides what a ``device=`` or ``--device`` means, so that a name is honoured or refused everywhere alike."""

from __future__ import annotations

import os

import torch

__all__ = ["choose_device"]


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device of a name (``cpu``, ``cuda``, ``cuda:1``, ``mps`` ...), or by default a CUDA GPU if there is one, else the CPU.

    Under torchrun ``cuda`` is this process's own GPU.

    Raises:
        ValueError: there is no such device here, or nothing can be computed on it.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f'there is no device "{device}": use cpu, cuda, cuda:1 or mps') from None
    if chosen.type == "cuda":
        return _gpu(chosen)
    if not _computes(chosen):
        raise ValueError(f"no {chosen.type.upper()} device is available here: use --device cpu")
    return torch.device("cpu") if chosen.type == "cpu" else chosen


def _gpu(chosen: torch.device) -> torch.device:
    """A CUDA device that exists; asked by number only, since a first tensor on a GPU takes hundreds of megabytes there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ValueError("no CUDA device is available here: use --device cpu")
    local = os.environ.get("LOCAL_RANK")
    wanted = chosen.index if chosen.index is not None or local is None else int(local)
    if wanted is not None and wanted >= count:
        have = "1 CUDA device, cuda:0" if count == 1 else f"{count} CUDA devices, cuda:0 to cuda:{count - 1}"
        more = "" if chosen.index is not None else f", and {int(local or 0) + 1} or more processes want one each"
        raise ValueError(f"cuda:{wanted} is not available here: there {'is' if count == 1 else 'are'} {have}{more}")
    return chosen if wanted is None else torch.device("cuda", wanted)


def _computes(device: torch.device) -> bool:
    """Whether a number that is stored there comes back."""
    try:
        return float(torch.ones(1, device=device)) == 1
    except (
        Exception
    ):  # what a device that is not there raises differs: RuntimeError, AssertionError, NotImplementedError, ModuleNotFoundError
        return False
