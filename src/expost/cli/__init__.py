"""The command line: ``expost COMMAND``.

Commands are dataclasses (:mod:`.commands`), their arguments are fields, their help the docstrings; what they do is imported only when they
run, so that ``expost --help`` answers at once. A user's mistake ends in one sentence on stderr and exit status 2, Ctrl-C in 130. Whoever reads
the output may stop (``| head``): the command then ends at the next thing it would print, without a word, with the status that the shell gives
to programs ended by a closed pipe.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, cast

__all__ = ["main"]

#: 128 + SIGPIPE, and 128 + SIGINT.
CLOSED, INTERRUPTED = 141, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    asked: SystemExit | None = None
    failure: OSError | None = None
    status = 0
    try:
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as end:  # of --help, and of options that cannot be read
        asked = end
    except OSError as error:
        if os.environ.get("EXPOST_TRACEBACK") and not isinstance(error, BrokenPipeError):
            raise
        failure = error
    try:  # what is still buffered would otherwise fail when Python ends, with a traceback
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        failure = failure or error
    if failure is not None:
        _to_nowhere(sys.stdout)
        if isinstance(failure, BrokenPipeError):
            _to_nowhere(sys.stderr)
            return status or CLOSED
        if status == 0:
            print(f"expost: the output cannot be written: {(failure.strerror or str(failure)).lower()}", file=sys.stderr)
        return status or 2
    if asked is not None:
        raise asked
    return status


def _run(arguments: list[str]) -> int:
    try:
        import tyro

        from expost.cli.commands import COMMANDS
        from expost.cli.common import Failure
        from expost.cli.options import as_options
        from expost.cli.torchrun import is_main, quiet_elsewhere, run_command, speaks
        from expost.system.progress import speaking
        from expost.system.schema import check_fields

        if arguments in (["--version"], ["-V"]):
            from expost import __version__

            print(f"expost {__version__}")
            return 0
        with quiet_elsewhere(errors=True):
            command = tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="expost",
                description="Train autoencoders, make them generative after the fact, and measure what they learned.",
                args=arguments,
                sort_subcommands=False,
            )
        try:
            check_fields(command, lambda name: f"--{name.replace('_', '-')}")
            with speaking(type(command).__name__.lower()), _shown(), terminable():
                run_command(command)
        except Failure as failure:
            if speaks(command, failure):
                print(f"expost: {failure}", file=sys.stderr)
            return 1
        except BrokenPipeError:
            raise
        except (ValueError, TypeError, OSError) as error:
            if os.environ.get("EXPOST_TRACEBACK"):
                raise
            if speaks(command, error):
                print(
                    f"expost: {as_options(sentence(error, resumes=arguments[:1] == ['train'] and _begun(error)), command)}", file=sys.stderr
                )
            return getattr(error, "status", 2)
        except Exception as error:
            short = _short_of_memory(error)
            if speaks(command, error):
                if not short or os.environ.get("EXPOST_TRACEBACK"):
                    raise
                print(f"expost: not enough memory ({short}): ask for less, e.g. fewer images, smaller batches or networks", file=sys.stderr)
            return 1
    except KeyboardInterrupt as interrupt:
        again = "the same command with --resume goes on" if arguments[:1] == ["train"] else "the same command goes on"
        if is_main():  # what can be continued says so
            where = f" {interrupt}" if str(interrupt) else ""
            print(f"expost: interrupted{where}{f'; {again}' if interrupt.args else ''}", file=sys.stderr)
        return INTERRUPTED
    return 0


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Inside the block SIGTERM interrupts as Ctrl-C does, so that a killed command leaves nothing half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _short_of_memory(error: Exception) -> str:
    """What an allocator says that has no more memory to give; nothing if that is not what failed."""
    said = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return said or "Python's allocator"
    words = ("out of memory", "not enough memory", "can't allocate memory", "failed to allocate")
    return said[:200] if isinstance(error, RuntimeError) and any(word in said.lower() for word in words) else ""


def _to_nowhere(stream: TextIO | None) -> None:
    with contextlib.suppress(OSError):  # a stream without a file, as in tests, has nothing to fail
        if stream is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Shown:
    """A stream to people: nothing that is written to it, whatever file it comes from, can steer a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        from expost.system.schema import printable

        return self._stream.write("\n".join(printable(line, len(line)) for line in text.split("\n")))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _shown() -> Iterator[None]:
    """What a command prints is escaped, and notes, as of what could not be kept, are said on stderr, each once and by the main process."""
    from expost.cli.torchrun import is_main
    from expost.system.state import Note

    said: set[str] = set()
    with warnings.catch_warnings(), contextlib.redirect_stdout(cast(TextIO, _Shown(sys.stdout))):
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if not issubclass(category, Note):
                usual(message, category, *rest, **more)
            elif str(message) not in said and is_main():
                said.add(str(message))
                print(f"note: {sentence(ValueError(str(message)))}", file=sys.stderr, flush=True)

        warnings.showwarning = show
        warnings.simplefilter("always", Note)
        yield


def _begun(error: Exception) -> bool:
    """Whether the file that failed belongs to a run of which something is trained."""
    from expost.train.folder import RunFolder

    if not isinstance(error, OSError) or error.filename is None:
        return False
    path = Path(str(error.filename))
    with contextlib.suppress(ValueError, OSError):
        return any(RunFolder.at(folder).state().begun for folder in (path, path.parent))
    return True


def sentence(error: Exception, *, resumes: bool = False) -> str:
    """One line: the error's own, or for a failed file what could not be done with which. Nothing that it quotes can steer the terminal.

    Args:
        resumes: whether the command goes on from where it was with --resume.
    """
    from expost.system.schema import printable

    said = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        why = error.strerror[:1].lower() + error.strerror[1:]
        verb = "read or write"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            verb, remedy = (
                "write",
                f"free space, then {'the same command with --resume goes on' if resumes else 'run the same command again'}",
            )
        elif error.errno == errno.EROFS:
            verb, remedy = "write", "choose a folder that can be written"
        else:
            remedy = "choose another name" if error.errno == errno.EEXIST else "check the path"
        said = f"cannot {verb} {error.filename}: {why}; {remedy}"
    return printable(" ".join(said.split()), 4000)
