"""Labels as shares of classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def smooth_label(y: Tensor, true: float, logits: Tensor) -> Tensor:
    """S(y, λ) with λ = `true`: λ on the class y, the rest evenly on the others; (B, K) and of the type of `logits`.

    y: class indices (B,), or shares of classes (B, K), in which S is linear.
    """
    classes = logits.shape[1]
    share = (y if y.ndim == 2 else F.one_hot(y, classes)).to(logits.dtype)
    return true * share + (1 - true) / (classes - 1) * (1 - share)
