"""One batch: its rounds, each a perturbation, a loss, and at its end an update."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from atbench.data import Batch
from atbench.errors import ConfigError, NumericalError
from atbench.methods.base import Loss, Method, Round
from atbench.models import bn_mode
from atbench.training.distributed import World
from atbench.training.param_groups import Group, clear
from atbench.training.weight_averaging import Average
from atbench.training.weight_perturbation import Gradients, WeightPerturbation

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


class RunningMeans:
    """Means of an epoch, summed on the device and read once: no `.item()` in the loop."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, terms: dict[str, Tensor]) -> None:
        """Count one round."""
        for name, value in terms.items():
            value = value.detach().double()
            self.totals[name] = self.totals[name] + value if name in self.totals else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self, world: World) -> dict[str, float]:
        """Mean of every term over the epoch's rounds that have it, and over the processes."""
        if not self.totals:
            return {}
        names = sorted(self.totals)
        joint = world.sum(torch.stack([self.totals[name] / self.counts[name] for name in names])) / world.size
        return dict(zip(names, joint.tolist(), strict=True))

    def state(self) -> dict[str, object]:
        """For a checkpoint in mid-epoch."""
        return {"totals": dict(self.totals), "counts": dict(self.counts)}

    def load(self, state: dict[str, dict[str, Tensor]], device: torch.device) -> None:
        """Go on from a checkpoint."""
        self.totals = {name: value.to(device) for name, value in state["totals"].items()}
        self.counts = {name: int(count) for name, count in state["counts"].items()}


class Updater:
    """Turns batches into updates of a method's groups.

    Args:
        wrapped: the method, or the DistributedDataParallel around it: every pass whose gradient counts goes through it.
        precision: (attack, update), each `fp32` or `bf16` (autocast; parameters stay fp32).
    """

    def __init__(
        self,
        method: Method,
        wrapped: nn.Module,
        groups: Sequence[Group],
        world: World,
        precision: tuple[str, str] = ("fp32", "fp32"),
        clip_norm: float | None = None,
        awp: WeightPerturbation | None = None,
        averages: Sequence[Average] = (),
    ) -> None:
        self.method, self.wrapped, self.groups, self.world = method, wrapped, list(groups), world
        self.attack_type, self.update_type = (PRECISIONS[name] for name in precision)
        self.clip_norm, self.awp, self.averages = clip_norm, awp, averages
        self.attack_seconds = 0.0
        self.bad = torch.full((), -1, dtype=torch.long, device=world.device)
        if awp is not None and method.accumulates:
            name = type(method).__name__
            raise ConfigError("plus", "awp", f"{name} accumulates its update over several passes", "leave out plus=awp")
        if method.second_order and self.update_type is not None:
            raise ConfigError("train.precision.update", "bf16", "this method differentiates a gradient", "use fp32")

    def batch(self, batch: Batch, sums: RunningMeans) -> None:
        """Use one batch as the method's rounds say."""
        clock = self.method.clock
        for group in self.groups:
            group.set_rate(clock.fraction)
            clock.rates[group.name] = group.rate
        for number, turn in enumerate(self.method.inner_updates(batch)):
            clock.round = number
            self._round(turn, sums)
        clock.round = 0
        self.world.average_norms(self.method)

    def _round(self, turn: Round, sums: RunningMeans) -> None:
        if turn.perturb:
            began = perf_counter()
            turn.batch = self.perturb(turn.batch)
            self.attack_seconds += perf_counter() - began
        with self._weights(turn.batch):
            loss = self._backward(turn.batch)
            if turn.step:
                if self.clip_norm is not None:
                    for group in self.groups:
                        group.clip(self.clip_norm)
                for group in self.groups:
                    group.optimizer.step()
        if turn.step:
            clear(self.groups)
        # Before the averages: a commit may move parameters (a proximal step), and what it reached is averaged.
        self.method.after_update(turn.batch)
        if turn.step:
            for average in self.averages:
                average.after_update(self.method.model, self.method.clock)
        sums.add(loss.terms if self.method.accumulates else {"loss": loss.total, **loss.terms})

    def perturb(self, batch: Batch) -> Batch:
        """The inner maximisation in the attack's precision."""
        with self._cast(self.attack_type):
            return self.method.perturb(batch)

    def _weights(self, batch: Batch) -> AbstractContextManager[None]:
        if self.awp is None:
            return nullcontext()

        def ascend() -> Gradients:
            with bn_mode(self.method, "batch"):  # of all networks: what learns beside the model forwards too
                self._backward(batch, watch=False)
            parameters = self.method.model.parameters()
            gradients = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
            # Gradients of the ascent must not add up with those of the update, in any group.
            clear(self.groups)
            return gradients

        return self.awp.around(self.method.model, ascend, self.method.clock.fraction)

    def _backward(self, batch: Batch, watch: bool = True) -> Loss:
        with self._cast(self.update_type):
            loss: Loss = self.wrapped(batch)
        loss.total.backward()
        if watch:
            self._watch(loss.total)
        return loss

    def _cast(self, dtype: torch.dtype | None) -> AbstractContextManager[None]:
        return torch.autocast(self.world.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def _watch(self, total: Tensor) -> None:
        """Remember the first step with a loss that is no number. Read at once on a CPU; on CUDA only by `verify`,
        without a stall.
        """
        clock = self.method.clock
        here = clock.epoch * clock.steps + clock.step
        self.bad = torch.where((self.bad < 0) & ~torch.isfinite(total.detach()), here, self.bad)
        if self.world.device.type == "cpu":
            self.verify()

    def verify(self) -> None:
        """Raise NumericalError if any loss so far was not a number. Called before anything is saved."""
        step = int(self.bad)
        if step >= 0:
            epoch, within = divmod(step, self.method.clock.steps)
            raise NumericalError(
                "loss",
                "NaN or infinite",
                f"in epoch {epoch + 1}, step {within + 1}",
                "lower the rate; the last checkpoint is intact",
            )


def wrap(method: Method, world: World) -> nn.Module:
    """The method itself on one process; on several, DistributedDataParallel around the method.

    Unused parameters are looked for because rounds may train members in turn; buffers are not broadcast because rank
    0's tables would overwrite what the others wrote (`after_update` writes gathered values, `World.average_norms` the
    BatchNorm statistics).
    """
    if world.size == 1:
        return method
    return DistributedDataParallel(method, find_unused_parameters=True, broadcast_buffers=False)
