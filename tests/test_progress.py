"""What long work says, to whom and when; and what happens when nobody listens."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from expost.cli import main
from expost.system import progress
from expost.system.progress import Bar, duration, say, speaking


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time that passes when told, and an environment in which bars may be heard."""
    monkeypatch.delenv("EXPOST_QUIET", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    stage, time = progress._Stage(), Clock()
    stage.clock = time
    monkeypatch.setattr(progress, "_stage", stage)
    return time


@contextmanager
def closed_pipe(buffering: int = -1) -> Iterator[TextIO]:
    """A stream that nobody reads any more; standard error is written line by line."""
    reading, writing = os.pipe()
    os.close(reading)
    stream = open(writing, "w", buffering)  # noqa: SIM115 - closed below
    try:
        yield stream
    finally:
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)  # so that closing it here does not fail
        stream.close()


def work(clock: Clock, seconds: int, total: int, **options: object) -> None:
    """One step a second."""
    with Bar(total, **options) as bar:  # type: ignore[arg-type]
        for step in range(1, seconds + 1):
            clock.now += 1
            bar.update(step, lambda: {"total": 7073.123})


def test_lines_come_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with speaking("train"):
        work(clock, 9, 9)
        assert capsys.readouterr().err == ""  # short work says nothing
        work(clock, 100, 400, what="training", unit="step")
    assert capsys.readouterr().err.splitlines() == [
        "training: step 1 of 400, 7 minutes left, total 7073.1",
        "training: step 31 of 400, 6 minutes left, total 7073.1",
        "training: step 61 of 400, 6 minutes left, total 7073.1",
        "training: step 91 of 400, 5 minutes left, total 7073.1",
    ]
    with speaking("train"):
        work(clock, 3600, 3600)
    lines = capsys.readouterr().err.splitlines()
    assert 60 < len(lines) < 100  # rarer with time: a night must not fill the log


def test_parts_of_a_whole_are_named_together(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with speaking("density"), Bar(3, what="densities") as outer:
        outer.update(1, "flow")
        with Bar(10, what="flow", unit="epoch") as inner:
            clock.now += 20
            inner.update(4)
            clock.now += 30
            progress._stage.tick(clock.now)  # as the thread does while a step takes long
    assert capsys.readouterr().err.splitlines() == [
        "densities: 1 of 3, flow; flow: epoch 4 of 10, 30 seconds left",
        "densities: 1 of 3, flow; flow: epoch 4 of 10, 50 seconds so far",  # the pace was not kept
    ]


def test_work_that_cannot_count_is_heard_too(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with speaking("density"):
        clock.now += 29
        progress._stage.tick(clock.now)
        assert capsys.readouterr().err == ""
        clock.now += 2
        progress._stage.tick(clock.now)
    assert capsys.readouterr().err == "density: 31 seconds so far\n"


SILENCES = [
    pytest.param({}, {}, False, id="a function called from Python"),
    pytest.param({"enabled": False}, {}, True, id="enabled=False"),
    pytest.param({}, {"RANK": "1"}, True, id="not the main process"),
    pytest.param({}, {"EXPOST_QUIET": "1"}, True, id="EXPOST_QUIET"),
]


@pytest.mark.parametrize(("options", "environment", "aloud"), SILENCES)
def test_silence(
    options: dict[str, bool],
    environment: dict[str, str],
    aloud: bool,
    clock: Clock,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def both() -> None:
        with Bar(2, what="outer", **options):  # type: ignore[arg-type]
            work(clock, 60, 60, what="inner")
            say("a sentence")

    if aloud:
        with speaking("train"):
            both()
    else:
        both()
    assert capsys.readouterr().err == ""


def test_asked_for_from_python_it_is_heard(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    work(clock, 15, 60, what="features", enabled=True)
    assert capsys.readouterr().err == "features: 10 of 60, 50 seconds left, total 7073.1\n"


def test_a_closed_error_stream_does_not_end_the_work(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with closed_pipe() as nobody, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", nobody)
        with speaking("train"):
            work(clock, 100, 100)
            assert progress._stage.muted


def test_things_are_counted_from_where_a_resumed_work_began(clock: Clock) -> None:
    with Bar(10, 4, what="rest") as bar:
        assert list(bar.over(range(6))) == list(range(6))
        assert bar.done == 10


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 seconds"), (1.2, "1 second"), (89, "89 seconds"), (100, "2 minutes"), (5300, "88 minutes"), (9000, "2.5 hours")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


ON_A_TERMINAL = """
import sys, time
from expost.system import progress
from expost.cli import main
from expost.system.progress import Bar, speaking
progress.APPEAR = progress.LOOK = 0.0
print("first [bold]row[/bold]")
with speaking("evaluate"), Bar(2, what="rows") as rows:
    rows.update(1, "samples [red]")
    with Bar(5, what="features") as bar:
        for i in bar.over(range(5)):
            time.sleep(0.05)
            print("result", i, "x" * 200)
print("last")
"""


def test_a_bar_on_a_terminal_leaves_piped_results_alone() -> None:
    here, terminal = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", ON_A_TERMINAL], stdout=subprocess.PIPE, stderr=terminal, env=os.environ | {"TERM": "xterm"}, check=True
    )
    os.close(terminal)
    shown = os.read(here, 1 << 16).decode()
    os.close(here)
    rows = [f"result {i} {'x' * 200}" for i in range(5)]
    assert done.stdout.decode().splitlines() == ["first [bold]row[/bold]", *rows, "last"]
    assert "features" in shown
    assert "1/2" in shown
    assert "samples [red]" in shown  # names are not markup
    assert "result" not in shown


@pytest.mark.parametrize(
    "arguments",
    ["list", "claims --list", "train ghosh2020/rae --dry-run --data digits", "cite no-such-run", "--help", "train --help", "nonsense"],
)
def test_a_closed_pipe_ends_a_command_without_a_word(
    arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = arguments in ("cite no-such-run", "nonsense")  # their sentences go to standard error
    with closed_pipe(1 if failing else -1) as nobody, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr" if failing else "stdout", nobody)
        assert main(arguments.split()) == 141
        print("more", file=nobody, flush=True)  # as Python does with what is buffered when it ends: nothing may be left that fails
    assert capsys.readouterr() == ("", "")


def test_python_ends_quietly_too() -> None:
    command = [sys.executable, "-m", "expost", "--help"]
    with closed_pipe() as nobody:
        ended = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, check=False)
        assert (ended.returncode, ended.stderr) == (141, b"")
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 2
    assert b"no space left on device\n" in ended.stderr.lower()
    assert ended.stderr.count(b"\n") == 1
