"""Measures of a trained model: functions of the model and data, or of two sets of features, that return a result with its uncertainty.

Metrics of features take ``(generated, real)``, matrices with a row per image; :func:`measure` takes them all at once, :func:`score` a model.
"""

from __future__ import annotations

from expost.evaluate.comparison import compare
from expost.evaluate.features.sets import ArraySet, FolderSet, Generated, ImageSet, InMemory, Mapped, set_features, set_statistics
from expost.evaluate.likelihood.annealed import Annealed, annealed_bound, bdmc
from expost.evaluate.likelihood.importance import Likelihood, importance_bound
from expost.evaluate.likelihood.surgery import Surgery, elbo_surgery
from expost.evaluate.metrics.fld import FeatureLikelihood, feature_likelihood
from expost.evaluate.metrics.frechet import FeatureStats, FrechetDistance, extrapolated, frechet_distance
from expost.evaluate.metrics.kid import kernel_distance
from expost.evaluate.metrics.memorisation import authenticity, copy_distance, data_copying, memorisation_panel, nearest_neighbour_ratio
from expost.evaluate.metrics.neighbours import NeighbourPanel, neighbour_panel
from expost.evaluate.metrics.prd import PRD, prd
from expost.evaluate.metrics.suite import Reference, measure
from expost.evaluate.protocol import Scores, score
from expost.evaluate.treatment import Treatment

__all__ = [
    "PRD",
    "Annealed",
    "ArraySet",
    "FeatureLikelihood",
    "FeatureStats",
    "FolderSet",
    "FrechetDistance",
    "Generated",
    "ImageSet",
    "InMemory",
    "Likelihood",
    "Mapped",
    "NeighbourPanel",
    "Reference",
    "Scores",
    "Surgery",
    "Treatment",
    "annealed_bound",
    "authenticity",
    "bdmc",
    "compare",
    "copy_distance",
    "data_copying",
    "elbo_surgery",
    "extrapolated",
    "feature_likelihood",
    "frechet_distance",
    "importance_bound",
    "kernel_distance",
    "measure",
    "memorisation_panel",
    "nearest_neighbour_ratio",
    "neighbour_panel",
    "prd",
    "score",
    "set_features",
    "set_statistics",
]
