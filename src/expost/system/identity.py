"""Texts that name a configuration: the same in every process, unlike ``repr``, which prints addresses of functions."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

__all__ = ["experiment_name", "stable_repr", "timeless"]


def experiment_name(text: str, data_hash: str, seed: int) -> str:
    """Eight hexadecimal digits that name an experiment (its :func:`stable_repr`, :func:`timeless`) on data, from a seed."""
    return hashlib.sha256(f"{text} {data_hash} {seed}".encode()).hexdigest()[:8]


def timeless(text: str) -> str:
    """A :func:`stable_repr` of settings without what changes no result: time limits and intervals of writing, at their defaults."""
    for name, default in (("minutes", "None"), ("checkpoint_every", "30.0")):
        text = re.sub(rf"(?<=[(, ]){name}=[^,()]*", f"{name}={default}", text)
    return text


def stable_repr(value: Any) -> str:
    """Dataclasses by their fields, functions by their qualified names, modules by their structure, the rest by ``repr``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = ", ".join(f"{f.name}={stable_repr(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{type(value).__name__}({inside})"
    if isinstance(value, nn.Module):
        return str(value)
    if isinstance(value, partial):
        return f"partial({stable_repr(value.func)}, {stable_repr(value.args)}, {stable_repr(value.keywords)})"
    if isinstance(value, type) or callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(stable_repr, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {stable_repr(v)}' for k, v in sorted(value.items()))}}}"
    return repr(value)
