"""Bilateral adversarial training: perturbed images with perturbed labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective, likelihood, wrong_classes
from atbench.config.ranges import Positive
from atbench.data import Batch
from atbench.errors import ConfigError, refuse_unknown
from atbench.methods.base import Loss, Method
from atbench.models import Network, attack_mode

TARGETS = ("most_confusing", "random", "mosa", "mix", "untargeted")
LEAST_GAP, NO_GAP = 1e-4, 1e4  # train.py: truncated = np.where(diff_logits > 1e-4, diff_logits, 1e4)


class Bat(Method):
    """Bilateral AT (Wang & Zhang 2019, ICCV, arXiv 1811.10716): CE(f(x'), y'), both x' and y' adversarial.

    x': descend CE(f(x'), t) towards a wrong class t from x + U(−ε, ε), which is not clipped to the box; one step of
    length ε. t is the most confusing class, argmax_{k≠y} f(x)_k. y', in closed form from the clean image: with
    v_k = −log p(x)_k, v_min and v_max over k ≠ y, d_k = v_k − v_min + γ and D = Σ_{k≠y} d_k,

        y'_k = ε_y · d_k / D for k ≠ y,   y'_y = 1 − ε_y,   ε_y = 1 / (1 + β · (v_max − v_min + γ) / D)

    so that the most confusing class gets least and y'_y is β times the largest other share. Where all other classes are
    alike this is label smoothing, ε_y = 1/(1 + β/(K − 1)): half of the mass for K = 10 and β = 9; β grows with K − 1.
    p(x) and the logits that choose t come from one forward in eval mode, as the attack's.
    Cost: (2k + 4) forward passes a batch, 6 for the one step.

    Paper and code: wjyouch/bilateral-adversarial-training (train.py, train.sh) has v_k = −log(p_k + 1e-8), and so here.
    Its other targets: `random`, any k ≠ y; `mosa`, the class that one step reaches first, argmin of
    (f(x)_y − f(x)_k) / ‖w_y − w_k‖ over the classes below y, w the rows of the last layer; `mix`, `mosa` where f is
    right and the most confusing class elsewhere; `untargeted`, away from y. The paper has neither `random` nor `mosa`.
    y itself is never the target here; in the code it may be, in `mosa` where no class lies below y and in `mix` where
    all other logits are negative. Left out: the attack on the clamped margin (`--loss_type CW`).
    Known weaknesses: smooth labels and a weak attack make gradients that mislead PGD. Trained at 4/255, CIFAR-10 at
    8/255: PGD-100 62.4 % (71.0 % with `mosa`), 58.6 % with 100 restarts (the authors' README), AutoAttack 29.35 %
    (RobustBench; clean 92.80 %). Judge it by AutoAttack.

    Args:
        target: t: `most_confusing`, `random`, `mosa`, `mix` or `untargeted`.
        beta: β; None leaves the label as it is.
        gamma: γ, which keeps the most confusing class above 0.
    """

    requires_hard_labels = True

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        target: str = "most_confusing",
        beta: Positive | None = 9.0,
        gamma: Positive = 0.01,
    ) -> None:
        super().__init__(model, attack)
        refuse_unknown("method.target", target, TARGETS)
        if target in ("mosa", "mix") and not (isinstance(model, Network) and type(model.head) is nn.Linear):
            why = "it divides by distances between rows of one network's linear head"
            raise ConfigError("method.target", target, why, "use most_confusing, or a model with such a head")
        self.target, self.beta, self.gamma = target, beta, gamma

    def perturb(self, batch: Batch) -> Batch:
        with torch.no_grad(), attack_mode(self, self.attack.bn):
            logits = self.model(batch.x)
        if self.target == "untargeted":
            objective = Objective(self.model, self.attack_risk, batch.y)
        else:
            objective = Objective(self.model, likelihood, self.targets(logits, batch.y))
        label = batch.y if self.beta is None else adversarial_label(logits, batch.y, self.beta, self.gamma)
        return batch.with_adv(self.run_attack(objective, batch.x), label=label)

    def targets(self, logits: Tensor, y: Tensor) -> Tensor:
        """t (B,), never y, from the clean images' logits (B, K)."""
        if self.target == "random":
            u = self.rng("target").uniform(torch.empty(len(y), dtype=torch.float64, device=y.device))
            return wrong_classes(y, logits.shape[1], u)
        most_confusing = logits.scatter(1, y[:, None], -torch.inf).argmax(dim=1)
        if self.target == "most_confusing":
            return most_confusing
        reached_first = self.one_step_target(logits, y)
        right = logits.argmax(dim=1) == y
        return reached_first if self.target == "mosa" else torch.where(right, reached_first, most_confusing)

    def one_step_target(self, logits: Tensor, y: Tensor) -> Tensor:
        """argmin_k (z_y − z_k) / ‖w_y − w_k‖ over the classes below y; the farthest w_k where there is none."""
        assert isinstance(self.model, Network)
        rows = self.model.head.get_parameter("weight").detach()
        distance = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")[y]  # 0 for y itself: never it
        gap = logits.gather(1, y[:, None]) - logits
        return (torch.where(gap > LEAST_GAP, gap, NO_GAP) / distance).argmin(dim=1)

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        return Loss(self.risk(logits, batch.aux["label"]).mean(), {}, logits)

    def forward_cost(self, steps: int) -> float:
        return 2 * steps + 4


def adversarial_label(logits: Tensor, y: Tensor, beta: float, gamma: float) -> Tensor:
    """y' (B, K) from the logits (B, K) of clean images: rows sum to 1."""
    true, value = y[:, None], -(logits.softmax(dim=1) + 1e-8).log()
    low = value.scatter(1, true, torch.inf).amin(dim=1, keepdim=True)
    high = value.scatter(1, true, -torch.inf).amax(dim=1, keepdim=True)
    excess = (value - low + gamma).scatter(1, true, 0.0)
    total = excess.sum(dim=1, keepdim=True)
    taken = 1 / (1 + beta * (high - low + gamma) / total)
    return (taken * excess / total).scatter(1, true, 1 - taken)
