"""What a demonstration returns: numbers only. :mod:`expost.report.demonstrations` draws them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from expost.results import Series, Table, format_number

__all__ = ["Demonstration", "Series"]


@dataclass(frozen=True)
class Demonstration:
    """A claim of the tutorial, computed.

    Attributes:
        name: its name in :data:`expost.papers.yu2020.demonstrations.DEMONSTRATIONS`.
        title: a few words.
        claim: one sentence that could be false.
        table: the numbers.
        series: the curves.
        holds: whether every check of the claim passed, at the tolerances stated in the demonstration's docstring.
        figures: the numbers on which ``holds`` was decided, by name.
        notes: what the reader must know.
    """

    name: str
    title: str
    claim: str
    table: Table
    series: tuple[Series, ...]
    holds: bool
    figures: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        bad = [name for name, value in self.figures.items() if not math.isfinite(value)]
        assert not bad, f"figures of {self.name} are not finite: {bad}"

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {format_number(value)}" for name, value in self.figures.items())
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        lines = [self.title, f"claim: {self.claim}", f"{verdict}: {figures}", "", str(self.table)]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "claim": self.claim,
            "table": self.table.to_json(),
            "series": [s.to_json() for s in self.series],
            "holds": self.holds,
            "figures": self.figures,
            "notes": list(self.notes),
        }
