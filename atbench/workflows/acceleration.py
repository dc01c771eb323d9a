"""What makes training faster and nothing else: searches as CUDA graphs, and the compiled model."""

from __future__ import annotations

import torch

from atbench.errors import ConfigError
from atbench.methods import Method
from atbench.models.replay import Replay


def accelerate(method: Method, device: torch.device, capture: bool | str, compiled: bool) -> None:
    """Prepare a method as `train.capture` and `train.compile` say. Raises ConfigError for what cannot be."""
    if capture is True and device.type != "cuda":
        raise ConfigError("train.capture", True, f"graphs are CUDA's, and training runs on {device}", "use auto")
    if capture and device.type == "cuda":
        replay = Replay()
        for attack in method.attacks():
            attack.replay = replay
    if compiled:
        if method.second_order:
            why = f"{type(method).__name__} differentiates a gradient, which compiled networks do not allow"
            raise ConfigError("train.compile", True, why, "leave it out")
        compile_model(method)


def compile_model(method: Method) -> None:
    """Compile the method's model in place: names of the state stay, and passes through parts of it stay as they are."""
    # By default what was compiled before a hook was registered goes on without it, and methods register hooks.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    method.model.compile()
