"""ghosh2020: its tables, figures and claims."""

from __future__ import annotations

from expost.papers.base import Paper, Reproduction, Target, as_strips, as_tables
from expost.papers.ghosh2020.claims import CLAIMS
from expost.papers.ghosh2020.figures import copies_table, figure3_left, figure3_right, interpolations, neighbours, reconstructions, samples
from expost.papers.ghosh2020.table import table1, table2
from expost.runs.lab import Lab

__all__ = ["PAPER"]


def _copies(lab: Lab) -> Reproduction:
    table, good = copies_table(lab)
    return Reproduction([table], good, strips=[neighbours(lab)])


def _sweeps(lab: Lab) -> Reproduction:
    made = [figure3_left(lab), figure3_right(lab)]
    return Reproduction([], all(d.holds for d in made), demonstrations=made)


PAPER = Paper(
    "ghosh2020",
    'From variational to deterministic autoencoders',
    "https://arxiv.org/abs/1903.12436",
    "002",
    targets=(
        Target("ghosh2020/table1", "FD of reconstructions, samples (N, GMM-10) and midpoints, nine models", as_tables(table1)),
        Target("ghosh2020/table2", "precision and recall (PRD) of samples from N and GMM-10, eight models", as_tables(table2)),
        Target("ghosh2020/figure3", "FD while training for k latent samples; FD against the KL weight", _sweeps),
        Target("ghosh2020/figure4", "reconstructions, samples and interpolations, nine models", as_strips(reconstructions, samples, interpolations)),
        Target("ghosh2020/figure5", "the same on CIFAR-10", as_strips(reconstructions, samples, interpolations), "cifar10"),
        Target("ghosh2020/figure6", "samples and their nearest training images in pixels; are they copies?", _copies),
    ),
    claims=CLAIMS,
    bibtex="""@inproceedings{ghosh2020,
  title = {From Variational to Deterministic Autoencoders},
  author = {Ghosh, Partha and Sajjadi, Mehdi S. M. and Vergari, Antonio and Black, Michael and Sch{\\"o}lkopf, Bernhard},
  booktitle = {International Conference on Learning Representations},
  year = {2020}
}""",
)  # fmt: skip
