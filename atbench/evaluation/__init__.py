"""Evaluation: per-example results under attack, intervals, audit, records."""

from atbench.evaluation.attack_result import AttackResult
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.evaluator import EvalResults, Plan, evaluate_model
from atbench.evaluation.pgd_sweep import PGDConfig, broken_at, robust_after
from atbench.evaluation.record import weights_sha256
from atbench.evaluation.result_cache import ResultCache
