"""The device of the acceptance. Imports little: that there is none is said at once."""

from __future__ import annotations

import torch

from atbench.errors import ConfigError, EnvironmentFault


def device_of(name: str, smoke: bool) -> torch.device:
    """The device that is asked for. Raises EnvironmentFault without CUDA."""
    if name == "cpu" and smoke:
        return torch.device("cpu")
    if name != "cuda":
        raise ConfigError("--device", name, "is not accepted as it is", "use cuda, or cpu together with --smoke")
    if not torch.cuda.is_available():
        fix = "run it where there is one (--device cpu --smoke tries the script itself)"
        raise EnvironmentFault("device", "cuda", f"torch {torch.__version__} finds no CUDA device", fix)
    return torch.device("cuda", torch.cuda.current_device())
