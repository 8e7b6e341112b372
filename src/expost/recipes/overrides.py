"""``--set a.b=v``: replace one field of nested frozen dataclasses, with a sentence for every way to get it wrong."""

from __future__ import annotations

import ast
import dataclasses
import difflib
from typing import Any

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
    if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        new = float(new)
    if old is not None and isinstance(old, int | float) and (isinstance(new, str) or isinstance(new, bool) != isinstance(old, bool)):
        raise ValueError(f'the setting "{whole}" is a number ({old}), not {new!r}')
    return dataclasses.replace(value, **{head: new})


def apply(value: Any, assignments: dict[str, Any]) -> Any:
    for path, new in assignments.items():
        value = replace_path(value, path, new)
    return value
