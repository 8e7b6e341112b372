"""dai2019: its tables, figures and claims."""

from __future__ import annotations

from collections.abc import Callable

from expost.papers.base import Paper, Reproduction, Target, as_tables
from expost.papers.dai2019 import figures as dai
from expost.papers.dai2019.claims import CLAIMS
from expost.papers.dai2019.table import table1
from expost.runs.lab import Lab

__all__ = ["PAPER"]


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


PAPER = Paper(
    "dai2019",
    'Diagnosing and enhancing VAE models',
    "https://arxiv.org/abs/1903.05789",
    "001",
    targets=(
        Target("dai2019/table1", "FD of samples: cross-entropy, fixed and learned variance, two-stage", as_tables(table1)),
        Target("dai2019/figure1", "variance while training, noise along latent directions, singular spectra of q(z) and q(u)", _dai_figure1),
        *(
            Target(f"dai2019/figure{number}", f"{' and '.join(what)} of the VAEs and the two-stage VAE", _dai_samples(number), data)
            for number, (data, what) in dai.SAMPLE_FIGURES.items()
        ),
        Target("dai2019/figure9", "image variance under noise along latent directions, beside the printed values", _dai_figure9),
        Target("dai2019/figure10", "histogram of encoder variances, estimated dimension", _dai_figure10),
    ),
    claims=CLAIMS,
    bibtex="""@inproceedings{dai2019,
  title = {Diagnosing and Enhancing {VAE} Models},
  author = {Dai, Bin and Wipf, David},
  booktitle = {International Conference on Learning Representations},
  year = {2019}
}""",
)  # fmt: skip
