"""A sweep: many runs, trained by an executor, and one table of how each ended.

What is done is skipped, what was interrupted is resumed, what failed is reported and does not stop the others; the next sweep over the same
runs tries it again, except for runs whose loss was not finite: training is deterministic, so they would fail again. A run that another
process is training is waited for. After the first SIGINT or SIGTERM the running ones are asked to stop, and write checkpoints; after the
second they are killed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from expost.runs.lab import silent
from expost.runs.sweep import worker
from expost.runs.sweep.jobs import Job, ending, state
from expost.runs.sweep.lock import holder
from expost.runs.sweep.pool import Ended, Executor, Started, Work
from expost.runs.sweep.table import figures, varying
from expost.system.files import check_output
from expost.system.interrupt import Interruptible
from expost.system.progress import Bar

__all__ = ["Outcome", "Status", "run_jobs"]

Status = Literal["done", "failed", "skipped", "stopped", "interrupted"]
#: Exit statuses of a worker that was asked to stop: by its own account, or before it could answer.
STOPPED = (130, -15, -2)


@dataclass(frozen=True)
class Outcome:
    """How one run of a sweep ended.

    Attributes:
        status: ``done``: trained now; ``skipped``: was done before; ``failed``; ``stopped``: by its time limit, and ``interrupted``: go on when asked for again.
        seconds: of training, over all sessions; of a failed run: of this attempt.
        message: why it stopped, in one sentence.
        figures: what was measured, by name; of finished runs, and of stopped ones so far.
    """

    job: Job
    status: Status
    seconds: float | None = None
    message: str = ""
    figures: dict[str, float] = field(default_factory=dict)


@dataclass
class _Attempt:
    job: Job
    name: str
    started: Started
    clock: float
    log: int


def run_jobs(
    jobs: Sequence[Job],
    executor: Executor,
    *,
    measures: Sequence[str] = ("total",),
    device: str | None = None,
    retry_diverged: bool = False,
    say: Callable[[str], None] = silent,
    command: Callable[..., list[str]] = worker.command,
) -> list[Outcome]:
    """Train what is not done yet, and say how each run ended, in the order of ``jobs``.

    Args:
        executor: where to train: :class:`~expost.runs.sweep.pool.Local` or :class:`~expost.runs.sweep.pool.Slurm`.
        measures: figures of each finished run, see :func:`expost.runs.sweep.table.figures`.
        device: of the training; default: a GPU if there is one.
        retry_diverged: train runs whose loss was not finite again, from their beginning.
        say: called with one line whenever a run ends.
        command: (job, attempt, device=, again=) -> the command line that trains it.

    Raises:
        ValueError: the executor cannot start anything; a run that fails does not raise.
        KeyboardInterrupt: at the second SIGINT or SIGTERM; after the first, what was not finished is returned as ``interrupted``.
    """
    return _Sweep(jobs, executor, tuple(measures), device, retry_diverged, say, command).run()


class _Sweep:
    def __init__(
        self,
        jobs: Sequence[Job],
        executor: Executor,
        measures: tuple[str, ...],
        device: str | None,
        retry_diverged: bool,
        say: Callable[[str], None],
        command: Callable[..., list[str]],
    ) -> None:
        self.jobs, self.executor, self.measures, self.device = list(jobs), executor, measures, device
        self.retry_diverged, self.say, self.command = retry_diverged, say, command
        self.varying = varying(jobs)
        self.outcomes: dict[Path, Outcome] = {}
        self.queue: list[Job] = []
        self.running: list[_Attempt] = []
        self.stopping = self.waiting = False

    def run(self) -> list[Outcome]:
        for job in self.jobs:
            if not self._settled_before(job):
                self.queue.append(job)
        for job in self.queue:
            check_output(job.folder / worker.LOG)
        self.say(f"{len(self.jobs)} runs, {len(self.queue)} of them to be trained")
        with Interruptible() as interrupt, Bar(len(self.jobs), len(self.outcomes), what="runs") as bar:
            try:
                while self.queue or self.running:
                    bar.update(len(self.outcomes), f"{len(self.running)} running")
                    if interrupt.requested and not self.stopping:
                        self._stop()
                    self._start()
                    self.running = [attempt for attempt in self.running if not self._ended(attempt)]
                    if self.queue or self.running:
                        time.sleep(self.executor.poll)
            except BaseException:
                for attempt in self.running:
                    attempt.started.kill()
                raise
        return [self.outcomes[job.folder] for job in self.jobs]

    def _label(self, job: Job) -> str:
        return ", ".join([job.name, *(f"{name}={job.settings.get(name)}" for name in self.varying), f"seed {job.seed}"])

    def _settled_before(self, job: Job) -> bool:
        """Whether the folder answers already."""
        found = state(job.folder)
        if found == "done":
            self.outcomes[job.folder] = self._finished(job, "skipped")
        elif found == "diverged" and not self.retry_diverged:
            message = f"{self._stopped(job)} (as before: training it again needs --retry-diverged)"
            self.outcomes[job.folder] = Outcome(job, "failed", None, message)
        return job.folder in self.outcomes

    def _stopped(self, job: Job) -> str:
        history = ending(job.folder)
        return history.stopped if history is not None else ""

    def _finished(self, job: Job, status: Literal["done", "skipped", "stopped"]) -> Outcome:
        history = ending(job.folder)
        seconds = history.seconds if history is not None else None
        return Outcome(job, status, seconds, self._stopped(job), figures(job, self.measures))

    def _stop(self) -> None:
        self.stopping = True
        self.say(f"stopping: {len(self.running)} run{'s' * (len(self.running) != 1)} write checkpoints (once more to kill)")
        for attempt in self.running:
            attempt.started.stop()
        for job in self.queue:
            self.outcomes[job.folder] = Outcome(job, "interrupted", None, "not started" if state(job.folder) == "new" else "not continued")
        self.queue = []

    def _start(self) -> None:
        """Start as many as may, passing over those that another process trains."""
        free, ready, others = self.executor.free(), list[Job](), list[str]()
        for job in list(self.queue):
            if len(ready) >= free:
                break
            who = holder(job.folder)
            if who is not None:
                others.append(f"{job.name} ({who})")
                continue
            self.queue.remove(job)
            if not self._settled_before(job):  # another process may have done it since
                ready.append(job)
        if others and not self.running and not ready and not self.waiting:
            self.waiting = True
            self.say(f"waiting for runs that others train: {', '.join(others)}")
        if not ready:
            return
        names = [uuid.uuid4().hex[:12] for _ in ready]
        works = [self._work(job, name) for job, name in zip(ready, names, strict=True)]
        clock, logs = time.monotonic(), [_size(work.log) for work in works]
        for job, name, started, log in zip(ready, names, self.executor.start(works), logs, strict=True):
            self.running.append(_Attempt(job, name, started, clock, log))

    def _work(self, job: Job, name: str) -> Work:
        again = self.retry_diverged and state(job.folder) == "diverged"
        return Work(
            self.command(job, name, device=self.device, again=again),
            job.folder / worker.LOG,
            reported=lambda: worker.read_report(job.folder, name) is not None,
            alive=lambda: holder(job.folder) is not None,
        )

    def _ended(self, attempt: _Attempt) -> bool:
        end = attempt.started.ended()
        if end is None:
            return False
        outcome = self._outcome(attempt, end)
        if outcome is None:  # another process was faster
            self.queue.append(attempt.job)
            return True
        self.outcomes[attempt.job.folder] = outcome
        seconds = f" after {outcome.seconds:.0f} s" if outcome.seconds is not None else ""
        self.say(f"[{len(self.outcomes)}/{len(self.jobs)}] {outcome.status}{seconds}: {self._label(attempt.job)}: {outcome.message}")
        if outcome.status == "failed":
            for line in _tail(attempt.job.folder / worker.LOG, attempt.log):
                self.say(f"    {line}")
        return True

    def _outcome(self, attempt: _Attempt, end: Ended) -> Outcome | None:
        """What became of an attempt; None if the run was locked and is to be asked for again."""
        job, report = attempt.job, worker.read_report(attempt.job.folder, attempt.name)
        seconds = time.monotonic() - attempt.clock
        if report is not None:
            if report["status"] in ("done", "stopped"):
                return self._finished(job, report["status"])
            return Outcome(job, report["status"], seconds, report["message"])
        if self.stopping and (end.code in STOPPED or end.code is None):
            return Outcome(job, "interrupted", seconds, "stopped before training went on")
        if end.code == worker.LOCKED or holder(job.folder) is not None or state(job.folder) == "done":
            return Outcome(job, "interrupted", None, "another process trains it") if self.stopping else None
        return Outcome(job, "failed", seconds, end.how)


def _size(log: Path) -> int:
    return log.stat().st_size if log.is_file() else 0


def _tail(log: Path, start: int, lines: int = 5) -> list[str]:
    """The last lines that were written to a log after ``start``, without the worker's own, which are known."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, _size(log) - 4096))
            said = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in said if not line.startswith((worker.BEGIN, "failed: "))][-lines:]
