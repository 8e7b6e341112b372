"""Strips of images and charts, drawn into a folder and made into sections of a page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from expost.recipes.strips import Strips
from expost.report.demonstrations import save
from expost.report.page import Section
from expost.report.pictures import save_panels
from expost.tutorial.base import Demonstration

__all__ = ["chart_sections", "strip_sections"]


def strip_sections(out: Path, strips: Iterable[Strips]) -> list[Section]:
    """One section with ``out/NAME.png`` for each."""
    sections = []
    for strip in strips:
        picture = out / f"{strip.name}.png"
        save_panels(picture, strip.rows, strip.columns, captions=strip.captions)
        sections.append(Section(strip.title, [strip.caption], pictures=[picture]))
    return sections


def chart_sections(out: Path, charts: Iterable[Demonstration]) -> list[Section]:
    """One section with ``out/NAME.png``, the claim, the table and the notes for each."""
    sections = []
    for chart in charts:
        picture = out / f"{chart.name}.png"
        save(picture, chart)
        tables = [chart.table] if chart.table.rows else []
        sections.append(Section(chart.title, [chart.claim, *chart.notes], tables, [picture]))
    return sections
