"""Divergences between predictions of one image, from their logits."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_divergence(a: Tensor, b: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(a/T) ‖ softmax(b/T)), summed over classes: (B,) of logits a and b. Gradient flows into both."""
    log_p, log_q = ((logits / temperature).log_softmax(dim=1) for logits in (a, b))
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def jensen_shannon(*logits: Tensor) -> Tensor:
    """The mean over n distributions p_v = softmax(z_v) of KL(p_v ‖ m), m = mean p_v: (B,), from 0 to ln n.

    Gradient flows into all of them.
    """
    log_p = [z.log_softmax(dim=1) for z in logits]
    log_m = torch.stack(log_p).logsumexp(dim=0) - math.log(len(log_p))
    each = [F.kl_div(log_m, one, reduction="none", log_target=True).sum(dim=1) for one in log_p]
    return torch.stack(each).mean(dim=0)
