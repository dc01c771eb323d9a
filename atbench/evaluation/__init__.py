"""Measuring: per-example outcomes under attack, intervals, an audit, records."""

from atbench.evaluation.interval import figure, wilson
from atbench.evaluation.ledger import Ledger
from atbench.evaluation.measure import Evaluation, Plan, evaluate
from atbench.evaluation.outcome import Outcome
from atbench.evaluation.record import weights_sha256
from atbench.evaluation.sweep import Threat, broken_at, robust
from atbench.evaluation.victim import Victim

__all__ = [
    "Evaluation",
    "Ledger",
    "Outcome",
    "Plan",
    "Threat",
    "Victim",
    "broken_at",
    "evaluate",
    "figure",
    "robust",
    "weights_sha256",
    "wilson",
]
