"""Ctrl-C between steps: the first one is noted and acted upon at the next step boundary, the second one interrupts at once.

Under torchrun one Ctrl-C comes twice, from the terminal and from torchrun: there a second one counts a second later.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Interruptible"]


class Interruptible:
    """Context manager; ``requested`` becomes true on the first SIGINT or SIGTERM. Inactive outside the main thread."""

    def __init__(self) -> None:
        self.requested = False
        self._again = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and time.monotonic() >= self._again:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._again = True, time.monotonic() + ("TORCHELASTIC_RUN_ID" in os.environ)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            if handler is None:  # installed by a program that embeds Python: cannot be put back from here
                continue
            signal.signal(number, handler)
