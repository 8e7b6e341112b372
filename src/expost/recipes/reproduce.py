"""``expost reproduce``: tables and figures of the papers by name, measured beside published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from expost.recipes import figures_bozkurt2018 as bozkurt
from expost.recipes import figures_dai2019 as dai
from expost.recipes import figures_manoj2018 as radius
from expost.recipes.figures_ghosh2020 import (
    copies_table,
    figure3_left,
    figure3_right,
    interpolations,
    neighbours,
    reconstructions,
    samples,
)
from expost.recipes.lab import Lab
from expost.recipes.lossless import compression_table
from expost.recipes.plane import plane_table
from expost.recipes.strips import Strips
from expost.recipes.sweep_bozkurt2018 import digit_strips, sweep_figure
from expost.recipes.table_dai2019 import table1 as dai2019_table1
from expost.recipes.table_ghosh2020 import table1, table2
from expost.recipes.verdict import word
from expost.results import Table
from expost.tutorial import DEMONSTRATIONS, Demonstration

__all__ = ["TARGETS", "Reproduction", "Target", "find_target"]


@dataclass(frozen=True)
class Reproduction:
    """What a target gives.

    Attributes:
        tables: measured beside published.
        reproduced: whether all of it agrees.
        maps: pictures by row and column: (H, W) in [0, 1], or RGB (3, H, W).
        strips: pictures of labelled strips of images.
        demonstrations: to be drawn one by one.
    """

    tables: list[Table]
    reproduced: bool
    maps: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    strips: list[Strips] = field(default_factory=list)
    demonstrations: list[Demonstration] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    """One table or figure: name, what it is, paper, how it is made, and on which data by default; "" where it makes its own."""

    name: str
    summary: str
    paper: str
    make: Callable[[Lab], Reproduction]
    data: str = "mnist"


def _plane(number: int) -> Callable[[Lab], Reproduction]:
    def make(lab: Lab) -> Reproduction:
        result = plane_table(lab, number)
        return Reproduction([result.table], result.reproduced, result.pictures)

    return make


def _demonstrations(lab: Lab) -> Reproduction:
    made = []
    for name, function in DEMONSTRATIONS.items():
        lab.say(f"demonstration {name}")
        made.append(function(lab.seed))
    table = Table(("demonstration", "shows", "verdict"), title="004: demonstrations")
    for demonstration in made:
        table.add(demonstration.name, demonstration.title, word(demonstration.holds))
    return Reproduction([table], all(d.holds for d in made), demonstrations=made)


def _table(make: Callable[[Lab], tuple[list[Table], bool]]) -> Callable[[Lab], Reproduction]:
    return lambda lab: Reproduction(*make(lab))


def _strips(*make: Callable[[Lab], Strips]) -> Callable[[Lab], Reproduction]:
    return lambda lab: Reproduction([], True, strips=[m(lab) for m in make])


def _copies(lab: Lab) -> Reproduction:
    table, good = copies_table(lab)
    return Reproduction([table], good, strips=[neighbours(lab)])


def _sweeps(lab: Lab) -> Reproduction:
    made = [figure3_left(lab), figure3_right(lab)]
    return Reproduction([], all(d.holds for d in made), demonstrations=made)


def _bozkurt_figure1(lab: Lab) -> Reproduction:
    made = bozkurt.perplexities(lab)
    return Reproduction([], made.holds, strips=[bozkurt.figure1(lab)], demonstrations=[made])


def _bozkurt_figure2(lab: Lab) -> Reproduction:
    made = bozkurt.figure2(lab)
    return Reproduction([], made.holds, demonstrations=[made])


def _bozkurt_figure3(lab: Lab) -> Reproduction:
    maps, table = bozkurt.figure3(lab)
    return Reproduction([table], table.rows[0][1] > 0.8 and table.rows[1][1] < 0.1, maps)


def _bozkurt_digit(digit: int) -> Callable[[Lab], Reproduction]:
    def make(lab: Lab) -> Reproduction:
        made = sweep_figure(lab, digit)
        return Reproduction([], made.holds, strips=[digit_strips(lab, digit)], demonstrations=[made])

    return make


def _dai_figure1(lab: Lab) -> Reproduction:
    centre, rows = dai.figure1_centre(lab)
    made = [dai.figure1_left(lab), centre, dai.figure1_right(lab)]
    return Reproduction([], all(d.holds for d in made), strips=[rows], demonstrations=made)


def _dai_figure9(lab: Lab) -> Reproduction:
    made, rows = dai.figure9(lab)
    return Reproduction([], made.holds, strips=[rows], demonstrations=[made])


def _dai_figure10(lab: Lab) -> Reproduction:
    made = dai.figure10(lab)
    return Reproduction([], made.holds, demonstrations=[made])


def _dai_samples(number: int) -> Callable[[Lab], Reproduction]:
    return lambda lab: Reproduction([], True, strips=dai.sample_figure(lab, number))


def _manoj(lab: Lab) -> Reproduction:
    made = [make(lab) for make in (radius.scatter, radius.before_and_after, radius.coverage_curves, radius.estimators, radius.modes)]
    return Reproduction([], all(d.holds for d in made), strips=[radius.samples(lab)], demonstrations=made)


def _compression(lab: Lab) -> Reproduction:
    table, good = compression_table(lab)
    return Reproduction([table], good)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("bozkurt2018/figure1", "unseen digits: reconstruction, optimal decoder, nearest training images; perplexities", "bozkurt2018", _bozkurt_figure1),
        Target("bozkurt2018/figure2", "is a reconstruction closer to its input or to the training data?", "bozkurt2018", _bozkurt_figure2),
        Target("bozkurt2018/figure3", "mini-MNIST: largest weight and posteriors over the latent plane", "bozkurt2018", _bozkurt_figure3),
        *(
            Target(f"bozkurt2018/figure{number}", f"20 architectures, held-out digit {digit}: depth or size?", "bozkurt2018", _bozkurt_digit(digit))
            for number, digit in ((4, 9), *((5 + d, d) for d in range(9)))
        ),
        Target("ghosh2020/table1", "FD of reconstructions, samples (N, GMM-10) and midpoints, nine models", "ghosh2020", _table(table1)),
        Target("ghosh2020/table2", "precision and recall (PRD) of samples from N and GMM-10, eight models", "ghosh2020", _table(table2)),
        Target("ghosh2020/figure3", "FD while training for k latent samples; FD against the KL weight", "ghosh2020", _sweeps),
        Target("ghosh2020/figure4", "reconstructions, samples and interpolations, nine models", "ghosh2020", _strips(reconstructions, samples, interpolations)),
        Target("ghosh2020/figure5", "the same on CIFAR-10", "ghosh2020", _strips(reconstructions, samples, interpolations), "cifar10"),
        Target("ghosh2020/figure6", "samples and their nearest training images in pixels; are they copies?", "ghosh2020", _copies),
        Target("dai2019/table1", "FD of samples: cross-entropy, fixed and learned variance, two-stage", "dai2019", _table(dai2019_table1)),
        Target("dai2019/figure1", "variance while training, noise along latent directions, singular spectra of q(z) and q(u)", "dai2019", _dai_figure1),
        *(
            Target(f"dai2019/figure{number}", f"{' and '.join(what)} of the VAEs and the two-stage VAE", "dai2019", _dai_samples(number), data)
            for number, (data, what) in dai.SAMPLE_FIGURES.items()
        ),
        Target("dai2019/figure9", "image variance under noise along latent directions, beside the printed values", "dai2019", _dai_figure9),
        Target("dai2019/figure10", "histogram of encoder variances, estimated dimension", "dai2019", _dai_figure10),
        Target("manoj2018/figures", "classes before and after the regulariser: codes, samples, radius and its bounds, coverage, modes", "manoj2018", _manoj),
        Target("yu2020/table1", "VAE on the three plane densities: entropy, -ELBO, NLL, maps", "yu2020", _plane(1), ""),
        Target("yu2020/table2", "IWAE on the three plane densities: entropy, bound, NLL, maps", "yu2020", _plane(2), ""),
        Target("yu2020/demonstrations", "rescaling, optimal variance, linear flow, noisy channel, z is no parameter, importance sampling", "yu2020", _demonstrations, ""),
        Target("yu2020/compression", "bits-back coding of test images beside gzip ... WebP and published rates", "yu2020", _compression),
    )
}  # fmt: skip


def find_target(name: str) -> Target:
    """The target of a name, or ``ValueError`` with close matches."""
    import difflib

    if name not in TARGETS:
        close = difflib.get_close_matches(name, TARGETS, 1, 0.5)
        hint = f'did you mean "{close[0]}"?' if close else f"choose one of {', '.join(TARGETS)}"
        raise ValueError(f'there is nothing called "{name}" to reproduce: {hint}')
    return TARGETS[name]
