"""What was measured: a table with named columns, and series over steps. Results print themselves and serialise to JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from expost.system.schema import printable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Curve", "Demonstration", "Result", "SHOWN", "Series", "Strips", "Table", "Verdict", "format_number", "word"]


def format_number(value: Any) -> str:
    """Short text for a table cell: numbers to four significant digits (three below 1), None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
            return f"{value:.3g}"
        magnitude = math.floor(math.log10(abs(value))) if value else 0
        return f"{value:.{max(0, 3 - magnitude) if magnitude >= 0 else 2 - magnitude}f}"
    return str(value)


class ResultValue(TypedDict):
    """What :meth:`Result.to_json` gives."""

    name: str
    value: float | None
    error: float | None
    n: int | None
    unit: str
    notes: list[str]
    details: dict[str, float]
    context: dict[str, str | int | float]


@dataclass(frozen=True)
class Result:
    """One measured number.

    Attributes:
        name: what was measured, with the extractor where there is one, e.g. ``FD[classifier-mnist@1a2b]``.
        value: the number; NaN where it was asked for and is not given: a dash when printed, null in JSON, and the notes say why.
        error: its standard error or spread over repetitions, where known.
        n: sample size.
        unit: e.g. ``nats``, ``bits/dim``.
        notes: what the reader must know (too few samples, unnormalised head ...).
        details: further numbers by name.
        context: what determined it: ``extractor``, ``generated``, ``reference``, ``seed``, ``version`` ...
    """

    name: str
    value: float
    error: float | None = None
    n: int | None = None
    unit: str = ""
    notes: tuple[str, ...] = ()
    details: Mapping[str, float] = field(default_factory=dict)
    context: Mapping[str, str | int | float] = field(default_factory=dict)

    def __float__(self) -> float:
        return self.value

    @property
    def shown(self) -> float | None:
        """The value for a table or a file: None if there is none."""
        return None if math.isnan(self.value) else float(self.value)

    def __str__(self) -> str:
        text = f"{self.name} = {format_number(self.shown)}"
        if self.error is not None:
            text += f" ± {format_number(float(self.error))}"
        text += f" {self.unit}" if self.unit else ""
        text += f" (n = {self.n})" if self.n is not None else ""
        return text + "".join(f"\n  note: {note}" for note in self.notes)

    def to_json(self) -> ResultValue:
        return {
            "name": self.name,
            "value": self.shown,
            "error": self.error,
            "n": self.n,
            "unit": self.unit,
            "notes": list(self.notes),
            "details": dict(self.details),
            "context": dict(self.context),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Result:
        return cls(**{**value, "value": math.nan if value["value"] is None else value["value"], "notes": tuple(value["notes"])})


def _lines(text: str) -> str:
    """Text of several lines as it may reach a terminal: names in it come from files."""
    return "\n".join(printable(line, len(line)) for line in text.split("\n"))


@dataclass
class Table:
    """Rows of cells under named columns, with a title and footnotes."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    title: str = ""
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: Any) -> None:
        if len(cells) != len(self.columns):
            raise ValueError(f"a row of {len(cells)} cells does not fit {len(self.columns)} columns")
        self.rows.append(cells)

    def column(self, name: str) -> list[Any]:
        index = self.columns.index(name)
        return [row[index] for row in self.rows]

    def cell(self, row: str, column: str) -> Any:
        """The cell under ``column`` in the row whose first cell is ``row``."""
        index = self.columns.index(column)
        for cells in self.rows:
            if cells[0] == row:
                return cells[index]
        raise KeyError(row)

    def __str__(self) -> str:
        text = [[printable(format_number(c), 1000) for c in row] for row in self.rows]
        columns = [printable(name) for name in self.columns]
        widths = [max(len(name), *(len(r[i]) for r in text)) if text else len(name) for i, name in enumerate(columns)]
        numeric = [all(isinstance(row[i], int | float | None) for row in self.rows) for i in range(len(self.columns))]

        def line(cells: Iterable[str]) -> str:
            return "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in zip(cells, widths, numeric, strict=True)).rstrip()

        lines = [_lines(self.title)] if self.title else []
        lines += [line(columns), "  ".join("-" * w for w in widths)]
        lines += [line(row) for row in text]
        lines += [f"note: {_lines(note)}" for note in self.notes]
        return "\n".join(lines)

    def to_markdown(self) -> str:
        head = f"| {' | '.join(self.columns)} |\n|{'---|' * len(self.columns)}"
        body = "".join(f"\n| {' | '.join(format_number(c) for c in row)} |" for row in self.rows)
        return head + body + "".join(f"\n\n{note}" for note in self.notes)

    def to_csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(["" if c is None else c for c in row] for row in self.rows)
        return out.getvalue()

    def to_json(self) -> dict[str, Any]:
        return {"title": self.title, "columns": list(self.columns), "rows": [list(r) for r in self.rows], "notes": list(self.notes)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Table:
        return cls(tuple(value["columns"]), [tuple(r) for r in value["rows"]], value.get("title", ""), list(value.get("notes", [])))


@dataclass
class Curve:
    """A series: y against x, with labels for the axes."""

    x: list[float]
    y: list[float]
    x_label: str = "step"
    y_label: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"x": self.x, "y": self.y, "x_label": self.x_label, "y_label": self.y_label}


@dataclass(frozen=True)
class Series:
    """A labelled curve.

    Attributes:
        label: for the legend.
        curve: y against x, with the quantities and units of both axes. Series that share both axis labels belong in one panel.
        kind: ``"line"`` for closed forms, ``"points"`` for what was trained, simulated or sampled, ``"dots"`` for clouds of many points,
            ``"bars"`` for histograms (x are the centres of equal bins).
        error: standard errors of y, or empty.
    """

    label: str
    curve: Curve
    kind: Literal["line", "points", "dots", "bars"] = "line"
    error: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.curve.y)
        if len(self.curve.x) != n or len(self.error) not in (0, n):
            raise ValueError(f"series {self.label!r} has {len(self.curve.x)} x, {n} y and {len(self.error)} errors: give as many of each")

    def to_json(self) -> dict[str, Any]:
        return {"label": self.label, "curve": self.curve.to_json(), "kind": self.kind, "error": list(self.error)}


def word(holds: bool) -> str:
    """How tables and claims print a verdict."""
    return "holds" if holds else "FAILS"


@dataclass(frozen=True)
class Verdict:
    """Attributes: ``measured`` (one line with the figures), whether the claim ``holds``, ``figures`` by name."""

    measured: str
    holds: bool
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Demonstration:
    """A claim, computed: numbers and curves; :mod:`expost.report` draws them.

    Attributes:
        name: of the demonstration or figure.
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


#: Images in a strip, unless a figure says otherwise.
SHOWN = 16


@dataclass(frozen=True)
class Strips:
    """Labelled strips of images, ``columns`` images each; ``captions`` stand under the images of a row."""

    name: str
    title: str
    caption: str
    rows: dict[str, Tensor]
    columns: int = SHOWN
    captions: dict[str, list[str]] = field(default_factory=dict)
