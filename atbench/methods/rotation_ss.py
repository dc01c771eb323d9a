"""Adversarial training with rotation prediction as a second task."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective, cross_entropy
from atbench.config.ranges import NotNegative
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.base import Loss, Method
from atbench.models import Network, attack_mode

TURNS = 4


class RotationSs(Method):
    """Rotation self-supervision (Hendrycks et al. 2019b, NeurIPS, arXiv 1906.12340): CE(f(x'), y) + w · CE(r(x'_k), k).

    The batch becomes five: x once for the class, and x turned by k · 90° counter-clockwise, k = 0, 1, 2, 3, for the
    rotation head r, a linear layer on f's pooled features. Inner: PGD on Σ_B CE(f(x'), y) + (w/4) Σ_4B CE(r(x'_k), k),
    which is B times the outer loss, of all five copies in one batch in train mode, from a uniform start that is not
    clipped to the box. Outer: one forward of the five copies, means over B and over 4B.
    Cost: 5 · (2k + 3) forward passes a batch.

    Source: hendrycks/ss-ood (adversarial/train.py, attacks.py). Its attack adds the start's noise to the clean images
    in place, so that it searches around noisy images and x' is up to 2ε away; here the ball's centre is x. It has no
    adversarial evaluation: 50.4 % under PGD-20 against 44.8 % without rotations (from memory) cannot be checked there.
    The row of the survey's Table 1 (ImageNet, 0.3) is that CIFAR-10 number.
    Known weaknesses: five times the cost of PGD-AT; images that look alike when turned (0, 1, 8 of digits) have a
    rotation loss that cannot be lowered; no AutoAttack figure is known.

    Args:
        weight: w; 0 is PGD-AT with four further copies in the batch.
        attack_rotations: whether the attack maximises the rotation loss as well.
    """

    def __init__(
        self, model: nn.Module, attack: GradientAttack, weight: NotNegative = 0.5, attack_rotations: bool = True
    ) -> None:
        super().__init__(model, attack)
        if not isinstance(model, Network):
            why = "the rotation head needs one network's features"
            raise ConfigError("model", type(model).__name__, why, "use a model with stages, and model.members=1")
        self.weight, self.attack_rotations = weight, attack_rotations

    def setup(self, data: TrainData) -> None:
        shape = data.source.shape
        if shape[1] != shape[2]:
            why = "a quarter turn does not fit: images must be square"
            raise ConfigError("dataset", f"{shape[1]}×{shape[2]}", why, "use another data set")
        assert isinstance(self.model, Network)
        like = next(self.model.parameters())
        with torch.no_grad(), attack_mode(self.model, "eval"):
            width = self.model.features(like.new_zeros(1, *shape)).shape[1]
        self.rotation_head = nn.Linear(width, TURNS).to(like)

    def groups(self) -> dict[str, nn.Module]:
        return {"model": self.model, "rotation_head": self.rotation_head}

    def perturb(self, batch: Batch) -> Batch:
        n = len(batch)
        copies = [batch.x, *(batch.x.rot90(k, (2, 3)) for k in range(TURNS))]
        # Each copy has its own draws: rows of a joint draw would depend on how processes share them.
        starts = [self.attack.begin(x, self.attack.eps, self.rng(f"copy{i}")) for i, x in enumerate(copies)]
        turns = torch.arange(TURNS, device=batch.x.device).repeat_interleave(n)

        def value(outputs: tuple[Tensor, Tensor]) -> Tensor:
            logits, rotations = outputs
            weight = self.weight / TURNS if self.attack_rotations else 0.0
            return torch.cat([cross_entropy(logits, batch.y), weight * cross_entropy(rotations, turns)])

        objective = Objective(lambda x: self.heads(x, n), value)
        x_adv = self.run_attack(objective, torch.cat(copies), start=torch.cat(starts))
        return batch.with_adv(x_adv[:n], rotated=x_adv[n:], turns=turns)

    def heads(self, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Class logits of the first `n` images, rotation logits of the others; one forward pass."""
        assert isinstance(self.model, Network)
        features = self.model.features(x)
        return self.model.classify(features[:n]), self.rotation_head(features[n:])

    def loss(self, batch: Batch) -> Loss:
        logits, rotations = self.heads(torch.cat([batch.x_adv, batch.aux["rotated"]]), len(batch))
        ce, rotation = self.risk(logits, batch.y).mean(), F.cross_entropy(rotations, batch.aux["turns"])
        terms = {"ce": ce.detach(), "rotation": rotation.detach()}
        return Loss(ce + self.weight * rotation, terms, logits)

    def forward_cost(self, steps: int) -> float:
        return (1 + TURNS) * (2 * steps + 3)
