"""Sharding of a network (FSDP2): each process holds a part of its weights, gradients and optimizer states.

The network is whole, on every process, during the search for adversarial examples and while it is measured: it is put
together once instead of in every forward and backward pass, and processes may then take different numbers of steps. In
the update one stage at a time is whole. So the weights alone have to fit on a device, as they do for an evaluation;
gradients, optimizer states and averages do not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from atbench.errors import ConfigError
from atbench.methods.base import Method
from atbench.models import Ensemble, Hypersphere, Network
from atbench.training.distributed import World

KEY = "train.shard"
FIX = "leave it out: the network is then replicated"


def shard(method: Method, world: World, shape: Sequence[int]) -> None:
    """Shard the model of a method, in place, for images of `shape`; before its optimizers are made. Raises ConfigError
    for what cannot be sharded.
    """
    refuse(method, world)
    from torch.distributed.device_mesh import init_device_mesh  # seconds to import: only where it is used
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    network, pieces = method.model, list(parts(method.model))
    sharded = [fully_shard(piece, mesh=mesh, reshard_after_forward=True) for piece in (*pieces, network)]
    # In the order in which they stand. By default what comes next is taken from the passes that there were, and in a
    # search their number differs between processes, which would then wait for each other's other pieces.
    for before, piece in zip([sharded[0], *sharded], sharded, strict=False):
        piece.set_modules_to_backward_prefetch([before])
    # What is run first becomes the root of the rest, and methods also call stages and members by themselves.
    like, training = next(network.parameters()), network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
    network.train(training)


def refuse(method: Method, world: World) -> None:
    """Raise ConfigError if there is nothing to share, or the method does more with weights than train one model's."""
    name, network = type(method).__name__, method.model
    own, held = (
        {id(each) for module in modules for each in module.parameters()} for modules in ([network], parts(network))
    )
    if world.size == 1:
        why, fix = "needs several processes", "start with torchrun --nproc-per-node 2 -m atbench train ..."
    elif any(id(parameter) not in own for parameter in method.parameters()) or method.evaluated() is not network:
        why, fix = f"{name} has networks besides the model", FIX
    elif method.pretraining():
        why, fix = f"{name} begins with networks of other trainings", FIX
    elif method.second_order:
        why, fix = f"{name} differentiates a gradient", FIX
    elif method.reads_weights:
        why, fix = f"{name} reads weights outside of forward passes", FIX
    elif any(isinstance(module, Hypersphere) for module in network.modules()):
        why, fix = "model.head=hypersphere writes weights in its forward pass", FIX
    elif own != held:
        why, fix = "the network has weights outside of its stages and head", FIX
    elif any(parameter.ndim == 0 for parameter in network.parameters()):
        why, fix = "the network has a weight that is a single number", FIX
    else:
        return
    raise ConfigError(KEY, True, why, fix)


def parts(network: nn.Module) -> Iterator[nn.Module]:
    """What is put together at a time: stages and head, where they have weights, of a network or of each member."""
    if isinstance(network, Ensemble):
        for member in network.members:
            yield from parts(member)
    elif isinstance(network, Network):
        yield from (part for part in (*network.stages, network.head) if next(part.parameters(), None) is not None)


def is_sharded(network: nn.Module) -> bool:
    """Whether this process holds a part of the network's weights."""
    return bool(sharded_modules(network))


def sharded_modules(network: nn.Module) -> list[Any]:
    """The modules of which each process holds a part; none where nothing has imported FSDP2."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return [] if fsdp is None else [module for module in network.modules() if isinstance(module, fsdp.FSDPModule)]


def is_part(value: Any) -> bool:
    """Whether a value is a process's part of a tensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


@contextmanager
def whole(network: nn.Module) -> Iterator[None]:
    """Context in which every process holds the whole network, and forward and backward passes do not wait for others.

    Weights must not change in it. All processes enter together.
    """
    sharded = sharded_modules(network)
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.set_reshard_after_backward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(True, recurse=False)
            module.set_reshard_after_backward(True, recurse=False)
            module.reshard()


def gathered(state: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    """A state with whole tensors, in main memory, in the place of parts; what is one part stays one tensor. All
    processes take part; where not `keep`, there is None in the place of parts.
    """
    seen: dict[int, Any] = {}

    def walk(content: Any) -> Any:
        if isinstance(content, Mapping):
            return {key: walk(value) for key, value in content.items()}
        if isinstance(content, (list, tuple)):
            return type(content)(walk(value) for value in content)
        if not is_part(content):
            return content
        if id(content) not in seen:
            full = content.full_tensor()
            seen[id(content)] = full.cpu() if keep else None
        return seen[id(content)]

    return {key: walk(value) for key, value in state.items()}


def parts_like(values: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with this process's part of each tensor that `like` has a part of under the same name."""
    return {name: part_like(value, like.get(name)) for name, value in values.items()}


def part_like(value: Any, like: Any) -> Any:
    """This process's part of a whole tensor, if `like` is a part of one of the same shape; else the value itself."""
    if not is_part(like) or is_part(value) or getattr(value, "shape", None) != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def optimizer_parts(state: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
    """The state of an optimizer of these parameters with parts of what it holds of their shape (momenta)."""
    slots = {
        index: {name: part_like(value, parameters[index]) for name, value in slot.items()}
        for index, slot in state["state"].items()
    }
    return {**state, "state": slots}
