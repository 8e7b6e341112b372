"""manoj2018: its tables, figures and claims."""

from __future__ import annotations

from expost.papers.base import Paper, Reproduction, Target
from expost.papers.manoj2018 import figures as radius
from expost.papers.manoj2018.claims import CLAIMS
from expost.runs.lab import Lab

__all__ = ["PAPER"]


def _manoj(lab: Lab) -> Reproduction:
    made = [make(lab) for make in (radius.scatter, radius.before_and_after, radius.coverage_curves, radius.estimators, radius.modes)]
    return Reproduction([], all(d.holds for d in made), strips=[radius.samples(lab)], demonstrations=made)


PAPER = Paper(
    "manoj2018",
    "Class radius and diversity of latent spaces (slides)",
    "",
    "003",
    targets=(
        Target("manoj2018/figures", "classes before and after the regulariser: codes, samples, radius and its bounds, coverage, modes", _manoj),
    ),
    claims=CLAIMS,
    bibtex="""@misc{manoj2018,
  title = {Class Radius and Diversity of Latent Spaces},
  author = {Manoj, Naren Sarayu},
  note = {Slides},
  year = {2018}
}""",
)  # fmt: skip
