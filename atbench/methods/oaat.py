"""Oracle-aligned adversarial training."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective, cross_entropy
from atbench.config.ranges import BelowOne, NotNegative, Share
from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.base import FixedSteps, Loss, Method
from atbench.methods.weight_average import WeightAverage
from atbench.models import Network, attack_mode
from atbench.models.activations import ACTIVATION_TYPES


class Oaat(Method):
    """OAAT (Addepalli et al. 2022, ECCV, arXiv 2210.09852): CE(f(x), y) + β · KL(t ‖ f(x')), t = f(x) or a mixture.

    The radius grows far beyond the one that is tested, and late in training images that a human would see otherwise are
    told apart from those that he would not. Epoch e = 1 … E attacks at ε_e = `early_eps` up to the share `early` of
    training, and at `max_eps` · e/E from then on. Up to the share `alternate` it is TRADES with an attack on CE. After
    it, in epoch k = 1 … n of the n that are left, β grows to `last_beta` and batches take turns:
    even: x_L maximises CE in the ball of `large_eps`, x' = Π_{B(x, ε_e)}(x_L), and the target t = α·p(x) + (1 −
    α)·p(x_L), α = 1 − `mix` · k/(n + 1), for at x_L the label may not hold;
    odd: x' maximises CE(f(x'), y) − w · d(x, x') in the ball of ε_e, w = `lpips` · k/n, and t = p(x), so that images
    that look like x are found; d is LPIPS by an average of the network over its own past: the norm of the difference of
    its outputs at each image size, channels of length 1 at each pixel, divided by √(H·W). The average,
    of decay `decay` and BatchNorm's statistics with it, is that of the end of the epoch before, in eval mode.
    Searches start at U(±`early_eps`), at U(±ε_e) with LPIPS, unclipped. Up to the share `early` steps are half as many
    and twice as long. They run in train mode. Gradient flows through t. AWP climbs the loss of `reach` times as far as
    x' while batches do not take turns (plain CE + β · KL at clip(x + `reach`·(x' − x))), and at what was found after.
    Cost: (2k + 7) forward passes a batch, (k + 7) early, and late by turns (2k + 9) and (4k + 7).

    Source: val-iisc/OAAT (train_OAAT.py, defaults.py, utils_awp.py, perceptual_advex). Not here: a new optimizer,
    without momentum of before, where batches begin to take turns; the first batch of an epoch attacked in eval mode,
    where validation left the network. Published networks were trained with AWP and an average (`plus=[awp,ema]`), and
    WRN-34-10 on AutoAugmented images (experiment=paper/oaat_wrn).
    Known weaknesses: made for large radii, and a long schedule of many numbers. Robust accuracy by AutoAttack at 8/255
    (RobustBench): CIFAR-10 51.06 %, clean 80.24 % (ResNet-18); 58.04 %, clean 85.32 % (WRN-34-10); CIFAR-100 30.35 %,
    clean 65.73 % (WRN-34-10).

    Args:
        max_eps: ε at the end of training.
        early_eps: ε at its beginning, and the radius of the starts.
        large_eps: the radius of the even batches' search.
        beta, last_beta: β until batches take turns, and at the end.
        mix: what is taken off the clean prediction's share α of the target.
        lpips: w at the end.
        rel_step_size: step size as a share of the radius.
        early, alternate: shares of training until which ε is `early_eps`, and after which batches take turns.
        reach: how far out AWP looks, in units of x' − x.
        decay: of the average that LPIPS sees with.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        max_eps: NotNegative,
        early_eps: NotNegative,
        large_eps: NotNegative,
        beta: NotNegative = 1.5,
        last_beta: NotNegative = 3.0,
        mix: Share = 0.2,
        lpips: NotNegative = 1.0,
        rel_step_size: NotNegative = 0.25,
        early: Share = 1 / 4,
        alternate: Share = 3 / 4,
        reach: NotNegative = 2.0,
        decay: BelowOne = 0.995,
    ) -> None:
        super().__init__(model, attack)
        if not isinstance(model, Network) or model.depth < 2:
            raise ConfigError("method", "oaat", "compares what one network's stages say", "use another model")
        self.max_eps, self.early_eps, self.large_eps = max_eps, early_eps, large_eps
        self.first_beta, self.last_beta, self.mix, self.lpips = beta, last_beta, mix, lpips
        self.rel_step_size, self.early, self.alternate, self.reach = rel_step_size, early, alternate, reach
        self.decay = decay
        self.average, self.reference = WeightAverage(model), WeightAverage(model)

    # The schedule: one value an epoch, as the authors count them, from 1.

    @property
    def is_early(self) -> bool:
        return self.clock.epoch + 1 <= self.early * self.clock.epochs

    @property
    def eps(self) -> float:
        """ε_e."""
        return self.early_eps if self.is_early else self.max_eps * (self.clock.epoch + 1) / self.clock.epochs

    @property
    def turns(self) -> tuple[int, int]:
        """k and n, (0, n) while batches do not take turns."""
        before = math.floor(self.alternate * self.clock.epochs + 1e-9)
        return max(0, self.clock.epoch + 1 - before), self.clock.epochs - before

    @property
    def turn(self) -> str:
        """What this batch is: `plain`, or in turn `large` and `lpips`."""
        if not self.turns[0]:
            return "plain"
        return "lpips" if self.clock.step % 2 else "large"

    @property
    def beta(self) -> float:
        k, n = self.turns
        return self.first_beta + (self.last_beta - self.first_beta) * k / n if k else self.first_beta

    # Inner.

    def perturb(self, batch: Batch) -> Batch:
        objective, eps, start = Objective(self.model, self.attack_risk, batch.y), self.eps, self.early_eps
        if self.turn == "large":
            eps = self.large_eps
        elif self.turn == "lpips":
            objective, start = self._near_in_looks(batch), eps
        steps, size = self._steps(self.attack.steps), self.rel_step_size * eps
        return batch.with_adv(
            self.run_attack(
                objective,
                batch.x,
                start=batch.x + self.attack.ball.sample(batch.x, start, self.rng()),
                eps=eps,
                step_size=2 * size if self.is_early else size,
                steps=steps,
            )
        )

    def _steps(self, steps: int) -> int:
        return math.ceil(steps / 2) if self.is_early else steps

    def _near_in_looks(self, batch: Batch) -> Objective:
        """CE(f(x'), y) − w · d(x, x') of each example."""
        k, n = self.turns
        weight, reference = self.lpips * k / n, self.reference.network
        assert isinstance(reference, Network)
        with torch.no_grad(), attack_mode(self, self.attack.bn):
            seen = appearance(reference, batch.x)

        def value(outputs: tuple[Tensor, Tensor], y: Tensor, seen: Tensor) -> Tensor:
            logits, looks = outputs
            return self.attack_risk(logits, y) - weight * torch.linalg.vector_norm(looks - seen, dim=1)

        return Objective(lambda x: (self.model(x), appearance(reference, x)), value, (batch.y, seen))

    # Outer.

    def loss(self, batch: Batch) -> Loss:
        adversarial, clean = self.model(batch.x_adv), self.model(batch.x)
        log_p = clean.log_softmax(dim=1)
        if self.turn == "large":
            (k, n), log_p_large = self.turns, adversarial.log_softmax(dim=1)
            alpha = log_p.new_tensor(1 - self.mix * k / (n + 1))
            target = torch.logaddexp(alpha.log() + log_p, (1 - alpha).log() + log_p_large)
            boundary = divergence(target, self.model(self.attack.ball.project(batch.x, batch.x_adv, self.eps)))
        else:
            boundary = divergence(log_p, adversarial)
            if self.turn == "plain":
                with torch.no_grad():
                    self.model(batch.x)  # for the running statistics alone: the authors forward it twice
        natural = self.risk(clean, batch.y).mean()
        terms = {"ce": natural.detach(), "kl": boundary.detach()}
        return Loss(natural + self.beta * boundary, terms, adversarial)

    def ascent_loss(self, batch: Batch) -> Loss:
        x_adv = batch.x_adv
        if self.turn == "plain":
            x_adv = (batch.x + self.reach * (x_adv - batch.x)).clamp(0, 1)
        clean, adversarial = self.model(batch.x), self.model(x_adv)
        natural = cross_entropy(clean, batch.y).mean()
        return Loss(natural + self.beta * divergence(clean.log_softmax(dim=1), adversarial), {})

    # State.

    def after_update(self, batch: Batch) -> None:
        """Move the average, a copy throughout the first epoch; at an epoch's end it is what LPIPS sees with."""
        clock = self.clock
        self.average.follow(self.model, self.decay if clock.epoch * clock.steps + clock.step > clock.steps else 0.0)
        if clock.step == clock.steps - 1:
            self.reference.follow(self.average.network, 0.0)

    def epoch_figures(self) -> dict[str, float]:
        return {"eps": self.eps}

    def fixed_steps(self) -> dict[str, FixedSteps]:
        return {}  # shares of radii

    def forward_cost(self, steps: int) -> float:
        return {"plain": 2 * self._steps(steps) + 7, "large": 2 * steps + 9, "lpips": 4 * steps + 7}[self.turn]


def divergence(log_p: Tensor, logits: Tensor) -> Tensor:
    """KL(p ‖ softmax(z)), the mean over the batch."""
    return F.kl_div(logits.log_softmax(dim=1), log_p, reduction="batchmean", log_target=True)


def appearance(network: Network, x: Tensor) -> Tensor:
    """(B, D): the network's last output at each image size, channels of length 1 at each pixel, divided by √(H·W).

    A block that ends with an activation (ResNets) is seen behind it, though a stage of ours ends before it.
    """
    h, last = network.normalise(x), dict[torch.Size, Tensor]()
    for stage, following in zip(network.stages, [*network.stages[1:], network.head], strict=True):
        h = stage(h)
        if h.ndim == 4:
            entry = next(module for module in following.modules() if not list(module.children()))
            last[h.shape[2:]] = entry(h) if isinstance(entry, ACTIVATION_TYPES) else h
    flat = []
    for each in last.values():
        length = torch.linalg.vector_norm(each, dim=1, keepdim=True) + 1e-10
        flat.append((each / (length * math.prod(each.shape[2:]) ** 0.5)).flatten(1))
    return torch.cat(flat, dim=1)
