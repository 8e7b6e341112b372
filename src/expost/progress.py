"""A progress bar with the loss parts; silent unless enabled."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

__all__ = ["Bar"]


class Bar:
    """``with Bar(total, done, enabled=...) as bar: bar.update(step, {"total": 1.2})``."""

    def __init__(self, total: int, done: int = 0, *, enabled: bool, what: str = "training") -> None:
        self._bar: Any = None
        if enabled:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn(what), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[parts]}"),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(what, total=total, completed=done, parts="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def update(self, step: int, parts: Mapping[str, float] | None = None) -> None:
        if self._bar is not None:
            text = {} if parts is None else {"parts": " ".join(f"{k} {v:.4g}" for k, v in parts.items())}
            self._bar.update(self._task, completed=step, **text)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
