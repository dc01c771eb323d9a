"""CUDA graphs on the CPU: what torch.cuda offers for them, as a recorder of operations on the very same tensors.

As with the real ones, a replay repeats operations on addresses with the numbers of the capture, and runs no Python; and
a capture refuses what waits for the device or copies a number to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from atbench.models import batchnorm, folded_norm, replay, weight_casts

#: Operations that read a value of the device, or copy one of the host to it. (`scalar_tensor` writes it on the device.)
FORBIDDEN = {"_local_scalar_dense", "equal", "is_nonzero", "item", "lift_fresh", "masked_select", "nonzero", "_unique2"}


def forbidden(func: Any, args: Any) -> bool:
    """Whether an operation cannot be part of a graph: those above, and a mask as an index, whose size is a value."""
    name = func.overloadpacket.__name__
    masks = name in ("index", "index_put_", "index_put") and any(
        isinstance(index, Tensor) and index.dtype is torch.bool for index in args[1]
    )
    return name in FORBIDDEN or masks


class Pure(TorchDispatchMode):
    """Raises RuntimeError, with CUDA's words, at what a graph cannot hold."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if forbidden(func, args):
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing\n{func}")
        return func(*args, **(kwargs or {}))


class FakeGraph(Pure):
    """Both torch.cuda.CUDAGraph and what records into it."""

    made: list[FakeGraph]

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # tensors that were there, and their values then
        self.own: set[int] = set()
        self.replays = 0
        self.made.append(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for each in tree_leaves((args, kwargs)):
            if isinstance(each, Tensor) and id(each) not in self.before and id(each) not in self.own:
                self.before[id(each)] = each, each.detach().clone()
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.own |= {id(each) for each in tree_leaves(result)} - set(self.before)
        self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def undo(self) -> None:
        """What was there is as it was, and the output is no number: a capture computes nothing."""
        for each, value in self.before.values():
            if not torch.equal(each, value):
                each.copy_(value)
        last = self.operations[-1][-1]
        if last.is_floating_point():
            last.fill_(torch.nan)

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, result in self.operations:
            for new, old in zip(tree_leaves(func(*args, **kwargs)), tree_leaves(result), strict=True):
                if isinstance(old, Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)


class FakeStream:
    def wait_stream(self, other: FakeStream) -> None: ...


@contextmanager
def capture(graph: FakeGraph, pool: object, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
    assert pool is not None and isinstance(stream, FakeStream)
    assert not torch.is_autocast_cache_enabled() or not torch.is_autocast_enabled("cpu")
    try:
        with graph:
            yield
    finally:
        graph.undo()


def install(patch: pytest.MonkeyPatch) -> list[FakeGraph]:
    """Put the fakes in place, for tensors of the CPU. Returns the list of graphs made from now on."""
    made: list[FakeGraph] = []
    patch.setattr(FakeGraph, "made", made, raising=False)
    patch.setattr(replay, "on_cuda", lambda *tensors: True)
    patch.setattr(replay, "random_state", lambda device: torch.get_rng_state())
    # On CUDA layers keep their forward: a graph would go on with the statistics of its capture.
    patch.setattr(batchnorm, "replace_forwards", lambda modules, affine: folded_norm.replace_forwards(modules, False))
    patch.setattr(weight_casts, "keeps_place", lambda weight: True)
    fakes: dict[str, Callable[..., Any]] = {
        "CUDAGraph": FakeGraph,
        "graph": capture,
        "graph_pool_handle": lambda: (0, 1),
        "Stream": FakeStream,
        "current_stream": FakeStream,
        "stream": lambda stream: nullcontext(),
        "device": lambda device: nullcontext(),
    }
    for name, fake in fakes.items():
        patch.setattr(torch.cuda, name, fake)
    return made
