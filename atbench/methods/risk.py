"""The outer classification loss with a margin."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MarginRisk(nn.CrossEntropyLoss):
    """CE(z − margin · onehot(y), y) of each example, (B, K) and (B,) → (B,), with label smoothing: a method's `risk`
    where `train.margin` is set.

    `margin` is in units of the logits: s·m for logits s·cos θ and a margin m of cosines, `train.margin` (CosFace: Wang
    et al. 2018, CVPR, arXiv 1801.09414; HE: Pang et al. 2020). Of soft labels y (B, K) margin · y is subtracted.
    """

    def __init__(self, margin: float) -> None:
        super().__init__(reduction="none")
        self.margin = margin

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        shares = F.one_hot(y, logits.shape[1]) if y.ndim == 1 else y
        return super().forward(logits - self.margin * shares.to(logits.dtype), y)
