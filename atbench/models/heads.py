"""Classification heads on pooled features: linear and hypersphere."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from atbench.errors import refuse_unknown

HEADS = ("linear", "hypersphere")


class Hypersphere(nn.Linear):
    """Hypersphere embedding (Pang et al. 2020, NeurIPS, arXiv 2002.08619): s·cos θ_k = s·⟨W_k/‖W_k‖, h/‖h‖⟩, (B, K).

    No bias. The margin is the loss's: CE(f(x) − s·m·onehot(y), y) reads `scale`, and attacks use the logits as they
    are. Unscaled cosines (ALP+HE) are the logits divided by `scale`.
    """

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__(features, classes, bias=False)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))


def make_head(kind: str, features: int, classes: int, scale: float) -> nn.Module:
    """The head called `kind` on `features` numbers an image; `scale` is the hypersphere's s."""
    refuse_unknown("model.head", kind, HEADS, "head")
    return Hypersphere(features, classes, scale) if kind == "hypersphere" else nn.Linear(features, classes)
