"""Networks in half precision are attacked and judged in float32: what they compute in is no excuse."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.attacks.gradient.transfer import Transfer
from atbench.data import Images
from atbench.evaluation import EvalModel, EvalResults, PGDConfig, Plan, evaluate_model, summarize
from atbench.evaluation.audit.audit import run_audit
from atbench.models.torchvision_models import Wrapped
from tests.support.targets import draws, make

CLASSES, SIDE, EPS = 4, 6, 0.06
THREAT = PGDConfig("linf", EPS, EPS / 4, 10)


class To(nn.Module):
    """A cast as a layer."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


def linear() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES), nn.Linear(CLASSES, CLASSES)).eval()


def mixed(itself: bool) -> nn.Sequential:
    """Its first layer is bfloat16 and the second float32; `itself`: it casts its images, too."""
    flat, first, second = linear()
    before = [To(torch.bfloat16)] if itself else []
    return nn.Sequential(flat, *before, first.bfloat16(), To(torch.float32), second)


def wrapped(module: nn.Module) -> Wrapped:
    return Wrapped((1, SIDE, SIDE), CLASSES, [0.0], [1.0], module).eval()


def given() -> Images:
    x = torch.randint(60, 195, (60, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    with torch.no_grad():
        return Images(x, linear()(x.float() / 255).argmax(dim=1))


def robust(network: nn.Module, **changes: Any) -> tuple[EvalResults, float, float]:
    plan = replace(Plan(THREAT, [10], [0, 0.5, 1], 10), **changes)
    found = evaluate_model(EvalModel(network, 16), given(), plan)
    figures = summarize(found)
    return found, figures["clean"]["accuracy"], figures["robust"]["accuracy"]


@pytest.mark.parametrize(
    "network",
    [linear().half(), linear().bfloat16(), mixed(itself=False), mixed(itself=True), wrapped(linear().bfloat16())],
    ids=["float16", "bfloat16", "first layer", "casts itself", "normalised in float32"],
)
def test_half_precision_breaks_like_single(network: nn.Module) -> None:
    _, _, expected = robust(linear())
    found, clean, left = robust(network)
    assert clean > 0.9 and expected < 0.2 and abs(left - expected) <= 2 / 60
    images = found.examples
    x = given().floats(torch.from_numpy(images["pgd.1.rows"]))
    moved = torch.from_numpy(images["pgd.1.x_adv"]) - x
    assert images["pgd.1.x_adv"].dtype == "float32" and float(moved.abs().max()) <= EPS + 1e-6
    assert float((moved.abs() - EPS).abs().min()) < 1e-6, "the edge of the ball is reached, not the next bfloat16"


@pytest.mark.parametrize("name", ["apgd_t", "fab", "square", "feature", "fmn", "cw_linf"])
def test_attacks_of_every_kind_are_legal_on_half_precision(name: str) -> None:
    """Searches, queries, features and least distances: what each breaks counts."""
    attack = make(name, "linf", 2 * EPS)
    for dtype in (torch.float16, torch.bfloat16):
        found, clean, left = robust(linear().to(dtype), steps=[], attacks={name: (attack, {})})
        images = found.examples
        assert left < clean / 2 and len(images[f"{name}.rows"]) == found.outcomes[f"broken_{name}"].sum()
        assert images[f"{name}.x_adv"].dtype == "float32"


def test_a_surrogate_keeps_its_own_precision() -> None:
    images, surrogate = given(), linear()
    before = deepcopy(surrogate.state_dict())
    attack = Transfer("linf", EPS, lambda run: surrogate, run="other", steps=10)
    eval_model = EvalModel(linear().half(), 60)
    x, y = eval_model.load(images, torch.arange(60))
    with eval_model.ready():
        x_adv = attack(eval_model, x, y, draws(60))
    assert x_adv.dtype == torch.float32 and all(v.dtype == torch.float32 for v in surrogate.state_dict().values())
    assert all(torch.equal(value, before[name]) for name, value in surrogate.state_dict().items())
    assert float((eval_model.logits(x_adv).argmax(dim=1) == y).double().mean()) < 0.2
    half = Transfer("linf", EPS, lambda run: linear().bfloat16(), run="other", steps=10)
    with eval_model.ready():
        assert float((eval_model.logits(half(eval_model, x, y, draws(60))).argmax(dim=1) == y).double().mean()) < 0.2


class Noisy(nn.Module):
    """Logits that move by a share of the largest one from pass to pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net = linear().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return logits + 0.05 * logits.abs().max() * torch.randn_like(logits)


def test_randomness_cannot_hide_below_the_rounding_of_bfloat16() -> None:
    """64 units of rounding of bfloat16 are half of the largest logit."""
    images, eval_model = given(), EvalModel(Noisy(), 60)
    checks = run_audit(eval_model, images, torch.ones(60, dtype=torch.bool), THREAT, {}, 20)
    assert next(check for check in checks if check.name == "randomness").verdict == "flag"
