"""``expost demo``: RAE and VAE side by side on digits; N(0, I), a Gaussian, a mixture and a second stage as densities of their codes."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from torch import Tensor

from expost.evaluate.features.choose import extractor_of
from expost.papers.base import bibtex
from expost.report import Section, save_panels, write_page
from expost.results import Table
from expost.runs.run import Run, plan, train_run
from expost.seeds import some

__all__ = ["demo"]

#: Recipe -> densities, in the order shown.
ROWS = {"dai2019/two-stage": ("prior", "gmm:10", "stage"), "ghosh2020/rae": ("gaussian", "gmm:10", "stage")}
NAMES = {"dai2019/two-stage": "VAE", "ghosh2020/rae": "RAE"}
SHOWN = {"prior": "N(0, I)", "gaussian": "Gaussian", "gmm:10": "mixture of 10", "stage": "second stage"}


def demo(out: Path, seed: int = 0) -> Table:
    """Train, fit, sample, score; print the table and write ``report.html`` and ``samples.png`` into ``out``."""
    start = time.monotonic()
    table = Table(
        ("model", "density of codes", "FD", "seconds"), title="Digits: one decoder, several densities of its codes (lower is better)"
    )
    pictures: dict[str, Tensor] = {}
    controls: dict[str, float] = {}
    for recipe, densities in ROWS.items():
        experiment, dataset = plan(recipe, data_name="digits", budget="cpu")
        experiment = dataclasses.replace(
            experiment,
            training=dataclasses.replace(experiment.training, epochs=100),
            stage=dataclasses.replace(experiment.stage, steps=800),
            stage_width=256,
        )
        print(f"training {NAMES[recipe]} ({recipe}) on {len(dataset.train.x)} digits ...", flush=True)
        run = train_run(experiment, dataset, source="digits", budget="cpu", seed=seed, progress=None)
        extractor, notes = extractor_of("classifier", dataset)
        pictures["digits"] = some(dataset.test.x, 16, "pictures", seed)
        pictures[f"{NAMES[recipe]} reconstructions"] = run.model.reconstruct(pictures["digits"]).cpu()
        seconds = {spec: _timed(run, spec) for spec in densities}
        scores = run.score(extractor, densities=densities, seed=seed, notes=notes)
        assert run.history is not None
        table.add(NAMES[recipe], "reconstructions", scores.values["reconstruction"], round(run.history.seconds, 1))
        for spec in densities:
            table.add(NAMES[recipe], SHOWN[spec], scores.values[f"samples {spec}"], round(seconds[spec], 2))
            pictures[f"{NAMES[recipe]}, {SHOWN[spec]}"] = run.model.with_prior(run.density(spec)).generate(16, seed=seed).cpu()
        controls = {name: scores.values[f"control: {name}"] for name in ("held-out images", "shuffled pixels")}
        label = scores.label
        table.notes = [f"FD is {label}, n = {scores.n}", *scores.notes, *scores.rows["reconstruction"]["FD"].notes]
    table.add("real digits", "none: held-out images", controls["held-out images"], None)
    table.add("real digits", "none: shuffled pixels", controls["shuffled pixels"], None)
    out.mkdir(parents=True, exist_ok=True)
    save_panels(out / "samples.png", pictures)
    write_page(
        out / "report.html",
        "expost demo: making autoencoders generative after the fact",
        [
            Section(
                "What this shows",
                [
                    "A VAE and a regularised autoencoder (RAE) are trained on 8x8 digits. The same decoder then draws its codes from several densities: "
                    "the VAE's own prior N(0, I), a Gaussian, a mixture of ten Gaussians, and a second VAE on the codes. "
                    f"{label} is a Fréchet distance between features of generated and real digits.",
                ],
                [table],
                [out / "samples.png"],
            ),
            Section(
                "Do it again", code="expost demo\nexpost train ghosh2020/rae --data digits\nexpost evaluate runs/ghosh2020-rae-digits-cpu-0"
            ),
            Section("Cite", code="\n\n".join(bibtex(k) for k in ("ghosh2020", "dai2019"))),
        ],
    )
    print(f"\n{table}\n\nwrote {out / 'report.html'} and {out / 'samples.png'} in {time.monotonic() - start:.0f} s")
    return table


def _timed(run: Run, spec: str) -> float:
    start = time.monotonic()
    run.density(spec)
    return time.monotonic() - start
