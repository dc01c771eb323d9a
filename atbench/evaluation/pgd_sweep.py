"""PGD-1 … PGD-k on one trajectory: every k of a sweep from one search.

The iterates of PGD-k with a fixed step size begin with those of PGD-j for every j < k, so one search of the largest k
answers all of them. An example counts as broken at k if any iterate up to k was misclassified, in any restart. What is
an adversarial example at ε₁ is one at every ε₂ > ε₁, so that a larger ball is searched only for what it could still
break, or break earlier. What is reported is monotone in k, in the restarts and in ε, and never above the papers'
last-iterate PGD-k of the same trajectory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atbench.attacks import GradientAttack, Objective, State, label_objective
from atbench.data import Images
from atbench.errors import ConfigError
from atbench.evaluation.eval_model import EvalModel
from atbench.evaluation.eval_results import NEVER
from atbench.runs.seeding import ExampleDraws


@dataclass(frozen=True)
class PGDConfig:
    """PGD of an evaluation: norm, radius, steps and objective.

    objective: a name in LABEL_OBJECTIVES; the other names are those of GradientAttack. `seed` fixes the random starts.
    """

    norm: str
    eps: float
    step_size: float
    steps: int
    start: str = "uniform"
    restarts: int = 1
    objective: str = "ce"
    seed: int = 0

    def __post_init__(self) -> None:
        label_objective(self.objective, "eval.objective")
        if self.restarts < 1 or self.steps < 0:
            given, why = f"{self.restarts} restarts of {self.steps} steps", "restarts must be ≥ 1 and steps ≥ 0"
            raise ConfigError("eval", given, why, "correct eval.restarts and eval.steps")


@dataclass(frozen=True)
class Trajectory:
    """First misclassified iterate of a batch.

    first: int64 (B,), the first step at which each example was misclassified, `config.steps + 1` where none was.
    x_adv: (B, C, H, W), the iterate of that step, else the last one.
    """

    first: Tensor
    x_adv: Tensor


def run_pgd(
    eval_model: EvalModel, x: Tensor, y: Tensor, rows: Tensor, config: PGDConfig, before: Tensor | None = None
) -> Trajectory:
    """Run PGD with all restarts on one batch; `rows` are its indices in the data set, for the random starts.

    `before` (B,): first broken steps that are known already; only an earlier one is searched for. The start counts as
    step 1: PGD-1 is broken by its own random start too. Call it inside `eval_model.ready()`.
    """
    attack = GradientAttack(config.norm, config.eps, config.steps, config.step_size, config.start, return_point="first")
    never = config.steps + 1
    first = torch.full((len(x),), never, device=x.device)
    if before is not None:
        first = torch.minimum(first, before.to(x.device))
    x_adv = x.clone()
    broken = torch.zeros_like(first, dtype=torch.bool)
    objective = Objective(eval_model.logits, label_objective(config.objective), y)

    def stop(state: State) -> Tensor:
        wrong = state.outputs.argmax(dim=1) != y[state.rows]
        step = max(state.step, 1)
        earlier = wrong & (step < first[state.rows])
        rows = state.rows[earlier]
        # TRADES-like starts may lie outside the ball: what is kept may not.
        iterate = state.x_adv[earlier]
        x_adv[rows] = iterate if state.step else attack.ball.project(x[rows], iterate, config.eps)
        first[rows], broken[rows] = step, True
        # A later restart goes on only as far as it could still break an example earlier.
        return wrong | (state.step >= first[state.rows] - 1)

    for restart in range(config.restarts):
        rng = ExampleDraws(config.seed, "restart", restart, index=rows)
        last = attack(objective, x, stop=stop, rng=rng)
        x_adv = torch.where(broken.view(-1, *[1] * (x.ndim - 1)), x_adv, last)
    return Trajectory(first, x_adv)


def broken_at(eval_model: EvalModel, images: Images, config: PGDConfig, mask: Tensor) -> Tensor:
    """(n,) int16, on the CPU: the first step at which an example was misclassified; 0 outside the mask, NEVER if none.

    `mask` (n,) booleans. The processes of `eval_model` share the examples.
    """
    never = config.steps + 1
    first = torch.where(mask, never, 0).to(eval_model.device)
    steps_left = torch.zeros_like(first)
    done, total = 0, int(mask.sum())

    def first_step(rows: Tensor) -> Tensor:
        eval_model.doing(f"pgd-{config.steps}", done, total)
        x, y = eval_model.load(images, rows)
        return run_pgd(eval_model, x, y, images.indices(rows), config).first

    with eval_model.ready():
        for rows, found in eval_model.map_batches(mask.nonzero().flatten(), first_step):
            steps_left[rows.to(eval_model.device)] = never - found
            done += eval_model.world * len(rows)
    first = first - eval_model.reduce(steps_left)
    return torch.where(first == never, NEVER, first).to(torch.int16).cpu()
