"""``--set a.b=v``: replace one field of nested frozen dataclasses, with a sentence for every way to get it wrong."""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from expost.system.hashes import stable_repr
from expost.system.schema import check_value, declared

__all__ = ["apply", "parse", "replace_path"]


def parse(assignment: str) -> tuple[str, Any]:
    """``"objective.beta=0.02"`` -> ("objective.beta", 0.02); values are Python literals, anything else is text."""
    path, sign, text = assignment.partition("=")
    path = path.strip()
    if not sign or not path:
        raise ValueError(f'cannot read "{assignment}": settings are written as --set name=value, e.g. --set objective.beta=0.02')
    text = text.strip()
    try:
        return path, ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return path, text


def replace_path(value: Any, path: str, new: Any, whole: str | None = None) -> Any:
    """A copy of a frozen dataclass with the field at ``path`` replaced."""
    whole = whole or path
    head, _, rest = path.partition(".")
    if isinstance(value, tuple) and head.isdigit() and int(head) < len(value):
        i = int(head)
        return (*value[:i], replace_path(value[i], rest, new, whole) if rest else new, *value[i + 1 :])
    names = [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    if head not in names:
        close = difflib.get_close_matches(head, names, 1)
        hint = f'did you mean "{close[0]}"?' if close else (f"it has {', '.join(names)}" if names else "it has no settings")
        raise ValueError(f'there is no setting "{whole}": {type(value).__name__} has no "{head}", {hint}')
    old = getattr(value, head)
    if rest:
        return dataclasses.replace(value, **{head: replace_path(old, rest, new, whole)})
    annotation = declared(type(value))[head]
    return dataclasses.replace(value, **{head: check_value(_read(new, old, annotation, whole), annotation, f'the setting "{whole}"')})


def _read(new: Any, old: Any, annotation: Any, whole: str) -> Any:
    """What a text on the command line stands for where texts are declared as lists, or objects are."""
    if get_origin(annotation) is tuple and isinstance(new, str) and isinstance(old, tuple) and all(isinstance(o, str) for o in old):
        return tuple(part.strip() for part in new.split(","))
    if not dataclasses.is_dataclass(old) or isinstance(new, type(old)):
        return new
    makers: dict[str, Any] = {
        c.__name__.lower(): c for c in get_args(annotation) if isinstance(c, type) and dataclasses.is_dataclass(c) and not _needed(c)
    }
    if isinstance(new, str) and new.lower() in makers:
        return makers[new.lower()]()
    inside = ", ".join(f"{whole}.{f.name}" for f in dataclasses.fields(old))
    ways = [f"choose {', '.join(makers)}"] * bool(makers) + [f"set its parts ({inside})"] * bool(inside)
    raise ValueError(f'the setting "{whole}" is now {stable_repr(old)}, not a value: {", or ".join(ways) or "make another in Python"}')


def _needed(cls: Any) -> bool:
    """Whether a dataclass has fields without a default."""
    missing = dataclasses.MISSING
    return any(f.default is missing and f.default_factory is missing for f in dataclasses.fields(cls))


def apply(value: Any, assignments: Mapping[str, Any]) -> Any:
    for path, new in assignments.items():
        value = replace_path(value, path, new)
    return value
