"""A gate inside a training loop: a parent process lets a long-lived worker train in slices, and asks it questions in between.

Two trainings can only be compared on a shared machine if they take turns of a few seconds, and only if the one that waits is idle.
Each lives in a process of its own and calls :meth:`Gate.step` after every step; when its slice is used up, that call reports to the
parent and blocks on a pipe until the next order. Imports, compilation of kernels and evaluation are therefore never timed.

Orders and answers are JSON, one line each. Used in two environments, so nothing but the standard library is imported here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Handler = Callable[..., dict[str, Any]]


class Gate:
    """The worker's end.

    Args:
        handlers: questions the parent may ask while training rests: name -> function of the order's other fields.

    Whatever the training prints goes to standard error; standard output belongs to the answers.
    """

    def __init__(self, handlers: dict[str, Handler]) -> None:
        self.handlers = handlers
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.steps, self.trained = 0, 0.0
        self._began: float | None = None
        self._cpu = 0.0
        self._steps_left: int | None = None
        self._seconds_left: float | None = None
        self._steps_before = 0

    @property
    def opened(self) -> bool:
        """Whether the first order has come."""
        return self._began is not None or self.trained > 0

    def clock(self) -> float:
        """Seconds of training so far; stands still while the worker waits."""
        return self.trained + (time.perf_counter() - self._began if self._began is not None else 0.0)

    def step(self) -> None:
        """To be called after every training step; blocks when the slice is used up."""
        self.steps += 1
        assert self._began is not None, "training before the first order"
        done = self.steps - self._steps_before
        if (self._steps_left is not None and done >= self._steps_left) or (
            self._seconds_left is not None and time.perf_counter() - self._began >= self._seconds_left
        ):
            self.rest()

    def rest(self, finished: bool = False) -> None:
        """End the slice, tell the parent, and obey until the next slice begins."""
        if self._began is not None:
            seconds = time.perf_counter() - self._began
            self.trained, self._began = self.trained + seconds, None
            cpu = time.process_time() - self._cpu
            done = self.steps - self._steps_before
            self._answer({"steps": done, "seconds": seconds, "cpu": cpu, "trained": self.trained, "finished": finished})
        else:
            self._answer({"ready": True})
        for line in sys.stdin:
            order = json.loads(line)
            kind = order.pop("do")
            if kind == "run":
                self._steps_left, self._seconds_left = order.get("steps"), order.get("seconds")
                self._steps_before, self._began, self._cpu = self.steps, time.perf_counter(), time.process_time()
                return
            self._answer(self.handlers[kind](**order))
        os._exit(0)  # the parent closed the pipe

    def _answer(self, value: dict[str, Any]) -> None:
        self.answers.write(json.dumps(value) + "\n")
        self.answers.flush()
