"""Counting of floating-point operations as torch dispatches them."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Count(TorchDispatchMode):
    """Context that adds up the operations of convolutions and matrix products, forward and backward, in `total`.

    torch's own FlopCounterMode registers hooks on modules, which fail under `autograd.grad` to an input.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing that is counted is compiled, and torch would import its compiler to say so."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out
