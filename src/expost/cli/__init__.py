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
import sys
from collections.abc import Sequence
from typing import TextIO

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

        from expost.cli.commands import COMMANDS, Failure
        from expost.cli.options import as_options
        from expost.cli.torchrun import is_main, quiet_elsewhere, run_command, speaks
        from expost.progress import speaking
        from expost.schema import check_fields

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
            with speaking(type(command).__name__.lower()):
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
                print(f"expost: {as_options(sentence(error), command)}", file=sys.stderr)
            return 2
        except Exception as error:
            if speaks(command, error):
                raise
            return 1
    except KeyboardInterrupt:
        again = "the same command with --resume goes on" if arguments[:1] == ["train"] else "the same command goes on"
        if is_main():
            print(f"expost: interrupted; {again} from what was kept", file=sys.stderr)
        return INTERRUPTED
    return 0


def _to_nowhere(stream: TextIO | None) -> None:
    with contextlib.suppress(OSError):  # a stream without a file, as in tests, has nothing to fail
        if stream is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def sentence(error: Exception) -> str:
    """One line: the error's own, or for a failed file what could not be done with which. Nothing that it quotes can steer the terminal."""
    from expost.schema import printable

    said = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        remedy = {
            errno.ENOSPC: "free space there, or choose another folder", errno.EDQUOT: "free space there, or choose another folder",
            errno.EROFS: "choose a folder that can be written", errno.EEXIST: "choose another name",
        }.get(error.errno or 0, "check the path")  # fmt: skip
        said = f"cannot read or write {error.filename}: {error.strerror.lower()}; {remedy}"
    return printable(" ".join(said.split()), 4000)
