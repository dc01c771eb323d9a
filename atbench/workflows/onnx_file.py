"""A network as ONNX, checked against onnxruntime. Needs the extra atbench[export]."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atbench.errors import ConfigError, DataError
from atbench.models import image_type

FILE = "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CHECKED = 16  # images on which onnxruntime and torch are compared
TOLERANCE = 1e-4  # of their logits, relative to the largest


@dataclass(frozen=True)
class OnnxModel:
    """The bytes of the file, and what config.json says of it."""

    data: bytes
    about: dict[str, Any]


def check_packages() -> None:
    """Raise ConfigError where a package is missing."""
    if lacking := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        why = f"needs {', '.join(lacking)}"
        raise ConfigError("export", "--onnx", why, "install the extra: pip install 'atbench[export]'")


def to_onnx(network: nn.Module, x: Tensor) -> OnnxModel:
    """The network in eval mode, with any number of images in [0, 1] as input `x` and `logits` as output.

    x: images (N, C, H, W), N ≥ 3, on which onnxruntime is compared with torch, in batches of 2 and of the rest. Raises
    DataError where the network cannot be written, or onnxruntime's logits differ.
    """
    network, x = network.eval(), x.to(image_type(network))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own deprecations
            program = torch.onnx.export(
                network,
                (x[:2],),
                dynamo=True,
                verbose=False,
                input_names=["x"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except RuntimeError as fault:
        message = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise DataError("export", FILE, f"cannot be written ({message})", "leave --onnx out") from fault
    assert program is not None
    data = program.model_proto.SerializeToString()
    difference = _largest_difference(network, data, x)
    if not difference <= TOLERANCE:
        why = f"onnxruntime's logits differ from torch's by {difference:.2g} of the largest"
        raise DataError("export", FILE, why, "leave --onnx out")
    opset = next(entry.version for entry in program.model_proto.opset_import if not entry.domain)
    about = {"file": FILE, "input": "x", "output": "logits", "opset": opset}
    return OnnxModel(data, {**about, "checked": len(x), "relative_difference": difference})


@torch.no_grad()
def _largest_difference(network: nn.Module, data: bytes, x: Tensor) -> float:
    """max |onnxruntime − torch| / max |torch| over the logits of `x`."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    parts = [torch.from_numpy(session.run(["logits"], {"x": part.numpy()})[0]) for part in (x[:2], x[2:])]
    logits = network(x)
    return float((torch.cat(parts) - logits).abs().max() / logits.abs().max())
