"""SHA-256 of tensors: what extractors are named by and what cached features and classifiers are filed under."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["content_hash", "file_name", "state_hash"]


def content_hash(*tensors: Tensor) -> str:
    """SHA-256 (64 hexadecimal digits) of dtypes, shapes and values, in order; wherever the tensors lie and however they are strided."""
    digest = hashlib.sha256()
    for tensor in tensors:
        _add(digest, "", tensor)
    return digest.hexdigest()


def state_hash(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """12 hexadecimal digits of the SHA-256 of named tensors and of a configuration that JSON can express."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(state):
        _add(digest, name, state[name])
    return digest.hexdigest()[:12]


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
    values = tensor.detach().cpu().contiguous().reshape(-1)
    if values.numel():
        digest.update(values.view(torch.uint8).numpy().data)


def file_name(*parts: str) -> str:
    """Parts joined by ``-`` into the name of a safetensors file, unusual characters replaced."""
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part) for part in parts) + ".safetensors"
