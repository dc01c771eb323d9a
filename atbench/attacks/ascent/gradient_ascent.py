"""The one gradient-search loop: every iterative attack of training and of evaluation is a setting of it.

    x⁰     = start(x)
    x^{t+1} = Π_{B(x, ε) ∩ [0,1]} ( x^t + step_size · d( ∇_{x'} objective(x^t) ) )

Its parts: start, rule (`rules.py`), step size, accept (backtracking), projection (the ball's) and what is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from atbench.attacks.ascent.step_rules import RULES, make_rule
from atbench.attacks.losses import Objective
from atbench.attacks.norms.lp_ball import SLIDE, Radius, Random, ball, per_example
from atbench.config.ranges import AnyCount, NotNegative, Share
from atbench.errors import ConfigError

Start = Literal["zero", "uniform", "gaussian", "corner"]
Keep = Literal["last", "best", "first"]
STARTS: tuple[str, ...] = ("zero", "uniform", "gaussian", "corner")
KEEPS: tuple[str, ...] = ("last", "best", "first")


@dataclass
class State:
    """One point of the search. `rows` are the examples of the batch that are still searched; all other fields follow
    it.
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


Stop = Callable[[State], Tensor]


class GradientAttack:
    """Projected gradient ascent on an objective within a norm ball and the pixel box.

    Args:
        norm: `linf`, `l2` or `l1`.
        eps: radius, in units of the [0, 1] pixel scale.
        steps: k, the number of gradient steps; one forward and one backward each.
        step_size: length of a step in the ball's norm.
        start: `zero`; `uniform` in the ball (Madry et al. 2018); `gaussian`: x + 0.001·N(0, 1) (TRADES, Zhang et al.
            2019); `corner`: ε·sign(U), a vertex of the L∞ ball.
        bn: mode of the normalisation layers while searching; applied by `Method.run_attack` and by the evaluation.
        return_point: what is returned: the `last` iterate (the papers' PGD, and no forward beyond the k of the
            gradients), the `best` by objective, or the `first` that the stop rule named.
        rule: how a gradient becomes a step: `steepest`, `averaged` or `adam` (`rules.py`).
        momentum: μ of `averaged`, and of MI-FGSM where the rule is `steepest`.
        backtrack: a factor > 1 makes a step count only where the objective did not fall; elsewhere that example's step
            size is divided by the factor (CCAT, Stutz et al. 2020). 0 accepts every step.
        sparsity: for L1 alone, the share of pixels that share a step (0: the steepest step, which moves one).
        clip_start: whether a random start is clipped to the box before the first gradient; null: as Madry et al. do if
            it is `uniform` or `corner`, and as TRADES does not if it is `gaussian`.
        box_first: for L2 alone, project on the box and then on the ball, as TRADES does; others take the ball first.

    Returns of a call: x_adv (B, C, H, W), detached. Raises ConfigError for an unknown norm, start, keep or rule.
    """

    GAUSSIAN_SIGMA = 0.001  # yaodongyu/TRADES, trades.py

    def __init__(
        self,
        norm: str,
        eps: NotNegative,
        steps: AnyCount,
        step_size: NotNegative,
        start: str = "uniform",
        bn: str = "eval",
        return_point: str = "last",
        momentum: NotNegative = 0.0,
        backtrack: float = 0.0,
        rule: str = "steepest",
        sparsity: Share = SLIDE,
        clip_start: bool | None = None,
        box_first: bool = False,
    ) -> None:
        choices = (("start", start, STARTS), ("return_point", return_point, KEEPS), ("rule", rule, RULES))
        for key, value, known in choices:
            if value not in known:
                fix = f"use one of {', '.join(known)}"
                raise ConfigError(f"attack.{key}", value, "there is no such choice", fix)
        if 0 < backtrack <= 1:
            why = "a factor of 1 or less would not shorten a step"
            raise ConfigError("attack.backtrack", backtrack, why, "use a factor above 1, or 0 for none")
        if backtrack and return_point == "last":
            why = "the last step of return_point=last is not looked at, so it could not be taken back"
            raise ConfigError("attack.backtrack", backtrack, why, "use return_point=best")
        self.norm, self.ball = norm, ball(norm, sparsity, box_first)
        self.eps, self.steps, self.step_size = eps, steps, step_size
        self.start, self.bn, self.return_point = start, bn, return_point
        self.momentum, self.backtrack, self.rule = momentum, backtrack, rule
        self.clip_start = start != "gaussian" if clip_start is None else clip_start

    def __call__(
        self,
        objective: Objective,
        x: Tensor,
        *,
        start: Tensor | None = None,
        eps: Radius | None = None,
        step_size: Radius | None = None,
        steps: int | None = None,
        stop: Stop | None = None,
        rng: Random | None = None,
    ) -> Tensor:
        """Search around `x`. `start` is a point to begin at, `eps` and `step_size` may be per example.

        `stop(state)` names the examples that are done: they keep their current point, and are dropped from the
        computation. It sees every point, the starting one included, and the final one unless `return_point="last"`.
        """
        eps = self.eps if eps is None else eps
        steps = self.steps if steps is None else steps
        begin = self.begin(x, eps, rng) if start is None else start.detach()
        if steps == 0 and self.return_point == "last":
            return self.ball.project(x.detach(), begin, eps)
        lengths = per_example(self.step_size if step_size is None else step_size, x)
        return _Search(self, objective, x, eps, lengths, steps, stop).run(begin)

    def begin(self, x: Tensor, eps: Radius, rng: Random | None) -> Tensor:
        """The starting point; needs `rng` unless it is `zero`."""
        if self.start == "zero":
            return x.detach().clone()
        assert rng is not None, "a random start needs `rng`"
        if self.start == "gaussian":
            delta = self.GAUSSIAN_SIGMA * rng.normal(x)
        elif self.start == "corner":
            delta = per_example(eps, x) * rng.uniform(x).sign()
        else:
            delta = self.ball.sample(x, eps, rng)
        begin = x.detach() + delta
        return begin.clamp_(0, 1) if self.clip_start else begin


#: Finished examples are dropped once this share of the live ones is done: re-packing at every hit costs more than it
#: saves.
REPACK = 0.25


class _Search:
    """One run of the loop over one batch. All that is kept per example is cut to the examples that are still searched;
    `result` and `best` alone hold the whole batch.
    """

    def __init__(
        self,
        attack: GradientAttack,
        objective: Objective,
        x: Tensor,
        eps: Radius,
        lengths: Tensor,
        steps: AnyCount,
        stop: Stop | None,
    ) -> None:
        self.attack, self.objective, self.x, self.steps, self.stop = attack, objective, x.detach(), steps, stop
        self.eps = per_example(eps, x)
        self.lengths = lengths.expand(len(x), *[1] * (x.ndim - 1)).clone() if attack.backtrack else lengths
        self.project = attack.ball.projector(self.x, self.eps)
        self.rule = make_rule(attack.rule, attack.ball, self.x, attack.momentum)
        self.whole = True  # no example has been dropped
        self.done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.hits = 0  # how many are done: known here, so that asking needs no word from the device
        self.result = self.x.clone()
        self.best: Tensor | None = None

    def run(self, begin: Tensor) -> Tensor:
        if len(self.x) == 0:
            return self.result
        final = self.attack.return_point != "last"
        rows = torch.arange(len(self.x), device=self.x.device)
        state = self._look(State(0, rows, begin, begin, None, None), gradient=self.steps > 0)
        for step in range(1, self.steps + 1):
            state = self._settle(state)
            if len(state.rows) == 0:
                return self.result
            moved = self._move(state, step)
            if step == self.steps and not final:
                # The last point of the papers' PGD is not looked at: a stopped example stays where it stopped.
                return self._finish(moved)
            new = self._look(moved, gradient=step < self.steps)
            state = self._accept(state, new) if self.attack.backtrack else new
        return self._finish(self._settle(state))

    def _look(self, point: State, gradient: bool) -> State:
        """Evaluate the objective at a point, with its gradient to the input and to nothing else."""
        rows = None if self.whole else point.rows
        with torch.enable_grad() if gradient else torch.no_grad():
            x_adv = point.x_adv.detach().requires_grad_(gradient)
            value, outputs = self.objective(x_adv, rows, point.step)
            grad = torch.autograd.grad(value.sum(), x_adv)[0] if gradient else None
        outputs = outputs.detach() if isinstance(outputs, Tensor) else outputs
        return State(point.step, point.rows, x_adv.detach(), value.detach(), outputs, grad)

    def _move(self, state: State, step: int) -> State:
        assert state.grad is not None
        ahead = self.rule.step(state.x_adv, state.grad, self.lengths)
        return replace(state, step=step, x_adv=self.project(ahead))

    def _accept(self, old: State, new: State) -> State:
        """Keep the old point where the objective fell, and shorten the step there."""
        fell = new.value < old.value
        wide = fell.view(-1, *[1] * (new.x_adv.ndim - 1))
        self.lengths = torch.where(wide, self.lengths / self.attack.backtrack, self.lengths)
        grad = None if new.grad is None or old.grad is None else torch.where(wide, old.grad, new.grad)
        outputs = new.outputs
        if isinstance(outputs, Tensor):
            outputs = torch.where(fell.view(-1, *[1] * (outputs.ndim - 1)), old.outputs, outputs)
        x_adv = torch.where(wide, old.x_adv, new.x_adv)
        return State(new.step, new.rows, x_adv, torch.where(fell, old.value, new.value), outputs, grad)

    def _legal(self, state: State) -> Tensor:
        """A start may lie outside ball or box (TRADES does not clip its noise), what is returned may not."""
        return self.project(state.x_adv) if state.step == 0 or self.attack.backtrack else state.x_adv

    def _settle(self, state: State) -> State:
        """Write down what this point contributes to the result and who is done; drop those once they are many."""
        if self.attack.return_point == "best":
            self._record(state)
        if self.stop is None:
            return state
        new = self.stop(state) & ~self.done
        hits = int(new.sum())
        if hits == 0:
            return state
        if self.attack.return_point != "best":
            self.result[state.rows[new]] = self._legal(state)[new]
        self.done = self.done | new
        self.hits += hits
        live = len(self.done) - self.hits
        return state if live > 0 and live > (1 - REPACK) * len(self.done) else self._repack(state)

    def _record(self, state: State) -> None:
        """The best point so far of every example that is not done."""
        if self.best is None:
            self.best = torch.full((len(self.result),), -torch.inf, dtype=state.value.dtype, device=self.x.device)
            better = ~self.done  # the first point counts even where its value is -inf
        else:
            better = ~self.done & (state.value > self.best[state.rows])
        rows = state.rows[better]
        self.best[rows] = state.value[better]
        self.result[rows] = self._legal(state)[better]

    def _repack(self, state: State) -> State:
        """Drop finished examples from the computation."""
        live = ~self.done
        self.x = self.x[live]
        self.eps, self.lengths = (part[live] if part.ndim else part for part in (self.eps, self.lengths))
        self.project = self.attack.ball.projector(self.x, self.eps)
        self.rule.take(live)
        self.done, self.hits, self.whole = self.done[live], 0, False
        return state.take(live)

    def _finish(self, state: State) -> Tensor:
        """The result, with the examples that are not done where they are."""
        if self.attack.return_point == "best":
            return self.result
        x_adv = self._legal(state)
        if self.whole and not self.hits:
            return x_adv
        self.result[state.rows[~self.done]] = x_adv[~self.done]
        return self.result
