"""The record of a training: one row per logging interval and per validation, and how it ended."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field, replace
from typing import Any

from expost.results import Curve
from expost.system.schema import convert

__all__ = ["UNTRAINED", "History"]

UNTRAINED = "the loss is not finite before the first update"


@dataclass
class History:
    """Rows of {step, epoch, split, seconds, lr, total, <parts of the loss>}; losses are means in nats per example over the interval.

    Attributes:
        rows: the record, in order.
        stopped: why training ended: ``"finished"``, ``"early stop"``, or a sentence about a non-finite loss; or why it stopped, to go on later:
            ``"time"``, ``"interrupted"``.
        best_step: the step whose weights the model now has, if the best ones were kept; else the last step.
        seconds: wall time of training over all sessions, validation included.
        images: training examples seen.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""
    best_step: int = 0
    seconds: float = 0.0
    images: int = 0

    @property
    def failed(self) -> bool:
        """Whether training ended on a non-finite loss."""
        return self.stopped.startswith("non-finite") or self.untrained

    @property
    def untrained(self) -> bool:
        """Whether the loss was not finite before the first update."""
        return self.stopped.startswith(UNTRAINED)

    def curve(self, name: str = "total", split: str = "train") -> Curve:
        rows = [r for r in self.rows if r["split"] == split and name in r]
        return Curve([float(r["step"]) for r in rows], [float(r[name]) for r in rows], "step", f"{name} (nats)")

    def last(self, name: str = "total", split: str = "train") -> float:
        values = self.curve(name, split).y
        if not values:
            raise ValueError(f'the history has no "{name}" for "{split}"')
        return values[-1]

    def to_csv(self) -> str:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        out = io.StringIO()
        writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return out.getvalue()

    def timeless(self) -> History:
        """Without what the clock said: the same for every training that computes the same."""
        return replace(self, rows=[{k: v for k, v in row.items() if k != "seconds"} for row in self.rows], seconds=0.0)

    def to_json(self) -> dict[str, Any]:
        return {"rows": self.rows, "stopped": self.stopped, "best_step": self.best_step, "seconds": self.seconds, "images": self.images}

    @classmethod
    def from_json(cls, value: Any, what: str = "this is not the history of a training") -> History:
        """What :meth:`to_json` gave; ``ValueError`` if it is something else, which begins with ``what``."""
        history = convert(value, cls, what)
        if not all(isinstance(row.get("step"), int) and isinstance(row.get("split"), str) for row in history.rows):
            raise ValueError(f"{what} (a row has no step or no split)")
        return history
