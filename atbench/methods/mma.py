"""Max-margin adversarial training."""

from __future__ import annotations

import torch
from torch import Tensor

from atbench.attacks import GradientAttack, Objective, soft_margin
from atbench.attacks.norms.lp_ball import per_example
from atbench.config.ranges import Count, NotNegative, Share
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.base import FixedSteps, Loss, Method, accuracy
from atbench.models import bn_mode, untouched

MODES = ("train", "batch", "eval")


class Mma(Method):
    """MMA (Ding et al. 2020, ICLR, arXiv 1812.02637): (1 − c) · L_mma + c · CE(f(x), y): margins grow up to d_max.

    L_mma = 1/B ( Σ_{right, e_i < d_max} CE(f(x_i + e_i u_i), y_i) + Σ_{wrong} CE(f(x_i), y_i) ), right meaning SLM < 0,
    SLM = logsumexp_{j≠y} z_j − z_y, that is, p_y > 1/2. AN-PGD finds the margin e_i in two parts:
    - PGD on SLM at radius r_i = max(memory_i, min_eps), steps of 2.5 r_i / k, gives u_i = (x_pgd − x) / r_i;
    - bisection for SLM = 0 along u_i in [0, 1.05 d_max], its first bracket from the sign at x_pgd, gives e_i to
      1.05 d_max / 2^bisections. memory_i ← e_i, and 0 where the example is wrong.
    e_i and u_i are constants of the loss. Norm, k and start are the attack's; its ε and step size are not used.
    Clean and mixed batch are two forwards, clean first. Right and wrong are those of train mode, in which the loss sees
    the clean batch. Examples right beyond d_max are moved and forwarded as well, so that BatchNorm sees them there;
    their loss alone is left out.
    Cost: at most (2k + bisections + 7) forward passes a batch; wrong examples are dropped from PGD.

    Paper and code: BorealisAI/mma_training (trainer.py, anpgd.py) runs PGD in eval mode and the bisection in train
    mode, on the right examples alone and with an update of the running statistics at every look (`bisect_bn: train`, by
    default, for the published figures are the code's), of which it has one more that comes to nothing. The clean batch
    updates them before the search. The code returns x + e·u unclipped; here it is clipped, as the
    bisection saw it. The authors select by mean margin.
    Robust accuracy later measured by AutoAttack: 41.44 %; reported: 47.18 % (RobustBench, WRN-28-4,
    d_max = 32/255); at L2 0.5: 66.09 %.

    Args:
        d_max: margin beyond which the loss leaves an example out, in the attack's norm.
        min_eps: least radius r_i, and the memory before the first visit.
        bisections: looks along u_i, the one at x_pgd included.
        clean_weight: c; 0 is the paper's OMMA.
        bisect_bn: mode of the normalisation layers in the bisection (those of `attack.bn`).
    """

    requires_hard_labels = True
    margins: Tensor

    def __init__(
        self,
        model: torch.nn.Module,
        attack: GradientAttack,
        d_max: NotNegative,
        min_eps: NotNegative,
        bisections: Count = 10,
        clean_weight: Share = 1 / 3,
        bisect_bn: str = "train",
    ) -> None:
        super().__init__(model, attack)
        if bisect_bn not in MODES:
            known = ", ".join(MODES)
            raise ConfigError("method.bisect_bn", bisect_bn, "there is no such mode", f"use one of {known}")
        self.bisect_bn = bisect_bn
        self.d_max, self.min_eps = d_max, min_eps
        self.bisections, self.clean_weight = bisections, clean_weight

    def setup(self, data: TrainData) -> None:
        shape = (len(data.train),)
        self.register_buffer("margins", torch.full(shape, self.min_eps, dtype=data.dtype, device=data.device))

    def perturb(self, batch: Batch) -> Batch:
        with torch.no_grad(), untouched(self), bn_mode(self, "train"):
            right = soft_margin(self.model(batch.x), batch.y) < 0
        radius = self.margins[batch.index].clamp(self.min_eps, 1.05 * self.d_max)
        x_pgd = self.run_attack(
            Objective(self.model, soft_margin, batch.y),
            batch.x,
            eps=radius,
            step_size=2.5 * radius / self.attack.steps,
            stop=lambda state: ~right[state.rows],
        )
        direction = (x_pgd - batch.x) / per_example(radius, batch.x).clamp_min(1e-12)
        margin = torch.zeros_like(radius)
        # Of a single row BatchNorm may have no statistics: it takes the others with it.
        rows = right if int(right.sum()) > 1 else torch.ones_like(right)
        margin[rows] = self._bisect(batch.x[rows], batch.y[rows], direction[rows], radius[rows])
        margin = margin * right
        counts = (margin < self.d_max) | ~right
        return batch.with_adv(along(batch.x, direction, margin), margin=margin, counts=counts.to(batch.x.dtype))

    @torch.no_grad()
    def _bisect(self, x: Tensor, y: Tensor, direction: Tensor, start: Tensor) -> Tensor:
        """Where f stops being right along a direction, (B,); close to 1.05 d_max where it does not."""
        low, high, e = torch.zeros_like(start), torch.full_like(start, 1.05 * self.d_max), start
        with untouched(self), bn_mode(self, self.bisect_bn):
            for _ in range(self.bisections):
                inside = soft_margin(self.model(along(x, direction, e)), y) < 0
                low, high = torch.where(inside, e, low), torch.where(inside, high, e)
                e = (low + high) / 2
        return e

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {}  # steps of a share of each margin

    def loss(self, batch: Batch) -> Loss:
        with bn_mode(self, "batch"):  # running statistics saw the clean batch when right and wrong were told apart
            natural = self.risk(self.model(batch.x), batch.y).mean()
        mixed = self.model(batch.x_adv)
        pushing = (self.risk(mixed, batch.y) * batch.aux["counts"]).mean()
        terms = {"ce": natural.detach(), "mma": pushing.detach()}
        terms |= {"eps_mean": self.margins.mean(), "eps_std": self.margins.std()}
        total = (1 - self.clean_weight) * pushing + self.clean_weight * natural
        return Loss(total, {**terms, "accuracy": accuracy(mixed, batch.y)})

    def after_update(self, batch: Batch) -> None:
        self.margins[self.gather(batch.index)] = self.gather(batch.aux["margin"])


def along(x: Tensor, direction: Tensor, distance: Tensor) -> Tensor:
    """The legal image at `distance` (B,) from x along `direction`; x itself at 0."""
    return (x + per_example(distance, x) * direction).clamp(0, 1)
