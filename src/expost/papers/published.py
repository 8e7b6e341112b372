"""The numbers that the papers print, from ``published.json``."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["published"]


@cache
def _records() -> list[dict[str, Any]]:
    text = resources.files("expost.papers").joinpath("published.json").read_text(encoding="utf-8")
    return json.loads(text)["records"]


def published(doc: str, table: str, row: str, column: str) -> float:
    """The value printed in a table of paper ``doc`` (``bozkurt2018`` ... ``yu2020``); ``KeyError`` if there is none."""
    for record in _records():
        if record["value"] is not None and (record["doc"], record["table"], record["row"], record["column"]) == (doc, table, row, column):
            return float(record["value"])
    raise KeyError(f"{doc} {table}: {row}, {column}")
