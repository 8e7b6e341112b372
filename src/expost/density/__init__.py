"""Densities over codes: what turns an autoencoder into a generative model after it has been trained.

| class | p(z) | fitted by |
|---|---|---|
| :class:`StandardNormal` | N(0, I) | - |
| :class:`FullGaussian` | N(μ, Σ) | maximum likelihood |
| :class:`GMM` | Σ_k w_k N(μ_k, Σ_k) | expectation-maximisation |
| :class:`KDE` | 1/m Σ_i N(z_i, H) | a bandwidth rule, or held-out likelihood |
| :class:`Flow` | an invertible network applied to N(0, I) | gradients, maximum likelihood |
| :class:`VampPrior` | 1/K Σ_k q(z given u_k) | with the autoencoder |

``expost.SecondStage``, which needs training, stands above this folder.
"""

from expost.density.base import SPECS, Codes, Density, NotFittedError, draw_codes, register

# In the order of the table of names.
# isort: off
from expost.density.gaussian import FullGaussian, StandardNormal
from expost.density.mixture import GMM, GaussianMixture
from expost.density.kde import KDE
from expost.density.flow import Flow
from expost.density.vamp import VampPrior

# isort: on
from expost.density.fitting import FitReport
from expost.density.spec import load_density, parse, save_density

__all__ = [
    "GMM", "KDE", "SPECS", "Codes", "Density", "FitReport", "Flow", "FullGaussian", "GaussianMixture", "NotFittedError", "StandardNormal",
    "VampPrior", "draw_codes", "load_density", "parse", "register", "save_density",
]  # fmt: skip
