"""``package.module:name``: a user's own code, which runs only where the user names it.

Naming code is running it: the module is imported and the function called, without arguments. A name on the command line is the user's word;
a name in a file is not, so what the folder of a wrapped model names is run only if the user names the same (:func:`allowed`), and no
content of a file is ever an argument.

The current folder is on the import path while named code is imported and called, at its end, so that nothing in it stands in for an installed
module; afterwards the path is what it was.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor, nn

from expost.adapt.modules import Method, halves
from expost.system.schema import printable
from expost.train.folder import load_weights

__all__ = ["allowed", "load_pair_weights", "module_of", "pair_of", "resolve"]

LONGEST = 200
"""Characters of a reference."""


def allowed(recorded: Sequence[str], code: str | Sequence[str], where: str) -> list[str]:
    """The user's own words for the code that a file names; ``ValueError`` with the options to add if one of them was not said.

    Args:
        recorded: references in the file.
        code: references that the user gave, equal to those that may be run.
        where: the file.

    >>> allowed(["theirs:make"], "theirs:make", "run/recipe.json")
    ['theirs:make']
    >>> allowed(["theirs:make"], (), "run/recipe.json")
    Traceback (most recent call last):
    ...
    ValueError: run/recipe.json names code, which is never run unasked: if you trust it, add --code theirs:make (in Python `code="theirs:make"`)
    """
    for name in recorded:
        if not _readable(name):
            raise ValueError(
                f'{where} names as its code "{printable(name, LONGEST)}", which is no package.module:function: wrap the model again'
            )
    given = [code] if isinstance(code, str) else list(code)
    wanted = list(dict.fromkeys(recorded))
    if not set(wanted) <= set(given):
        options = " ".join(f"--code {printable(name, LONGEST)}" for name in wanted)
        listed = ", ".join(f'"{printable(name, LONGEST)}"' for name in wanted)
        other = f", and {given[0]} is other code" if given and not set(given) & set(wanted) else ""
        raise ValueError(
            f"{where} names code, which is never run unasked{other}: if you trust it, add {options} "
            f"(in Python `code={listed if len(wanted) == 1 else f'({listed})'}`)"
        )
    return [given[given.index(name)] for name in recorded]


def _readable(reference: str) -> bool:
    module, _, name = reference.partition(":")
    return (
        bool(module and name) and len(reference) <= LONGEST and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))
    )


def resolve(reference: str) -> Any:
    """The object that ``package.module:name`` names, a name that the user gave: it is imported.

    >>> resolve("math:pi")
    3.141592653589793
    """
    with _current_folder():
        return _find(reference)


@contextmanager
def _current_folder() -> Iterator[None]:
    """The current folder at the end of the import path, where it is not on it; afterwards the path is what it was."""
    before = list(sys.path)
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


def _find(reference: str) -> Any:
    if not _readable(reference):
        raise ValueError(f'cannot read "{printable(reference)}": write package.module:function')
    module, _, name = reference.partition(":")
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module)
    except BaseException as error:
        _say(error, f"{module} cannot be imported ({{}}): run expost in the folder that holds it, or install it")
    file = getattr(found, "__file__", None)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(
                f'{module}{f" ({file})" if file else ""} has no "{name}": name a function in it that returns the networks'
                " (of two modules of one name the installed one is taken, not that of the current folder)"
            )
        found = getattr(found, part)
    return found


def _say(error: BaseException, sentence: str) -> NoReturn:
    """What named code raised, ``SystemExit`` included, as a ``ValueError``; an interrupt stays one."""
    if isinstance(error, KeyboardInterrupt):
        raise error
    said = " ".join(f"{type(error).__name__}: {error}".split())
    raise ValueError(sentence.format(printable(said, 200))) from error


def pair_of(reference: str) -> tuple[nn.Module, nn.Module]:
    """(encoder, decoder) from a function without arguments that returns both, or a module that holds both (see :func:`halves`)."""
    made = _make(reference)
    if isinstance(made, nn.Module):
        return halves(made)
    if isinstance(made, tuple | list) and len(made) == 2 and all(isinstance(m, nn.Module) for m in made):
        return made[0], made[1]
    raise ValueError(f"{reference} returns {type(made).__name__}: let it return (encoder, decoder), two nn.Modules, or one that holds both")


def module_of(reference: str) -> nn.Module:
    """A module from a class or function without arguments."""
    made = _make(reference)
    if not isinstance(made, nn.Module):
        raise ValueError(f"{reference} returns {type(made).__name__}: let it return an nn.Module")
    return made


def _make(reference: str) -> Any:
    """What named code makes without arguments; functions of C and classes of something else than modules are not called."""
    with _current_folder():
        found = _find(reference)
        if isinstance(found, nn.Module) or not callable(found):
            return found
        if inspect.isbuiltin(found) or (isinstance(found, type) and not issubclass(found, nn.Module)):
            raise ValueError(f"{reference} makes no networks: name an nn.Module, or a function that returns one")
        missing = _required(found)
        if missing:
            raise ValueError(
                f'{reference} needs "{missing}", and code is called without arguments, since nothing that stands in a file is handed to it: '
                f'give "{missing}" a default in your code, or name a function that builds the network'
            )
        try:
            return found()
        except BaseException as error:
            _say(error, f"{reference}() fails ({{}}): it must build the networks without arguments")


def _required(found: Any) -> str:
    """The first argument that cannot be left out, or nothing."""
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return ""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return next((p.name for p in parameters if p.default is p.empty and p.kind not in kinds), "")


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
