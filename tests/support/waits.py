"""Operations that would make the host wait for a CUDA device, seen on a CPU."""

from __future__ import annotations

import traceback
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

#: The number of a tensor for Python, positions of what is true, or a tensor from Python's numbers (`lift_fresh`).
WAITING = {f"aten::{name}" for name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "lift_fresh")}
INDEXING = {f"aten::{name}" for name in ("index", "index_put", "index_put_")}


class Waits(TorchDispatchMode):
    """Collects the lines of atbench that wait, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        masked = name in INDEXING and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1])
        if name in WAITING or masked:
            own = [frame for frame in traceback.extract_stack() if "/atbench/" in frame.filename]
            where = f"{own[-1].filename.rpartition('/atbench/')[2]}:{own[-1].lineno}" if own else "elsewhere"
            self.lines.append(f"{name} {where}")
        return func(*args, **(kwargs or {}))


class CudaOneHot(TorchFunctionMode):
    """one_hot as CUDA has it: on a CPU torch looks at the labels first."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.one_hot:
            return func(*args, **(kwargs or {}))
        labels, classes = args
        return torch.zeros(*labels.shape, classes, dtype=torch.long).scatter_(-1, labels.unsqueeze(-1), 1)
