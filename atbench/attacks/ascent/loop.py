"""The gradient-ascent loop, which PGD of training and evaluation, CCAT's attack and APGD share.

    x⁰      = start
    x^{t+1} = Π_{B(x, ε) ∩ [0,1]} ( step(x^t, ∇_{x'} objective(x^t)) )

A `Stepper` is the step rule with its step sizes. The loop evaluates the objective, keeps the best point, applies the
stop rule, drops finished examples and projects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from atbench.attacks.losses import Objective
from atbench.attacks.norms.lp_ball import Ball, Radius, per_example
from atbench.errors import ConfigError

#: Finished examples are dropped once this share of the batch is finished: repacking at every hit costs more than it
#: saves.
REPACK = 0.25


@dataclass
class State:
    """One iterate x^t of the examples `rows` (b,) of the batch: objective values (b,), outputs, and ∇ objective (None
    where it was not computed).
    """

    step: int
    rows: Tensor
    x_adv: Tensor
    value: Tensor
    outputs: Any
    grad: Tensor | None

    def take(self, keep: Tensor) -> State:
        """The state of the examples `keep` (a mask over its rows) alone."""
        grad = None if self.grad is None else self.grad[keep]
        outputs = self.outputs[keep] if isinstance(self.outputs, Tensor) else self.outputs
        return State(self.step, self.rows[keep], self.x_adv[keep], self.value[keep], outputs, grad)


def where(mask: Tensor, new: State, old: State) -> State:
    """`new` where the mask (b,) is true, `old` elsewhere; what is no tensor in both is that of `new`."""

    def merge(yes: Any, no: Any) -> Any:
        tensors = isinstance(yes, Tensor) and isinstance(no, Tensor)
        return torch.where(mask.view(-1, *[1] * (yes.ndim - 1)), yes, no) if tensors else yes

    merged = {name: merge(getattr(new, name), getattr(old, name)) for name in ("x_adv", "value", "outputs", "grad")}
    return replace(new, **merged)


#: Which examples of a state are finished, (b,) booleans.
Stop = Callable[[State], Tensor]


def misclassified(y: Tensor) -> Stop:
    """The stop rule argmax_k z_k ≠ y, for labels y (B,) of the whole batch."""

    def stop(state: State) -> Tensor:
        wrong: Tensor = state.outputs.argmax(dim=1) != y[state.rows]
        return wrong

    return stop


@dataclass(frozen=True)
class Candidates:
    """One image per example (B, C, H, W), the objective there (B,), -inf where not evaluated, and `done` (B,): whether
    the stop rule named it.
    """

    x_adv: Tensor
    value: Tensor
    done: Tensor


class Stepper(ABC):
    """A step rule with its step sizes, for one run. Its memory is per example.

    any_start: a start may lie outside ball or box. backtracks: `accept` may go back to the point before.
    """

    any_start = False
    backtracks = False

    @abstractmethod
    def step(self, state: State, ascent: Ascent) -> Tensor:
        """The next point, before the projection; a new tensor."""

    def accept(self, old: State, new: State) -> State:
        """The state from which to go on, once the objective at the next point is known; called if it `backtracks`."""
        return new

    @abstractmethod
    def take(self, live: Tensor) -> None:
        """Cut the memory to the examples `live` (a mask)."""


class Ascent:
    """One run of the loop over one batch.

    Args:
        x: clean images (B, C, H, W), the centres of the balls.
        steps: k; a forward and a backward pass each, and a forward at the last point unless it is `last` alone that
            is returned.
        stop: the stop rule; an example that it names is finished, and dropped from the computation later on. It sees
            the start and every accepted point; the final one unless `return_point="last"`.
        return_point: `last`: the iterate where the example stopped, else the final one; `first`: the same, and the
            final one is evaluated; `best`: the point of highest objective until then; `first_or_best`: the iterate
            where the example stopped, else the best.
        eot_samples: passes over which objective, logits and gradient are averaged.

    `x`, `eps`, `best` and the stepper's memory are cut to the examples still searched; the result holds the batch.
    """

    def __init__(
        self,
        objective: Objective,
        x: Tensor,
        ball: Ball,
        eps: Radius,
        stepper: Stepper,
        steps: int,
        stop: Stop | None = None,
        return_point: str = "last",
        eot_samples: int = 1,
    ) -> None:
        self.objective, self.x, self.ball, self.stepper = objective, x.detach(), ball, stepper
        self.steps, self.stop, self.return_point, self.eot_samples = steps, stop, return_point, eot_samples
        self.eps = per_example(eps, x)
        self.project = ball.projector(self.x, self.eps)
        self.best: State | None = None
        self.keeps_best = return_point in ("best", "first_or_best")
        self.whole = True  # no example has been dropped
        self.done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.hits = 0  # how many are done: counted here, which needs no synchronisation with the device
        value = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        self.result = Candidates(self.x.clone(), value, self.done.clone())

    def run(self, start: Tensor) -> Candidates:
        """Ascend from `start` (B, C, H, W)."""
        if len(self.x) == 0:
            return self.result
        rows = torch.arange(len(self.x), device=self.x.device)
        if self.steps == 0 and self.return_point == "last":
            return self._finish(State(0, rows, start, self.result.value, None, None))
        state = self._evaluate(0, rows, start)
        for step in range(1, self.steps + 1):
            state = self._settle(state)
            if len(state.rows) == 0:
                return self.result
            x_adv = self.project(self.stepper.step(state, self))
            if step == self.steps and self.return_point == "last":
                unknown = torch.full_like(state.value, -torch.inf)
                return self._finish(replace(state, step=step, x_adv=x_adv, value=unknown))
            new = self._evaluate(step, state.rows, x_adv)
            state = self.stepper.accept(state, new) if self.stepper.backtracks else new
        return self._finish(self._settle(state))

    def _evaluate(self, step: int, rows: Tensor, x_adv: Tensor) -> State:
        gradient, subset = step < self.steps, None if self.whole else rows
        value, outputs, grad = evaluate(self.objective, x_adv, subset, step, gradient, self.eot_samples)
        return State(step, rows, x_adv.detach(), value, outputs, grad)

    def _legal(self, state: State) -> Tensor:
        """The state's points, projected where they may be a start outside of ball or box (as TRADES' noise)."""
        unprojected = self.stepper.backtracks or (state.step == 0 and self.stepper.any_start)
        return self.project(state.x_adv) if unprojected else state.x_adv

    def _settle(self, state: State) -> State:
        """Update the best points, apply the stop rule, and drop finished examples once they are many."""
        if self.keeps_best:
            candidate = replace(state, x_adv=self._legal(state), outputs=None)
            best = self.best
            self.best = candidate if best is None else where(candidate.value > best.value, candidate, best)
        if self.stop is None:
            return state
        new = self.stop(state) & ~self.done
        hits = int(new.sum())
        if hits == 0:
            return state
        self._write(state, new, best=self.return_point == "best")
        self.result.done[state.rows[new]] = True
        self.done = self.done | new
        self.hits += hits
        live = len(self.done) - self.hits
        return state if live > 0 and live > (1 - REPACK) * len(self.done) else self._repack(state)

    def _repack(self, state: State) -> State:
        """Drop finished examples from the computation."""
        live = ~self.done
        self.x, self.eps = self.x[live], self.eps[live] if self.eps.ndim else self.eps
        self.project = self.ball.projector(self.x, self.eps)
        self.stepper.take(live)
        self.best = self.best and self.best.take(live)
        self.done, self.hits, self.whole = self.done[live], 0, False
        return state.take(live)

    def _write(self, state: State, mask: Tensor, best: bool) -> None:
        """Write the points of the examples `mask` into the result: their best or their current ones."""
        chosen = self.best if best and self.best else state
        x_adv, rows = chosen.x_adv if best else self._legal(state), state.rows[mask]
        self.result.x_adv[rows] = x_adv[mask]
        self.result.value[rows] = chosen.value[mask].to(self.result.value.dtype)

    def _finish(self, state: State) -> Candidates:
        """The result, with the best or current points of the examples that are not done."""
        if self.whole and not self.hits and not self.keeps_best:
            return Candidates(self._legal(state), state.value, self.result.done)
        self._write(state, ~self.done, best=self.keeps_best)
        return self.result


def evaluate(
    objective: Objective, x_adv: Tensor, rows: Tensor | None, step: int, gradient: bool, eot_samples: int = 1
) -> tuple[Tensor, Any, Tensor | None]:
    """Means over `eot_samples` passes of objective (b,), outputs and gradient to x_adv (None unless asked for).

    Raises ConfigError for an objective of second order under autocast.
    """
    if objective.second_order and torch.is_autocast_enabled(x_adv.device.type):
        why = "the attack's objective differentiates a gradient"
        raise ConfigError("train.precision.attack", "bf16", why, "use fp32")
    graph = gradient or objective.second_order
    x_adv = x_adv.detach().requires_grad_(graph)
    passes: list[tuple[Any, ...]] = []
    for _ in range(eot_samples):
        with torch.set_grad_enabled(graph):
            value, outputs = objective(x_adv, rows, step)
            grad = torch.autograd.grad(value.sum(), x_adv)[0] if gradient else None
        passes.append((value.detach(), outputs.detach() if isinstance(outputs, Tensor) else outputs, grad))
    if eot_samples == 1:
        return passes[0][0], passes[0][1], passes[0][2]
    values, logits, grads = zip(*passes, strict=True)
    return _mean(values), _mean(logits), _mean(grads)


def _mean(parts: Sequence[Any]) -> Any:
    return torch.stack(list(parts)).mean(dim=0) if isinstance(parts[0], Tensor) else parts[0]
