"""torch's optimizers without torch's compiler, whose import takes 2.5 s of CPU: half of what a training needs to start.

torch imports `torch._dynamo` at an optimizer's construction and at its first step, to tell it where compiled code ends.
Nothing of an optimizer is compiled here, `train.compile` or not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch.optim import Optimizer


def skip_construction() -> None:
    """Let the construction of optimizers import nothing.

    torch wraps some methods of `Optimizer` so that the first call asks the compiler to leave them alone, and keeps its
    answer on the function; here the answer is the function itself. Where torch keeps it elsewhere this does nothing.
    """
    for wrapped in vars(Optimizer).values():
        plain = getattr(wrapped, "__wrapped__", None)
        if plain is not None:
            vars(plain).setdefault("__dynamo_disable", plain)


def plain_step(optimizer: Optimizer) -> Callable[[], object]:
    """The step of an optimizer of torch without its wrappers: a range in profiles, hooks (there are none), gradients
    off (as here) and breaks of compiled code. Another optimizer's step is its own.
    """
    own = type(optimizer)
    if not own.__module__.startswith("torch.optim.") or optimizer.defaults.get("differentiable"):
        return optimizer.step
    return partial(torch.no_grad()(inspect.unwrap(own.step)), optimizer)
