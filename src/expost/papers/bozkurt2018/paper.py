"""bozkurt2018: its tables, figures and claims."""

from __future__ import annotations

from collections.abc import Callable

from expost.papers.base import Paper, Reproduction, Target
from expost.papers.bozkurt2018 import figures as bozkurt
from expost.papers.bozkurt2018.architectures import digit_strips, sweep_figure
from expost.papers.bozkurt2018.claims import CLAIMS
from expost.runs.lab import Lab

__all__ = ["PAPER"]


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


PAPER = Paper(
    "bozkurt2018",
    'Can VAEs generate novel examples?',
    "https://arxiv.org/abs/1812.09624",
    "000",
    targets=(
        Target("bozkurt2018/figure1", "unseen digits: reconstruction, optimal decoder, nearest training images; perplexities", _bozkurt_figure1),
        Target("bozkurt2018/figure2", "is a reconstruction closer to its input or to the training data?", _bozkurt_figure2),
        Target("bozkurt2018/figure3", "mini-MNIST: largest weight and posteriors over the latent plane", _bozkurt_figure3),
        *(
            Target(f"bozkurt2018/figure{number}", f"20 architectures, held-out digit {digit}: depth or size?", _bozkurt_digit(digit))
            for number, digit in ((4, 9), *((5 + d, d) for d in range(9)))
        ),
    ),
    claims=CLAIMS,
    bibtex="""@article{bozkurt2018,
  title = {Can {VAEs} Generate Novel Examples?},
  author = {Bozkurt, Alican and Esmaeili, Babak and Brooks, Dana H. and Dy, Jennifer G. and van de Meent, Jan-Willem},
  journal = {arXiv:1812.09624},
  year = {2018}
}""",
)  # fmt: skip
