"""The command line: ``expost COMMAND``.

Commands are dataclasses (:mod:`.commands`), their arguments are fields, their help the docstrings; what they do is imported only when they
run, so that ``expost --help`` answers at once. A user's mistake ends in one sentence on stderr and exit status 2, Ctrl-C in 130.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    import tyro

    from expost.cli.commands import COMMANDS, Failure
    from expost.cli.options import as_options
    from expost.schema import check_fields

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in (["--version"], ["-V"]):
        from expost import __version__

        print(f"expost {__version__}")
        return 0
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="expost",
        description="Train autoencoders, make them generative after the fact, and measure what they learned.",
        args=arguments,
        sort_subcommands=False,
    )
    try:
        check_fields(command, lambda name: f"--{name.replace('_', '-')}")
        command.run()
    except Failure as failure:
        print(f"expost: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = "the same command with --resume goes on" if arguments[:1] == ["train"] else "the same command goes on"
        print(f"expost: interrupted; {again} from what was kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError) as error:
        if os.environ.get("EXPOST_TRACEBACK"):
            raise
        print(f"expost: {as_options(sentence(error), command)}", file=sys.stderr)
        return 2
    return 0


def sentence(error: Exception) -> str:
    """One line: the error's own, or for a failed file what could not be done with which. Nothing that it quotes can steer the terminal."""
    from expost.schema import printable

    said = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        said = f"cannot read or write {error.filename}: {error.strerror.lower()}; check the path"
    return printable(" ".join(said.split()), 4000)
