"""Strips of images and charts, drawn into a folder and made into sections of a page."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from expost.report.demonstrations import save
from expost.report.page import Section
from expost.report.pictures import attempt, colours, save_panels
from expost.results import Demonstration, Strips

__all__ = ["chart_sections", "strip_sections"]


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
