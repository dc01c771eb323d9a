"""GAIRAT: κ counts every point at which an example is right, and weights have mean 1 over the joint batch."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.gairat import Gairat
from atbench.methods.pgd_at import PgdAt
from tests.support import worlds


def make(given: TrainData, network: nn.Module, options: dict[str, Any] | None = None, **attack: Any) -> Gairat:
    method = Gairat(network, worlds.attack(**attack), **{"begin": 0.0, **(options or {})})
    worlds.start(method, given)
    return method


class Stripes(nn.Module):
    """Three classes that follow each other many times along the brightness of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        turn = 60 * x.flatten(1).mean(dim=1)
        return self.scale * torch.stack([torch.sin(turn + 2 * math.pi * k / 3) for k in range(3)], dim=1)


def slow_attack(network: nn.Module, x: Tensor, y: Tensor, steps: int) -> tuple[Tensor, list[bool]]:
    """PGD on one image from x itself, and whether it is right before each step."""
    x_adv, right = x.clone(), []
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        logits = network(x_adv)
        right.append(int(logits.argmax()) == int(y))
        (grad,) = torch.autograd.grad(F.cross_entropy(logits, y), x_adv)
        x_adv = torch.max(torch.min(x_adv.detach() + 0.04 * grad.sign(), x + 0.1), x - 0.1).clip(0, 1)
    return x_adv, right


@pytest.mark.parametrize("steps", [6, 7])
@pytest.mark.parametrize("world", [worlds.linear, Stripes])
def test_loss_is_the_formula(world: type, steps: int) -> None:
    given, network = worlds.data(), world()
    method = make(given, network, steps=steps, start="zero")
    batch = method.perturb(given.batch(0, 0))
    kappas, raw, ce, returned = [], [], [], 0
    for i in range(len(batch)):
        x, y = batch.x[i : i + 1], batch.y[i : i + 1]
        x_adv, right = slow_attack(network, x, y, steps)
        torch.testing.assert_close(batch.x_adv[i : i + 1], x_adv, rtol=0, atol=1e-12)
        kappas.append(sum(right))
        returned += any(not before and after for before, after in itertools.pairwise(right))
        raw.append((1 + math.tanh(-1 + 5 * (3 - sum(right)) / 3)) / 2)
        ce.append(F.cross_entropy(network(x_adv), y).item())
    assert batch.aux["kappa"].tolist() == kappas and len(set(kappas)) > 2
    assert returned > 0 or world is not Stripes, "an example should be right again after it was wrong"
    expected = math.fsum(w * value for w, value in zip(raw, ce, strict=True)) / math.fsum(raw)
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(expected, rel=1e-10)
    assert loss.terms["kappa"].item() == pytest.approx(sum(kappas) / len(kappas))
    assert batch.aux["weights"].mean().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("steps", "raw"),
    [
        (10, {0: 0.9997, 1: 0.9975, 2: 0.9820, 3: 0.8808, 4: 0.5, 5: 0.1192, 6: 0.0180, 7: 0.0025}),
        (7, {0: 0.9997, 1: 0.9907, 2: 0.7914, 3: 0.1192, 4: 0.0048}),  # h = 3, not 3.5
    ],
)
def test_weights_are_those_of_the_authors(steps: int, raw: dict[int, float]) -> None:
    method = make(worlds.data(), worlds.linear(), steps=steps)
    weights = method._weights(torch.arange(steps + 1, dtype=torch.float64))
    for kappa, value in raw.items():
        assert (weights[kappa] / weights[0]).item() == pytest.approx(value / raw[0], abs=1e-4)


@pytest.mark.parametrize("options", [{"begin": 0.5}, {"lam": math.inf}])
def test_before_it_begins_and_with_an_infinite_lambda_it_is_pgd_at_to_the_bit(options: dict[str, float]) -> None:
    given = worlds.data()
    method, plain = make(given, worlds.cnn(), options), PgdAt(worlds.cnn(), worlds.attack())
    assert worlds.steps(method, given, 8) == worlds.steps(plain, given, 8)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(plain))
    if "begin" in options:
        assert worlds.steps(method, given, 1, first=8) != worlds.steps(plain, given, 1, first=8)


def test_the_point_after_the_last_step_does_not_count() -> None:
    given, network = worlds.data(), worlds.linear()
    with torch.no_grad():
        network.head.bias[0] += 100  # class 0 is always right, the others never
    batch = given.batch(0, 0)
    for point in ("last", "best"):
        kappa = make(given, network, return_point=point).perturb(batch).aux["kappa"]
        assert torch.equal(kappa, torch.where(batch.y == 0, 3, 0))


def test_a_process_divides_by_the_mean_of_the_joint_batch() -> None:
    method = make(worlds.data(), worlds.linear())
    kappa = torch.tensor([0.0, 3.0, 1.0, 2.0], dtype=torch.float64)
    joint = method._weights(kappa)
    together, whole = [], method.gather
    for rank in range(2):
        rows = slice(2 * rank, 2 * rank + 2)

        def gathered(mine: Tensor, rows: slice = rows) -> Tensor:
            log_w = F.logsigmoid(2 * (-1 + 5 * (1 - kappa)))
            assert torch.equal(mine, log_w[rows])
            return log_w

        method.gather = gathered  # type: ignore[method-assign]
        together.append(method._weights(kappa[rows]))
    method.gather = whole  # type: ignore[method-assign]
    assert torch.equal(torch.cat(together), joint) and joint.mean().item() == pytest.approx(1)


def test_weights_stay_finite_where_all_of_them_are_tiny() -> None:
    method = make(worlds.data(), worlds.linear(), {"lam": -1e4})
    weights = method._weights(torch.tensor([2.0, 3.0, 3.0], dtype=torch.float64))
    ratio = math.exp(-10)  # tanh is an exponential so far from 0
    assert weights.tolist() == pytest.approx([3 / (1 + 2 * ratio), *[3 * ratio / (1 + 2 * ratio)] * 2], rel=1e-9)


def test_what_makes_no_weights_is_refused() -> None:
    for lam in (-math.inf, math.nan):
        with pytest.raises(ConfigError, match=r"method\.lam"):
            make(worlds.data(), worlds.linear(), {"lam": lam})
    with pytest.raises(ConfigError, match=r"attack\.steps: 1"):
        make(worlds.data(), worlds.linear(), steps=1)


def test_contract() -> None:
    given = worlds.data()
    method = make(given, worlds.cnn())
    batch: Batch = worlds.check_pure(method, given.batch(0, 0))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    worlds.check_resume(lambda: make(given, worlds.cnn()), given)
