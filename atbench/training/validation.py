"""Validation during training: accuracy on the held-out part, and on as many training examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from atbench.data import TrainData
from atbench.evaluation import EvalModel, PGDConfig, broken_at, robust_after
from atbench.evaluation.activity import Activity
from atbench.training.distributed import World
from atbench.training.sharding import whole


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
        with whole(network):
            return self._figures(network)

    def _figures(self, network: nn.Module) -> dict[str, Any]:
        eval_model, steps = self._eval_model(network), self.threat.steps
        clean = eval_model.correct(self.held)
        held = robust_after(broken_at(eval_model, self.held, self.threat, clean), steps)
        fitted = robust_after(broken_at(eval_model, self.fitted, self.threat, eval_model.correct(self.fitted)), steps)
        score, fit = float(held.double().mean()), float(fitted.double().mean())
        val = {"clean": float(clean.double().mean()), "pgd": score, "k": steps, "n": len(held)}
        val["worst_class"] = min(class_accuracies(held, self.held.y))
        if self.others:
            for other in self.others:
                held = held & robust_after(broken_at(eval_model, self.held, other, held), other.steps)
            val["union"] = float(held.double().mean())
        return {
            "val": val,
            "fit": {"pgd": fit, "n": len(fitted)},
            "gap": fit - score,
        }

    def better(self, networks: Mapping[str, AbstractContextManager[nn.Module]]) -> tuple[str, dict[str, Any]]:
        """The best of several networks, each given within its block: its name and figures; of equals the first."""
        found = dict[str, dict[str, Any]]()
        for name, block in networks.items():
            with block as network:
                found[name] = self.figures(network)
        name = max(found, key=lambda name: rank(found[name]["val"]))
        return name, found[name]

    def accuracy(self, network: nn.Module, **changes: Any) -> float:
        """Accuracy on the held-out part under PGD with some fields replaced; `steps=0` is clean accuracy."""
        return float(self._right(network, **changes).double().mean())

    def worst_class(self, network: nn.Module) -> float:
        """The lowest of the classes' accuracies on the held-out part under PGD."""
        return min(class_accuracies(self._right(network), self.held.y))

    def _right(self, network: nn.Module, **changes: Any) -> Tensor:
        threat, eval_model = replace(self.threat, **changes), self._eval_model(network)
        with whole(network):
            right = eval_model.correct(self.held)
            if threat.steps:
                right = robust_after(broken_at(eval_model, self.held, threat, right), threat.steps)
        return right


def class_accuracies(right: Tensor, y: Tensor) -> list[float]:
    """The share of `right` (n,) among the examples of each class that there is in `y` (n,)."""
    y = y.to(right.device)
    return [float(right[y == k].double().mean()) for k in y.unique()]


def rank(val: Mapping[str, float]) -> tuple[float, float]:
    """What decides between two networks or epochs: robust accuracy, under all norms that count; of equals, clean."""
    return val.get("union", val["pgd"]), val["clean"]
