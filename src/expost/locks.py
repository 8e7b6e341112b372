"""One process writes to a run at a time: a lock on the run's folder, which the system releases when its holder ends, however it ends.

A training holds it from its beginning to its end (:func:`hold`); whoever adds a result, a density or pictures to the folder takes it for that
moment and waits for others who do (:func:`writing`). Reading needs no lock: files are whole or absent.

The lock is ``flock`` on a file in the folder, so it works between processes of one machine and, where the file system passes locks on (NFS
since Linux 2.6.12, Lustre and GPFS as they are usually mounted), between the nodes of a cluster. A killed holder leaves a file but no lock,
hence there are no stale locks to recognise. The file's content says who holds it, for people. It is taken without waiting and asked who holds
it without taking it; ``filelock`` does neither, and leaves its file behind.
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

from expost.schema import printable

__all__ = ["Locked", "hold", "holder", "trainer", "training", "writing"]

NAME = "training.lock"
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
    """Hold the lock of a folder for a moment, waiting for others who do; whoever holds it already just goes on.

    Raises:
        Locked: a training holds it, or somebody else for longer than ``wait`` seconds.
    """
    if _key(folder) in getattr(_own, "folders", ()):
        yield
        return
    end, pause = time.monotonic() + wait, 0.001
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(_held(folder, "written to"))
                break
            except Locked as error:
                if "being trained" in str(error) or time.monotonic() > end:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
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
    path = folder / NAME
    handle, locks = _take(path)
    key = _key(folder)
    try:
        with suppress(OSError):  # on a full disk the lock holds as well without a word of whose it is
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "what": what}).encode(), 0)
        _own.folders = {*getattr(_own, "folders", ()), key}
        yield locks
    finally:
        _own.folders = {*getattr(_own, "folders", ())} - {key}
        path.unlink(missing_ok=True)  # while it is held: whoever waits on this file finds that it is no longer the one of that name
        os.close(handle)


def _take(path: Path) -> tuple[int, bool]:
    """A descriptor that holds the lock of the file which now has this name."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locks = _flock(handle)
            if not locks or _same(handle, path):
                return handle, locks
        except BlockingIOError:
            os.close(handle)
            who, what = _who(path)
            raise Locked(f"{path.parent} is being {what} by {who}: wait for it, or stop it") from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _same(handle: int, path: Path) -> bool:
    """Whether the open file still has this name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _flock(handle: int, *, shared: bool = False) -> bool:
    """Lock without waiting; false where there are no locks, ``BlockingIOError`` if another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in WITHOUT:
            return False
        raise
    return True


def holder(folder: Path) -> str | None:
    """Who trains the run in this folder, e.g. ``"process 4711 on node3"``, or None."""
    path = folder / NAME
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:  # no file: nobody; one that may not be opened is the training's to complain about
        return None
    try:
        _flock(handle, shared=True)
    except BlockingIOError:
        return _who(path)[0]
    finally:
        os.close(handle)
    return None


def trainer(folder: Path) -> str | None:
    """Who else trains the run in this folder, or None."""
    if _key(folder) in getattr(_own, "folders", ()) or holder(folder) is None:
        return None
    who, what = _who(folder / NAME)
    return who if what == "trained" else None


def _who(path: Path) -> tuple[str, str]:
    """Who holds the lock, and what is being done; older versions did not write the latter, since they only trained."""
    try:
        known = json.loads(path.read_text())
        return f"process {known['pid']} on {printable(str(known['host']))}", "written to" if known.get(
            "what"
        ) == "written to" else "trained"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "another process", "written to"  # it may just be about to say
