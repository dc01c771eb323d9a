"""Weight files: safe reading, strict loading, refusal of NaN. Nothing is executed."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from atbench.errors import DataError
from atbench.models.network import Network
from atbench.models.published_weights import find_state_dict, load_named, load_published

SAFETENSORS = ".safetensors"


def read_weights(path: Path, key: str = "checkpoint") -> Mapping[str, Any]:
    """What a checkpoint holds: a `.safetensors`, or anything that torch.load opens with weights_only=True.

    `key`: the setting that named the file. Raises DataError for a file that is absent or that cannot be opened.
    """
    if not path.is_file():
        raise DataError(key, path, "there is no such file", "correct the path")
    fix = "save its state_dict() with torch.save"
    try:
        if path.suffix == SAFETENSORS:
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as fault:
        raise DataError(key, path, f"is no safetensors file ({fault})", "write it again") from fault
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, pickle.UnpicklingError) as fault:
        why = f"cannot be opened as tensors alone ({str(fault).splitlines()[0]})"
        raise DataError(key, path, why, fix) from fault
    if not isinstance(content, Mapping):
        raise DataError(key, path, f"holds a {type(content).__name__} and no state dict", fix)
    return content


def load_weights(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Load `state`, or the state dict in it, into `network`, strictly. Raises DataError.

    A Network takes published names as well (`published_weights`); the weights of a wrapped module may have the module's
    own names or, from a run of atbench, those of its wrapper.
    """
    from atbench.models.torchvision_models import Wrapped  # imports torchvision, which takes seconds

    if isinstance(network, Wrapped) and not any("stages." in key for key in find_state_dict(state)):
        load_named(network.stages.get_submodule("module"), state)
    elif isinstance(network, Network):
        load_published(network, state)
    else:
        load_named(network, state)
    refuse_nan(network)


def refuse_nan(network: nn.Module) -> None:
    """Raise DataError with the name of a tensor that holds NaN: its logits would be NaN, and argmax of these is 0."""
    for name, value in network.state_dict().items():
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            count = int(torch.isnan(value).sum())
            why = f"{count} of {value.numel()} values are NaN"
            raise DataError("weights", name, why, "use a checkpoint from before the training broke")
