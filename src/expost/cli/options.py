"""Options that several commands share: ranges; dataclasses to inherit from, whose fields the command line shows among a command's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import UseAppendAction, arg

from expost.schema import Meta

__all__ = ["Count", "OpensRun", "Positive"]

#: Ranges of options, which :func:`expost.schema.check_fields` checks before a command runs.
Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]


@dataclass(kw_only=True)
class OpensRun:
    """A command that opens a run folder: nothing that the folder names is imported or called without the user's word."""

    code: Annotated[UseAppendAction[list[str]], arg(metavar="MODULE:FUNCTION")] = field(default_factory=list)
    """code that the folder of a wrapped model names and that may be run, package.module:function; may be repeated (see docs/security.md)"""
