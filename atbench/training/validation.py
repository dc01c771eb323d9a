"""Validation during training: accuracy on the held-out part, and on as many training examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from atbench.data import TrainData
from atbench.evaluation import EvalModel, PGDConfig, broken_at, robust_after
from atbench.evaluation.activity import Activity
from atbench.training.distributed import World


class Validation:
    """Accuracy of a network under a fixed PGD configuration, with the same random starts every time.

    Args:
        n: the maximum number of held-out examples, a fixed sample, stratified by class; as many training examples are
            attacked beside them.
        others: PGD in other norms; `union` is then the share of examples robust under all of them.
        show: told before every pass what is done.
    """

    def __init__(
        self,
        data: TrainData,
        threat: PGDConfig,
        n: int,
        world: World,
        others: Sequence[PGDConfig] = (),
        show: Callable[[Activity], None] = lambda activity: None,
    ) -> None:
        self.threat, self.world, self.others, self.show = threat, world, others, show
        self.held = data.validation.sample(n)
        self.fitted = data.fit_sample(len(self.held))

    def _eval_model(self, network: nn.Module) -> EvalModel:
        eval_model = EvalModel(network, 512, self.world.rank, self.world.size, self.world.sum)
        eval_model.stage, eval_model.on_forward = "validation", lambda model: self.show(model.activity)
        return eval_model

    def figures(self, network: nn.Module) -> dict[str, Any]:
        """`val`, `fit` and `gap` of a row of metrics.jsonl (docs/architecture.md, "The run folder")."""
        eval_model, steps = self._eval_model(network), self.threat.steps
        clean = eval_model.correct(self.held)
        held = robust_after(broken_at(eval_model, self.held, self.threat, clean), steps)
        fitted = robust_after(broken_at(eval_model, self.fitted, self.threat, eval_model.correct(self.fitted)), steps)
        score, fit = float(held.double().mean()), float(fitted.double().mean())
        val = {"clean": float(clean.double().mean()), "pgd": score, "k": steps, "n": len(held)}
        if self.others:
            for other in self.others:
                held = held & robust_after(broken_at(eval_model, self.held, other, held), other.steps)
            val["union"] = float(held.double().mean())
        return {
            "val": val,
            "fit": {"pgd": fit, "n": len(fitted)},
            "gap": fit - score,
        }

    def accuracy(self, network: nn.Module, **changes: Any) -> float:
        """Accuracy on the held-out part under PGD with some fields replaced; `steps=0` is clean accuracy."""
        threat, eval_model = replace(self.threat, **changes), self._eval_model(network)
        right = eval_model.correct(self.held)
        if threat.steps:
            right = robust_after(broken_at(eval_model, self.held, threat, right), threat.steps)
        return float(right.double().mean())
