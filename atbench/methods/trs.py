"""Transferability reduced smooth ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective
from atbench.config.ranges import AnyCount, NotNegative
from atbench.data import Batch
from atbench.methods.base import FixedSteps, Loss
from atbench.methods.ensemble import EnsembleMethod, pairwise_cosines
from atbench.methods.second_order import differentiable_gradient
from atbench.models import Ensemble, attack_mode


class Trs(EnsembleMethod):
    """TRS (Yang et al. 2021, NeurIPS, arXiv 2104.00671): Σ_m CE(f_m(x), y) + λ_a · similarity + λ_b · smoothness.

    similarity = mean over pairs i < j and examples of |cos(g_i, g_j)|, g_m = ∇_x CE(f_m(x), y): orthogonal gradients.
    smoothness = (1/M) Σ_m mean over examples of 2·‖∇ CE(f_m(x̂), y) / B‖², B the rows of the batch: members whose
    gradient is short near x, without which orthogonal gradients at x say little of what transfers.
    Inner: x̂ raises that squared length within L∞ radius ε(t), by 6 steps of ε(t)/3 from a uniform start, for every
    second row; the others stay x. ε(t) goes from `eps_start` towards `eps_end`, by epoch. Gradients of gradients in the
    search and in the loss. With `adversarial` Σ_m CE(f_m(x'), y) is added, x' by the run's attack on the ensemble: the
    authors have no such form; it is the one that zjysteven/DVERGE gives GAL and ADP.
    Cost: 12 + 2.5·steps forward passes of the ensemble a batch, 2k + 3 more with `adversarial`; torch's second
    derivative of strided convolutions takes a little more.

    Paper and code: AI-secure/Transferability-Reduced-Smooth-Ensemble, train/Empirical/trainer.py. The paper's
    smoothness is the length and not its square, at its maximum in the ball for all rows (from memory); that of the code
    is the gradient of the mean loss, hence 1/B², so that λ_b belongs to a batch of 128. The code never clears the
    gradient of x̂, and so steps along the sign of the sum of all gradients so far (`accumulate: true`); the paper's
    steps are those of `false`. λ_a, λ_b and ε(t) are the author's (its issue 1): the launcher has others, and leaves
    the search out. Another forward in train mode, for the log alone, is not made here.
    Known weaknesses: users of the code report far less than the paper (clean 88.7 %, 20.8 % under PGD-50 at 0.01,
    issue 1 of the repository); no AutoAttack figure is known.

    Args:
        similarity, smoothness: λ_a, λ_b.
        eps_start, eps_end: ε(t) at the beginning and the end of training, L∞ whatever the run's norm.
        smooth_steps: steps of the search for x̂.
        accumulate: step along the sign of the sum of all gradients instead of that of the last.
        adversarial: whether to train on x' as well.
    """

    second_order = True
    SHARE, STEP = 0.5, 1 / 3  # of the rows, and of ε(t)

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        eps_start: NotNegative,
        eps_end: NotNegative,
        similarity: NotNegative = 40.0,
        smoothness: NotNegative = 2.5,
        smooth_steps: AnyCount = 6,
        accumulate: bool = True,
        adversarial: bool = False,
    ) -> None:
        super().__init__(model, attack, adversarial)
        self.similarity, self.smoothness = similarity, smoothness
        self.eps_start, self.eps_end = eps_start, eps_end
        rule = "summed" if accumulate else "steepest"
        self.search = GradientAttack("linf", eps_end, smooth_steps, self.STEP * eps_end, bn=attack.bn, rule=rule)

    @property
    def eps(self) -> float:
        """ε(t) of this epoch; the end itself is not reached."""
        return self.eps_start + (self.eps_end - self.eps_start) * self.clock.epoch / self.clock.epochs

    def fixed_steps(self) -> dict[str, FixedSteps]:
        own = self.search
        return {**super().fixed_steps(), "method.smooth_steps": FixedSteps(own.steps, own.step_size, own.eps)}

    def perturb(self, batch: Batch) -> Batch:
        rows, eps = self.subset_mask(batch, self.SHARE), self.eps
        # Starts are drawn for all rows: draws for a part would depend on how processes share the batch.
        start = self.search.begin(batch.x, eps, self.rng("smooth"))[rows]
        steepest = SquaredGradient(self.members, batch.y[rows])
        with attack_mode(self, self.attack.bn):
            found = self.search(steepest, batch.x[rows], start=start, eps=eps, step_size=self.STEP * eps)
        mixed = batch.x.clone()
        mixed[rows] = found
        return super().perturb(batch).with_adv(smooth=mixed)

    def loss(self, batch: Batch) -> Loss:
        x = batch.x.detach().requires_grad_()
        found = (differentiable_gradient(member, x, batch.y) for member in self.members)
        gradients, logits = zip(*found, strict=True)
        risk = torch.stack([self.risk(each, batch.y).mean() for each in logits]).sum()
        similarity, smoothness = pairwise_cosines(gradients).abs().mean(), self._smoothness(batch)
        total = risk + self.similarity * similarity + self.smoothness * smoothness
        terms = {"ce": risk, "similarity": similarity, "smoothness": smoothness}
        if self.adversarial:
            terms["adversarial"] = self.adversarial_risks(batch).sum()
            total = total + terms["adversarial"]
        terms = {name: term.detach() for name, term in terms.items()}
        return Loss(total, terms, Ensemble.combine(torch.stack(logits)))

    def _smoothness(self, batch: Batch) -> Tensor:
        x = batch.aux["smooth"].detach().requires_grad_()
        squares = torch.stack([squared_gradient(member, x, batch.y) for member in self.members])
        return 2 * squares.mean() / (len(batch) * self.clock.world) ** 2

    def forward_cost(self, steps: int) -> float:
        return 12.8 + 2.7 * self.search.steps + (2 * steps + 3 if self.adversarial else 0)


class SquaredGradient(Objective):
    """Mean over members of ‖∇_x CE(f_m(x), y)‖², of each example."""

    second_order = True

    def __init__(self, members: Sequence[nn.Module], y: Tensor) -> None:
        super().__init__(lambda x: None, squared_gradient)
        self.members, self.y = members, y

    def __call__(self, x_adv: Tensor, rows: Tensor | None = None, step: int = 0) -> tuple[Tensor, Any]:
        y = self.y if rows is None else self.y[rows]
        return torch.stack([squared_gradient(member, x_adv, y) for member in self.members]).mean(dim=0), None


def squared_gradient(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """‖∇_x CE(f(x), y)‖² of each example, (B,)."""
    return differentiable_gradient(network, x, y)[0].square().sum(dim=1)
