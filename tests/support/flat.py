"""A linear network that only eval mode makes one, images for it, and an evaluation of it that rejects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from atbench.attacks.gradient.max_confidence import MaxConfidence
from atbench.data import Images
from atbench.evaluation import EvalModel, EvalResults, PGDConfig, Plan, evaluate_model
from atbench.evaluation.rejection import RejectionPlan

SIDE = 5
EPS = 0.02


class Flat(nn.Module):
    """A linear network on pixels, with a BatchNorm and a dropout that evaluation must find in eval mode."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(SIDE * SIDE, 3).double()
        self.norm, self.dropout = nn.BatchNorm1d(SIDE * SIDE, affine=False).double(), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(self.norm(x.flatten(1))))


def images(network: nn.Module, n: int = 90) -> Images:
    """Grey images that stay away from the edges of the box, labelled mostly as the network says."""
    x = torch.randint(90, 165, (n, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    with torch.no_grad():
        y = network.eval()(x.double() / 255).argmax(dim=1)
    y[::9] = (y[::9] + 1) % 3
    return Images(x, y)


def rejected(
    share: float = 0.9, limit: int | None = None, batch: int = 32, **changes: Any
) -> tuple[EvalModel, EvalResults]:
    network = Flat()
    eval_model = EvalModel(network, batch)
    return eval_model, evaluate_model(eval_model, images(network), rejecting(share, limit, **changes))


def rejecting(share: float = 0.9, limit: int | None = None, **changes: Any) -> Plan:
    """The plan of `rejected`."""
    given, threat = images(Flat()), PGDConfig("linf", EPS, 0.004, 8)
    held = Images(given.x.flip(0), given.y.flip(0))
    asked = RejectionPlan(share, held, MaxConfidence("linf", EPS, 30, 2, 0.25), {"steps": 30, "restarts": 2})
    return replace(Plan(threat, [8], [], 5, limit, reject=asked), **changes)
