"""Strips of images and charts, drawn into a folder and made into sections of a page.

Pictures of the tutorial's demonstrations: one panel per pair of axes, lines for closed forms, points for what was trained or sampled.

An axis is logarithmic where its values are positive and span enough decades (:data:`WIDE_X`, :data:`WIDE_Y`); on a logarithmic axis
points at or below zero are left out. matplotlib is imported when first used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

from expost.report.page import Section
from expost.report.pictures import attempt, colours, save_panels
from expost.results import Demonstration, Series, Strips
from expost.system.files import atomic

__all__ = ["chart_sections", "draw", "save", "strip_sections"]


def strip_sections(out: Path, strips: Iterable[Strips]) -> list[Section]:
    """One section with ``out/NAME.png`` for each, or a note in its place."""
    sections = []
    for strip in strips:
        picture = out / f"{strip.name}.png"
        failed = attempt(picture, partial(save_panels, picture, strip.rows, strip.columns, captions=strip.captions))
        channels = colours(next(iter(strip.rows.values())).shape[1])
        notes = [note for note in (failed, channels and f"{channels.capitalize()}.") if note]
        sections.append(Section(strip.title, [strip.caption, *notes], pictures=[] if failed else [picture]))
    return sections


def chart_sections(out: Path, charts: Iterable[Demonstration]) -> list[Section]:
    """One section with ``out/NAME.png``, the claim, the table and the notes for each."""
    sections = []
    for chart in charts:
        picture = out / f"{chart.name}.png"
        failed = attempt(picture, partial(save, picture, chart))
        tables = [chart.table] if chart.table.rows else []
        sections.append(
            Section(chart.title, [chart.claim, *chart.notes, *([failed] if failed else [])], tables, [] if failed else [picture])
        )
    return sections


WIDE_X, WIDE_Y = 15, 500
"""Ratio of largest to smallest value from which an axis is logarithmic."""

LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "D", "^", "v")


def _family(series: Series) -> str:
    """Series that differ only after the last comma of their label share a colour."""
    return series.label.rpartition(",")[0] or series.label


def _wide(values: list[float], ratio: float) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) >= ratio


def _panel(axes: Any, group: list[Series], colours: dict[str, str]) -> None:
    lines = [s for s in group if s.kind == "line"] or group
    bars = [s for s in group if s.kind == "bars"]
    most = max((len(s.curve.x) for s in group if s.kind == "dots"), default=0)
    log_x = not bars and _wide([x for s in lines for x in s.curve.x], WIDE_X)
    log_y = not bars and _wide([y for s in lines for y in s.curve.y], WIDE_Y)
    drawn = {"line": 0, "points": 0, "dots": 0, "bars": 0}
    for s in group:
        colour, turn = colours[_family(s)], drawn[s.kind]
        drawn[s.kind] += 1
        if s.kind == "line":
            axes.plot(s.curve.x, s.curve.y, LINES[turn % len(LINES)], color=colour, label=s.label, linewidth=1.6)
            continue
        if s.kind == "dots":
            size, alpha = (7, 0.9) if most < 200 else (4, 0.5)
            axes.plot(s.curve.x, s.curve.y, ".", color=colour, label=s.label, markersize=size, alpha=alpha, markeredgewidth=0)
            continue
        if s.kind == "bars":
            width = min((b - a for a, b in itertools.pairwise(sorted(s.curve.x))), default=1.0) / len(bars)
            shift = width * (turn - (len(bars) - 1) / 2)
            axes.bar([x + shift for x in s.curve.x], s.curve.y, 0.95 * width, color=colour, label=s.label)
            continue
        kept = [i for i, y in enumerate(s.curve.y) if y > 0 or not log_y]
        x, y = [s.curve.x[i] for i in kept], [s.curve.y[i] for i in kept]
        error = [s.error[i] for i in kept] if s.error else None
        if error and log_y:
            error = [min(e, 0.9 * v) for e, v in zip(error, y, strict=True)]  # a bar to zero has no lower end here
        axes.errorbar(
            x,
            y,
            error,
            fmt=MARKERS[turn % len(MARKERS)],
            color=colour,
            label=s.label,
            markersize=5,
            fillstyle="none",
            elinewidth=1,
            zorder=3,
        )
    axes.set_xlabel(group[0].curve.x_label)
    axes.set_ylabel(group[0].curve.y_label)
    if log_x:
        axes.set_xscale("log")
        values = [x for s in lines for x in s.curve.x]
        if max(values) / min(values) < 100:  # under two decades matplotlib's labels run into each other
            ticks = _ticks(min(values), max(values))
            axes.set_xticks(ticks, [f"{tick:,.0f}".replace(",", " ") if tick >= 1 else f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
    if log_y:
        axes.set_yscale("log")
    elif all(float(y).is_integer() for s in group for y in s.curve.y):
        axes.yaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _ticks(low: float, high: float) -> list[float]:
    """Powers of two between small counts; 1, 2, 5 of every decade below 1 and above 10 000.

    >>> _ticks(0.004, 0.06), _ticks(1, 9)
    ([0.005, 0.01, 0.02, 0.05], [1.0, 2.0, 4.0, 8.0])
    """
    if low >= 1 and high <= 10_000:
        return [2.0**i for i in range(math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9) + 1)]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [float(f"{m}e{k}") for k in decades for m in (1, 2, 5) if low * (1 - 1e-9) <= float(f"{m}e{k}") <= high * (1 + 1e-9)]


def draw(demonstration: Demonstration) -> Any:
    """A matplotlib ``Figure`` with one panel per pair of axis labels, in the order in which the series name them.

    Raises ``ValueError`` if there is nothing to draw.
    """
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str], list[Series]] = {}
    for s in demonstration.series:
        panels.setdefault((s.curve.x_label, s.curve.y_label), []).append(s)
    if not panels:
        raise ValueError(f"{demonstration.name} has no series to draw: print it instead")
    families = dict.fromkeys(_family(s) for s in demonstration.series)
    colours = {family: f"C{i % 10}" for i, family in enumerate(f for f in families if not f.startswith("draws"))}
    colours |= {family: "0.75" for family in families if family.startswith("draws")}  # what is drawn from a density lies behind data

    groups = list(panels.values())
    shared = all([s.label for s in group] == [s.label for s in groups[0]] for group in groups)
    rows = 1 if shared else max((len(group) + 1) // 2 for group in groups)
    width = {1: 6.4, 2: 10.0}.get(len(groups), 4.0 * len(groups))
    figure = Figure(figsize=(width, 4.3 + 0.2 * rows), dpi=150, layout="constrained")
    every = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, group in zip(every, groups, strict=True):
        _panel(axes, group, colours)
        if not shared:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8, frameon=False, markerscale=1.8)
    if shared:
        handles, labels = every[0].get_legend_handles_labels()
        columns = 2 if len(groups) == 1 else 4
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False, markerscale=1.8)
    title = fill(demonstration.title, round(10 * width))
    figure.suptitle(title if demonstration.holds else f"{title}\n(does not hold here)", fontsize=11)
    return figure


def save(path: str | Path, demonstration: Demonstration) -> None:
    """Write :func:`draw` as PNG, whole or not at all."""
    figure = draw(demonstration)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
