"""``expost diagnose``: what a run learned, what is wrong with it, and the command that mends it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from expost.cli.options import Images, OpensRun, check_report

__all__ = ["Diagnose"]

#: Finding -> the picture that shows it, where there is one.
PICTURES = {
    "exploding codes": "codes",
    "collapsed posterior": "units",
    "failed reconstruction": "memorisation",
    "memorising decoder": "generalisation",
    "overfitted reconstruction": "memorisation",
    "mismatched aggregate posterior": "codes",
    "holes between classes": "samples",
    "dead units": "units",
    "wrong decoder variance": "variances",
}


@dataclass
class Diagnose(OpensRun):
    """Say what a trained run learned: does it memorise, which units live, does q(z) match what is sampled, and what to do about it."""

    folder: Positional[Path]
    """run folder, of `expost train` or `expost wrap`"""
    density: str | None = None
    """what is sampled from; default: the training prior, or the recipe's first density"""
    n: Images = 2000
    """held-out data (the test split) used"""
    out: Path | None = None
    """folder of the report; default: FOLDER/diagnosis"""
    classes: bool = False
    """also class masses, holes and class radius, by the evaluation's classifier (labelled data)"""
    full: bool = False
    """print every table, not only the summary and the findings"""
    data: str | None = None
    """where the data is now, if it has moved"""
    seed: int = 0
    """seed of every choice and draw"""
    device: str | None = None
    """cpu, cuda, mps"""

    def run(self) -> None:
        import time

        from expost.cli.common import echo, load
        from expost.report import Section, write_page
        from expost.report.figures import chart_sections, strip_sections
        from expost.runs.diagnosis import diagnose_run
        from expost.system.files import keep, write_json
        from expost.system.locks import writing

        start = time.monotonic()
        out = self.out or self.folder / "diagnosis"
        if self.out is not None or self.folder.is_dir():
            check_report(out)
        run = load(self.folder, self.data, self.device, self, failed=True)  # a failed training is its first finding
        density = self.density or (run.experiment.densities[0] if run.experiment.densities else "gmm:10")
        report = diagnose_run(run, density, n=self.n, seed=self.seed, classes=self.classes)
        tables = report.diagnosis.panel.tables()
        findings = report.diagnosis.findings
        verdict = (
            f"{len(findings)} finding{'s' * (len(findings) != 1)}" if findings else "no findings: every measurement is within its threshold"
        )
        if report.classes is not None:
            tables.insert(1, report.classes)
        if report.diagnosis.optimal is not None:
            tables.append(report.diagnosis.optimal.table("optimal decoder, held-out data"))
        echo("\n\n".join(str(table) for table in (tables if self.full else tables[: 1 + self.classes])))
        echo(f"\n{verdict}" + (f" ({run.experiment.recipe} on {run.dataset.name}, sampled from {density})" if findings else ""))
        for rank, (finding, lines) in enumerate(zip(findings, report.commands, strict=True), 1):
            echo(f"\n{rank}. {finding}")
            for line in lines:
                echo(f"    $ {line}")
        with keep(out), writing(out):
            sections = [
                Section(
                    "Verdict",
                    [f"{run.experiment.recipe} on {run.dataset.name}, sampled from {density}: {verdict}.", *report.diagnosis.notes],
                )
            ]
            pictures = [*strip_sections(out, report.strips), *chart_sections(out, report.charts)]
            for rank, (finding, lines) in enumerate(zip(findings, report.commands, strict=True), 1):
                text = [
                    finding.sentence,
                    f"Measured: {finding.measured}.",
                    f"Threshold: {finding.threshold}.",
                    f"Remedy: {finding.remedy.text}.",
                ]
                shown = out / f"{PICTURES.get(finding.name, '')}.png"
                sections.append(
                    Section(f"{rank}. {finding.name}", text, pictures=[shown] if shown.is_file() else [], code="\n".join(lines))
                )
            sections += pictures
            sections += [Section(table.title, tables=[table]) for table in tables]
            sections.append(
                Section(
                    "Do it again",
                    code=f"expost diagnose {self.folder} --density {density} --n {self.n} --seed {self.seed}"
                    + " --classes" * self.classes
                    + "".join(f" --code {name}" for name in self.code),
                )
            )
            write_page(out / "report.html", f"Diagnosis of {self.folder}", sections)
            write_json(out / "diagnosis.json", report.to_json())
            echo(f"\nwrote {out / 'report.html'} in {time.monotonic() - start:.0f} s")
