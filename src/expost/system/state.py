"""How far the run in a folder is: what ``state.json`` says, which whoever trains it writes before and after.

=========  =================================================================================================================
new        nothing is there that was trained
planned    described, but not one step has succeeded yet; a start that fails removes what it made
running    being trained now
stopped    interrupted, out of time, or killed: goes on from its checkpoint
finished   trained to its end
failed     its loss was not finite: the weights are the last good ones, and training it again would end the same way
=========  =================================================================================================================
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["FailedRun", "Note", "State", "StateName", "Unfinished", "check_folder", "leaving_nothing", "made"]

StateName = Literal["new", "planned", "running", "stopped", "finished", "failed"]


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        name: one of the six.
        at: where its training is, e.g. ``"epoch 18.9 of 23"``.
        why: why it stopped: ``"time"``, ``"interrupted"``, ``"early stop"``, or a sentence.
    """

    name: StateName
    at: str = ""
    why: str = ""

    @property
    def begun(self) -> bool:
        """Whether something was trained that must not be lost."""
        return self.name not in ("new", "planned")


class FailedRun(ValueError):
    """A run whose training failed: nothing can be done with it; exit status 1."""

    status = 1


class Note(UserWarning):
    """What a user should know and need not act upon: a warning in Python, a line that begins with "note:" on the command line."""


class Unfinished(Note):
    """A run is used before its training has ended."""


def check_folder(folder: Path, *own: str, what: str = "run") -> None:
    """``ValueError`` unless a command may write its files into this folder: it is new, empty, or holds one of ``own`` already.

    Args:
        what: what the command makes, for the sentence.
    """
    if any((folder / name).exists() for name in own):
        return
    if not folder.name:  # what an empty text becomes
        raise ValueError(f"the {what} needs a folder of its own: give its name with --out, e.g. --out runs/a")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        kind = "is not empty and holds no" if folder.is_dir() else "is a file and no folder of a"
        raise ValueError(f"{folder} {kind} {what}: choose another --out, so that nothing is written among other files")


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """A folder that is new and empty after the block is removed again, and so are those above it."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        with suppress(OSError):  # not empty
            for path in new:
                path.rmdir()


@contextmanager
def leaving_nothing(folder: Path, begun: Callable[[], bool]) -> Iterator[None]:
    """If the block fails before the run has begun, everything that it made in the folder is removed; to be used under the folder's lock."""
    before = set(folder.iterdir())
    try:
        yield
    except BaseException:
        if not begun():
            for path in set(folder.iterdir()) - before:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        raise
