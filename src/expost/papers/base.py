"""What a paper is here: recipes that register themselves, tables and figures to reproduce, and claims to check, in one folder that is found by walking.

Levels of claims: M must hold (mathematics, or very robust), S should hold at CPU scale, W was published but is fragile: reported, never gated.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module, util
from pkgutil import iter_modules
from typing import Literal

from torch import Tensor

from expost.papers.citations import CITATIONS
from expost.results import Demonstration, Strips, Table, Verdict
from expost.runs.lab import Lab

__all__ = [
    "Claim",
    "Paper",
    "Reproduction",
    "Target",
    "as_strips",
    "as_tables",
    "claims_of",
    "find_target",
    "papers",
    "targets",
]


@dataclass(frozen=True)
class Claim:
    """One checkable sentence of a paper.

    Attributes:
        id: a short alias, A1 ... E13; the letter stands for the paper.
        level: M, S or W.
        sentence: what is claimed.
        how: how it is measured here.
        measure: lab -> verdict, or None if its code is not built yet.
    """

    id: str
    level: Literal["M", "S", "W"]
    sentence: str
    how: str
    measure: Callable[[Lab], Verdict] | None = None


@dataclass(frozen=True)
class Reproduction:
    """What a target gives.

    Attributes:
        tables: measured beside published.
        reproduced: whether all of it agrees.
        maps: pictures by row and column: (H, W) in [0, 1], or RGB (3, H, W).
        strips: pictures of labelled strips of images.
        demonstrations: to be drawn one by one.
    """

    tables: list[Table]
    reproduced: bool
    maps: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    strips: list[Strips] = field(default_factory=list)
    demonstrations: list[Demonstration] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    """One table or figure.

    Attributes:
        name: ``paper/table1``; ``summary``: what it is.
        make: lab -> tables, pictures and figures.
        data: what is loaded unless the user names other data; "" for what makes its own.
    """

    name: str
    summary: str
    make: Callable[[Lab], Reproduction]
    data: str = "mnist"

    @property
    def paper(self) -> str:
        """Key of the paper."""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Paper:
    """A paper.

    Attributes:
        key: as in citations, e.g. ``ghosh2020``; ``number``: what older versions called it.
        title, link: for people.
        targets: its tables and figures.
        claims: its checkable sentences.
        bibtex: how it is cited.
    """

    key: str
    title: str
    link: str
    number: str
    targets: tuple[Target, ...]
    claims: tuple[Claim, ...]
    bibtex: str


def bibtex(key: str) -> str:
    """BibTeX of a paper in a folder here, or of :data:`~expost.papers.citations.CITATIONS`; ``KeyError`` if there is none."""
    own = {paper.key: paper.bibtex for paper in papers()}
    return own[key] if key in own else CITATIONS[key]


@cache
def papers() -> tuple[Paper, ...]:
    """All papers, in the order of their numbers: every folder here that has a module ``paper`` with a ``PAPER``."""
    package = import_module("expost.papers")
    names = (f"{found.name}.paper" for found in iter_modules(package.__path__, "expost.papers.") if found.ispkg)
    found: list[Paper] = [import_module(name).PAPER for name in names if util.find_spec(name) is not None]
    return tuple(sorted(found, key=lambda paper: paper.number))


def claims_of(paper: str | None) -> list[Claim]:
    """All claims, or those of one paper (``ghosh2020``) or one id (``C1``); ``ValueError`` names what exists."""
    every = [(p, claim) for p in papers() for claim in p.claims]
    if paper is None:
        return [claim for _, claim in every]
    chosen = [claim for p, claim in every if paper in (p.key, p.number) or claim.id == paper.upper()]
    if not chosen:
        known = ", ".join(p.key for p in papers())
        raise ValueError(f'there are no claims of "{paper}": give a paper ({known}) or an id such as C1')
    return chosen


def targets() -> dict[str, Target]:
    """Everything that can be reproduced, by name."""
    return {target.name: target for paper in papers() for target in paper.targets}


def find_target(name: str) -> Target:
    """The target of a name, or ``ValueError`` with close matches."""
    known = targets()
    if name not in known:
        close = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f'did you mean "{close[0]}"?' if close else f"choose one of {', '.join(known)}"
        raise ValueError(f'there is nothing called "{name}" to reproduce: {hint}')
    return known[name]


def as_tables(make: Callable[[Lab], tuple[list[Table], bool]]) -> Callable[[Lab], Reproduction]:
    """A target from a function that returns tables, and whether they agree."""
    return lambda lab: Reproduction(*make(lab))


def as_strips(*make: Callable[[Lab], Strips]) -> Callable[[Lab], Reproduction]:
    """A target of pictures."""
    return lambda lab: Reproduction([], True, strips=[m(lab) for m in make])
