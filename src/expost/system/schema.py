"""Declared types, checked: of settings made in Python or on a command line, and of what files say.

The declaration is the annotation, with its range: ``lr: Annotated[float, Meta(gt=0)]``. :class:`Checked` is the base of frozen dataclasses
whose fields are checked when they are made; :func:`parse` and :func:`convert` check the JSON of a file against a dataclass or a
``TypedDict`` before anything is made of it. msgspec does the work: strict about types (no ``True`` for 1, no 2.5 for a whole number), it
imports in milliseconds, needs no other package, and stops at the first difference, so a hostile file costs no more than its own size.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Meta

__all__ = ["Checked", "Count", "Meta", "check_counts", "check_value", "convert", "declared", "parse", "printable"]

T = TypeVar("T")
Count = Annotated[int, Meta(ge=1)]


@dataclasses.dataclass(frozen=True)
class Checked:
    """Base of frozen dataclasses: every field is held against its annotation when an instance is made.

    Whole numbers become floats where floats are declared, lists become tuples; anything else that differs is a ``ValueError`` that names the
    field and says what it may be. Numbers must be finite.
    """

    def __post_init__(self) -> None:
        check_fields(self)


def check_fields(made: Any, called: Callable[[str], str] = str) -> None:
    """Hold every field of a dataclass's instance against its annotation; ``called`` gives the name by which its user knows a field."""
    for name, annotation in declared(type(made)).items():
        value = getattr(made, name)
        checked = check_value(value, annotation, called(name))
        if checked is not value:
            object.__setattr__(made, name, checked)


def declared(cls: Any) -> dict[str, Any]:
    """The annotations of a dataclass's fields, resolved, ranges included."""
    if cls not in _DECLARED:
        hints = typing.get_type_hints(cls, include_extras=True)
        _DECLARED[cls] = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    return _DECLARED[cls]


_DECLARED: dict[Any, dict[str, Any]] = {}


def check_value(value: Any, annotation: Any, name: str) -> Any:
    """The value, converted where that loses nothing, or ``ValueError``: one sentence with what ``name`` may be."""
    try:
        return _fitted(value, annotation)
    except _Unfit:
        shown = f'"{printable(value)}"' if isinstance(value, str) else repr(_plain(value))
        raise ValueError(f"{name} must be {describe(annotation)}, not {shown if len(shown) <= 80 else type(value).__name__}") from None


class _Unfit(Exception):
    """The value does not fit the annotation."""


def _fitted(value: Any, annotation: Any) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return value
    if origin in (Union, types.UnionType):
        for option in arguments:
            try:
                return _fitted(value, option)
            except _Unfit:
                continue
        raise _Unfit
    if origin is tuple and isinstance(value, tuple | list):
        inside = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(inside) != len(value):
            raise _Unfit
        return tuple(_fitted(v, a) for v, a in zip(value, inside, strict=True))
    kind = origin if origin in (Callable, type) else annotation
    if isinstance(kind, type) and kind not in (bool, int, float, str):  # classes, functions, types themselves
        if isinstance(value, kind):
            return value
        raise _Unfit
    try:
        fitted = msgspec.convert(_plain(value), annotation)
    except (msgspec.ValidationError, OverflowError):
        raise _Unfit from None
    if isinstance(fitted, float) and not math.isfinite(fitted):
        raise _Unfit
    return fitted


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value


def check_counts(**counts: Any) -> None:
    """``ValueError`` unless every one is a whole number of at least 1; it begins with the name."""
    for name, value in counts.items():
        check_value(value, Count, name)


def describe(annotation: Any) -> str:
    """An annotation in words: "a whole number of at least 1", "adam, adamw or amsgrad"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _either([describe(a) for a in arguments])
    if annotation in (None, type(None)):
        return "none"
    if origin is Literal:
        return _either([str(a) for a in arguments])
    if origin is Annotated:
        limits = [_limits(meta) for meta in arguments[1:] if isinstance(meta, Meta)]
        return " ".join([describe(arguments[0]), *filter(None, limits)])
    if origin is tuple:
        if arguments[1:] == (...,):
            return f"a list, each {describe(arguments[0])}"
        return f"{len(arguments)} values ({', '.join(describe(a) for a in arguments)})"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if annotation in words:
        return words[annotation]
    name = getattr(annotation, "__name__", str(annotation))
    return "a function" if "Callable" in str(annotation) else f"of type {name}, made in Python"


def _limits(meta: Meta) -> str:
    low = f"of at least {meta.ge}" if meta.ge is not None else f"above {meta.gt}" if meta.gt is not None else ""
    high = f"at most {meta.le}" if meta.le is not None else f"below {meta.lt}" if meta.lt is not None else ""
    return " and ".join(filter(None, (low, high)))


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def parse(text: bytes | str, kind: type[T], what: str) -> T:
    """JSON text as a ``kind`` (a dataclass, ``TypedDict`` or ``msgspec.Struct``); ``ValueError`` in one sentence that begins with ``what``.

    Unknown fields are passed over (a newer version may write more); missing, mistyped and out-of-range ones are named with their place.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{what} ({_said(error)})") from None


def convert(value: Any, kind: type[T], what: str) -> T:
    """What JSON already gave, as a ``kind``; as :func:`parse`."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise ValueError(f"{what} ({_said(error)})") from None


def _said(error: Exception) -> str:
    """msgspec's sentence ("Expected `int`, got `str` - at `$.seed`") in ours: "seed: expected int, got str"."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    said, _, place = printable(" ".join(str(error).split()), 300).replace("`", "").partition(" - at $")
    said = said if said.startswith("JSON") else said[:1].lower() + said[1:]
    missing = said.removeprefix("object missing required field ")
    if missing != said:
        return f"no {'.'.join(filter(None, (place.lstrip('.'), missing)))}"
    return f"{place.lstrip('.')}: {said}" if place else said


_UNSEEN = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
)  # letters and marks without ink; Unicode's other unseen characters are no letters


def printable(text: str, most: int = 120) -> str:
    r"""Text from a file as it may reach a terminal: on one line, at most about ``most`` characters, the rest of them counted.

    Whatever moves the cursor, colours, hides or reorders (control characters, line ends, zero-width and bidirectional marks, surrogates) is
    written out, ``\x1b`` for ESC.

    >>> printable("run\x1b[2Ka")
    'run\\x1b[2Ka'
    >>> printable("ab" * 50, 3)
    'aba... (97 more)'
    """
    shown = "".join(c if c.isprintable() and c not in _UNSEEN else ascii(c)[1:-1] for c in text[:most])
    return shown if len(text) <= most else f"{shown}... ({len(text) - most} more)"
