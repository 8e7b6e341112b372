"""Where the runs of a sweep are trained: as processes of this machine, or on a Slurm cluster.

An executor starts commands and says when and how each ended; it knows nothing of runs. :class:`Local` starts plain subprocesses,
:class:`Slurm` submits one array of jobs through submitit (optional: ``pip install expost[slurm]``), whose functions are commands, so that
nothing of this package is pickled.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Ended", "Executor", "Local", "Slurm", "Started", "Work", "cores"]

#: What the numerical libraries read their number of threads from.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
#: Keeps ``python -m`` from putting the current folder on the import path: a file there would stand in for any module of its name.
SAFE_PATH = "PYTHONSAFEPATH"
#: Jobs of one array: Slurm's own limit is 1001 unless the cluster has set another.
ARRAY = 1000


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Work:
    """A command to be run.

    Attributes:
        log: file to which its output is appended.
        reported: whether the command has said that it is through: a cluster notices ends late.
        alive: whether somebody works on it now.
    """

    command: list[str]
    log: Path
    reported: Callable[[], bool]
    alive: Callable[[], bool]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, negative for a signal as in ``subprocess``, None if unknown; and in words."""

    code: int | None
    how: str


class Started(ABC):
    """A command that was started."""

    @abstractmethod
    def ended(self) -> Ended | None:
        """None while it runs or waits."""

    @abstractmethod
    def stop(self) -> None:
        """Ask it to end soon, keeping what it has."""

    @abstractmethod
    def kill(self) -> None:
        """End it now."""


class Executor(ABC):
    """Starts commands; ``poll`` is how many seconds to wait between two looks at them."""

    poll: float

    @abstractmethod
    def free(self) -> int:
        """How many more may be started now."""

    @abstractmethod
    def start(self, works: Sequence[Work]) -> list[Started]:
        """Start them all; ``ValueError`` if they cannot be."""


# -- this machine ----------------------------------------------------------------------------------------------------------------------------


@dataclass
class Local(Executor):
    """Subprocesses of this machine, in sessions of their own: a Ctrl-C at the terminal reaches only whoever started them.

    Args:
        processes: at once; default: one per ``threads`` cores, or one per GPU if there are ``gpus``.
        threads: of each.
        gpus: names for CUDA_VISIBLE_DEVICES; each process gets one, in turn.
    """

    processes: int | None = None
    threads: int = 1
    gpus: tuple[str, ...] = ()
    poll: float = 0.1
    _slots: list[int] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"a run needs at least one thread, not {self.threads}")
        if self.processes is None:
            self.processes = len(self.gpus) or max(1, cores() // self.threads)
        if self.processes < 1:
            raise ValueError(f"at least one run must be trained at a time, not {self.processes}")
        self._slots = list(range(self.processes))

    def free(self) -> int:
        return len(self._slots)

    def start(self, works: Sequence[Work]) -> list[Started]:
        return [self._start(work) for work in works]

    def _start(self, work: Work) -> Started:
        slot = self._slots.pop(0)
        environment = {**os.environ, SAFE_PATH: "1", **dict.fromkeys(THREADS, str(self.threads))}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        try:
            work.log.parent.mkdir(parents=True, exist_ok=True)
            with work.log.open("ab") as log:
                process = subprocess.Popen(
                    work.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            self._slots.append(slot)
            return _Never(f"cannot be started: {error}")
        return _Process(process, lambda: self._slots.append(slot))


@dataclass
class _Never(Started):
    """A command that could not be started."""

    why: str

    def ended(self) -> Ended | None:
        return Ended(None, self.why)

    def stop(self) -> None:
        pass

    def kill(self) -> None:
        pass


@dataclass
class _Process(Started):
    process: subprocess.Popen[bytes]
    release: Callable[[], None]
    _end: Ended | None = None

    def ended(self) -> Ended | None:
        code = self.process.poll()
        if code is not None and self._end is None:
            self._end = Ended(code, _in_words(code))
            self.release()
        return self._end

    def stop(self) -> None:
        self.process.terminate()  # does nothing if it has ended

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def _in_words(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (" (is there enough memory?)" if name == "SIGKILL" else "")


# -- a cluster -------------------------------------------------------------------------------------------------------------------------------


@dataclass
class Slurm(Executor):
    """Jobs of a Slurm cluster, submitted as one array; ``folder`` must lie on a file system that the nodes share, like the runs.

    Args:
        partition: where to submit.
        folder: of submitit's scripts, pickled commands and logs; made for its owner alone.
        minutes: time limit of each run; 90 s before it a run writes a checkpoint and ends, and the same sweep goes on from there.
        gpus, memory, threads: of each run; memory in GB, default the cluster's.
        parallel: how many jobs of the array run at once.
        options: further parameters of submitit's SlurmExecutor, e.g. ``{"account": "abc", "constraint": "a100"}``.

    Raises:
        ValueError: submitit is not installed, this is no Slurm cluster, or there is no such option.
    """

    partition: str
    folder: Path
    minutes: int = 240
    gpus: int = 0
    memory: float | None = None
    threads: int = 1
    parallel: int = 64
    options: Mapping[str, Any] = field(default_factory=dict)
    poll: float = 1.0
    refresh: float = 30.0

    def __post_init__(self) -> None:
        try:
            from submitit import SlurmExecutor
        except ImportError:
            raise ValueError("a Slurm cluster is reached through submitit: `pip install expost[slurm]`, or train here") from None
        if min(self.minutes, self.threads, self.parallel) < 1 or self.gpus < 0:
            raise ValueError("time, threads and the number of parallel jobs of a Slurm run must be at least 1, its GPUs at least 0")
        try:
            self._executor = SlurmExecutor(self.folder)
        except RuntimeError:
            raise ValueError("there is no srun here: start the sweep on a node of a Slurm cluster, or leave --slurm out") from None
        parameters: dict[str, Any] = {
            "partition": self.partition,
            "time": self.minutes,
            "cpus_per_task": self.threads,
            "array_parallelism": self.parallel,
            "job_name": "expost",
            "setup": [f"export {SAFE_PATH}=1", *(f"export {name}={self.threads}" for name in THREADS)],
        }
        if self.gpus:
            parameters["gpus_per_node"] = self.gpus
        if self.memory is not None:
            parameters["mem"] = f"{round(1024 * self.memory)}MB"
        try:
            self._executor.update_parameters(**{**parameters, **self.options})
        except ValueError as error:
            raise ValueError(f"submitit does not know these options: {' '.join(str(error).split())}") from None
        self._asked = time.monotonic()

    def free(self) -> int:
        return sys.maxsize

    def start(self, works: Sequence[Work]) -> list[Started]:
        from submitit.core.utils import FailedJobError
        from submitit.helpers import CommandFunction

        functions = [CommandFunction(work.command) for work in works]
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # the nodes unpickle what lies there: nobody else may write it
            jobs = [job for i in range(0, len(works), ARRAY) for job in self._executor.submit_array(functions[i : i + ARRAY])]
        except (FailedJobError, OSError) as error:
            raise ValueError(f"the cluster has not accepted the runs: {' '.join(str(error).split())}") from None
        return [_Submitted(self, job, work) for job, work in zip(jobs, works, strict=True)]

    def due(self) -> bool:
        """Whether it is time to ask the cluster about all jobs again."""
        if time.monotonic() - self._asked < self.refresh:
            return False
        self._asked = time.monotonic()
        return True


@dataclass
class _Submitted(Started):
    """A job of the cluster. It has ended if its command says so, or if the cluster does; a cancelled one, if nobody works on it any more."""

    executor: Slurm
    job: Any
    work: Work
    cancelled: bool = False

    def ended(self) -> Ended | None:
        if self.work.reported():
            return Ended(None, f"Slurm job {self.job.job_id}")
        if self.cancelled:
            return None if self.work.alive() else Ended(None, f"Slurm job {self.job.job_id} was cancelled")
        if self.job.done(force_check=self.executor.due()):
            return Ended(
                None, f"Slurm job {self.job.job_id} ended as {self.job.state}, its output is {shlex.quote(str(self.job.paths.stdout))}"
            )
        return None

    def stop(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            self.job.cancel(check=False)

    def kill(self) -> None:
        self.stop()
