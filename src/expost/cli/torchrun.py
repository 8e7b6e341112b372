"""Commands under ``torchrun --nproc-per-node N -m expost ...``.

torchrun reads ``--n`` as an abbreviation of its own ``--nnodes`` and others, even after ``-m expost``: write ``-n``, or ``-m -- expost ...``.

Some share their work among the processes (:class:`Shared`: train, evaluate, compare). Every other command is the main process's alone, which
then knows nothing of the others, and these end at once. Either way a command prints once, writes once and fails once: the main process
prints, and of those that fail the first says why.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

__all__ = ["Shared", "is_main", "quiet_elsewhere", "run_command", "speaks"]


#: How many commands this process has run: every process counts alike.
_count = 0


class Shared(ABC):
    """A command that several processes run together; ``shared(main)`` is told whether this one prints and writes."""

    def run(self) -> None:
        self.shared(is_main())

    @abstractmethod
    def shared(self, main: bool) -> None: ...


def world() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_main() -> bool:
    """Whether this process prints and writes."""
    return world() < 2 or os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def quiet_elsewhere(*, errors: bool = False) -> Iterator[None]:
    """In all processes but the main one, drop what is printed; ``errors``: what goes to stderr too."""
    if is_main():
        yield
        return
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        if errors:
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def run_command(command: Any) -> None:
    """Run a command here, with the other processes if it shares its work, without them if not."""
    global _count
    _count += 1
    if world() < 2:
        command.run()
    elif isinstance(command, Shared):
        from expost.system.processes import join, leave

        join()
        with quiet_elsewhere():
            command.run()
        atexit.register(leave)  # not after a failure: the others may be gone
    elif is_main():
        with _alone():
            command.run()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Without torchrun's word that there are other processes, for everything that would wait for them, and for what is started from here."""
    names = [name for name in os.environ if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def speaks(command: Any, error: BaseException) -> bool:
    """Whether this process says what went wrong: the first that fails does, and those that end because of it are silent."""
    if world() < 2 or not isinstance(command, Shared):
        return is_main()
    from datetime import timedelta

    from torch.distributed import PrefixStore, rendezvous

    from expost.system.processes import OtherFailed

    if isinstance(error, OtherFailed):
        return False
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=20)))
        return PrefixStore("expost", store).add(f"failures of command {_count}", 1) == 1
    except Exception:  # the process that holds the store is gone: it failed first
        return is_main()
