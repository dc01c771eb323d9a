"""DVERGE."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from atbench.attacks import GradientAttack, Objective
from atbench.config.ranges import AnyCount, NotNegative
from atbench.data import Batch, Stream, TrainData
from atbench.methods.base import FixedSteps, Loss, Round
from atbench.methods.ensemble import EnsembleMethod
from atbench.methods.stage import Stage
from atbench.models import attack_mode
from atbench.models.activations import activation_modules
from atbench.runs.seeding import generator


class Dverge(EnsembleMethod):
    """DVERGE (Yang et al. 2020, NeurIPS, arXiv 2009.14720): member i minimises Σ_{j≠i} CE(f_i(x'_j), y).

    Inner, for each member j: feature distillation x'_j = argmin_{‖z − x‖∞ ≤ ε} MSE(f_j^l(z), f_j^l(x_s)), so that x'_j
    looks like x and holds the non-robust features that j sees in x_s, an image of a second, independent shuffle,
    whatever its label. From z = x by steps along the sign of a momentum of ∇/‖∇‖₁. Layer l is drawn once an epoch for
    all members, among what their activations are given (in a ResNet-20 the outputs of conv1-bn and of the 18 further
    conv-bn, those behind a block's second with the shortcut) and the logits. Outer: all x'_j from one snapshot, then
    one update a member, each x'_j in a forward of its own; no clean term. Members begin as networks trained on clean
    images for a whole run each. With `adversarial` (DVERGE+AT) member i minimises weight · Σ_{j≠i} CE(f_i(x'_j), y) +
    CE(f_i(x''_i), y), x''_i by the run's attack on member i alone, all from the same snapshot. The attack's `bn` is the
    mode in which images are distilled as well.
    Cost: M·(2k + 1) passes of a member up to layer l and 3·M·(M − 1) whole ones a batch; M·(2k + 3) whole ones more
    with `adversarial`.

    Source: zjysteven/DVERGE, train/train_dverge.py and distillation.py; ε = 0.07 with M = 3, on ResNet-20 and CIFAR-10.
    Its target features are recomputed at every step; in train mode only the running statistics notice, here they see
    x_s once.
    Known weaknesses: members stop sharing vulnerabilities, so attacks transfer less, but there is next to nothing left
    under a white-box attack at 8/255 (from memory), and no AutoAttack figure is known; the authors warn of a high
    variance from run to run and blame the drawn layer.

    Args:
        distill_eps: ε of the distillation, L∞ whatever the run's norm.
        distill_step, distill_steps: its step size, and k.
        momentum: its momentum, 0 for none.
        adversarial: whether each member is trained on adversarial images of its own as well.
        weight: what the images of the other members count then.
    """

    takes_micro_batches = False

    def __init__(
        self,
        model: nn.Module,
        attack: GradientAttack,
        distill_eps: NotNegative,
        distill_step: NotNegative,
        distill_steps: AnyCount = 10,
        momentum: NotNegative = 1.0,
        adversarial: bool = False,
        weight: NotNegative = 1.0,
    ) -> None:
        super().__init__(model, attack, adversarial)
        self.weight = weight if adversarial else 1.0
        self.distillation = GradientAttack(
            "linf", distill_eps, distill_steps, distill_step, start="zero", bn=attack.bn, momentum=momentum
        )
        self.stream: Stream | None = None

    def setup(self, data: TrainData) -> None:
        self.stream = data.stream("dverge", data.batch_size - data.extra_size)

    def pretraining(self) -> dict[str, Stage]:
        standard = {"_target_": "atbench.methods.standard.Standard"}
        # A seed of its own for each: members that begin alike would share all their vulnerabilities.
        return {
            f"member{i}": Stage(standard, offset=i + 1, overrides=("model.members=1",), live=True)
            for i in range(len(self.members))
        }

    def load_pretrained(self, stages: dict[str, nn.Module]) -> None:
        for i, member in enumerate(self.members):
            member.load_state_dict(stages[f"member{i}"].state_dict())

    def fixed_steps(self) -> dict[str, FixedSteps]:
        own = self.distillation
        return {**super().fixed_steps(), "method.distill_steps": FixedSteps(own.steps, own.step_size, own.eps)}

    @property
    def layer(self) -> int:
        """This epoch's l: the number of an activation or, behind the last one, the logits."""
        source = generator("cpu", self.clock.seed, "dverge-layer", self.clock.epoch)
        return int(torch.randint(len(activation_modules(self.members[0])) + 1, (), generator=source))

    def perturb(self, batch: Batch) -> Batch:
        assert self.stream is not None, "setup(data) comes first"
        other = self.stream.batch(self.clock.epoch, self.clock.step).x
        distilled = [self._distill(member, batch.x, other) for member in self.members]
        attacked = [self._attack(i, batch) for i in range(len(self.members))] if self.adversarial else []
        return batch.with_adv(distilled=distilled, attacked=attacked)

    def _distill(self, member: nn.Module, x: Tensor, other: Tensor) -> Tensor:
        """x' near `x` with the features that `member` sees in `other`."""
        network = partial(before, member, self.layer)
        with attack_mode(self, self.attack.bn):
            with torch.no_grad():
                target = network(other)
            return self.distillation(Objective(network, closeness, target), x)

    def _attack(self, i: int, batch: Batch) -> Tensor:
        """x'' against member i, from a start of its own."""
        return self.run_attack(Objective(self.members[i], self.attack_risk, batch.y), batch.x, stream=f"member{i}")

    def inner_updates(self, batch: Batch) -> Iterator[Round]:
        first = Round(batch.with_adv(member=0))
        yield first
        for i in range(1, len(self.members)):
            yield Round(first.batch.with_adv(member=i), perturb=False)

    def loss(self, batch: Batch) -> Loss:
        i = batch.aux["member"]
        logits = [self.members[i](x) for j, x in enumerate(batch.aux["distilled"]) if j != i]
        total = self.weight * torch.stack([self.risk(each, batch.y).mean() for each in logits]).sum()
        if self.adversarial:
            logits.append(self.members[i](batch.aux["attacked"][i]))
            total = total + self.risk(logits[-1], batch.y).mean()
        return Loss(total, {}, torch.cat(logits))


class Reached(Exception):
    """Ends a forward where its features are known."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


def before(network: nn.Module, layer: int, x: Tensor) -> Tensor:
    """What activation number `layer` is given, with nothing computed behind it; the logits where there is none."""

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise Reached(inputs[0])

    hooks = [place.register_forward_pre_hook(stop) for place in activation_modules(network)[layer : layer + 1]]
    try:
        logits: Tensor = network(x)
    except Reached as reached:
        return reached.features
    finally:
        for hook in hooks:
            hook.remove()
    return logits


def closeness(features: Tensor, target: Tensor) -> Tensor:
    """Minus the mean squared error of each example, (B,)."""
    return -(features - target).square().flatten(1).mean(dim=1)
