"""Watch for catastrophic overfitting: accuracy under FGSM and under PGD on a fixed held-out sample, between steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from atbench.data import TrainData
from atbench.evaluation import PGDConfig
from atbench.methods.base import Clock, Decision, Keep, Restore, Stop
from atbench.training.distributed import World
from atbench.training.validation import Validation


@dataclass(frozen=True)
class Guard:
    """Settings of `guard`: every so many training steps PGD-`steps` on `n` held-out examples; what a collapse leads to.

    collapse: `warn`; `stop`: training ends there; `rollback`: the weights and the optimizer's state of the last healthy
    measurement come back, and training goes on.
    """

    collapse: str = "warn"
    every: int = 100
    n: int = 128
    steps: int = 10


class CollapseWatch:
    """Catastrophic overfitting of single-step training (Wong et al. 2020, sec. 5.4; Andriushchenko & Flammarion 2020).

    Collapsed: accuracy under PGD is at most `FALL` of its highest so far in training, and accuracy under FGSM from the
    image is more than `GAP` above it. Where training goes well both rise together, and FGSM stays a little above PGD;
    in a collapse PGD falls to 0 within some tens of steps while FGSM rises. Measured on the live network in eval mode,
    with the same examples and starts every time. It is reported once, and again only after it was over.
    Cost of a measurement: at most 2 · `steps` + 5 forward passes of n examples.
    """

    FALL, GAP = 0.5, 0.3
    KEPT = "before collapse"

    def __init__(self, data: TrainData, threat: PGDConfig, guard: Guard, world: World) -> None:
        self.guard, self.threat = guard, threat
        self.validation = Validation(data, threat, guard.n, world)
        self.highest, self.collapsed, self.kept = 0.0, False, False

    def after_step(self, network: nn.Module, clock: Clock) -> tuple[dict[str, Any], Decision | None] | None:
        """The row of metrics.jsonl and what is to be done; None where no measurement is due.

        `clock.step` is the number of steps done in this epoch.
        """
        step, guard = clock.epoch * clock.steps + clock.step, self.guard
        if step % guard.every:
            return None
        pgd = self.validation.accuracy(network)
        fgsm = self.validation.accuracy(network, steps=1, step_size=self.threat.eps, start="zero")
        self.highest = max(self.highest, pgd)
        before, self.collapsed = self.collapsed, pgd <= self.FALL * self.highest and fgsm - pgd > self.GAP
        row = {"event": "watch", "epoch": clock.epoch + 1, "step": step, "fgsm": fgsm, "pgd": pgd}
        row |= {"highest": self.highest, "k": self.threat.steps, "n": len(self.validation.held)}
        if not self.collapsed:
            self.kept = guard.collapse == "rollback"
            return row, Keep(self.KEPT) if self.kept else None
        if before:
            return row, None
        # Nothing to go back to: the very first measurement was one.
        row["collapse"] = "warn" if guard.collapse == "rollback" and not self.kept else guard.collapse
        if guard.collapse == "stop":
            return row, Stop(f"catastrophic overfitting at step {step}")
        return row, Restore(self.KEPT) if row["collapse"] == "rollback" else None

    def state(self) -> dict[str, Any]:
        return {"highest": self.highest, "collapsed": self.collapsed, "kept": self.kept}

    def load(self, state: dict[str, Any]) -> None:
        self.highest, self.collapsed, self.kept = (state[name] for name in ("highest", "collapsed", "kept"))
