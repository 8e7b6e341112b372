"""Measures of a trained model: functions of the model and data, or of two sets of features, that return a result with its uncertainty."""

from __future__ import annotations

from expost.evaluate.annealed import Annealed, annealed_bound, bdmc
from expost.evaluate.likelihood import Likelihood, importance_bound
from expost.evaluate.surgery import Surgery, elbo_surgery

__all__ = ["Annealed", "Likelihood", "Surgery", "annealed_bound", "bdmc", "elbo_surgery", "importance_bound"]
