"""Evaluation: per-example results under attack, their summary, audit, records.

Torch is imported with the first name that needs it: results that were written are summarised without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atbench.evaluation.attack_result import AttackResult as AttackResult
    from atbench.evaluation.eval_model import EvalModel as EvalModel
    from atbench.evaluation.eval_model import weights_sha256 as weights_sha256
    from atbench.evaluation.eval_results import EvalResults as EvalResults
    from atbench.evaluation.eval_results import robust_after as robust_after
    from atbench.evaluation.evaluator import Plan as Plan
    from atbench.evaluation.evaluator import evaluate_model as evaluate_model
    from atbench.evaluation.pgd_sweep import PGDConfig as PGDConfig
    from atbench.evaluation.pgd_sweep import broken_at as broken_at
    from atbench.evaluation.result_cache import ResultCache as ResultCache
    from atbench.evaluation.summary import summarize as summarize

_MODULES = {
    "attack_result": ("AttackResult",),
    "eval_model": ("EvalModel", "weights_sha256"),
    "eval_results": ("EvalResults", "robust_after"),
    "evaluator": ("Plan", "evaluate_model"),
    "pgd_sweep": ("PGDConfig", "broken_at"),
    "result_cache": ("ResultCache",),
    "summary": ("summarize",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"atbench.evaluation.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'atbench.evaluation' has no attribute '{name}'")
