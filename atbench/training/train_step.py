"""The training step: perturb → loss → backward → optimizer step → after_update → averages → record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from atbench.data import join
from atbench.errors import ConfigError, NumericalError
from atbench.methods.base import Loss, Method, Round
from atbench.models import attack_mode
from atbench.training.distributed import World, data_parallel
from atbench.training.param_groups import Group
from atbench.training.running_means import RunningMeans
from atbench.training.stopwatch import Stopwatch
from atbench.training.weight_averaging import Average
from atbench.training.weight_perturbation import Gradients, WeightPerturbation

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


class TrainStep:
    """One step of training a method's groups, as a callable on a round of `Method.inner_updates`, or on the parts of
    one (`MicroBatches`): their gradients are accumulated to that of the mean.

    Args:
        means: the epoch's record, which every step adds to.
        precision: (attack, update), each `fp32` or `bf16` (autocast; parameters stay fp32).
        clip_norm: the largest L2 norm of the gradient of each group; None for no clipping.
        averages: averages of the weights, which follow every update.

    Raises ConfigError for AWP with a method that accumulates its update, and for bf16 with one of second order.
    """

    def __init__(
        self,
        method: Method,
        groups: Sequence[Group],
        world: World,
        means: RunningMeans,
        precision: tuple[str, str] = ("fp32", "fp32"),
        clip_norm: float | None = None,
        awp: WeightPerturbation | None = None,
        averages: Sequence[Average] = (),
    ) -> None:
        self.method, self.groups, self.world, self.means = method, list(groups), world, means
        attack, update = (PRECISIONS[name] for name in precision)
        if awp is not None and method.accumulates:
            name = type(method).__name__
            raise ConfigError("plus", "awp", f"{name} accumulates its update over several passes", "leave out plus=awp")
        if method.second_order and update is not None:
            raise ConfigError("train.precision.update", "bf16", "this method differentiates a gradient", "use fp32")
        self.attack_precision, self.update_precision = (
            partial(torch.autocast, world.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
            for dtype in (attack, update)
        )
        self.distributed = data_parallel(method) if world.size > 1 else None
        self.clip_norm, self.awp, self.averages = clip_norm, awp, averages
        self.attack_time = Stopwatch(world.device)
        self.changed = False  # becomes True when a round begins to change weights or other state
        self.before_update: Callable[[], None] | None = None
        self.first_nan = torch.full((), -1, dtype=torch.long, device=world.device)

    def __call__(self, *parts: Round) -> None:
        """Run one round: its perturbation, its loss, and the update that it ends in. Each of several `parts` sees the
        clock of a process of its own, so that it draws its rows of the joint random numbers.
        """
        method, clock, round, count = self.method, self.method.clock, parts[0], len(parts)
        first, clock.world = self.world.rank * count, self.world.size * count
        if round.perturb:
            started = self.attack_time.now()
            for clock.rank, part in enumerate(parts, first):
                with self.attack_precision():
                    part.batch = method.perturb(part.batch)
            self.attack_time.laps.append((started, self.attack_time.now()))
        record = list[tuple[float, dict[str, Tensor]]]()
        with self._perturbed_weights(parts) if self.awp else nullcontext():
            for clock.rank, part in enumerate(parts, first):
                last = part is parts[-1]
                with self.distributed.no_sync() if self.distributed and not last else nullcontext():
                    with self.update_precision():
                        loss: Loss = (self.distributed or method.loss)(part.batch)
                    loss.total.backward()
                terms = {"loss": loss.total, **loss.terms}
                if loss.logits is not None:
                    y = part.batch.y if part.batch.y.ndim == 1 else part.batch.y.argmax(dim=1)
                    terms["accuracy"] = (loss.logits.detach().argmax(dim=1).view(-1, len(y)) == y).float().mean()
                weight = round.weight / count
                record.append((weight, {name: weight * value.detach().double() for name, value in terms.items()}))
                nan_now = (self.first_nan < 0) & ~torch.isfinite(loss.total.detach())
                self.first_nan = torch.where(nan_now, clock.epoch * clock.steps + clock.step, self.first_nan)
            if self.before_update:
                self.before_update()
            self.changed, clock.rank, clock.world = True, self.world.rank, self.world.size
            if round.step:
                for group in self.groups:
                    if count > 1:
                        group.divide(count)
                    if self.clip_norm is not None:
                        group.clip(self.clip_norm)
                    group.step()
                    group.optimizer.zero_grad()  # to None: an optimizer skips a parameter without gradient
        # Before the averages: after_update may move parameters (a proximal step), and the result is averaged.
        method.after_update(join([part.batch for part in parts]) if count > 1 else round.batch)
        for average in self.averages if round.step else ():
            average.after_update(method.model, clock)
            self.world.average(average.statistics)  # each process saw its part of the batch
        self.means.rounds += record

    def _perturbed_weights(self, parts: Sequence[Round]) -> AbstractContextManager[None]:
        """The block of an update under adversarial weight perturbation."""
        assert self.awp is not None
        clock, first = self.method.clock, self.world.rank * len(parts)

        def ascent_gradients() -> Gradients:
            # Of all networks: what learns beside the model forwards too.
            with attack_mode(self.method, "batch", freeze=False):
                for clock.rank, part in enumerate(parts, first):
                    last = part is parts[-1]
                    with self.distributed.no_sync() if self.distributed and not last else nullcontext():
                        with self.update_precision():
                            loss: Loss = (self.distributed or self.method)(part.batch, ascent=True)
                        loss.total.backward()
            for group in self.groups if len(parts) > 1 else ():
                group.divide(len(parts))
            parameters = self.method.model.parameters()
            gradients = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
            # Gradients of the ascent must not add up with those of the update, in any group.
            for group in self.groups:
                group.optimizer.zero_grad()
            return gradients

        return self.awp.around(self.method.model, ascent_gradients, self.method.clock.fraction)

    def check_finite(self) -> None:
        """Raise NumericalError if any loss so far was NaN or infinite. Waits for the device."""
        step = int(self.first_nan)
        if step >= 0:
            epoch, within = divmod(step, self.method.clock.steps)
            raise NumericalError(
                "loss",
                "NaN or infinite",
                f"in epoch {epoch + 1}, step {within + 1}",
                "lower the rate; the last checkpoint is intact",
            )
