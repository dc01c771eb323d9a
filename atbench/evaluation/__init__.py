"""Measuring: per-example outcomes under attack, intervals, records."""

from atbench.evaluation.interval import figure, wilson
from atbench.evaluation.record import Plan, evaluate, save, weights_sha256
from atbench.evaluation.sweep import Threat, Victim, robust

__all__ = ["Plan", "Threat", "Victim", "evaluate", "figure", "robust", "save", "weights_sha256", "wilson"]
