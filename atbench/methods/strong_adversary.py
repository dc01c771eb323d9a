"""Learning with a strong adversary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, cross_entropy
from atbench.attacks.norms.lp_ball import flat_norm, per_example
from atbench.config.ranges import NotNegative
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.base import FixedSteps, Loss, Method
from atbench.models import Network, attack_mode

DIRECTIONS = ("loss", "alpha", "representation")
#: The norm in which gradients are measured where perturbations are measured in p.
DUAL: dict[float, float] = {1.0: torch.inf, 2.0: 2.0, torch.inf: 1.0}


class StrongAdversary(Method):
    """LWA (Huang et al. 2015, arXiv 1511.03034): min_g Σ_i max_{‖r_i‖ ≤ c} CE(g(x_i + r_i), y_i) by one linearisation.

    Inner, from x, c the attack's ε, in its norm (the paper's is L2):
    - `loss`: r = c·d(∇_x CE), d the steepest direction: c·g/‖g‖₂ for L2, c·sign(g) for L∞ (FGSM).
    - `alpha`: the class probabilities p are linearised, H = ∂p/∂x. The nearest boundary p_y + H_y·r = p_j + H_j·r is
      that of I = argmin_{j≠y} |p_y − p_j| / ‖H_j − H_y‖_dual, and r = c·d(H_I − H_y), whatever its distance.
    - `representation`: r is added to h, the output of stage `layer`, and only what comes after it sees h + r;
      r = s·‖h‖₂·g/‖g‖₂ with g = ∇_h CE. A share s and no length, for nothing fixes the scale of h.
    Outer: CE at x + r (or h + r) alone, no clean term; r is a constant, and through h the first stages learn too.
    Cost in forward passes a batch: `loss` 2k + 3, `alpha` K + 3 for K classes, `representation` 4 and a backward pass
    through the later stages.

    `alpha` works with (H_j − H_y) / (1 − p_y), written with softmax over the wrong classes: as p_y → 1 the derivatives
    of p vanish, their directions do not. An image that is wrong already is pushed on, not back to the boundary; the
    closed form of r_j is derived anew, for the paper's own was not legible to us.
    `alpha` and `representation` are one linearisation, whatever `attack.steps` says.
    Source: the paper; no code was found. It trains with `loss`, for `alpha` costs K − 1 backward passes. Lengths in
    representations, optimizer and rate were not in what was read of it.
    Known weaknesses: a single step, with the masking of FGSM in L∞; in L2 it is milder. No AutoAttack figure is known.

    Args:
        direction: `loss`, `alpha` or `representation`.
        layer: for `representation`, the stage that is perturbed; negative ones count from the last.
        share: for `representation`, s = ‖r‖₂ / ‖h‖₂ of every example.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        direction: str = "loss",
        layer: int = -1,
        share: NotNegative = 0.3,
    ) -> None:
        super().__init__(model, attack)
        if direction not in DIRECTIONS:
            known = ", ".join(DIRECTIONS)
            raise ConfigError("method.direction", direction, "there is no such choice", f"use one of {known}")
        self.direction, self.share = direction, share
        self.layer = stage_of(model, layer) if direction == "representation" else layer
        self.requires_hard_labels = direction == "alpha"
        self.classes = 0

    def setup(self, data: TrainData) -> None:
        self.classes = len(data.source.classes)

    @property
    def network(self) -> Network:
        """The model, known to have stages."""
        assert isinstance(self.model, Network)
        return self.model

    def perturb(self, batch: Batch) -> Batch:
        if self.direction == "alpha":
            return batch.with_adv(self._beyond_boundary(batch.x, batch.y))
        if self.direction == "representation":
            return batch.with_adv(batch.x, r=self._of_representation(batch.x, batch.y))
        return super().perturb(batch)

    def _beyond_boundary(self, x: Tensor, y: Tensor) -> Tensor:
        with attack_mode(self, self.attack.bn), torch.enable_grad():
            x = x.detach().requires_grad_()
            logits = self.model(x)
            others = (y[:, None] + torch.arange(1, logits.shape[1], device=y.device)) % logits.shape[1]
            gaps = logits.gather(1, others) - logits.gather(1, y[:, None])
            slopes = [torch.autograd.grad(gap.sum(), x, retain_graph=True)[0] for gap in gaps.unbind(1)]
        ball, eps = self.attack.ball, per_example(self.attack.eps, x)
        way = nearest_boundary(gaps.detach(), torch.stack(slopes, dim=1).flatten(2), DUAL[ball.p]).view_as(x)
        return ball.project(x.detach(), ball.ascend(x.detach(), way, eps), eps)

    def _of_representation(self, x: Tensor, y: Tensor) -> Tensor:
        with attack_mode(self, self.attack.bn):
            with torch.no_grad():
                h = self.network.features(x, self.layer)
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(cross_entropy(self._after(h.requires_grad_()), y).sum(), h)
        return self.share * flat_norm(h.detach(), 2) * grad / flat_norm(grad, 2).clamp_min(1e-12)

    def _after(self, h: Tensor) -> Tensor:
        """Logits from the output of the perturbed stage."""
        return self.network.classify(self.network.continue_from(h, self.layer + 1))

    def loss(self, batch: Batch) -> Loss:
        if self.direction == "representation":
            logits = self._after(self.network.features(batch.x, self.layer) + batch.aux["r"])
        else:
            logits = self.model(batch.x_adv)
        total = self.risk(logits, batch.y).mean()
        return Loss(total, {}, logits)

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return super().fixed_steps() if self.direction == "loss" else {}

    def forward_cost(self, steps: int) -> float | None:
        if self.direction == "representation":
            return None  # the stages after the perturbed one decide it
        return self.classes + 3 if self.direction == "alpha" else 2 * steps + 3


def nearest_boundary(gaps: Tensor, slopes: Tensor, dual: float) -> Tensor:
    """H_I − H_y up to a positive factor, (B, D), from the K − 1 differences z_j − z_y, (B, K − 1), and their gradients
    A_j, (B, K − 1, D).

    With q the softmax over the wrong classes and S = Σ q_k A_k, (H_j − H_y) / (1 − p_y) is q_j·(A_j − (1 − p_y)·S) +
    p_y·S.
    """
    odds = gaps.logsumexp(dim=1, keepdim=True)
    right, wrong, q = torch.sigmoid(-odds), torch.sigmoid(odds), gaps.softmax(dim=1)  # p_y, 1 − p_y and p_j / (1 − p_y)
    mean = torch.einsum("bk,bkd->bd", q, slopes)[:, None]
    ways = q[..., None] * (slopes - wrong[..., None] * mean) + right[..., None] * mean
    distance = (right - wrong * q).abs() / ways.norm(p=dual, dim=2).clamp_min(1e-12)
    nearest = distance.argmin(dim=1)
    return ways[torch.arange(len(ways), device=ways.device), nearest]


def stage_of(model: nn.Module, layer: int) -> int:
    """The number of a stage from 0 on; refuses what has no such stage."""
    if not isinstance(model, Network):
        why = "the output of a stage is perturbed, and this model has none"
        raise ConfigError("method.layer", layer, why, "use another model, or perturb images")
    if not -model.depth <= layer < model.depth:
        fix = f"use {-model.depth} to {model.depth - 1}"
        raise ConfigError("method.layer", layer, f"the model has {model.depth} stages", fix)
    return layer % model.depth
