"""Figures 4 to 13 of bozkurt2018: is it depth or size that makes a decoder memorise? One figure per held-out digit.

The paper speaks of 17 architectures; its authors' figure shows the 20 of :data:`expost.papers.bozkurt2018.nets.BOZKURT_HIDDEN`, which are used here: all narrowing
encoders of widths 400, 200, 100 with 0 to 3 hidden layers, mirrored in the decoder. `expost sweep` can train them on several cores or a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from expost.diagnose.optimal import OptimalDecoder
from expost.papers.bozkurt2018.figures import judge, run_of, title_of
from expost.papers.bozkurt2018.nets import BOZKURT_HIDDEN
from expost.results import Curve, Demonstration, Series, Strips, Table
from expost.runs.experiment import BudgetName
from expost.runs.lab import Lab

__all__ = ["Architecture", "architectures", "correlations", "digit_strips", "recipe_of", "sweep_figure"]


#: Of every architecture at the ``cpu`` budget: 20 models in half an hour of two cores.
EPOCHS = 30
#: Architectures in a row of pictures.
ACROSS = 7


@dataclass(frozen=True, eq=False)
class Architecture:
    """One model of the sweep on the held-out digit: encoder widths, decoder parameters, and what it does."""

    hidden: tuple[int, ...]
    parameters: int
    found: OptimalDecoder

    @property
    def name(self) -> str:
        return "-".join(map(str, self.hidden)) or "linear"

    @property
    def depth(self) -> int:
        return len(self.hidden)


def recipe_of(hidden: tuple[int, ...], budget: BudgetName = "cpu") -> tuple[str, dict[str, object]]:
    """Recipe and settings of an encoder's widths; shallow and deep are recipes of their own. The ``cpu`` budget trains each for 30 epochs."""
    settings: dict[str, object] = {"training.epochs": EPOCHS} if budget == "cpu" else {}
    named = {(400,): "bozkurt2018/shallow", (400, 200, 100): "bozkurt2018/deep"}
    if hidden in named:
        return named[hidden], settings
    return "bozkurt2018/deep", {"network": "mlp-" + ("-".join(map(str, hidden)) or "linear"), **settings}


def architectures(lab: Lab, digit: int) -> list[Architecture]:
    """The 20 models trained without the digit, in increasing order of decoder parameters."""
    made = []
    for hidden in BOZKURT_HIDDEN:
        recipe, settings = recipe_of(hidden, lab.budget)
        run = run_of(lab, recipe, digit, settings)
        parameters = sum(p.numel() for p in run.model.decoder.parameters())
        made.append(Architecture(hidden, parameters, judge(lab, run, digit)))
    return sorted(made, key=lambda a: a.parameters)


def digit_strips(lab: Lab, digit: int, index: int = 1) -> Strips:
    """One test image of the held-out digit: weighted averages above decoder outputs, by increasing number of decoder parameters."""
    models = architectures(lab, digit)
    index = min(index, len(models[0].found.inputs) - 1)
    rows, captions = {}, {}
    for start in range(0, len(models), ACROSS):
        part = models[start : start + ACROSS]
        first, where = part[0].found.inputs[index][None], f"{start + 1} to {start + len(part)}"
        rows[f"average, {where}"] = torch.cat([first, *(a.found.averages[index][None] for a in part)])
        rows[f"decoder, {where}"] = torch.cat([first, *(a.found.reconstructions[index][None] for a in part)])
        captions[f"decoder, {where}"] = ["input", *(a.name for a in part)]
    caption = f"Models trained without {digit}s, by number of decoder parameters; under each decoder output the widths of its encoder (the decoder mirrors them)."
    title = f"bozkurt2018: 20 architectures, held-out digit {digit} ({title_of(lab)})"
    return Strips(f"digit{digit}", title, caption, rows, 1 + ACROSS, captions)


def correlations(models: list[Architecture]) -> dict[str, float]:
    """Spearman's correlation of depth, and of the number of decoder parameters, with the gap of claim A7."""
    from scipy.stats import spearmanr

    gaps = [a.found.gap.value for a in models]
    return {
        "depth": float(spearmanr([a.depth for a in models], gaps).statistic),
        "parameters": float(spearmanr([a.parameters for a in models], gaps).statistic),
    }


def sweep_figure(lab: Lab, digit: int) -> Demonstration:
    """The 20 architectures: distance to input less distance to weighted average, against decoder parameters, by depth."""
    models = architectures(lab, digit)
    table = Table(("encoder", "hidden layers", "decoder parameters", "BCE(x, x̂)", "BCE(μ, x̂)", "difference", "closer to x"))
    for a in models:
        table.add(
            a.name, a.depth, a.parameters, float(a.found.to_input.mean()), float(a.found.to_average.mean()), a.found.gap.value,
            a.found.closer_to_input.value,
        )  # fmt: skip
    axes = ("decoder parameters", "BCE(x, x̂) - BCE(μ, x̂), nats")
    series = []
    for depth in sorted({a.depth for a in models}):
        chosen = [a for a in models if a.depth == depth]
        x, y = [float(a.parameters) for a in chosen], [a.found.gap.value for a in chosen]
        series.append(Series(f"{depth} hidden layer{'s' * (depth != 1)}", Curve(x, y, *axes), "points"))
    found = correlations(models)
    single = max(a.found.gap.value for a in models if a.depth == 1)
    return Demonstration(
        f"digit{digit}-sweep",
        f"bozkurt2018: depth or size? 20 architectures, held-out digit {digit} ({title_of(lab)})",
        "depth predicts memorisation (a larger difference) better than the number of parameters does (A7); all models with one hidden layer "
        "reconstruct the unseen digit closer to the input than to the training data (A8)",
        table,
        tuple(series),
        found["depth"] > found["parameters"] and single < 0,
        {"Spearman, depth": found["depth"], "Spearman, parameters": found["parameters"], "largest difference, one layer": single},
        ("the paper speaks of 17 architectures, its authors' figure shows these 20",),
    )
