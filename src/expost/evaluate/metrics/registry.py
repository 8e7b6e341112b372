"""The table of metrics: each stands beside its code under :func:`metric`, and suite, help texts and tables read it from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from expost.results import Result

if TYPE_CHECKING:
    from expost.evaluate.metrics.suite import Reference

__all__ = ["METRICS", "Compared", "Metric", "metric"]


@dataclass(frozen=True, eq=False)
class Compared:
    """What a metric is given.

    Attributes:
        generated, test: features (m, d) and (n, d) of one dtype and device; ``train``: those that the model has seen, if they are known.
        reference: the real side, with what is known of it: moments, distances.
        seed: of subsets, starts and partitions.
        dependent: generated and reference images are no independent draws: what assumes them is left out.
        seen: more than a few reference images were seen in training.
    """

    generated: Tensor
    test: Tensor
    train: Tensor | None
    reference: Reference
    seed: int
    dependent: bool
    seen: bool

    @property
    def memory(self) -> int:
        """Bytes beyond the inputs."""
        return self.reference.memory


@dataclass(frozen=True)
class Metric:
    """A row of the table.

    Attributes:
        name: as on the command line; one name may give several results.
        columns: their names, in the order of tables.
        measure: sets -> results by name; ``ValueError`` where there are too few images, which becomes a note.
        copying: it asks how near samples are to training images: left out without them, and shown in a table of its own.
        forbidden: results that are no estimates for such sets, and stand there without a value where nothing else was asked for.
    """

    name: str
    columns: tuple[str, ...]
    measure: Callable[[Compared], Mapping[str, Result]]
    copying: bool = False
    forbidden: Callable[[Compared], bool] = lambda sets: False


METRICS: dict[str, Metric] = {}


def metric(
    name: str, *columns: str, copying: bool = False, forbidden: Callable[[Compared], bool] = lambda sets: False
) -> Callable[[Callable[[Compared], Mapping[str, Result]]], Callable[[Compared], Mapping[str, Result]]]:
    """Put a function of two sets into the table; see :class:`Metric`."""

    def enter(measure: Callable[[Compared], Mapping[str, Result]]) -> Callable[[Compared], Mapping[str, Result]]:
        METRICS[name] = Metric(name, columns, measure, copying, forbidden)
        return measure

    return enter
