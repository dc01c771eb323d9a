"""Training on clean images and on one signed gradient step from each."""

from __future__ import annotations

import torch

from atbench.attacks import GradientAttack, SelfLabelled, cross_entropy
from atbench.config.ranges import Share
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.base import Loss, Method

TARGETS = ("label", "prediction")


class FgsmAt(Method):
    """FGSM training (Goodfellow et al. 2015, ICLR, arXiv 1412.6572, sec. 6): a·CE(f(x), y) + (1 − a)·CE(f(x'), y).

    Inner: x' = x + ε·sign(∇_x CE(f(x), t)), one step of length ε from x, t = y. Outer: both losses in train mode, true
    labels, clean and adversarial images in forwards of their own; x' is a constant. Cost: (2k + 6) forward passes a
    batch, 8 for the one step; with a = 0 the clean images are not forwarded, and this is PGD-AT of one step, at 5.

    Paper and code: cleverhans-lab/cleverhans, cleverhans_v3.1.0/cleverhans/loss.py (CrossEntropy, adv_coeff = 1 − a);
    as there no gradient flows through the attack. Its MNIST tutorial does not tell the attack the label: it climbs the
    loss of the class that f predicts at x (`target: prediction`), so that no label leaks; the paper's t is y. Left out:
    the pool of box-constrained L-BFGS examples of Szegedy et al. (2014, ICLR, arXiv 1312.6199), which had the idea and
    paid a whole optimisation for every image.
    Known weaknesses: what it learns is to withstand this one step. On CIFAR-10 it overfits catastrophically: clean
    88.23 %, FGSM 54.75 %, PGD-10 0.04 %, AutoAttack 0.00 % (MTandHJ/PyTorch-Robust, ResNet-32 at 8/255). With batch
    statistics in the attack (`attack.bn=train`) labels leak into the images, and they get easier than clean ones.

    Args:
        clean: a, the weight of the clean loss, from 0 to 1.
        target: t, the class whose loss the step climbs: `label`, or `prediction` at x.
    """

    def __init__(
        self, model: torch.nn.Module, attack: GradientAttack, clean: Share = 0.5, target: str = "label"
    ) -> None:
        super().__init__(model, attack)
        if target not in TARGETS:
            raise ConfigError("method.target", target, "there is no such choice", f"use one of {', '.join(TARGETS)}")
        self.clean, self.target = clean, target

    def perturb(self, batch: Batch) -> Batch:
        if self.target == "label":
            return super().perturb(batch)
        predicted = SelfLabelled(self.model, cross_entropy, lambda logits: logits.argmax(dim=1))
        return batch.with_adv(self.run_attack(predicted, batch.x))

    def loss(self, batch: Batch) -> Loss:
        if self.clean == 0:
            logits = self.model(batch.x_adv)
            return Loss(self.risk(logits, batch.y).mean(), {}, logits)
        clean, adversarial = self.model(batch.x), self.model(batch.x_adv)
        natural, robust = self.risk(clean, batch.y).mean(), self.risk(adversarial, batch.y).mean()
        terms = {"ce": natural.detach(), "adv": robust.detach()}
        return Loss(self.clean * natural + (1 - self.clean) * robust, terms, adversarial)

    def forward_cost(self, steps: int) -> float | None:
        return 2 * steps + (3 if self.clean == 0 else 6)
