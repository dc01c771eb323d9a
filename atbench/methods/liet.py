"""Label information elimination training: one step from a blurred pattern of the label."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, cross_entropy
from atbench.config.ranges import Count, NotNegative, Share
from atbench.data import Batch, TrainData
from atbench.methods.base import FixedSteps, Loss, Method
from atbench.methods.divergences import jensen_shannon
from atbench.models import attack_mode
from atbench.runs.seeding import Draws

GREY = 0.5


class Liet(Method):
    """LIET (Pan et al. 2025, ICCV, pp. 2991-3000): CE(f(x'), ỹ) + λ_e · JS(p(x₀), p(x')), p = softmax(f).

    One-step perturbations carry the label, and the network learns to read it. So the search starts from what carries
    nothing else: the pattern of class k is ε·d(∇CE(f(grey), ỹ_k)) of an image of value 0.5, with d the steepest
    direction (sign for L∞), in eval mode, found anew in the first batch of each epoch and every `every` batches from
    there. Of the pattern of its class each image's pixels are replaced by noise from the ball with probability r, r
    uniform in [low, high] for the batch, and the batch as a whole takes this δ or −δ: x₀ = Π(x ± δ), with Π the
    projection on ball and pixels. With g = ∇CE(f(x₀), ỹ), x' = Π(x₀ + ε·d(g)).
    ỹ puts 1 − s on y and shares s among the other classes by uniform random weights, drawn anew at every use: for the
    pattern, the search and the loss. JS = ½·KL(p‖m) + ½·KL(q‖m), m = (p + q)/2, a mean over the batch, with gradient
    through both passes, and λ_e = λ · (e + 1)/E in epoch e of E. The pass at x₀ is shared by search and update, in
    train mode.
    Cost: 7 forward passes a batch; the K grey images come to less than a tenth of one.

    Source: fzjcdt/LIET, main.py (the authors'), and fzjcdt/FastAT_Benchmark, fast_at/liet.py. Beyond ε = 8/255 the code
    takes noise from twice the ball and does not project x' on it, which is left out here.
    Known weakness: clean accuracy falls with the number of classes (CIFAR-100: 50.5 %, PGD-AT with averaged weights
    57.6 %).
    Robust accuracy later measured by AutoAttack, CIFAR-10, ε = 8/255, ResNet-18: 49.99 % of 56.69 % under PGD-10, from
    80.7 % of clean images (FastAT Benchmark).

    Args:
        consistency: λ, reached in the last epoch.
        smoothing: s.
        low: the smallest r.
        high: the largest r.
        every: batches that a pattern is used for.
    """

    requires_hard_labels = True
    pattern: Tensor

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        consistency: NotNegative = 100.0,
        smoothing: Share = 0.6,
        low: Share = 0.1,
        high: Share = 0.5,
        every: Count = 20,
    ) -> None:
        super().__init__(model, attack)
        self.consistency, self.smoothing = consistency, smoothing
        self.low, self.high, self.every = low, high, every

    def setup(self, data: TrainData) -> None:
        shape = (len(data.source.classes), *data.source.shape)
        self.register_buffer("pattern", torch.zeros(shape, dtype=data.dtype, device=data.device))

    def perturb(self, batch: Batch) -> Batch:
        pattern = self._find_pattern() if self.clock.step % self.every == 0 else self.pattern
        rng, (x, eps) = self.rng("liet-start"), (batch.x, self.attack.eps)
        mask = (rng.uniform(x) + 1) / 2 < rng.scalar(self.low, self.high)
        delta = torch.where(mask, self.attack.ball.sample(x, eps, rng), pattern[batch.y])
        sign = 1 if rng.scalar(-1, 1) > 0 else -1
        # `loss` searches, for its pass at x₀ is shared.
        return batch.with_adv(start=self.attack.ball.project(x, x + sign * delta, eps), pattern=(pattern,))

    def _find_pattern(self) -> Tensor:
        """(K, C, H, W): ε·d(∇CE(f(grey), ỹ_k)) of each class k, the same on every process."""
        grey, y = torch.full_like(self.pattern, GREY), torch.arange(len(self.pattern), device=self.pattern.device)
        with attack_mode(self, "eval"):
            logits = self.model(grey.requires_grad_())
            target = self._soften(y, logits, Draws(self.rng("liet-pattern").source))
            grad = torch.autograd.grad(cross_entropy(logits, target).sum(), grey)[0]
        return self.attack.eps * self.attack.ball.steepest(grad)

    def _soften(self, y: Tensor, logits: Tensor, rng: Draws) -> Tensor:
        """ỹ (B, K): 1 − s on the label, s shared among the other classes by random weights."""
        others = ((rng.uniform(logits.detach()) + 1) / 2).scatter(1, y[:, None], 0.0)
        shares = self.smoothing * others / others.sum(dim=1, keepdim=True)
        return shares.scatter(1, y[:, None], 1 - self.smoothing)

    def loss(self, batch: Batch) -> Loss:
        ball, eps, start = self.attack.ball, self.attack.eps, batch.aux["start"].detach().requires_grad_()
        before = self.model(start)
        searched = cross_entropy(before, self._soften(batch.y, before, self.rng("liet-search")))
        grad = torch.autograd.grad(searched.sum(), start, retain_graph=True)[0]
        after = self.model(ball.project(batch.x, start.detach() + eps * ball.steepest(grad), eps))
        risk = self.risk(after, self._soften(batch.y, after, self.rng("liet-loss"))).mean()
        divergence = jensen_shannon(before, after).mean()
        weight = self.consistency * (self.clock.epoch + 1) / self.clock.epochs
        terms = {"ce": risk.detach(), "js": divergence.detach()}
        return Loss(risk + weight * divergence, terms, after)

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {}  # one step of ε

    def single_step(self) -> bool:
        return True

    def after_update(self, batch: Batch) -> None:
        self.pattern.copy_(batch.aux["pattern"][0])

    def forward_cost(self, steps: int) -> float:
        return 7
