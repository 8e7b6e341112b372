"""Generated pages are current."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
_spec = importlib.util.spec_from_file_location("docs_make", DOCS / "make.py")
assert _spec is not None
assert _spec.loader is not None
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


@pytest.mark.parametrize("name", sorted(make.PAGES))
def test_generated_pages_are_current(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == make.PAGES[name](), f"run `make docs`: docs/{name} is out of date"


def test_figures_of_the_guide_were_measured() -> None:
    """Every figure with three digits or more behind the point stands in the log, or is rounded from one that does."""
    known = {figure.lstrip("0") for figure in re.findall(r"\d*\.\d+", (DOCS / "log.md").read_text(encoding="utf-8"))}
    figures = {figure.lstrip("0") for figure in re.findall(r"\d*\.\d{3,}", (DOCS / "choose.md").read_text(encoding="utf-8"))}
    assert len(figures) > 40
    assert not figures - known
