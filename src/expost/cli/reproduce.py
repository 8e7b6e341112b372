"""``expost reproduce``: a table or figure of a paper, measured beside published, with a page that shows it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from expost.cli.options import DataOptions, check_report

__all__ = ["Reproduce"]


@dataclass
class Reproduce(DataOptions):
    """Reproduce a table or figure of a paper: measured, published and a verdict side by side. What was trained before is not trained again."""

    target: Positional[str]
    """e.g. yu2020/table1; see `expost list`"""
    data: str | None = None
    """data set name or folder, for targets that do not make their own; default: the target's"""
    budget: Literal["smoke", "cpu", "paper"] = "cpu"
    """of the runs"""
    seed: int = 0
    """of everything"""
    runs: Path = Path("runs/lab")
    """folder of the runs"""
    out: Path | None = None
    """folder of report and pictures; default: runs/reproduce/TARGET-DATA-BUDGET-SEED"""
    device: str | None = None
    """cpu, cuda, mps"""

    def run(self) -> None:
        from expost.cli.common import Failure
        from expost.papers.base import bibtex, find_target
        from expost.report import Section, attempt, write_page
        from expost.report.figures import chart_sections, strip_sections
        from expost.report.pictures import save_maps
        from expost.runs.lab import Lab
        from expost.system.files import keep

        target = find_target(self.target)
        start = time.monotonic()

        def say(text: str) -> None:
            print(f"  ... {text}", file=sys.stderr, flush=True)

        given = [f"--{name.replace('_', '-')}" for name in ([] if self.data is None else ["data"]) + list(self.loading())]
        if given and not target.data:
            raise ValueError(f"{target.name} is of data that it makes itself: leave out {' and '.join(given)}")
        data = target.data if self.data is None else self.data
        name = "-".join([self.target.replace("/", "-"), *[Path(data).name] * bool(data), self.budget, str(self.seed)])
        out = self.out or Path("runs/reproduce") / name
        check_report(out)
        lab = Lab(data, self.budget, self.runs, self.seed, self.device, say=say, loading=self.loading())
        made = target.make(lab)
        print("\n\n".join([*map(str, made.tables), *map(str, made.demonstrations)]), flush=True)
        sections = [Section(table.title or target.summary, tables=[table]) for table in made.tables]
        with keep(out):
            if made.maps:
                failed = attempt(out / "maps.png", lambda: save_maps(out / "maps.png", made.maps))
                sections.append(Section("Maps", [failed]) if failed else Section("Maps", pictures=[out / "maps.png"]))
            sections += [*strip_sections(out, made.strips), *chart_sections(out, made.demonstrations)]
            command = f"expost reproduce {self.target}{f' --data {data}' * bool(data)} --budget {self.budget} --seed {self.seed}"
            sections += [Section("Do it again", code=command), Section("Cite", code=bibtex(target.paper))]
            write_page(out / "report.html", f"{target.name}: {target.summary}", sections)
            print(f"wrote {out / 'report.html'} in {time.monotonic() - start:.0f} s", flush=True)
        if not made.reproduced:
            raise Failure(f"{self.target} was not reproduced at {self.budget} budget: the verdicts say where")
