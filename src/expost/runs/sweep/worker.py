"""``python -m expost.runs.sweep.worker JSON``: train one run of a sweep in a process of its own.

The argument describes the job. The process holds the folder's lock, resumes what a former attempt left, writes everything it says to the
folder's ``sweep.log``, and at its end one report (``sweep.json``) with the attempt's name, so that whoever started it can tell its own
attempt from others. A process that dies without a word leaves no report. Exit statuses: 0 done, 1 failed, 3 another process trains this
run, 130 interrupted (a checkpoint is kept).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from expost.runs.lab import run_path
from expost.runs.run import plan, train_run
from expost.runs.sweep.jobs import Job, state
from expost.runs.sweep.lock import Locked, hold
from expost.system.files import write_json
from expost.train.folder import RunFolder

__all__ = ["LOCKED", "LOG", "REPORT", "command", "read_report", "train", "work"]

LOG, REPORT = "sweep.log", "sweep.json"
LOCKED = 3
#: Starts the line with which each attempt begins in the log.
BEGIN = "--- "
EXIT = {"done": 0, "stopped": 0, "failed": 1, "interrupted": 130}


def command(job: Job, attempt: str, *, device: str | None = None, again: bool = False) -> list[str]:
    """The command line of a worker.

    Args:
        attempt: name that the report will bear.
        again: train a run that has diverged before from its beginning.
    """
    text = json.dumps({"job": job.to_json(), "attempt": attempt, "device": device, "again": again})
    return [sys.executable, "-m", "expost.runs.sweep.worker", text]


def read_report(folder: Path, attempt: str) -> dict[str, Any] | None:
    """What an attempt said at its end: ``status`` and ``message``; None if it has not ended, or ended without a word."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and report.get("attempt") == attempt else None


def train(job: Job, *, device: str | None = None, again: bool = False) -> str:
    """Train or resume a job's run; returns why its training stopped, ``"finished"`` if it went to its end.

    Raises:
        ValueError: what is in the way, in one sentence; a loss that was not finite is returned, not raised.
        KeyboardInterrupt: after SIGINT or SIGTERM, once a checkpoint is written.
    """
    experiment, dataset = plan(job.recipe, data_name=job.data, budget=job.budget, settings=job.settings, loading=job.loading)
    if run_path(job.folder.parent, experiment, dataset, job.budget, job.seed) != job.folder:
        raise ValueError(f"{job.data} or the code of {job.recipe} has changed since {job.name} was planned: start the sweep again")
    if again and state(job.folder) == "diverged":
        RunFolder.at(job.folder).forget()
    run = train_run(
        experiment,
        dataset,
        source=job.data,
        budget=job.budget,
        settings=job.settings,
        seed=job.seed,
        out=job.folder,
        resume=(job.folder / "recipe.json").is_file(),
        device=device,
        progress=False,
    )
    return run.history.stopped if run.history is not None else "finished"


def work(job: Job, attempt: str, device: str | None, again: bool) -> int:
    """Train under the lock and report; returns the exit status."""
    start = time.monotonic()
    try:
        with hold(job.folder) as locks:
            if not locks:
                print("note: this file system has no locks: two sweeps at once would train the same run twice", flush=True)
            status, message = _outcome(job, device, again)
            print(f"{status}: {message}", flush=True)
            seconds = round(time.monotonic() - start, 2)
            write_json(job.folder / REPORT, {"attempt": attempt, "status": status, "message": message, "seconds": seconds})
    except Locked as error:
        print(error, flush=True)
        return LOCKED
    return EXIT[status]


def _outcome(job: Job, device: str | None, again: bool) -> tuple[str, str]:
    try:
        stopped = train(job, device=device, again=again)
    except KeyboardInterrupt:
        if state(job.folder) == "done":
            return "done", "finished"
        return "interrupted", "interrupted; the same sweep goes on from its checkpoint"
    except (ValueError, TypeError, OSError) as error:  # a user's mistake is one sentence
        traceback.print_exc()
        return "failed", " ".join(str(error).split())
    except Exception as error:
        traceback.print_exc()
        return "failed", " ".join(f"{type(error).__name__}: {error}".split())
    return ("failed" if state(job.folder) == "diverged" else "stopped" if stopped == "time" else "done"), stopped


def _redirect(log: Path) -> None:
    """Everything that is written to stdout and stderr from now on goes to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)


def _main(text: str) -> int:
    description = json.loads(text)
    job = Job.from_json(description["job"])
    _redirect(job.folder / LOG)
    if hasattr(signal, "SIGUSR2"):  # what Slurm sends before the time limit: as good as a request to stop
        signal.signal(signal.SIGUSR2, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    print(
        f"{BEGIN}{time.strftime('%Y-%m-%d %H:%M:%S')} {socket.gethostname()} process {os.getpid()}: {json.dumps(job.to_json())}", flush=True
    )
    return work(job, description["attempt"], description["device"], description["again"])


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
