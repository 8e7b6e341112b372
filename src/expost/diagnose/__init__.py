"""What did it learn? Diagnostics of any trained autoencoder: pure functions of model and data that return numbers with their uncertainty.

:func:`diagnose` measures everything, compares with thresholds and says what is wrong; the other functions are its parts, and those of the papers:

* the decoder: :func:`optimal_decoder`, :func:`latent_map` (000);
* units and collapse: :func:`panel`, :func:`units`, :func:`linear_units`, :func:`reconstruction_gain`;
* q(z) against p(z): :func:`marginals`, :func:`mmd`, :func:`c2st`, :class:`expost.posterior.aggregate.AggregatePosterior`;
* dimension: :func:`two_nn`, :func:`levina_bickel`, :func:`encoder_variances`, :func:`jacobian_identity`, :func:`noise_directions`, :func:`latent_spectra`,
  :func:`optimal_variance`, :func:`manifold_check` (001);
* classes: :func:`class_masses`, :func:`coverage`, :func:`segment_radius`, :func:`attack_radius`, :func:`refined_radius`, :func:`class_grid`,
  :func:`grid_radius`, :func:`radius_bounds`, :func:`class_codes` (003).
"""

from __future__ import annotations

from expost.diagnose.classes.bounds import (
    RadiusBounds,
    entropy_bound,
    half_space_radius,
    isoperimetric_bound,
    radius_bounds,
    sector_radius,
    theorem_bound,
)
from expost.diagnose.classes.distances import ClassCodes, class_codes, prior_reach
from expost.diagnose.codes.dimension import levina_bickel, two_nn
from expost.diagnose.codes.variances import EncoderVariances, encoder_variances
from expost.diagnose.findings import Diagnosis, Finding, Remedy, diagnose
from expost.diagnose.health import Panel, panel, reconstruction_gain
from expost.papers.dai2019.jacobian import JacobianIdentity, decoder_jacobian, jacobian_identity
from expost.diagnose.classes.classify import LatentClasses, prior_codes
from expost.diagnose.codes.units import Units, units
from expost.diagnose.codes.linear import LinearUnits, linear_units
from expost.papers.dai2019.manifold import learned_variance, manifold_check, manifold_data
from expost.diagnose.codes.marginals import Marginals, marginals
from expost.diagnose.classes.masses import ClassMasses, Coverage, class_masses, coverage, renyi_entropy
from expost.diagnose.codes.mismatch import c2st, mmd
from expost.papers.dai2019.noise import NoiseDirections, noise_correlation, noise_directions
from expost.diagnose.optimal import LatentMap, OptimalDecoder, latent_map, optimal_decoder
from expost.diagnose.classes.radius import ClassRadius, segment_radius, smallest
from expost.diagnose.classes.attack import attack_radius, refined_radius
from expost.diagnose.classes.grid import ClassGrid, class_grid, grid_radius
from expost.papers.dai2019.spectra import LatentSpectra, latent_spectra
from expost.papers.dai2019.variance import VarianceTrace, optimal_variance, variance_trace

__all__ = [
    "ClassCodes",
    "ClassGrid",
    "ClassMasses",
    "ClassRadius",
    "Coverage",
    "Diagnosis",
    "EncoderVariances",
    "Finding",
    "JacobianIdentity",
    "LatentClasses",
    "LatentMap",
    "LatentSpectra",
    "LinearUnits",
    "Marginals",
    "NoiseDirections",
    "OptimalDecoder",
    "Panel",
    "RadiusBounds",
    "Remedy",
    "Units",
    "VarianceTrace",
    "attack_radius",
    "c2st",
    "class_codes",
    "class_grid",
    "class_masses",
    "coverage",
    "decoder_jacobian",
    "diagnose",
    "encoder_variances",
    "entropy_bound",
    "grid_radius",
    "half_space_radius",
    "isoperimetric_bound",
    "jacobian_identity",
    "latent_map",
    "latent_spectra",
    "learned_variance",
    "levina_bickel",
    "linear_units",
    "manifold_check",
    "manifold_data",
    "marginals",
    "mmd",
    "noise_correlation",
    "noise_directions",
    "optimal_decoder",
    "optimal_variance",
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
    "variance_trace",
]
