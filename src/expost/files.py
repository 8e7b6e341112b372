"""Files that are either whole or absent: written to a temporary name in the same folder, then renamed. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["atomic", "cache_folder", "load_tensors", "read_json", "save_tensors", "write_json", "write_text"]


def cache_folder(*parts: str, root: str | Path | None = None) -> Path:
    """``root`` (default: $XDG_CACHE_HOME/expost or ~/.cache/expost) / parts, created if missing."""
    base = Path(root) if root is not None else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "expost"
    folder = base.joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the cache folder {folder} cannot be made ({error.strerror}): set XDG_CACHE_HOME to a folder that can be written"
        ) from None
    return folder


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds, remove it if not."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"{path} cannot be written, because {path.parent} is a file: choose another folder") from None
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".tmp{path.suffix}", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_text(path: str | Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """The JSON of a file; ``ValueError`` in one sentence naming ``what`` if it is missing, truncated or foreign."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: {what} is missing, check the folder") from None
    except (ValueError, RecursionError):  # no JSON, no text, numbers of thousands of digits, nested thousands deep
        raise ValueError(f"{path} is damaged or is not {what}: restore it from a copy, or make it again") from None


def save_tensors(path: str | Path, tensors: dict[str, Tensor], meta: dict[str, Any] | None = None) -> None:
    """Tensors and JSON metadata in one safetensors file."""
    from safetensors.torch import save_file

    owned: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        owned[name] = value.clone() if place in storages else value  # safetensors refuses tied weights: each name gets its own copy
        storages.add(place)
    with atomic(path) as temporary:
        save_file(owned, temporary, {"expost": json.dumps(meta or {})})


def load_tensors(path: str | Path, what: str, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save_tensors` wrote; ``ValueError`` in one sentence naming ``what`` if the file is missing, truncated or foreign."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: {what} is missing, check the folder")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = file.metadata() or {}
            if "expost" not in header:
                raise ValueError(f"{path} was not written by expost (no expost header): it is not {what}")
            return {k: file.get_tensor(k) for k in file.keys()}, json.loads(header["expost"])  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is truncated or is not {what} ({type(error).__name__}): restore it from a copy, or make it again"
        ) from None
