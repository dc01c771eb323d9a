"""Transfer attack: adversarial images of a surrogate network, judged on the target."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from atbench.attacks.ascent.gradient_ascent import GradientAttack
from atbench.attacks.ascent.loop import State
from atbench.attacks.base import Attack, Target
from atbench.attacks.losses import Objective, fewest_classes, label_objective
from atbench.attacks.restarts import RobustTracker
from atbench.config.ranges import AnyCount, NotNegative
from atbench.errors import ConfigError
from atbench.models import Cast, attack_mode
from atbench.runs.seeding import ExampleDraws


class Transfer(Attack):
    """Momentum PGD on a surrogate s, without gradients of the target.

        g ← momentum·g + ∇/‖∇‖₁,   x' ← Π( x' + rel_step_size·ε · d(g) ),   ∇ = ∇_{x'} objective(s(x'), y)

    All steps run, whether the surrogate is fooled or not. The answer is the last point, which the evaluation judges;
    with `along` the target is queried at every point, and the first one it misclassifies is the answer.

    Args:
        load: turns `run` into a network.
        run: path of the surrogate's run or checkpoint, preferably of another seed or method, on the same data set.
        steps, rel_step_size, momentum, start: of the search; step size as a share of ε, momentum 0 is PGD.
        objective: a name in LABEL_OBJECTIVES.
        along: query the target at every point.

    Raises ConfigError without a `run`, for an unknown objective, and for a surrogate of other images or classes.
    Source: Dong et al. 2018, CVPR, arXiv 1710.06081 (the search); Carlini et al. 2019, arXiv 1902.06705 (why).
    """

    access = "transfer"

    def __init__(
        self,
        norm: str,
        eps: NotNegative,
        load: Callable[[str], nn.Module],
        run: str | None = None,
        steps: AnyCount = 20,
        rel_step_size: NotNegative = 0.25,
        momentum: NotNegative = 1.0,
        start: str = "zero",
        objective: str = "ce",
        along: bool = False,
    ) -> None:
        super().__init__(norm, eps, steps)
        if not run:
            fix = "write attack.run=<path of a run or checkpoint>"
            raise ConfigError("attack.run", run, "the network to craft the images on is not named", fix)
        self.run, self.surrogate, self.value, self.along = run, load(run), label_objective(objective), along
        self.least_classes = fewest_classes(self.value)
        self.attack = GradientAttack(norm, self.eps, steps, rel_step_size * self.eps, start, momentum=momentum)

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        surrogate, tracker = self.surrogate.to(x.device), RobustTracker(target, x, y)

        def stop(state: State) -> Tensor:
            with torch.no_grad():
                logits = target.logits(state.x_adv)
            return tracker.update(state.rows, state.x_adv, logits)

        with attack_mode(surrogate, "eval"):
            network = Cast(surrogate)
            self._check_shapes(network, x, y)
            objective = Objective(network, self.value, y)
            x_adv = self.attack(objective, x, stop=stop if self.along else None, rng=rng)
        return torch.where(tracker.broken.view(-1, *[1] * (x.ndim - 1)), tracker.x_adv, x_adv)

    def _check_shapes(self, surrogate: Cast, x: Tensor, y: Tensor) -> None:
        """Raise ConfigError for a surrogate of other image shapes or fewer classes."""
        fix = "name a run on the same data set"
        try:
            with torch.no_grad():
                classes = surrogate(x[:1]).shape[1]
        except RuntimeError as error:
            shape = "×".join(map(str, x.shape[1:]))
            raise ConfigError("attack.run", self.run, f"its network does not take images of {shape}", fix) from error
        if int(y.max()) >= classes:
            why = f"its network has {classes} classes, and there are images of class {int(y.max())}"
            raise ConfigError("attack.run", self.run, why, fix)
