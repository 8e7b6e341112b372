"""``package.module:name``: a user's own code, named on the command line and in the folders of wrapped models.

Naming code is running it: the module is imported and the function called, as ``python -m package.module`` would, with the current folder
on the import path. Nothing is imported that the user cannot import themselves; a folder from elsewhere brings names, never code.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from expost.adapt.modules import Method, halves
from expost.checkpoint import load_weights

__all__ = ["load_pair_weights", "module_of", "pair_of", "resolve"]


def resolve(reference: str) -> Any:
    """The object that ``package.module:name`` names.

    >>> resolve("math:pi")
    3.141592653589793
    """
    module, _, name = reference.partition(":")
    if not module or not name or not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise ValueError(f'cannot read "{reference}": write package.module:function')
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        raise ValueError(
            f"{module} cannot be imported ({type(error).__name__}: {error}): run expost in the folder that holds it, or install it"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f'{module} has no "{name}": name a function in it that returns the networks')
        found = getattr(found, part)
    return found


def pair_of(reference: str) -> tuple[nn.Module, nn.Module]:
    """(encoder, decoder) from a function without arguments that returns both, or a module that holds both (see :func:`halves`)."""
    made = _call(resolve(reference), reference, None)
    if isinstance(made, nn.Module):
        return halves(made)
    if isinstance(made, tuple | list) and len(made) == 2 and all(isinstance(m, nn.Module) for m in made):
        return made[0], made[1]
    raise ValueError(f"{reference} returns {type(made).__name__}: let it return (encoder, decoder), two nn.Modules, or one that holds both")


def module_of(reference: str, config: Mapping[str, Any]) -> nn.Module:
    """A module from a class or function without arguments, or with one: the configuration, whose entries are its attributes."""
    made = _call(resolve(reference), reference, config)
    if not isinstance(made, nn.Module):
        raise ValueError(f"{reference} returns {type(made).__name__}: let it return an nn.Module")
    return made


def _call(found: Any, reference: str, config: Mapping[str, Any] | None) -> Any:
    if isinstance(found, nn.Module) or not callable(found):
        return found
    try:
        parameters = inspect.signature(found).parameters.values()
        wanted = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(wanted) == 1 and config is not None:
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
            return found(SimpleNamespace(**values))
        return found()
    except Exception as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"{reference}() fails ({type(error).__name__}: {said[:200]}): it must build the networks without arguments"
        ) from error


def load_pair_weights(encoder: nn.Module, decoder: nn.Module, file: str | Path) -> None:
    """Load a safetensors file whose names begin with ``encoder.`` and ``decoder.``, or are those of the one module that holds both."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(file)
    if not file.is_file():
        raise ValueError(f"{file} does not exist: check the path of the weights")
    try:
        state: dict[str, Tensor] = load_file(file)
    except (SafetensorError, OSError):
        raise ValueError(
            f"{file} is no safetensors file: save the weights with safetensors.torch.save_file(model.state_dict(), path)"
        ) from None
    if isinstance(encoder, Method) and isinstance(decoder, Method) and encoder.module is decoder.module:
        load_weights(encoder.module, state, str(file))
        return
    parts = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    load_weights(parts, state, str(file))
