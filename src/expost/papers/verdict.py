"""What a measurement of a claim returns."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Verdict", "word"]


def word(holds: bool) -> str:
    """How tables and claims print a verdict."""
    return "holds" if holds else "FAILS"


@dataclass(frozen=True)
class Verdict:
    """Attributes: ``measured`` (one line with the figures), whether the claim ``holds``, ``figures`` by name."""

    measured: str
    holds: bool
    figures: dict[str, float] = field(default_factory=dict)
