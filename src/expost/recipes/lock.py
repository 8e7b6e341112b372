"""One process trains a run at a time: a lock on the run's folder, which the system releases when its holder ends, however it ends.

The lock is ``flock`` on a file in the folder, so it works between processes of one machine and, where the file system passes locks on (NFS
since Linux 2.6.12, Lustre and GPFS as they are usually mounted), between the nodes of a cluster. A killed holder leaves a file but no lock,
hence there are no stale locks to recognise. The file's content says who holds it, for people.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Locked", "hold", "holder"]

NAME = "training.lock"
#: What a file system without locks answers.
WITHOUT = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class Locked(ValueError):
    """Another process trains this run."""


@contextmanager
def hold(folder: Path) -> Iterator[bool]:
    """Hold the lock of a run's folder, which is made if missing; yields whether the file system has locks at all.

    Raises:
        Locked: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    handle, locks = _take(path)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield locks
    finally:
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
            raise Locked(f"{path.parent} is being trained by {_who(path)}: wait for it, or stop it") from None
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
        return _who(path)
    finally:
        os.close(handle)
    return None


def _who(path: Path) -> str:
    try:
        known = json.loads(path.read_text())
        return f"process {known['pid']} on {known['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
