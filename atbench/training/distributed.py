"""Training on several processes, which torchrun has started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from atbench.errors import AtbenchError, EnvironmentFault

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """The process group of a run: this process's rank, their number, and its device."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process owns the run folder, the terminal and W&B."""
        return self.rank == 0

    def share_object(self, value: Any) -> Any:
        """Broadcast the main process's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def from_main(self, call: Callable[[], Result]) -> Result:
        """Call on the main process alone. Returns its result, or raises its AtbenchError, on all processes."""
        outcome: Result | AtbenchError | None = None
        if self.main:
            try:
                outcome = call()
            except AtbenchError as refusal:
                outcome = refusal
        outcome = self.share_object(outcome)
        if isinstance(outcome, AtbenchError):
            raise outcome
        return cast(Result, outcome)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, flag: int) -> int:
        """The maximum of all processes' flags."""
        if self.size == 1:
            return flag
        tensor = torch.tensor(flag, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)

    def average_norms(self, network: nn.Module) -> None:
        """Average BatchNorm statistics over processes, so that all hold the same network."""
        norms = [norm for norm in network.modules() if isinstance(norm, _BatchNorm)]
        stats = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
        self.average([buffer for buffer in stats if buffer is not None])

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over processes, in place."""
        if self.size == 1 or not tensors:
            return
        joint = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(joint)
        parts = (joint / self.size).split([tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, parts, strict=True):
            tensor.copy_(mean.view_as(tensor))


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `device=` names; `auto` is CUDA if available. Raises EnvironmentFault if it does not exist."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentFault("device", name, "this machine has no CUDA device that torch can use", "use device=cpu")
    if name == "cuda":
        name = f"cuda:{local_rank}"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise EnvironmentFault("device", name, f"there are {count} CUDA devices", f"use cuda:0 to cuda:{count - 1}")
    return device


@contextmanager
def world(name: str) -> Iterator[World]:
    """Join torchrun's process group (NCCL on CUDA, gloo on CPU), or run as a single process."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = choose_device(name, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield World(device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(device, rank, size)
    finally:
        dist.destroy_process_group()


def data_parallel(method: nn.Module) -> DistributedDataParallel:
    """A wrapper whose forward is the method's, with gradients averaged over processes.

    Unused parameters are looked for because a round may train some of an ensemble's members; buffers are not broadcast
    because rank 0's tables would overwrite what the others wrote (`after_update` writes gathered values,
    `World.average_norms` the BatchNorm statistics).
    """
    return DistributedDataParallel(method, find_unused_parameters=True, broadcast_buffers=False)
