"""Functions of tensors as CUDA graphs: recorded once, then launched as one piece instead of kernel by kernel."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Graphs that are kept, the latest used ones; each holds its inputs, and all share the memory of what is in between.
KEPT = 8
#: Keys that are remembered to have been seen: a graph is made of what comes twice.
REMEMBERED = 64
#: Calls before a capture, so that libraries have allocated and chosen what they do at their first calls.
WARM_UP = 2
#: Types of attributes that a forward may read as numbers or names.
PLAIN = frozenset((bool, int, float, str))


@dataclass(frozen=True)
class Captured:
    """A graph with its inputs and its output. `fn` is kept for what it refers to: a graph knows addresses alone."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor
    fn: Callable[..., Tensor]

    def __call__(self, *tensors: Tensor) -> Tensor:
        for static, given in zip(self.inputs, tensors, strict=True):
            static.copy_(given)
        self.graph.replay()
        return self.output.clone()  # the next replay writes there


class Replay:
    """`replay(key, fn, *tensors)` is `fn(*tensors)`, a tensor; on CUDA as a graph from the second call on.

    A graph repeats kernels on addresses. So `fn` may depend on nothing but `tensors`, on what is at the same place in
    every call (weights that are updated in place) and on what `key` says; `fingerprint` says it of a network. Shapes,
    types, layouts and autocast are part of the key anyway. The first call of a key is a plain one, and shows whether
    `fn` draws random numbers, in which case it stays plain. `held`: tensors that `fn` writes to (running statistics);
    the calls before the capture leave no trace in them.

    A function that cannot be captured, since it waits for the device, is said in one line, and nothing is captured any
    more.
    """

    def __init__(self) -> None:
        self.graphs: OrderedDict[Hashable, Captured] = OrderedDict()
        self.seen: OrderedDict[Hashable, bool] = OrderedDict()  # whether it draws random numbers
        self.pool: Any = None
        self.off = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Replay:
        return Replay()  # a graph is of these networks, not of their copies

    def __call__(
        self, key: Hashable, fn: Callable[..., Tensor], *tensors: Tensor, held: Sequence[Tensor] = ()
    ) -> Tensor:
        if self.off or not on_cuda(*tensors):
            return fn(*tensors)
        kind = tensors[0].device.type
        autocast = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        key = (key, autocast, *((each.shape, each.stride(), each.dtype) for each in tensors))
        if key in self.graphs:
            self.graphs.move_to_end(key)
            return self.graphs[key](*tensors)
        if key not in self.seen:
            return self._first(key, fn, *tensors)
        if self.seen[key]:
            return fn(*tensors)
        try:
            self.graphs[key] = captured = self._capture(fn, tensors, held)
        except RuntimeError as error:
            self.off = True
            why = str(error).strip().partition("\n")[0]
            print(f"warning: train.capture: the attack cannot be captured and runs as it is ({why})", file=sys.stderr)
            return fn(*tensors)
        if len(self.graphs) > KEPT:
            self.graphs.popitem(last=False)
        return captured(*tensors)

    def clear(self) -> None:
        """Give the memory of all graphs back; they are made anew."""
        self.graphs.clear()
        self.pool = None

    def _first(self, key: Hashable, fn: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """A plain call, and a note whether it moved the random numbers that networks draw."""
        before = random_state(tensors[0].device)
        output = fn(*tensors)
        self.seen[key] = not torch.equal(before, random_state(tensors[0].device))
        if len(self.seen) > REMEMBERED:
            self.seen.popitem(last=False)
        return output

    def _capture(self, fn: Callable[..., Tensor], tensors: Sequence[Tensor], held: Sequence[Tensor]) -> Captured:
        """Record `fn`. Raises RuntimeError for what a graph cannot hold."""
        device, kind = tensors[0].device, tensors[0].device.type
        inputs, saved = tuple(each.detach().clone() for each in tensors), [each.clone() for each in held]
        # Casts of weights that autocast remembers would be read from where they lay at the capture.
        autocast = torch.autocast(
            kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False
        )
        with torch.cuda.device(device), autocast:
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            graph, side, current = torch.cuda.CUDAGraph(), torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(current)
            try:
                with torch.cuda.stream(side):
                    for _ in range(WARM_UP):
                        fn(*inputs)
            finally:
                current.wait_stream(side)
                with torch.no_grad():
                    for each, value in zip(held, saved, strict=True):
                        each.copy_(value)
            # Nothing runs in a capture. Other threads, of the loader and of NCCL, may call what one of all threads
            # would not survive.
            with torch.cuda.graph(graph, pool=self.pool, stream=side, capture_error_mode="thread_local"):
                output = fn(*inputs)
        return Captured(graph, inputs, output, fn)


def on_cuda(*tensors: Tensor) -> bool:
    """Whether there are tensors, all on one CUDA device."""
    return len({each.device for each in tensors}) == 1 and tensors[0].is_cuda


def random_state(device: torch.device) -> Tensor:
    """State of the generator that networks on this device draw from; it is kept by the host."""
    return torch.cuda.get_rng_state(device)


def fingerprint(module: nn.Module) -> tuple[Hashable, ...]:
    """What a graph of `module` takes for granted: modes and other plain attributes, places and layouts of tensors."""
    return tuple(_taken_for_granted(module))


def _taken_for_granted(module: nn.Module) -> Iterator[Hashable]:
    for each in module.modules():
        yield each
        yield vars(each).get("forward")  # in the place of the class's, for a block (`weight_casts.py`)
        for value in (*vars(each).values(), *each._parameters.values(), *each._buffers.values()):
            if value.__class__ in PLAIN:
                yield value
            elif isinstance(value, Tensor):
                yield value.data_ptr(), value.dtype, value.stride()
