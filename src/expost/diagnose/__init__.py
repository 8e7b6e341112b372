"""What did it learn? Diagnostics of any trained autoencoder: pure functions of model and data that return numbers with their uncertainty.

:func:`diagnose` measures everything, compares with thresholds and says what is wrong; the other functions are its parts:

* the decoder: :func:`optimal_decoder`, :func:`latent_map`;
* units and collapse: :func:`panel`, :func:`units`, :func:`linear_units`, :func:`reconstruction_gain`;
* q(z) against p(z): :func:`marginals`, :func:`mmd`, :func:`c2st`, :class:`expost.posterior.aggregate.AggregatePosterior`;
* dimension: :func:`two_nn`, :func:`levina_bickel`, :func:`encoder_variances`;
* classes: :func:`class_masses`, :func:`coverage`, :func:`segment_radius`, :func:`attack_radius`, :func:`refined_radius`, :func:`class_grid`,
  :func:`grid_radius`, :func:`radius_bounds`, :func:`class_codes`.
"""

from __future__ import annotations

from expost.diagnose.classes.attack import attack_radius, refined_radius
from expost.diagnose.classes.bounds import (
    RadiusBounds,
    entropy_bound,
    half_space_radius,
    isoperimetric_bound,
    radius_bounds,
    sector_radius,
    theorem_bound,
)
from expost.diagnose.classes.classify import LatentClasses, prior_codes
from expost.diagnose.classes.distances import ClassCodes, class_codes, prior_reach
from expost.diagnose.classes.grid import ClassGrid, class_grid, grid_radius
from expost.diagnose.classes.masses import ClassMasses, Coverage, class_masses, coverage, renyi_entropy
from expost.diagnose.classes.radius import ClassRadius, segment_radius, smallest
from expost.diagnose.codes.dimension import levina_bickel, two_nn
from expost.diagnose.codes.linear import LinearUnits, linear_units
from expost.diagnose.codes.marginals import Marginals, marginals
from expost.diagnose.codes.mismatch import c2st, mmd
from expost.diagnose.codes.units import Units, units
from expost.diagnose.codes.variances import EncoderVariances, encoder_variances
from expost.diagnose.findings import Diagnosis, Finding, Remedy, diagnose
from expost.diagnose.health import Panel, panel, reconstruction_gain
from expost.diagnose.optimal import LatentMap, OptimalDecoder, latent_map, optimal_decoder

__all__ = [
    "ClassCodes",
    "ClassGrid",
    "ClassMasses",
    "ClassRadius",
    "Coverage",
    "Diagnosis",
    "EncoderVariances",
    "Finding",
    "LatentClasses",
    "LatentMap",
    "LinearUnits",
    "Marginals",
    "OptimalDecoder",
    "Panel",
    "RadiusBounds",
    "Remedy",
    "Units",
    "attack_radius",
    "c2st",
    "class_codes",
    "class_grid",
    "class_masses",
    "coverage",
    "diagnose",
    "encoder_variances",
    "entropy_bound",
    "grid_radius",
    "half_space_radius",
    "isoperimetric_bound",
    "latent_map",
    "levina_bickel",
    "linear_units",
    "marginals",
    "mmd",
    "optimal_decoder",
    "panel",
    "prior_codes",
    "prior_reach",
    "radius_bounds",
    "reconstruction_gain",
    "refined_radius",
    "renyi_entropy",
    "sector_radius",
    "segment_radius",
    "smallest",
    "theorem_bound",
    "two_nn",
    "units",
]
