"""Projected gradient ascent with a start and a step size from the configuration: the attack that methods train with."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from atbench.attacks.ascent.loop import Ascent, State, Stepper, Stop, where
from atbench.attacks.ascent.step_rules import RULES, Rule, StepRule, make_rule
from atbench.attacks.losses import Objective
from atbench.attacks.norms.lp_ball import SLIDE, Radius, Random, ball, per_example
from atbench.config.ranges import AnyCount, NotNegative, Share
from atbench.errors import ConfigError
from atbench.models.replay import Replay, fingerprint

STARTS: tuple[str, ...] = ("zero", "uniform", "gaussian", "clipped_gaussian", "corner")
RETURN_POINTS: tuple[str, ...] = ("last", "best", "first")


class GradientAttack:
    """Projected gradient ascent on an objective within a norm ball and the pixel box.

    Args:
        norm: `linf`, `l2` or `l1`.
        eps: radius, in units of the [0, 1] pixel scale.
        steps: k, the number of gradient steps; one forward and one backward each.
        step_size: length of a step in the ball's norm; with the rule `gradient` the factor on the gradient.
        start: `zero`; `uniform` in the ball (Madry et al. 2018); `gaussian`: x + 0.001·N(0, 1) (TRADES, Zhang et al.
            2019); `clipped_gaussian`: x + N(0, (ε/4)²) within the ball of radius ε/2 (PASS, Zhai et al. 2019);
            `corner`: ε·sign(U), a vertex of the L∞ ball.
        bn: mode of the normalisation layers during the attack; applied by `Method.run_attack` and by the evaluation.
        return_point: the `last` iterate (the papers' PGD, with no forward beyond the k of the
            gradients), the `best` by objective, or the `first` that the stop rule named.
        rule: the step rule, `steepest`, `averaged`, `adam`, `summed` or `gradient` (`step_rules.py`).
        momentum: μ of `averaged`, and of MI-FGSM where the rule is `steepest`.
        backtrack: with a factor > 1 a step is rejected where the objective fell, and that example's step size is
            divided by the factor (CCAT, Stutz et al. 2020). 0 accepts every step.
        sparsity: for L1 alone, the share of pixels that share a step (0: the steepest step, which moves one).
        clip_start: whether a random start is clipped to the box before the first gradient; null: as Madry et al. do if
            it is `uniform`, `clipped_gaussian` or `corner`, and as TRADES does not if it is `gaussian`.
        box_first: for L2 alone, project on the box and then on the ball, as TRADES does; others take the ball first.
        noise: ω; ω·N(0, 1) is added to each step, before the projection (FAT, Zhang et al. 2020).
        zeroed: share of an example's gradient components, the smallest, that a step takes for 0 (ZeroGrad, Golgooni et
            al. 2021).
        rel_start_size: radius of a `uniform` or `corner` start as a share of ε: 1, as Madry et al. have it; 2 in N-FGSM
            (de Jorge et al. 2022); 1/2 with `corner` and a step of ε/2 in R+FGSM (Tramèr et al. 2018).
        project: whether points are projected on ball and box, or on the box alone, as N-FGSM and SSDRL do. `norm` and
            `eps` are then the threat that training is validated in, and no bound of the search.
        decay: the t-th step, t = 1, 2, …, is step_size / t^decay; 0: all alike, 1: as in SSDRL (Najafi et al. 2019).

    Returns of a call: x_adv (B, C, H, W), detached. Raises ConfigError for an unknown norm, start, return_point or
    rule.
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
        noise: NotNegative = 0.0,
        zeroed: Share = 0.0,
        rel_start_size: NotNegative = 1.0,
        project: bool = True,
        decay: NotNegative = 0.0,
    ) -> None:
        choices = (("start", start, STARTS), ("return_point", return_point, RETURN_POINTS), ("rule", rule, RULES))
        for key, value, known in choices:
            if value not in known:
                fix = f"use one of {', '.join(known)}"
                raise ConfigError(f"attack.{key}", value, "there is no such choice", fix)
        if 0 < backtrack <= 1:
            why = "a factor of 1 or less would not shorten a step"
            raise ConfigError("attack.backtrack", backtrack, why, "use a factor above 1, or 0 for none")
        if backtrack and return_point == "last":
            why = "return_point=last does not evaluate the last step, so it could not be rejected"
            raise ConfigError("attack.backtrack", backtrack, why, "use return_point=best")
        self.norm, self.ball = norm, ball(norm, sparsity, box_first)
        self.eps, self.steps, self.step_size = eps, steps, step_size
        self.start, self.bn, self.return_point = start, bn, return_point
        self.momentum, self.backtrack, self.rule, self.noise = momentum, backtrack, rule, noise
        self.clip_start = start != "gaussian" if clip_start is None else clip_start
        self.zeroed, self.rel_start_size, self.project, self.decay = zeroed, rel_start_size, project, decay
        #: Where searches are kept as CUDA graphs; None: they are not.
        self.replay: Replay | None = None

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
        """Ascend in the ball around `x` from `start`, by default the attack's own.

        `eps` and `step_size` may be per example.

        `stop(state)` says which examples are done: they keep their current point (with `best`, their best one) and are
        dropped from the computation. It is called at every point, the start included, and the final one unless
        `return_point="last"`.
        """
        x, eps, sizes = x.detach(), self.eps if eps is None else eps, self.step_size if step_size is None else step_size
        start = self.begin(x, eps, rng) if start is None else start
        steps = self.steps if steps is None else steps
        if self.replay is not None and stop is None and (modules := self._captured(objective)) and steps and len(x):
            return self._replayed(self.replay, modules, objective, x, start, eps, sizes, steps)
        eps, sizes = (per_example(value, x) if isinstance(value, Tensor) else value for value in (eps, sizes))
        if self.backtrack:
            sizes = per_example(sizes, x).expand(len(x), *[1] * (x.ndim - 1))
        step: StepRule = self.ball.ascend
        if self.rule != "steepest" or self.momentum or self.noise or self.zeroed or self.decay:
            step = make_rule(self.rule, self.ball, x, self.momentum, self.noise, rng, self.zeroed, self.decay)
        stepper = FixedSteps(step, sizes, self.backtrack)
        eps = eps if self.project else math.inf
        return Ascent(objective, x, self.ball, eps, stepper, steps, stop, self.return_point).run(start).x_adv

    def _captured(self, objective: Objective) -> list[nn.Module] | None:
        """The modules whose search a graph can repeat: it draws no number between its steps, and no length of a step
        is rounded by the device where the host would (`decay`).
        """
        repeats = self.return_point == "last" and not (self.noise or self.decay)
        return objective.modules() if repeats else None

    def _replayed(
        self,
        replay: Replay,
        modules: list[nn.Module],
        objective: Objective,
        x: Tensor,
        start: Tensor,
        eps: Radius,
        sizes: Radius,
        steps: int,
    ) -> Tensor:
        """The same call as a graph. Its inputs are what changes with the batch; radius and length are always tensors,
        since a schedule may change a number at every step.
        """
        plain, empty = copy(self), replace(objective, args=())
        plain.replay = None

        def search(x: Tensor, start: Tensor, eps: Tensor, sizes: Tensor, *args: Tensor) -> Tensor:
            return plain(replace(empty, args=args), x, start=start, eps=eps, step_size=sizes, steps=steps)

        settings = tuple(value for name, value in vars(self).items() if name not in ("eps", "step_size", "replay"))
        key = (settings, steps, objective.network, objective.value, *(fingerprint(each) for each in modules))
        args = objective.args if isinstance(objective.args, tuple) else (objective.args,)
        held = [buffer for each in modules for buffer in each.buffers()]
        return replay(key, search, x, start.detach(), per_example(eps, x), per_example(sizes, x), *args, held=held)

    def begin(self, x: Tensor, eps: Radius, rng: Random | None) -> Tensor:
        """The starting point, for the radius `eps` of the ball; needs `rng` unless it is `zero`."""
        if self.start == "zero":
            return x.detach().clone()
        assert rng is not None, "a random start needs `rng`"
        if self.start == "gaussian":
            delta = self.GAUSSIAN_SIGMA * rng.normal(x)
        elif self.start == "clipped_gaussian":
            eps = per_example(eps, x)
            delta = self.ball.shrink(eps / 4 * rng.normal(x), eps / 2)
        elif self.start == "corner":
            delta = per_example(self.rel_start_size * eps, x) * rng.uniform(x).sign()
        else:
            delta = self.ball.sample(x, self.rel_start_size * eps, rng)
        start = x.detach() + delta
        return start.clamp_(0, 1) if self.clip_start else start

    def step_along(self, x: Tensor, start: Tensor, grad: Tensor) -> Tensor:
        """`start` one step along a gradient that is known already, projected on the ball around `x`."""
        return self.ball.project(x, self.ball.ascend(start, grad, self.step_size), self.eps)


@dataclass
class FixedSteps(Stepper):
    """A step rule with constant step sizes or, with `backtrack`, sizes that shrink where the objective fell."""

    step: StepRule
    sizes: Radius
    backtrack: float = 0.0
    any_start = True  # TRADES does not clip its noise

    def accept(self, old: State, new: State) -> State:
        fell = new.value < old.value
        wide = fell.view(-1, *[1] * (new.x_adv.ndim - 1))
        self.sizes = torch.where(wide, self.sizes / self.backtrack, self.sizes)
        return where(~fell, new, old)

    def take(self, live: Tensor) -> None:
        if isinstance(self.step, Rule):
            self.step.take(live)
        self.sizes = self.sizes[live] if isinstance(self.sizes, Tensor) and self.sizes.ndim else self.sizes
