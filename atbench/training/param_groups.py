"""One optimizer and one schedule for every group of a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from atbench.errors import ConfigError
from atbench.training import dynamo
from atbench.training.schedules import MomentumSchedule, Schedule
from atbench.training.sharding import is_part, optimizer_parts

Make = Callable[..., Optimizer]
#: Dimensions from which on a parameter is decayed.
LEAST_DIMENSIONS = {"weights": 2, "convolutions": 4}
#: Optimizers that have one kernel for all parameters, on CUDA and on a CPU.
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


@dataclass
class Group:
    """A module that is trained under one name, with its optimizer and schedule."""

    name: str
    module: nn.Module
    optimizer: Optimizer
    schedule: Schedule

    def __post_init__(self) -> None:
        if isinstance(self.schedule, MomentumSchedule) and "momentum" not in self.optimizer.defaults:
            why = f"it cycles a momentum, and {type(self.optimizer).__name__} has none"
            name = type(self.schedule).__name__
            raise ConfigError("train.schedule", name, why, "use atbench.training.schedules.Triangular or .OneCycle")
        for group in self.optimizer.param_groups:
            group["base_lr"] = float(group["lr"])
        self.step = dynamo.plain_step(self.optimizer)
        self._complete_state()

    def set_rate(self, fraction: float) -> None:
        """Learning rate = the optimizer's own times schedule(fraction); momentum that of a schedule that cycles it."""
        factor = self.schedule(fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
            if isinstance(self.schedule, MomentumSchedule):
                group["momentum"] = self.schedule.momentum(fraction)

    @property
    def rate(self) -> float:
        """The current learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    def parameters(self) -> list[nn.Parameter]:
        """All trained parameters of the group."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def divide(self, count: int) -> None:
        """Divide the gradient of the group: a sum over `count` parts of a batch becomes the mean."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        torch._foreach_div_(gradients, float(count))

    def clip(self, norm: float) -> None:
        """Scale the gradient of the group to at most `norm` in L2."""
        torch.nn.utils.clip_grad_norm_(self.parameters(), norm)

    def state(self) -> dict[str, Any]:
        """The optimizer's state; the schedule has none."""
        return self.optimizer.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        """Restore a `state()`, of this device or another: which kernels update is this optimizer's to say."""
        state = optimizer_parts(state, self.parameters())
        pairs = zip(state["param_groups"], self.optimizer.param_groups, strict=True)
        groups = [saved | ({"fused": own["fused"]} if "fused" in own else {}) for saved, own in pairs]
        self.optimizer.load_state_dict({**state, "param_groups": groups})
        self._complete_state()

    def _complete_state(self) -> None:
        """Give the optimizer's state what fused kernels expect: tensors in the layout of their parameters, and of SGD a
        momentum from the start, also of parameters whose first gradient comes later. After zero it is the gradient.
        """
        state = self.optimizer.state
        for group in self.optimizer.param_groups:
            momentum = group.get("momentum") or isinstance(self.schedule, MomentumSchedule)
            for parameter in group["params"]:
                if group.get("fused") and momentum and isinstance(self.optimizer, torch.optim.SGD):
                    state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
                for key, value in state.get(parameter, {}).items():
                    alike = isinstance(value, Tensor) and value.shape == parameter.shape
                    if alike and value.stride() != parameter.stride():
                        state[parameter][key] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def make_group(name: str, module: nn.Module, make: Make, schedule: Schedule, decay: str) -> Group:
    """A group over the trainable parameters of `module`.

    decay: `all` applies the optimizer's weight decay to every parameter (locuslab/robust_overfitting and most AT code);
    `weights` spares biases and normalisation layers, i.e. parameters with fewer than two dimensions; `convolutions`
    spares all but the kernels of convolutions, i.e. parameters with fewer than four.
    """
    dynamo.skip_construction()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    make = fused_on_cuda(make, parameters)
    if decay == "all":
        return Group(name, module, make(parameters), schedule)
    least = LEAST_DIMENSIONS[decay]
    decayed = [parameter for parameter in parameters if parameter.ndim >= least]
    spared = [parameter for parameter in parameters if parameter.ndim < least]
    sets: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    return Group(name, module, make([part for part in sets if part["params"]]), schedule)


def fused_on_cuda(make: Make, parameters: Sequence[Tensor]) -> Make:
    """`make` with fused=True for an optimizer of `FUSED` whose parameters are all on CUDA, unless it says how to update
    itself. SGD with dampening takes its first gradient undamped, which it would not after a momentum of zero. Of parts
    (`train.shard`) torch has no fused SGD.
    """
    given = getattr(make, "keywords", {})
    chosen = {"fused", "foreach", "differentiable"} & given.keys() or given.get("dampening")
    whole = all(parameter.is_cuda and not is_part(parameter) for parameter in parameters)  # not parts
    if getattr(make, "func", None) in FUSED and not chosen and whole:
        return partial(make, fused=True)
    return make
