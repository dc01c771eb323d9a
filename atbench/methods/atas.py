"""FGSM with a step size of every example's own, which its gradient norm sets, and a start that it remembers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack
from atbench.attacks.norms.lp_ball import per_example
from atbench.config.ranges import NotNegative, Positive, Share
from atbench.data import Batch, TrainData, canvas_pad
from atbench.errors import ConfigError
from atbench.methods.base import Loss, Method
from atbench.runs.seeding import Draws, generator


class Atas(Method):
    """ATAS (Huang et al. 2022, IEEE TIP 2023, arXiv 2206.02417): CE(f(x'), y), one step of a size α_i from x + δ_i.

    With g_i = ∇_{x_i} of the mean of CE(f(x + δ), y) over the joint batch, so that it depends on the batch size,
    v_i ← β·v_i + (1 − β)·‖g_i‖₂²,   α_i = clip( s / (1 + √v_i / c), α_min, α_max ),
    x' = Π(x + δ_i + α_i·d(g_i)),   δ_i ← x' − x,
    d the steepest direction (sign for L∞), Π the projection on ball and pixels. v_i starts at 0 and has this step's
    gradient in it when it sets α_i. During warm-up α_i is `attack.step_size`, and v_i stays 0.
    δ_i lies on the image's padded canvas (C, H + 2p, W + 2p), p the margin of the random crop: it is cropped and
    flipped with the image, and only the pixels that the view shows are written back. It starts uniform in the ball and
    is drawn anew every `reset` of training, v_i is not.
    Cost: 5 forward passes a batch, and one padded float image for each train image in memory and checkpoint.

    Source: HuangZhiChao95/ATAS, ATAS.py, adv_attack.py and data_aug.py. There s = 16/255, α_min = 4/255 and
    α_max = 14/255 are pixels, the same for ε = 8, 12 and 16/255; here they are 2 ε, ε/2 and 7ε/4, which is equal at
    8/255. Its branch for ImageNet (canvases of 32x32 that are resized) is left out.
    Known weaknesses: instances with large gradients get small steps, so what is robust on them is not trained hard; c
    is tuned to batches of 128. The authors' figures are measured on test images padded to 40x40, whose margin the
    attack may move, and are not comparable to others.
    Robust accuracy later measured by AutoAttack: not on RobustBench, and not in the FastAT Benchmark.

    Args:
        scale: s, the step size at v_i = 0, before it is clipped.
        min_step: α_min.
        max_step: α_max.
        c: √v_i at which the step is half of s.
        beta: β, weight of the past in v_i.
        warmup: share of training with steps of `attack.step_size`.
        reset: share of training after which all δ_i are drawn anew.
    """

    requires_hard_labels = True  # a mixed image is none of the images that have a δ_i
    delta: Tensor
    v: Tensor

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        scale: NotNegative,
        min_step: NotNegative,
        max_step: NotNegative,
        c: Positive = 0.01,
        beta: Share = 0.5,
        warmup: Share = 5 / 30,
        reset: Share = 10 / 30,
    ) -> None:
        super().__init__(model, attack)
        if min_step > max_step:
            raise ConfigError("method.min_step", min_step, f"above method.max_step={max_step}", "use a smaller one")
        self.scale, self.min_step, self.max_step = scale, min_step, max_step
        self.c, self.beta, self.warmup, self.reset = c, beta, warmup, reset

    def setup(self, data: TrainData) -> None:
        (channels, height, width), margin = data.source.shape, 2 * canvas_pad(data.augment)
        shape = (len(data.train), channels, height + margin, width + margin)
        self.register_buffer("delta", torch.zeros(shape, dtype=data.dtype, device=data.device))
        self.register_buffer("v", torch.zeros(len(data.train), dtype=data.dtype, device=data.device))
        self._draw(data.seed, 0)

    def perturb(self, batch: Batch) -> Batch:
        ball, eps, x = self.attack.ball, self.attack.eps, batch.x
        canvas = self.delta[batch.index]
        delta = canvas if batch.view is None else batch.view.apply_padded(canvas)
        start = ball.project(x, x + delta, eps)
        grad, _ = self.input_gradient(start, batch.y)
        v = self.v[batch.index]
        if not self._warm:
            mean_grad = grad / (len(batch) * self.clock.world)  # of the mean loss, as the authors have it
            v = self.beta * v + (1 - self.beta) * mean_grad.flatten(1).square().sum(dim=1)
        ahead = ball.ascend(start, grad, per_example(self._step_size(v), x))
        return batch.with_adv(ball.project(x, ahead, eps), v=v)

    @property
    def _warm(self) -> bool:
        return self.clock.fraction < self.warmup

    def _step_size(self, v: Tensor) -> Tensor:
        """α of examples with these v, (B,)."""
        if self._warm:
            return torch.full_like(v, self.attack.step_size)
        return (self.scale / (1 + v.sqrt() / self.c)).clamp(self.min_step, self.max_step)

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        return Loss(self.risk(logits, batch.y).mean(), {}, logits)

    def after_update(self, batch: Batch) -> None:
        delta = batch.x_adv - batch.x
        if batch.view is not None:
            canvas, shown = batch.view.invert_padded(delta)
            delta = torch.where(shown, canvas, self.delta[batch.index])
        index = self.gather(batch.index)
        self.delta[index], self.v[index] = self.gather(delta), self.gather(batch.aux["v"])
        self._renew()

    def _renew(self) -> None:
        """After the last step before an epoch whose number, from 1, is a multiple of the period, draw all δ_i anew;
        not before the last epoch. From the clock alone, so that a resumed run does the same.
        """
        following, period = self.clock.epoch + 2, max(1, round(self.reset * self.clock.epochs))
        if self.clock.step == self.clock.steps - 1 and following % period == 0 and following < self.clock.epochs:
            self._draw(self.clock.seed, following)

    def _draw(self, seed: int, epoch: int) -> None:
        """New δ, uniform in the ball; the same table on every process."""
        rng = Draws(generator(self.delta.device, seed, "atas", epoch))
        self.delta.copy_(self.attack.ball.sample(self.delta, self.attack.eps, rng))

    def epoch_figures(self) -> dict[str, float]:
        return {"step_mean": float(self._step_size(self.v).mean())}

    def forward_cost(self, steps: int) -> float:
        return 5
