"""Feature attack: match the features of an image of another class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks.ascent.gradient_ascent import GradientAttack
from atbench.attacks.base import Attack, Target
from atbench.attacks.losses import Objective
from atbench.attacks.restarts import AttackStage, RobustTracker, always
from atbench.config.ranges import AnyCount, Count, NotNegative
from atbench.data import Images
from atbench.errors import ConfigError
from atbench.models import Ensemble
from atbench.runs.seeding import ExampleDraws, generator


class FeatureHook:
    """Features of any network: the input of its last linear layer, captured during the forward pass.

    Last is the one that runs last. An ensemble's are those of its members, each of length 1, side by side, so that the
    cosine of two of them is the mean of the members' cosines. Raises ConfigError where there is no linear layer.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        members = list(target.network.members) if isinstance(target.network, Ensemble) else [target.network]
        self.layers = [[each for each in member.modules() if isinstance(each, nn.Linear)] for member in members]
        if not all(self.layers):
            why = "the network has no linear layer whose input could be called its features"
            raise ConfigError("attack", "feature", why, "leave this attack out")

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) and logits (B, K)."""
        inputs_of: dict[int, Tensor] = {}

        def capture(member: int, inputs: tuple[Tensor, ...]) -> None:
            inputs_of[member] = inputs[0]

        hooks = [
            layer.register_forward_pre_hook(lambda _, inputs, member=member: capture(member, inputs))
            for member, layers in enumerate(self.layers)
            for layer in layers
        ]
        try:
            logits = self.target.logits(x)
        finally:
            for hook in hooks:
                hook.remove()
        parts = [F.normalize(inputs_of[member].flatten(1).to(x.dtype), dim=1) for member in range(len(self.layers))]
        return torch.cat(parts, dim=1), logits


class FeatureDistance(Objective):
    """cos(h(x'), g) for features h and target features g (B, D)."""

    def __init__(self, hook: FeatureHook, features: Tensor) -> None:
        super().__init__(hook, lambda h, g: F.cosine_similarity(h, g, dim=1))
        self.features = features

    def __call__(self, x_adv: Tensor, rows: Tensor | None = None, step: int = 0) -> tuple[Tensor, Tensor]:
        h, logits = self.network(x_adv)
        g = self.features if rows is None else self.features[rows]
        return self.value(h, g), logits


class FeatureAttack(Attack):
    """Minimise 1 − cos(h(x'), h(x_t)) for one image x_t of another class after the other, each from a uniform start.

    h is the input of the last linear layer. It finds what the logits' gradients do not where these are masked (feature
    scattering, AIT, BAT), and little beyond PGD elsewhere. The images x_t are drawn without replacement from the
    evaluated split, the same ones for all examples of a label; the code draws them for each example. It stops at
    the first misclassified iterate.

    Args:
        images: the split to take the x_t from.
        targets: number of images x_t, one search each; fewer where the split has fewer.
        steps, rel_step_size: of each search; step size as a share of ε.

    Raises ConfigError if the split holds one class only. Source: Line290/FeatureAttack, feature_attack_batch.py.
    """

    access = "features"

    def __init__(
        self,
        norm: str,
        eps: NotNegative,
        images: Images,
        steps: AnyCount = 50,
        rel_step_size: NotNegative = 0.125,
        targets: Count = 100,
    ) -> None:
        super().__init__(norm, eps, steps)
        self.images, self.step_size = images, rel_step_size * self.eps
        labels = images.y.cpu()
        #: As many as there are images of other classes than the most frequent one.
        self.targets = min(targets, len(labels) - int(labels.bincount().max()))
        if self.targets == 0:
            why = "the evaluated images are all of one class, and the attack imitates those of another"
            raise ConfigError("attack", "feature", why, "evaluate more images, or leave this attack out")

    def perturb(self, target: Target, x: Tensor, y: Tensor, rng: ExampleDraws) -> Tensor:
        tracker, hook = RobustTracker(target, x, y), FeatureHook(target)
        pgd = GradientAttack(self.norm, self.eps, self.steps, self.step_size, start="uniform")
        chosen = self.choose(y, rng)
        for number, rows in tracker.restarts(self.targets):
            features = self._features(hook, chosen[rows.cpu(), number], x)
            start = pgd.begin(x[rows], self.eps, rng.at("target", number).take(rows))
            objective = FeatureDistance(hook, features)
            stage = AttackStage(always(objective), self.steps, self.step_size)
            tracker.run_stages(pgd, [stage], rows, start)
        return tracker.x_adv

    def choose(self, y: Tensor, rng: ExampleDraws) -> Tensor:
        """(B, targets) positions in the split, on the CPU: functions of seed and label."""
        labels, chosen = self.images.y.cpu(), torch.zeros(len(y), self.targets, dtype=torch.long)
        for label in y.unique().tolist():
            others = (labels != label).nonzero().squeeze(1)
            source = generator("cpu", rng.seed, *rng.stream, "images", label)
            chosen[y.cpu() == label] = others[torch.randperm(len(others), generator=source)[: self.targets]]
        return chosen

    def _features(self, hook: FeatureHook, positions: Tensor, x: Tensor) -> Tensor:
        """(b, D): the features of the images at `positions`, every one of them computed once."""
        once, inverse = positions.unique(return_inverse=True)
        pictures = self.images.floats(once.to(self.images.y.device), x.dtype).to(x.device)
        with torch.no_grad():
            return hook(pictures)[0][inverse.to(x.device)]
