"""What was measured is remembered under what it depends on: :func:`remember`, the only cache of measurements.

A value is filed under its key and under the *code* that makes it: the syntax trees, without comments and docstrings, of the maker's module and of all
modules of this package that it imports, directly or through others, inside functions too. Whoever changes a metric, a density or a decoder
therefore measures again, wherever the change was made; whoever changes a comment does not. Modules that only speak or draw are left out
(:data:`SPEAKING`).

Three kinds of things are not kept here. Trained runs and classifiers are filed under experiment, data and seed: training again takes hours,
and ``recipe.json`` says what code it was. Decoded images are filed under their files. Verdicts are not kept at all.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from torch import Tensor

from expost.system.files import cached, load_tensors, read_signed, save_tensors, write_signed
from expost.system.processes import Processes
from expost.system.schema import convert

__all__ = ["SPEAKING", "Sources", "Tensors", "code_hash", "remember"]

T = TypeVar("T")
#: A value that is kept as a safetensors file; all others are JSON.
Tensors = dict[str, Tensor]

#: A module that imports others by walking folders, and which (a pattern of files): no import of theirs stands in its source.
WALKING = ("runs.discovery", "papers/*/models.py")
#: Modules (and what is inside them) that change no number.
SPEAKING = ("cli", "interrupt", "progress", "report", "trackers")


class _Module(NamedTuple):
    """A module as its source says: a hash of what it does, and the names that it imports."""

    digest: str
    imports: tuple[tuple[str, str | None], ...]
    """(module, name in it or None)"""


class Sources:
    """The modules of a package as they lie on the disk, without importing them.

    Args:
        root: folder of the package; default, this one.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(__file__).parents[1] if root is None else root
        self.package = self.root.name
        self._modules: dict[str, _Module | None] = {}

    def module(self, name: str) -> _Module | None:
        """A module of the package by its dotted name; None if there is none."""
        if name not in self._modules:
            within = self.root.joinpath(*name.split(".")[1:])
            files = [within / "__init__.py", within.with_suffix(".py")] if name.split(".")[0] == self.package else []
            file = next((f for f in files if f.is_file()), None)
            self._modules[name] = None if file is None else _parsed(file.read_text(encoding="utf-8"), self.package)
        return self._modules[name]

    def reached(self, names: Iterable[str]) -> dict[str, str]:
        """The modules of these names and those that they import, directly or through others, but for :data:`SPEAKING`: name -> hash."""
        found: dict[str, str] = {}
        speaking = tuple(f"{self.package}.{name}" for name in SPEAKING)
        left = list(names)
        while left:
            name = left.pop()
            module = self.module(name)
            if module is None or name in found or name.startswith(tuple(f"{s}." for s in speaking)) or name in speaking:
                continue
            found[name] = module.digest
            left += self.imported(name)
            if name == f"{self.package}.{WALKING[0]}":
                left += (".".join((self.package, *f.relative_to(self.root).with_suffix("").parts)) for f in self.root.glob(WALKING[1]))
        return found

    def imported(self, name: str) -> set[str]:
        """The modules of the package that one of them imports itself."""
        module = self.module(name)
        return {target for where, what in module.imports for target in self._target(where, what)} if module is not None else set()

    def _target(self, where: str, what: str | None) -> Iterator[str]:
        """The module that an import of ``what`` from ``where`` needs: a module, or the one in which a package's name is defined."""
        if what is not None and self.module(f"{where}.{what}") is not None:
            yield f"{where}.{what}"
            return
        package = self.module(where) if what is not None and (self.root.joinpath(*where.split(".")[1:]) / "__init__.py").is_file() else None
        sources = [(m, n) for m, n in package.imports if n == what] if package is not None else []
        if sources:
            for source, name in sources:
                yield from self._target(source, name)
        else:
            yield where

    def hash(self, names: Iterable[str]) -> str:
        """16 hexadecimal digits that name the code of these modules and of all that they import."""
        return hashlib.sha256(json.dumps(sorted(self.reached(names).items())).encode()).hexdigest()[:16]


@cache
def _parsed(source: str, package: str) -> _Module:
    """Docstrings, and imports that are for type checkers only, do not count."""
    tree, imports = ast.parse(source), dict[tuple[str, str | None], None]()
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
        elif isinstance(node, ast.Import):
            imports |= dict.fromkeys((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            imports |= dict.fromkeys((node.module, alias.name) for alias in node.names)
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [
                n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) and isinstance(n.value.value, str))
            ]
        if not isinstance(node, ast.expr):  # no expression holds a statement
            left += ast.iter_child_nodes(node)
    own = tuple(i for i in imports if i[0].split(".")[0] == package)
    return _Module(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), own)


@cache
def _installed() -> Sources:
    """This package, as it was when first asked: what runs does not change any more."""
    return Sources()


@cache
def code_hash(*modules: str) -> str:
    """16 hexadecimal digits that name the code of modules and of all of this package that they import.

    A module of another package, such as a user's, counts with its own source, and with what it imports of this one.
    """
    ours, theirs = [name for name in modules if _installed().module(name)], [name for name in modules if not _installed().module(name)]
    foreign = []
    for name in theirs:
        try:
            module = _parsed(inspect.getsource(sys.modules[name]), _installed().package)
        except (OSError, TypeError, KeyError, SyntaxError):  # typed in, or compiled
            continue
        foreign.append(module.digest)
        ours += (target for where, what in module.imports for target in _installed()._target(where, what))
    code = _installed().hash(ours)
    return hashlib.sha256(" ".join([code, *foreign]).encode()).hexdigest()[:16] if foreign else code


def _home(made: Any) -> str:
    """The module in which a function, a class or the class of a value was written."""
    while isinstance(made, partial):
        made = made.func
    return cast(str, getattr(made, "__module__", None) or type(made).__module__)


def _place(folder: Path, name: str, code: tuple[Any, ...], key: tuple[Any, ...], kind: Any) -> Path:
    """Where a value lies. Of one key there is one file, whatever the code was."""
    said = hashlib.sha256(json.dumps([name, *key], sort_keys=True).encode()).hexdigest()[:16]
    by = code_hash(*sorted({_home(c) for c in code}))
    return folder / f"{name}-{said}-{by[:12]}.{'safetensors' if kind is Tensors else 'json'}"


def _read(kind: type[T], path: Path) -> T:
    if kind is Tensors:
        return cast(T, load_tensors(path, "remembered numbers")[0])
    value = read_signed(path, "remembered figures", "delete it", dict[str, Any], always=True)["value"]
    convert(value, kind, str(path))
    return cast(T, value)


def remember(
    folder: Path,
    name: str,
    make: Callable[[], T],
    *key: Any,
    kind: type[T],
    code: tuple[Any, ...] = (),
    enough: Callable[[T], bool] = lambda found: True,
) -> T:
    """What was made before under the same key by the same code, or what is made now and kept for the next time.

    Args:
        folder: where values lie; what cannot be written there costs a warning.
        name: what it is, as the beginning of a file's name, e.g. ``scores``.
        make: makes the value. The code that counts is that of the module in which it is written.
        key: JSON values that name all data, settings and weights that the value depends on.
        kind: declared type of the value: :data:`Tensors`, or of what JSON can express, e.g. a TypedDict.
        code: functions, classes or instances whose modules count too, e.g. an extractor that was given.
        enough: whether a value that was kept will do; otherwise what is made now takes its place.

    In several processes all of them use what is kept, or all make it and the main one keeps it.
    """
    path, processes = _place(folder, name, (make, *code), key, kind), Processes()

    def read(file: Path) -> T | None:
        found = _read(kind, file)
        return found if enough(found) else None

    def write(file: Path, made: T) -> None:
        if kind is Tensors:
            save_tensors(file, cast(Tensors, made))
        else:
            write_signed(file, {"key": list(key), "value": made})
        head = file.name.rpartition("-")[0]
        for other in file.parent.glob(f"{head}-*"):  # by other code
            if other != file and len(other.name) == len(file.name):
                other.unlink(missing_ok=True)

    return cached(path, read, make, write, agreed=processes.agreed, main=processes.rank == 0)
