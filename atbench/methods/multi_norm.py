"""Adversarial training against several norms by a search for each: AVG, MAX and their relatives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from atbench.attacks import BALLS, L2, GradientAttack, Objective, cross_entropy, margin
from atbench.attacks.norms.lp_ball import Radius
from atbench.config.ranges import AnyCount, NotNegative, Share
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.base import FixedSteps, Loss, Method, Round
from atbench.models import attack_mode

RULES = ("avg", "max", "alternate", "sequential")


class MultiNorm(Method):
    """AVG and MAX (Tramèr & Boneh 2019, NeurIPS, arXiv 1904.13000, sec. 2): L_avg = 1/n Σ_p CE(f(x'_p), y), L_max =
    max_p CE(f(x'_p), y), x'_p the worst image of norm p's ball, n norms.

    Inner: a PGD of its own for every norm, on the logit margin max_{k≠y} z_k − z_y, in eval mode from a uniform start.
    L2 steps ignore the slope of pixels that the box stops; L1 steps are shared by 1 % of the pixels (SLIDE) and go
    round those. Outer, by `rule`:
      avg: CE over all n·B images in one forward. max: per example the image of largest CE (not margin) in eval mode.
      alternate: norm t mod n at step t. sequential: an update a norm, each attack against the weights as they are by
      then (what Maini et al. 2020 run as AVG on CIFAR-10: locuslab/robust_union, `triple_adv`).
    Cost in forward passes, with K = Σ_p k_p: avg and sequential 2K + 3n, max 2K + n + 3, alternate 2k_p + 3.

    Paper and code: ftramer/MultiRobustness (train.py, pgd_attack.py) starts L2 on the sphere and L1 at Laplace
    noise of norm ε. Here starts are uniform in the ball, of the same directions and u^(1/d) of that length: 0.985
    on average for 8×8 pixels, 0.9997 for CIFAR-10. It clips x + δ to the box and not δ, and from there on keeps δ
    in a box around the clipped image less δ, not around x: a black pixel that started below 0 has to make up for
    that first. Its searches find less on MNIST than these do, where most pixels are black (CE 2.46 against 3.19 at
    the same weights). It projects on the L1 ball without the box; here both at once. Without `a` its step is 2.5
    ε/k in L∞ and L2, and 1 in L1 whatever ε and k; with `a` it stays as long while the radii are small (`warmup`),
    as it does here. Left out: rotations and translations, affine mixtures of attacks, restarts; its HALF_BATCH and
    HALF_LR are `train.batch_size` and `train.optimizer.lr`.
    Known weaknesses: n times the price of PGD-AT, for less in each norm than training on it alone. MNIST networks under
    L∞ mask their gradients from L2 and L1 searches, so that those find too little to train on. Union accuracy with 10
    restarts on CIFAR-10 (README of robust_union): AVG 40.6 %, MAX 34.9 %, MSD 46.1 %. On MNIST about 50 % in the paper
    (from memory).

    Args:
        radii: ε of each norm.
        rel_path_length: length of all steps of a search together, in units of the norm's ε.
        steps: k of each norm.
        rule: `avg`, `max`, `alternate` or `sequential`.
        warmup: share of training with a third of the radii (the code's `start_small`: the first epoch on MNIST).
    """

    requires_hard_labels = True

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        radii: Mapping[str, NotNegative],
        rel_path_length: Mapping[str, NotNegative],
        steps: Mapping[str, AnyCount],
        rule: str = "avg",
        warmup: Share = 0.0,
    ) -> None:
        super().__init__(model, attack)
        if rule not in RULES:
            raise ConfigError("method.rule", rule, "there is no such choice", f"use one of {', '.join(RULES)}")
        check_norms(attack, radii, rel_path_length=rel_path_length, steps=steps)
        self.rule, self.warmup = rule, warmup
        self.searches = {
            norm: GradientAttack(
                norm, eps, steps[norm], step_length(eps, rel_path_length[norm], steps[norm]), attack.start
            )
            for norm, eps in radii.items()
        }
        if "l2" in self.searches:
            self.searches["l2"].ball = FreeL2()

    def inner_updates(self, batch: Batch) -> Iterator[Round]:
        if self.rule != "sequential":
            yield Round(batch)
            return
        for norm in self.searches:
            yield Round(batch.with_adv(norms=[norm]))

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {
            f"method.rel_path_length.{norm}": FixedSteps(its.steps, its.step_size, its.eps)
            for norm, its in self.searches.items()
        }

    def _norms(self) -> list[str]:
        """The norms attacked in this step."""
        norms = list(self.searches)
        if self.rule != "alternate":
            return norms
        return [norms[(self.clock.epoch * self.clock.steps + self.clock.step) % len(norms)]]

    def perturb(self, batch: Batch) -> Batch:
        """The images of all n norms, (n·B, C, H, W); with `max` the worst for each example, (B, C, H, W)."""
        candidates = [self.attack_in(batch, norm) for norm in batch.aux.get("norms", self._norms())]
        return batch.with_adv(self._worst(batch, candidates) if self.rule == "max" else torch.cat(candidates))

    def attack_in(self, batch: Batch, norm: str) -> Tensor:
        """The adversarial images in one norm, (B, C, H, W)."""
        search = self.searches[norm]
        eps = search.eps / 3 if self.clock.fraction < self.warmup else search.eps
        with attack_mode(self, self.attack.bn):
            return search(Objective(self.model, margin, batch.y), batch.x, eps=eps, rng=self.rng(norm))

    def _worst(self, batch: Batch, candidates: list[Tensor]) -> Tensor:
        with torch.no_grad(), attack_mode(self, self.attack.bn):
            losses = torch.stack([cross_entropy(self.model(x_adv), batch.y) for x_adv in candidates])
        rows = torch.arange(len(batch), device=batch.x.device)
        return torch.stack(candidates)[losses.argmax(dim=0), rows]

    def loss(self, batch: Batch) -> Loss:
        logits = self.model(batch.x_adv)
        y = batch.y.repeat(len(logits) // len(batch))
        return Loss(self.risk(logits, y).mean(), {}, logits)

    def forward_cost(self, steps: int) -> float:
        norms = self._norms()
        updates = 1 if self.rule == "max" else len(norms)
        comparisons = len(norms) if self.rule == "max" else 0
        return 2 * sum(self.searches[norm].steps for norm in norms) + comparisons + 3 * updates


class FreeL2(L2):
    """L2 whose step is the steepest among the pixels that the box lets move: the others would take part of its length
    and be clipped.
    """

    def ascend(self, x_adv: Tensor, grad: Tensor, length: Radius) -> Tensor:
        stuck = ((x_adv <= 0) & (grad < 0)) | ((x_adv >= 1) & (grad > 0))
        return super().ascend(x_adv, grad.masked_fill(stuck, 0), length)


def step_length(eps: float, rel_path_length: float, steps: int) -> float:
    """The length of one of `steps` that together go `rel_path_length` radii far."""
    return rel_path_length * eps / max(steps, 1)


def check_norms(attack: GradientAttack, radii: Mapping[str, float], **needed: Mapping[str, float]) -> None:
    """Refuse radii that make no union, that lack a setting of `needed`, or that contradict the run's own radius."""
    if not radii:
        raise ConfigError("method.radii", {}, "names no norm", f"give an eps to some of {', '.join(BALLS)}")
    for norm in radii:
        if norm not in BALLS:
            raise ConfigError("method.radii", norm, "there is no such norm", f"use some of {', '.join(BALLS)}")
        for key, values in needed.items():
            if norm not in values:
                raise ConfigError(f"method.{key}", dict(values), f"says nothing of {norm}", f"add {norm} to it")
    own = radii.get(attack.norm, attack.eps)
    if own != attack.eps:
        why = f"the method trains at method.radii.{attack.norm}={own:g}, and would be selected at another radius"
        raise ConfigError("attack.eps", attack.eps, why, f"set dataset.threat.{attack.norm}.eps, which both follow")
