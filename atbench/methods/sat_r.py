"""Single-step adversarial training with one of three regularizers against gradient masking."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective, cross_entropy
from atbench.config.ranges import Count, NotNegative, Share
from atbench.data import Batch
from atbench.methods.base import Loss, Method


class SatR(Method):
    """Base class of SAT-R1, R2 and R3 (Vivek & Babu 2020, arXiv 2002.00614): what they share is one step of length ε.

    A network that masks its gradients tells itself by three signs: its logits differ between FGSM and iterative FGSM
    (R1), or between FGSM and FGSM from a noisy start (R2), or its loss does not grow with the step (R3). Each method
    penalises one. All images of an update go through the network in one joint forward in train mode; attacks are in
    eval mode and have the true label, and no gradient is stopped.

    Source: val-iisc/SAT-Rx, tools/reg_utils.py. Its authors train a Wide ResNet on CIFAR-10 whose convolutions have
    biases; the published figures of Bai et al. 2021 are those of the LeNet on MNIST (`experiment=paper/sat_r1`, ...).
    Unverified: the recipe of CIFAR-10, whose network is not among the models here. AutoAttack figures are known of R2
    alone.
    """

    def ascend(self, x: Tensor, y: Tensor, steps: int = 1) -> Tensor:
        """x' from `steps` signed gradient steps of cross-entropy, ε long together, in the ball around `x`."""
        length = self.attack.eps / steps
        return self.run_attack(Objective(self.model, cross_entropy, y), x, start=x, step_size=length, steps=steps)

    def noisy(self, x: Tensor, radius: float) -> Tensor:
        """x + radius · sign(N(0, I)), not clipped to the box."""
        return x + radius * self.attack.ball.steepest(self.rng("noise").normal(x))


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖² of each row, (B,)."""
    return (a - b).square().sum(dim=1)


class SatR1(SatR):
    """SAT-R1: CE(f(x'), y) + λ · ‖f(x'_B) − f(x''_B)‖², x' by FGSM, x''_B by iterative FGSM for one image of the batch.

    x''_B is n steps of ε/n from the last image of the (joint) batch alone, which keeps the cost at that of FGSM
    training: the sum has one term, whatever the size of the batch. Cost: (2 + 3 + (2n + 3)/B) forward passes a batch.
    See `SatR`.

    Args:
        weight: λ.
        iterations: n, the steps of iterative FGSM.
    """

    def __init__(
        self, model: nn.Module, attack: GradientAttack, weight: NotNegative = 0.2, iterations: Count = 3
    ) -> None:
        super().__init__(model, attack)
        self.weight, self.iterations = weight, iterations

    def perturb(self, batch: Batch) -> Batch:
        x_adv = self.ascend(batch.x, batch.y)
        last = batch.x[:0]
        if self.has_last_row:
            last = self.ascend(batch.x[-1:], batch.y[-1:], self.iterations)
        return batch.with_adv(x_adv, iterated=last)

    @property
    def has_last_row(self) -> bool:
        """Whether the joint batch's last image is this process's."""
        return self.clock.rank == self.clock.world - 1

    def loss(self, batch: Batch) -> Loss:
        rows = len(batch)
        logits = self.model(torch.cat([batch.x_adv, batch.aux["iterated"]]))
        risk = self.risk(logits[:rows], batch.y).mean()
        # Gradients are averaged over processes, and one of them alone has the term.
        distance = self.clock.world * squared_distance(logits[rows - 1 : rows], logits[rows:]).sum()
        if not self.has_last_row:
            distance = torch.zeros_like(risk)
        terms = {"ce": risk.detach(), "distance": distance.detach()}
        return Loss(risk + self.weight * distance, terms, logits[:rows])

    def forward_cost(self, steps: int) -> float | None:
        return None


class SatR2(SatR):
    """SAT-R2 (first as R-MGM, Vivek et al. 2019, CVPRW): CE(f(x'), y) + λ · (1/B) Σ ‖f(x'_i) − f(x''_i)‖².

    x' by FGSM from x; x'' by FGSM from x + a·sign(N(0, I)), a step of ε from there as well, so that x'' lies up to
    ε + a from x (the usual R-FGSM steps ε − a). The noisy image is not clipped before its gradient is taken. The
    cross-entropy is that of x' alone. Cost: 10 forward passes a batch. See `SatR`.
    Robust accuracy later measured by AutoAttack, CIFAR-10, ε = 8/255: 43.72 %; under PGD-20: 46.23 % (R-MGM in the
    paper of GAT, ResNet-18).

    Args:
        weight: λ.
        noise: a/ε.
    """

    def __init__(self, model: nn.Module, attack: GradientAttack, weight: NotNegative = 5.0, noise: Share = 0.25):
        super().__init__(model, attack)
        self.weight, self.noise = weight, noise

    def perturb(self, batch: Batch) -> Batch:
        x = torch.cat([batch.x, self.noisy(batch.x, self.noise * self.attack.eps)])
        x_adv, noisy = self.ascend(x, torch.cat([batch.y, batch.y])).chunk(2)
        return batch.with_adv(x_adv, noisy=noisy)

    def loss(self, batch: Batch) -> Loss:
        logits, noisy = self.model(torch.cat([batch.x_adv, batch.aux["noisy"]])).chunk(2)
        risk, distance = self.risk(logits, batch.y).mean(), squared_distance(logits, noisy).mean()
        terms = {"ce": risk.detach(), "distance": distance.detach()}
        return Loss(risk + self.weight * distance, terms, logits)

    def forward_cost(self, steps: int) -> float:
        return 10


class SatR3(SatR):
    """SAT-R3: L_high + λ · max(L_low − τ·L_high, 0), L = CE(f(x'), y) averaged over the batch.

    x'_low and x'_high are steps of ε_low and of ε along one gradient, that at the clipped noisy image
    clip(x + a·sign(N(0, I))), so that they lie up to a more from x. The maximum is of the two means of the (joint)
    batch, not of each example. Cost: 8 forward passes a batch. See `SatR`.

    Args:
        weight: λ.
        tau: τ, the largest share of the loss that the short step may reach.
        low: ε_low/ε.
        noise: a/ε.
    """

    takes_micro_batches = False

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        weight: NotNegative = 1.0,
        tau: NotNegative = 0.6,
        low: Share = 0.25,
        noise: Share = 0.25,
    ) -> None:
        super().__init__(model, attack)
        self.weight, self.tau, self.low, self.noise = weight, tau, low, noise

    def perturb(self, batch: Batch) -> Batch:
        x = self.noisy(batch.x, self.noise * self.attack.eps).clamp(0, 1)
        high = self.ascend(x, batch.y)
        # The long step cut to the length of the short one: the box clips either at the same place.
        low = self.attack.ball.project(x, high, self.low * self.attack.eps)
        return batch.with_adv(high, low=low)

    def loss(self, batch: Batch) -> Loss:
        low, high = self.model(torch.cat([batch.aux["low"], batch.x_adv])).chunk(2)
        low_risk, high_risk = self.risk(low, batch.y).mean(), self.risk(high, batch.y).mean()
        excess = low_risk - self.tau * high_risk
        excess = excess * (self.gather(excess.detach()[None]).mean() > 0)
        terms = {"ce": high_risk.detach(), "low": low_risk.detach()}
        return Loss(high_risk + self.weight * excess, terms, high)

    def forward_cost(self, steps: int) -> float:
        return 8
