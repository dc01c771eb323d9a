"""A watch for gradients that depend on the version of torch."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

#: Functions whose gradient at a tie differs between torch 2.10 and 2.15: all of torch's were compared.
CHANGED = {"clamp", "clamp_min", "clamp_max", "clip", "fmax", "fmin", "hinge_embedding_loss", "margin_ranking_loss"}


class Watched(TorchFunctionMode):
    """Remembers the calls of such functions through which a gradient would pass."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").rstrip("_")
        if name in CHANGED and isinstance(out, Tensor) and out.requires_grad:
            self.found.add(name)
        return out
