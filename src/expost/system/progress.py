"""Long work speaks on standard error: a bar on a terminal, a line now and then off it. Short work leaves nothing behind.

``with Bar(total, what="features") as bar: bar.update(done)``, or ``for x in bar.over(things)``. Bars nest: those of a whole command and of its
parts are shown together. Who hears them is decided here alone, so no function has to pass it on:

* on a terminal, everybody;
* elsewhere (a log file, cron, a batch system), whoever is inside :func:`speaking`, which the command line is: a first line after ten seconds,
  then one every thirty, later every fortieth of the time that has passed. Called from Python, functions are silent there, and the command
  line is too where the environment has ``EXPOST_QUIET``;
* ``enabled=False`` silences a bar and all inside it, ``enabled=True`` lets one be heard outside :func:`speaking`;
* of several processes the main one.

Inside :func:`speaking` a thread looks every second, so that work which cannot count its steps (a decomposition, a library's k-means) is heard too.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

__all__ = ["Bar", "duration", "say", "speaking"]

T = TypeVar("T")
#: What is said beside the count: numbers by name, or a text.
Parts = Mapping[str, float] | str

#: Seconds before the first line, between lines, and the share of the time passed that lies between later lines.
FIRST, EVERY, SHARE = 10.0, 30.0, 1 / 40
#: Seconds before the bar of a part appears beside that of the whole; before work is mentioned of which only its duration is known, on a
#: terminal and in lines.
APPEAR, UNCOUNTED, UNCOUNTED_LINE = 1.0, 5.0, 30.0
#: Seconds between looks at the clock's consequences: ``update`` may be called thousands of times a second.
LOOK = 0.2


class Bar:
    """Counted work, shown as long as the ``with`` block lasts.

    Args:
        total: of what is counted; None if it is not known.
        done: of them, at the beginning: what a resumed training has behind it.
        what: the work, e.g. "features".
        unit: what is counted, e.g. "step"; may be empty.
        enabled: see the top of this file.
        after: seconds before it appears on a terminal: for what is quick unless there is much of it.
    """

    def __init__(
        self,
        total: int | None = None,
        done: int = 0,
        *,
        what: str = "training",
        unit: str = "",
        enabled: bool | None = None,
        after: float = 0.0,
    ) -> None:
        self.total, self.done, self.what, self.unit, self.enabled = total, done, what, unit, enabled
        self.after = after
        self.parts: Parts = ""
        self.audible, self.began, self.at, self.first = False, 0.0, 0.0, done
        self._look = 0.0

    def __enter__(self) -> Self:
        _stage.open(self)
        return self

    def update(self, done: int, parts: Parts | Callable[[], Parts] | None = None) -> None:
        """So many are done. ``parts`` may be a function, which is called only when there is somebody to tell."""
        if parts is not None and not callable(parts):
            self.parts = parts
        if not self.audible:
            self.done = done
            return
        now = _stage.clock()
        if done != self.done:
            self.done, self.at = done, now
        if now >= self._look:
            self._look = now + LOOK
            if callable(parts):
                self.parts = parts() or self.parts
            _stage.tick(now)

    def over(self, things: Iterable[T], size: Callable[[T], int] = lambda thing: 1) -> Iterator[T]:
        """The things one by one, each counted when it is done: as one, or as its ``size``, such as ``len`` for batches of rows."""
        for thing in things:
            yield thing
            self.update(self.done + size(thing))

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        _stage.close(self)

    def left(self, now: float) -> float | None:
        """Seconds that the rest will take at the pace so far; None where that is not known, or was not kept."""
        steps = self.done - self.first
        if self.total is None or steps <= 0:
            return None
        rest = (self.at - self.began) / steps * (self.total - self.done) - (now - self.at)
        return rest if rest > 0 else None

    def sentence(self, now: float, last: bool = True) -> str:
        """E.g. "training: step 1200 of 3974, 4 minutes left, total 7073.1"; only the ``last`` of several bars, the part at work, says how long."""
        said = [f"{self.unit}{' ' * bool(self.unit)}{self.count(' of ')}"] if self.counts else []
        if last:
            left = self.left(now)
            said += [f"{duration(left)} left"] if left is not None else [f"{duration(now - self.began)} so far"] * (now - self.began > 1)
        return f"{self.what}: {', '.join(filter(None, [*said, self.said()]))}"

    @property
    def counts(self) -> bool:
        """Whether there is more to say than for how long."""
        return self.total is not None or self.done > self.first

    def count(self, of: str) -> str:
        return f"{self.done}" if self.total is None else f"{self.done}{of}{self.total}"

    def said(self) -> str:
        return self.parts if isinstance(self.parts, str) else " ".join(f"{k} {v:.5g}" for k, v in self.parts.items())


class _Stage:
    """The bars that are open in this process, and where they are shown."""

    def __init__(self) -> None:
        self.clock: Callable[[], float] = time.monotonic
        self.bars: list[Bar] = []
        self.aloud = 0
        self.muted = False
        self.began = self.due = 0.0
        self.live: Any = None
        self.tasks: dict[Bar, Any] = {}
        self.lock = threading.RLock()

    def hears(self) -> bool:
        """Whether anything may be said here at all."""
        return not (self.muted or os.environ.get("RANK", "0") != "0" or any(bar.enabled is False for bar in self.bars))

    def open(self, bar: Bar) -> None:
        with self.lock:
            bar.began = bar.at = self.clock()
            if not self.bars:
                self.began, self.due = bar.began, bar.began + FIRST
            bar.audible = bar.enabled is not False and self.hears() and bool(bar.enabled or self.aloud or _terminal())
            self.bars.append(bar)
            self.tick(bar.began)

    def close(self, bar: Bar) -> None:
        with self.lock:
            if self.tasks:
                self.tick(self.clock())  # the last step, which may have come too soon after another to be shown
            if bar in self.bars:
                self.bars.remove(bar)
            if self.live is not None and not self.bars:
                live, self.live, self.tasks = self.live, None, {}
                live.stop()
            elif bar in self.tasks:
                self.live.remove_task(self.tasks.pop(bar))

    def tick(self, now: float) -> None:
        with self.lock:
            heard = [bar for bar in self.bars if bar.audible]
            counted = [bar for bar in heard if bar.counts]
            if _terminal():
                shown = [bar for i, bar in enumerate(counted) if now - bar.began >= (max(APPEAR, bar.after) if i else bar.after)]
                self.draw(shown or [bar for bar in heard[-1:] if now - bar.began >= UNCOUNTED])
            elif heard and now >= self.due and (counted or now - self.began >= UNCOUNTED_LINE):
                self.due = now + max(EVERY, SHARE * (now - self.began))
                *wholes, part = counted or heard[-1:]
                self.write("; ".join([*(bar.sentence(now, last=False) for bar in wholes), part.sentence(now)]))

    def draw(self, shown: list[Bar]) -> None:
        if self.live is None and shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            texts = [TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[count]", "fields[parts]")]
            self.live = Progress(
                texts[0],
                BarColumn(24),
                texts[1],
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                texts[2],
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
            )  # fmt: skip - what is printed goes around the bar on a terminal, and untouched into a pipe
            self.live.start()
        for bar in shown:
            if bar not in self.tasks:
                self.tasks[bar] = self.live.add_task(bar.what, total=bar.total, completed=bar.done, count="", parts="")
        for bar, task in self.tasks.items():
            count = bar.count("/") if bar.counts else ""
            self.live.update(task, completed=bar.done, visible=bar in shown, count=count, parts=bar.said())

    def write(self, text: str) -> None:
        """One line on standard error; whoever no longer listens is told nothing more."""
        try:
            print(text, file=sys.stderr, flush=True)
        except (OSError, ValueError):
            self.muted = True


_stage = _Stage()


def _terminal() -> bool:
    """Whether standard error is a terminal that can move its cursor."""
    try:
        return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    except ValueError:  # closed
        return False


def say(sentence: str) -> None:
    """A sentence on standard error where bars are heard: what a long step is about to cost, what came of it."""
    with _stage.lock:
        if _stage.hears() and (_stage.aloud or _terminal()):
            _stage.write(sentence)


@contextlib.contextmanager
def speaking(what: str) -> Iterator[None]:
    """Inside, long work is heard off a terminal too, ``what`` being the name of the whole."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(1.0):
            _stage.tick(_stage.clock())

    thread = threading.Thread(target=beat, name="expost-progress", daemon=True)
    aloud = not os.environ.get("EXPOST_QUIET")
    _stage.aloud += aloud
    try:
        with Bar(what=what):
            thread.start()
            yield
    finally:
        _stage.aloud -= aloud
        over.set()
        if thread.ident is not None:
            thread.join()


def duration(seconds: float) -> str:
    """In words: "1 second", "40 seconds", "4 minutes", "2.5 hours".

    >>> duration(40.2), duration(250), duration(9000)
    ('40 seconds', '4 minutes', '2.5 hours')
    """
    for size, name in ((1, "second"), (60, "minute")):
        number = round(seconds / size)
        if seconds < 90 * size:
            return f"{number} {name}{'s' * (number != 1)}"
    return f"{seconds / 3600:.1f} hours"
