"""yu2020: its tables, figures and claims."""

from __future__ import annotations

from collections.abc import Callable

from expost.papers.base import Paper, Reproduction, Target
from expost.papers.yu2020.claims import CLAIMS
from expost.papers.yu2020.demonstrations import DEMONSTRATIONS
from expost.papers.yu2020.lossless import compression_table
from expost.papers.yu2020.plane import plane_table
from expost.results import Table, word
from expost.runs.lab import Lab

__all__ = ["PAPER"]


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


def _compression(lab: Lab) -> Reproduction:
    table, good = compression_table(lab)
    return Reproduction([table], good)


PAPER = Paper(
    "yu2020",
    "A tutorial on VAEs: from Bayes' rule to lossless compression",
    "https://arxiv.org/abs/2006.10273",
    "004",
    targets=(
        Target("yu2020/table1", "VAE on the three plane densities: entropy, -ELBO, NLL, maps", _plane(1), ""),
        Target("yu2020/table2", "IWAE on the three plane densities: entropy, bound, NLL, maps", _plane(2), ""),
        Target("yu2020/demonstrations", "rescaling, optimal variance, linear flow, noisy channel, z is no parameter, importance sampling", _demonstrations, ""),
        Target("yu2020/compression", "bits-back coding of test images beside gzip ... WebP and published rates", _compression),
    ),
    claims=CLAIMS,
    bibtex="""@article{yu2020,
  title = {A Tutorial on {VAEs}: From {Bayes}' Rule to Lossless Compression},
  author = {Yu, Ronald},
  journal = {arXiv:2006.10273},
  year = {2020}
}""",
)  # fmt: skip
