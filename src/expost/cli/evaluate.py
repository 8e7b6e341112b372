"""``expost evaluate``: every metric of a trained run under one protocol; ``expost compare``: of any two sets of images.

Both share the work of features under ``torchrun --nproc-per-node N -m expost ...``, and give the numbers of a single process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from expost.cli.options import Count, ImageOptions, Images, OpensRun, SomeImages, check_file
from expost.cli.torchrun import Shared

__all__ = ["Compare", "Evaluate"]


@dataclass
class Evaluate(OpensRun, Shared):
    """Score a trained run: reconstructions, samples of every density and interpolations against the test set, with controls."""

    folder: Positional[Path]
    """run folder"""
    density: tuple[str, ...] = ()
    """densities to sample from; default: the recipe's"""
    metrics: tuple[str, ...] = ("fd", "kid", "prd", "neighbours", "memorisation")
    """groups of metrics: fd, kid, prd, neighbours (precision, recall, density, coverage), memorisation, fld"""
    interpolation: tuple[str, ...] = ("spherical",)
    """midpoints: spherical, linear, norm-corrected"""
    n: Images = 10_000
    """images on each side, drawn at random, at most as many as the smaller of validation and test set"""
    extractor: str = "classifier"
    """classifier (trained once on the data), pixels, pca:64, random, or inception:WEIGHTS.safetensors"""
    quirks: str = ""
    """what the papers' code did beside its text, e.g. stretch,jpeg=75,first-channel; such scores are printed, not kept"""
    data: str | None = None
    """where the data is now, if it has moved"""
    seed: int = 0
    """seed of the images drawn, of samples, pairs and subsets"""
    device: str | None = None
    """cpu, cuda, mps"""

    def shared(self, main: bool) -> None:
        from expost.cli.common import echo, load
        from expost.evaluate.features.choose import extractor_of
        from expost.evaluate.metrics.suite import check_groups
        from expost.evaluate.protocol import check_interpolations
        from expost.papers.quirks import Quirks
        from expost.report import attempt, colours, save_panels
        from expost.seeds import some
        from expost.system.files import keep
        from expost.system.locks import writing

        groups, quirks, _ = check_groups(self.metrics), Quirks.parse(self.quirks), check_interpolations(self.interpolation)
        run = load(self.folder, self.data, self.device, self)
        specs = self.density or run.experiment.densities
        run.check(specs)  # before a classifier is trained
        extractor, notes = extractor_of(self.extractor, run.dataset)
        scores = run.score(
            extractor, densities=tuple(specs), n=self.n, seed=self.seed, notes=notes, groups=groups, interpolations=self.interpolation, treatment=quirks
        )  # fmt: skip
        if not main:
            return
        for table in scores.tables(f"{run.experiment.recipe} on {run.dataset.name}"):
            echo(f"{table}\n")
        if quirks.active:
            echo(f"scores with quirks ({quirks}) are not kept in {self.folder}")
            return
        shown = some(run.dataset.test.x, 16, "pictures", self.seed)
        rows = {"test images": shown.cpu(), "reconstructions": run.model.reconstruct(shown).cpu()}
        for spec in specs:
            rows[f"samples {spec}"] = run.model.with_prior(run.density(spec)).generate(16, seed=self.seed).cpu()
        picture = self.folder / "samples.png"
        with keep(self.folder), writing(self.folder):
            failed = attempt(picture, lambda: save_panels(picture, rows))
            echo(f"wrote {self.folder / 'results.json'}{'' if failed else f' and {picture}'}")
            for note in filter(None, (failed, colours(run.dataset.shape[0]))):
                echo(f"note: {note}")


@dataclass
class Compare(ImageOptions, Shared):
    """Compare any two sets of images: generated against real ones. Sets are read part by part and need not fit in memory."""

    generated: Annotated[Positional[str], arg(metavar="GENERATED")]
    """folder of pictures, .npy or .npz file, or a data set by name (its test images)"""
    real: Annotated[Positional[str], arg(metavar="REAL")]
    """what it is compared with: the same kinds"""
    train: str | None = None
    """training images of the model, the same kinds (of a data set by name: its training images); without them nothing is said of memorisation"""
    extractor: str = "random"
    """random (an untrained network), pixels, pca:64, classifier:DATA (trained once on a labelled data set), or inception:WEIGHTS.safetensors, with @SHA256 to have it checked"""
    metrics: tuple[str, ...] = ("fd", "kid", "prd", "neighbours", "memorisation")
    """groups of metrics: fd, kid, prd, neighbours, memorisation, fld; fd alone streams moments in memory independent of the number of images"""
    channels: Count | None = None
    """1 or 3: channels of pictures in folders, where the first one is not typical"""
    key: str | None = None
    """array of images in .npz files; default: images, x, data, or the only one"""
    n: SomeImages = None
    """images of GENERATED and of REAL at most, drawn by the seed; training images are used in full"""
    memory: Count = 256
    """megabytes that distances between images may take"""
    controls: bool = True
    """also measure controls: training images, the same moved by a pixel, shuffled pixels"""
    out: Path | None = None
    """also write the results as .json"""
    seed: int = 0
    """seed of subsets and k-means"""
    device: str | None = None
    """cpu, cuda, mps"""

    def shared(self, main: bool) -> None:
        from expost.cli.common import echo
        from expost.evaluate.comparison import compare
        from expost.evaluate.metrics.suite import COPYING, QUALITY
        from expost.results import Table
        from expost.system.devices import choose_device
        from expost.system.files import write_json

        check_file(self.out, ".json")
        found = compare(
            self.generated, self.real, self.train, extractor=self.extractor, groups=self.metrics, channels=self.channels, key=self.key, n=self.n, **self.loading(),
            memory=self.memory << 20, seed=self.seed, controls=self.controls, device=choose_device(self.device) if self.device else None,
        )  # fmt: skip
        if not main:
            return
        measured = found["generated"]
        others = [name for name in found if name != "generated"]
        table = Table(("metric", "value", "error", "n", *others), title=f"{self.generated} against {self.real}")
        for name in (m for m in (*QUALITY, *COPYING) if any(m in results for results in found.values())):
            beside = (found[other][name].shown if name in found[other] else None for other in others)
            result = measured.get(name)
            cells = (
                (name, None, None, None)
                if result is None
                else (result.name if name == "FD" else name, result.shown, result.error, result.n)
            )
            table.add(*cells, *beside)
        context = next(iter(measured.values())).context
        table.notes.append(
            ", ".join(f"{key} {context[key]}" for key in ("extractor", "n generated", "n reference", "n train", "seed", "version"))
        )
        table.notes += dict.fromkeys(note for result in measured.values() for note in result.notes)
        for other in others:  # what is missing there, where it is not missing here
            told = dict.fromkeys(note for result in found[other].values() for note in result.notes)
            table.notes += [
                f"{other}: {note}" for note in told if note not in table.notes and (note.startswith("no ") or " assume " in note)
            ]
        if others:
            first = next(iter(found[others[0]].values()))
            count = first.context["n generated"]
            own = (
                "" if count == context["n generated"] else ": not as many as the generated set has, so their FD is not comparable with its"
            )
            table.notes.append(f"the last columns are controls, {count} real images in place of generated ones{own}")
        if self.controls and self.train is None:
            table.notes.append("give --train for the controls that matter most: training images, and the same moved by a pixel")
        echo(table)
        if self.out is not None:
            write_json(self.out, {row: {name: result.to_json() for name, result in results.items()} for row, results in found.items()})
            echo(f"wrote {self.out}")
