"""Measuring: per-example outcomes under attack, intervals, an audit, records."""

from atbench.evaluation.attack_result import Outcome
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.evaluator import Evaluation, Plan, evaluate
from atbench.evaluation.pgd_sweep import PGDConfig, broken_at, robust
from atbench.evaluation.record import weights_sha256
from atbench.evaluation.result_cache import ResultCache

__all__ = [
    "EvalModel",
    "Evaluation",
    "Outcome",
    "PGDConfig",
    "Plan",
    "ResultCache",
    "broken_at",
    "evaluate",
    "robust",
    "weights_sha256",
]
