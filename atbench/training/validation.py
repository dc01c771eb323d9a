"""What selection looks at: accuracy on the held-out part, and on as much of the part trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from atbench.data import TrainData
from atbench.evaluation import EvalModel, PGDConfig, broken_at, robust_after
from atbench.training.distributed import World


class Validation:
    """Measures a network under one fixed threat, with the same random starts every time.

    Args:
        n: how many examples of either part are looked at, at most: every class in proportion, always the same ones.
        others: threats of other norms. A network is then also measured by what holds under all of them (`union`).
    """

    def __init__(
        self, data: TrainData, threat: PGDConfig, n: int, world: World, others: Sequence[PGDConfig] = ()
    ) -> None:
        self.threat, self.world, self.others = threat, world, others
        self.held, self.fitted = data.validation.sample(n), data.fit_sample(n)

    def _victim(self, network: nn.Module) -> EvalModel:
        return EvalModel(network, 512, self.world.rank, self.world.size, self.world.sum)

    def figures(self, network: nn.Module) -> dict[str, Any]:
        """`val`, `fit` and `gap` of a row of metrics.jsonl (docs/architecture.md, "The run folder")."""
        eval_model, steps = self._victim(network), self.threat.steps
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
        """Accuracy on the held-out part under the threat with some of its fields replaced; `steps=0` is clean."""
        threat, eval_model = replace(self.threat, **changes), self._victim(network)
        right = eval_model.correct(self.held)
        if threat.steps:
            right = robust_after(broken_at(eval_model, self.held, threat, right), threat.steps)
        return float(right.double().mean())
