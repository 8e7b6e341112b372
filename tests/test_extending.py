"""The page on extending does what it says, and each addition touches as few files as it promises."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import expost

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
#: Heading -> the files that it touches.
FILES = {
    "An objective": ["src/expost/objectives/robust.py", "src/expost/objectives/__init__.py"],
    "A density": ["src/expost/density/laplace.py", "src/expost/density/__init__.py"],
    "A metric": ["src/expost/evaluate/metrics/means.py", "src/expost/evaluate/metrics/__init__.py"],
    "A paper": [f"src/expost/papers/doe2026/{name}.py" for name in ("__init__", "models", "paper")],
}


def blocks(section: str) -> list[tuple[str, bool, str]]:
    """(file, whether the lines are added to it, lines) of a section."""
    text = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return [(name, bool(added), code) for name, added, code in re.findall(r"```python\n# ([\w./]+)(, added)?\n(.*?)```", text, re.S)]


@pytest.mark.parametrize("section", FILES)
def test_an_addition_touches_few_files_and_takes_few_lines(section: str) -> None:
    found = blocks(section)
    assert [name for name, _, _ in found] == FILES[section]
    assert len({Path(name).parent for name, _, _ in found}) == 1
    lines = [line for _, _, code in found for line in code.splitlines() if line.strip()]
    assert len(lines) <= 30


SCRIPT = """
import torch
from expost import objectives
from expost.cli import main
from expost.density import parse
from expost.evaluate.metrics.suite import GROUPS, QUALITY
from expost.papers.base import bibtex, claims_of
from expost.runs.lab import Lab
from pathlib import Path

assert objectives.Robust(0.5).beta == 0.5
assert float(parse("laplace", 2).fit(torch.randn(500, 2))().log_prob(torch.zeros(2))) < 0
assert "means" in GROUPS and "means apart" in QUALITY
lab = Lab("digits", "smoke", Path("lab"), device="cpu")
(claim,) = claims_of("doe2026")
assert claim.measure(lab).holds and "doe2026" in bibtex("doe2026")
scores = lab.scores("doe2026/rae", ("gaussian", "laplace"), 100, groups=("fd", "means"))
assert scores.of("means apart").keys() >= {"samples laplace", "control: held-out images"}
main(["train", "doe2026/rae", "--data", "digits", "--budget", "smoke", "--device", "cpu", "--out", "run"])
main(["density", "run", "laplace", "--device", "cpu"])
"""


def test_what_the_page_adds_works_everywhere(tmp_path: Path) -> None:
    shutil.copytree(Path(expost.__file__).parent, tmp_path / "src" / "expost", ignore=shutil.ignore_patterns("__pycache__"))
    for section in FILES:
        for name, added, code in blocks(section):
            file = tmp_path / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(file.read_text() + "\n" + code if added else code)
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert (tmp_path / "run" / "densities" / "laplace.safetensors").is_file()
