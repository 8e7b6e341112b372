"""One process writes to a run at a time: a lock on the run's folder, which the system releases when its holder ends, however it ends.

A training holds it from its beginning to its end (:func:`hold`); whoever adds a result, a density or pictures to the folder takes it for that
moment and waits for others who do (:func:`writing`). Reading needs no lock: files are whole or absent.

The lock is ``filelock``'s on a file in the folder (``flock``, or its like on Windows), so it works between processes of one machine and, where
the file system passes locks on (NFS since Linux 2.6.12, Lustre and GPFS as they are usually mounted), between the nodes of a cluster. A killed
holder leaves a file but no lock, hence there are no stale locks to recognise. The file's content says who holds it, for people.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from expost.system.schema import printable

__all__ = ["Locked", "hold", "holder", "trainer", "training", "writing"]

NAME = "training.lock"
#: Seconds for which a lock is waited for: as long as others may take it to ask whether anybody holds it, and longer.
GLIMPSE = 0.2
#: What a file system without locks answers.
WITHOUT = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


#: Folders that this thread holds, by their real path; a forked child holds none.
_own = threading.local()


class Locked(ValueError):
    """Another process writes to this run."""


@contextmanager
def hold(folder: Path) -> Iterator[bool]:
    """Hold the lock of a run's folder, which is made if missing; yields whether the file system has locks at all.

    Raises:
        Locked: another process holds it.
    """
    with _held(folder, "trained") as locks:
        yield locks


@contextmanager
def writing(folder: Path, *, wait: float = 60.0) -> Iterator[None]:
    """Hold the lock of a folder, or of the run in which it lies, for a moment, waiting for others who do; whoever holds it already just goes on.

    Raises:
        Locked: a training holds it, or somebody else for longer than ``wait`` seconds.
    """
    folder = next((path for path in (folder, *folder.parents) if (path / "recipe.json").is_file()), folder)
    if _key(folder) in getattr(_own, "folders", ()):
        yield
        return
    end = time.monotonic() + wait
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(_held(folder, "written to"))
                break
            except Locked as error:
                if "being trained" in str(error) or time.monotonic() > end:
                    raise
        yield


@contextmanager
def training(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder for a training; whoever holds it already (a sweep's worker, a recipe around ``fit``) just goes on."""
    if _key(folder) in getattr(_own, "folders", ()):
        yield
        return
    with hold(folder):
        yield


def _key(folder: Path) -> tuple[int, str]:
    return os.getpid(), os.path.realpath(folder)


@contextmanager
def _held(folder: Path, what: str) -> Iterator[bool]:
    folder.mkdir(parents=True, exist_ok=True)
    lock, key = _lock(folder), _key(folder)
    locks = _taken(lock)
    if locks is None:
        who, doing = _who(folder)
        raise Locked(f"{folder} is being {doing} by {who}: wait for it, or stop it")
    try:
        with suppress(OSError):  # on a full disk, and on Windows, the lock holds as well without a word of whose it is
            (folder / NAME).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "what": what}))
        _own.folders = {*getattr(_own, "folders", ()), key}
        yield locks
    finally:
        _own.folders = {*getattr(_own, "folders", ())} - {key}
        _give_back(lock)


def _lock(folder: Path) -> FileLock:
    return FileLock(folder / NAME, fallback_to_soft=False)


def _taken(lock: FileLock) -> bool | None:
    """Take a lock: true; false where the file system has none, None if another has it."""
    try:
        lock.acquire(timeout=GLIMPSE, poll_interval=0.01)
    except Timeout:
        return None
    except OSError as error:
        if error.errno in WITHOUT:
            return False
        raise
    return True


def _give_back(lock: FileLock) -> None:
    """Release a lock and remove its file while it is held: whoever waits on this file finds that it is no longer the one of that name."""
    with suppress(OSError):  # Windows keeps the file of a lock that is held
        os.unlink(lock.lock_file)
    lock.release()


def holder(folder: Path) -> str | None:
    """Who trains the run in this folder, or writes to it, e.g. ``"process 4711 on node3"``, or None."""
    if _key(folder) in getattr(_own, "folders", ()):
        return _who(folder)[0]
    if not (folder / NAME).exists():
        return None
    lock = _lock(folder)
    try:
        locks = _taken(lock)
    except OSError:  # one that may not be opened is the training's to complain about
        return None
    if locks is None:
        return _who(folder)[0]
    lock.release()  # the file stays: it tells a folder in which a start was killed
    return None


def trainer(folder: Path) -> str | None:
    """Who else trains the run in this folder, or None."""
    if _key(folder) in getattr(_own, "folders", ()) or holder(folder) is None:
        return None
    who, what = _who(folder)
    return who if what == "trained" else None


def _who(folder: Path) -> tuple[str, str]:
    """Who holds the lock, and what is being done; older versions did not write the latter, since they only trained."""
    try:
        known = json.loads((folder / NAME).read_text())
        return f"process {int(known['pid'])} on {printable(str(known['host']))}", "written to" if known.get(
            "what"
        ) == "written to" else "trained"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "another process", "written to"  # it may just be about to say
