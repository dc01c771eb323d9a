"""Classification heads on pooled features: linear and hypersphere."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from atbench.errors import refuse_unknown

HEADS = ("linear", "hypersphere")


class Hypersphere(nn.Linear):
    """Hypersphere embedding (Pang et al. 2020, NeurIPS, arXiv 2002.08619): s·cos θ_k = s·⟨W_k/‖W_k‖, h/‖h‖⟩, (B, K).

    No bias. The margin is the loss's (`train.margin`), and attacks use the logits as they are. Unscaled cosines
    (ALP+HE) are the logits divided by `scale`.

    In a forward of the update the rows of W are set to unit length first, as in ShawnXYang/AT_HE (wideresnet.py, one
    GPU): the gradient is that of a linear layer, its radial part included, and rate and weight decay act on unit rows.
    Through W/‖W‖ the steps would be the shorter the longer W has grown. Other forwards leave W as it is.
    """

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__(features, classes, bias=False)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        unit = F.normalize(self.weight, dim=1)
        if self.training and unit.requires_grad:
            self.weight.data.copy_(unit)  # `data`: the first of two forwards is differentiated after the second
            unit = self.weight
        return self.scale * F.linear(F.normalize(features, dim=1), unit)


def make_head(kind: str, features: int, classes: int, scale: float) -> nn.Module:
    """The head called `kind` on `features` numbers an image; `scale` is the hypersphere's s."""
    refuse_unknown("model.head", kind, HEADS, "head")
    return Hypersphere(features, classes, scale) if kind == "hypersphere" else nn.Linear(features, classes)
