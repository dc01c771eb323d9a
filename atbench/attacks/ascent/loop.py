"""The gradient-ascent loop, which PGD of training and evaluation, CCAT's attack and APGD share.

    x⁰      = start
    x^{t+1} = Π_{B(x, ε) ∩ [0,1]} ( step(x^t, ∇_{x'} objective(x^t)) )

A `Stepper` is the step rule with its step sizes. The loop evaluates the objective, keeps the best point, applies the
stop rule, drops finished examples and projects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from atbench.attacks.losses import Objective
from atbench.attacks.norms.lp_ball import Ball, Radius
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


class Stepper:
    """A step rule with its step sizes, for one run. Its memory is per example.

    step: (x_adv, ∇ objective, sizes) → the next point, before the projection; a new tensor.
    sizes: lengths of the next step, a number or (B, 1, 1, 1).
    any_start: a start may lie outside ball or box. backtrack: if not 0, `accept` is called. adapts: `adapt` is called.
    """

    step: Callable[[Tensor, Tensor, Radius], Tensor]
    sizes: Radius
    any_start = False
    backtrack = 0.0
    adapts = False

    def accept(self, old: State, new: State) -> State:
        """The state from which to go on, once the objective at the next point is known."""
        return new

    def adapt(self, state: State, ascent: Ascent) -> State:
        """Choose the sizes of the next step. Returns the state from which to take it."""
        return state

    def take(self, live: Tensor) -> None:
        """Cut the memory to the examples `live` (a mask)."""


@dataclass
class Ascent:
    """One run of the loop over one batch.

    Args:
        x: clean images (B, C, H, W), the centres of the balls.
        eps: radius, a number or (B, 1, 1, 1).
        steps: k; a forward and a backward pass each, and a forward at the last point unless it is `last` alone that
            is returned.
        stop: the stop rule; an example that it names is finished, and dropped from the computation later on. It sees
            the start and every accepted point; the final one unless `return_point="last"`.
        return_point: `last`: the iterate where the example stopped, else the final one; `first`: the same, and the
            final one is evaluated; `best`: the point of highest objective until then; `first_or_best`: the iterate
            where the example stopped, else the best.
        eot_samples: passes over which objective, outputs and gradient are averaged.

    `x`, `eps`, `best`, `done` and the stepper's memory are cut to the examples still searched, `result` is not.
    """

    objective: Objective
    x: Tensor
    ball: Ball
    eps: Radius
    stepper: Stepper
    steps: int
    stop: Stop | None = None
    return_point: str = "last"
    eot_samples: int = 1
    best: State | None = field(default=None, init=False)
    done: Tensor = field(init=False)
    hits: int = field(default=0, init=False)  # how many are done, without waiting for the device
    result: Candidates | None = field(default=None, init=False)  # of the examples that are done

    def run(self, start: Tensor) -> Candidates:
        """Ascend from `start` (B, C, H, W). Raises ConfigError for an objective of second order under autocast."""
        objective, stepper, count = self.objective, self.stepper, len(self.x)
        if objective.second_order and torch.is_autocast_enabled(self.x.device.type):
            why = "the attack's objective differentiates a gradient"
            raise ConfigError("train.precision.attack", "bf16", why, "use fp32")
        self.project = self.ball.projector(self.x, self.eps)
        self.done = torch.zeros(count, dtype=torch.bool, device=self.x.device)
        unknown = torch.full((count,), -torch.inf, dtype=self.x.dtype, device=self.x.device)
        x_adv = start.detach()
        state = State(0, torch.arange(count, device=self.x.device), x_adv, unknown, None, None)
        for step in range(self.steps + 1 if count else 0):  # BatchNorm cannot forward no image
            more = step < self.steps
            if not more and self.return_point == "last":
                state = replace(state, step=step, x_adv=x_adv, value=unknown[: len(state.rows)])
                break
            rows = None if len(state.rows) == count else state.rows
            x_adv.requires_grad_(more or objective.second_order)
            passes = []
            for _ in range(self.eot_samples):
                with torch.set_grad_enabled(x_adv.requires_grad):
                    value, outputs = objective(x_adv, rows, step)
                    grad = torch.autograd.grad(value.sum(), x_adv)[0] if more else None
                passes.append((value.detach(), outputs.detach() if isinstance(outputs, Tensor) else outputs, grad))
            value, outputs, grad = passes[0] if len(passes) == 1 else map(_mean, zip(*passes, strict=True))
            new = State(step, state.rows, x_adv.detach(), value, outputs, grad)
            state = stepper.accept(state, new) if stepper.backtrack and step else new
            if self.stop is not None or "best" in self.return_point:
                state = self._settle(state)
            if len(state.rows) == 0:
                break
            if more:
                state = stepper.adapt(state, self) if stepper.adapts else state
                assert state.grad is not None
                x_adv = self.project(stepper.step(state.x_adv, state.grad, stepper.sizes))
        if self.best is not None or self.result is not None:
            return self._finish(state)
        x_adv = self._legal(state) if state.step == 0 or stepper.backtrack else state.x_adv
        return Candidates(x_adv, state.value, self.done)

    def _legal(self, state: State) -> Tensor:
        """The state's points, projected where they may be a start outside of ball or box (as TRADES' noise)."""
        unprojected = self.stepper.backtrack > 0 or (state.step == 0 and self.stepper.any_start)
        return self.project(state.x_adv) if unprojected else state.x_adv

    def _settle(self, state: State) -> State:
        """Update the best points, apply the stop rule, and drop finished examples once they are many."""
        if "best" in self.return_point:
            candidate = replace(state, x_adv=self._legal(state), outputs=None)
            best = self.best
            self.best = candidate if best is None else where(candidate.value > best.value, candidate, best)
        if self.stop is None:
            return state
        new = self.stop(state) & ~self.done
        hits = int(new.sum())
        if hits == 0:
            return state
        self.done = self.done | new
        self.hits += hits
        self._write(state, new, best=self.return_point == "best").done[state.rows[new]] = True
        live = len(self.done) - self.hits
        return state if live > 0 and live > (1 - REPACK) * len(self.done) else self._repack(state)

    def _repack(self, state: State) -> State:
        """Drop finished examples from the computation."""
        live = ~self.done
        self.x, self.eps = self.x[live], self.eps[live] if isinstance(self.eps, Tensor) and self.eps.ndim else self.eps
        self.project = self.ball.projector(self.x, self.eps)
        self.stepper.take(live)
        self.best = self.best and self.best.take(live)
        self.done, self.hits = self.done[live], 0
        return state.take(live)

    def _write(self, state: State, mask: Tensor, best: bool) -> Candidates:
        """Write the points of the examples `mask` into the result: their best or their current ones."""
        if self.result is None:
            unknown = torch.full((len(self.x),), -torch.inf, dtype=self.x.dtype, device=self.x.device)
            self.result = Candidates(self.x.clone(), unknown, torch.zeros_like(self.done))
        chosen = self.best if best and self.best else state
        x_adv, rows = chosen.x_adv if best else self._legal(state), state.rows[mask]
        self.result.x_adv[rows] = x_adv[mask]
        self.result.value[rows] = chosen.value[mask].to(self.result.value.dtype)
        return self.result

    def _finish(self, state: State) -> Candidates:
        """The result, with the best or current points of the examples that are not done."""
        return self._write(state, ~self.done, best="best" in self.return_point)


def _mean(parts: Sequence[Any]) -> Any:
    return torch.stack(list(parts)).mean(dim=0) if isinstance(parts[0], Tensor) else parts[0]
