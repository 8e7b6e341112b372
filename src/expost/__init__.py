"""expost: train autoencoders, make them generative after the fact, and measure what they learned.

Names are imported when first used, so that ``import expost`` and the command line start at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expost import adapt, codec, data, density, diagnose, evaluate, heads, nets, objectives, papers, runs
    from expost.autoencoder import Autoencoder
    from expost.conditional import Conditional
    from expost.density import GMM, KDE, Density, Flow, FullGaussian, StandardNormal, VampPrior
    from expost.objectives import ELBO, IWAE, RAE, WAE, Adversarial, ClassDistance, Loss, Objective
    from expost.results import Curve, Result, Table
    from expost.seeds import seeded
    from expost.train.fit import fit
    from expost.train.second_stage import SecondStage
    from expost.train.settings import Training

_WHERE = {
    "Autoencoder": "autoencoder",
    "Conditional": "conditional",
    **dict.fromkeys(["Density", "StandardNormal", "FullGaussian", "GMM", "KDE", "VampPrior", "Flow"], "density"),
    **dict.fromkeys(["ELBO", "IWAE", "RAE", "WAE", "Adversarial", "ClassDistance", "Loss", "Objective"], "objectives"),
    **dict.fromkeys(["Curve", "Result", "Table"], "results"),
    "seeded": "seeds",
    "SecondStage": "train.second_stage",
    "Training": "train.settings",
    "fit": "train.fit",
}
_MODULES = ("adapt", "codec", "data", "density", "diagnose", "evaluate", "heads", "nets", "objectives", "papers", "runs")

__all__ = ["__version__", *_WHERE, *_MODULES]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"expost.{_WHERE[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"expost.{name}")
    raise AttributeError(f"module 'expost' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
