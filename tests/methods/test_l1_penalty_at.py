"""The L1 penalty: what it counts, its two ways to shrink, and what it is for, sparse regression in high dimension."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from atbench.attacks import Objective
from atbench.data import Batch, TrainData
from atbench.methods.l1_penalty_at import L1PenaltyAt
from atbench.methods.pgd_at import PgdAt
from atbench.models import Network
from tests.support import reference, worlds
from tests.support.configs import resolved


def make(given: TrainData, penalty: float = 0.01, proximal: bool = False, norm: str = "none") -> L1PenaltyAt:
    method = L1PenaltyAt(worlds.cnn(norm=norm), worlds.attack(), penalty, proximal)
    worlds.start(method, given)
    method.clock.rates["model"] = 0.1
    return method


def size(network: nn.Module) -> float:
    """Σ|W| over convolutions and linear layers, by kind of layer and not by dimension."""
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return math.fsum(abs(w) for layer in layers for w in layer.weight.flatten().tolist())


@pytest.mark.parametrize("proximal", [False, True])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_loss_is_the_formula(proximal: bool, norm: str) -> None:
    given = worlds.data()
    method = make(given, 0.01, proximal, norm)
    batch = method.perturb(given.batch(0, 0))
    ce = reference.mean(reference.ce(method.model(batch.x_adv), batch.y))
    loss = method.loss(batch)
    expected = ce if proximal else ce + 0.01 * size(method.model)
    assert loss.total.item() == pytest.approx(expected, abs=1e-11)
    assert loss.terms["ce"].item() == pytest.approx(ce) and loss.terms["l1"].item() == pytest.approx(size(method.model))


@pytest.mark.parametrize("proximal", [False, True])
def test_without_penalty_it_is_pgd_at_to_the_bit(proximal: bool) -> None:
    given = worlds.data()
    method, other = make(given, 0.0, proximal), PgdAt(worlds.cnn(), worlds.attack())
    assert worlds.steps(method, given, 8) == worlds.steps(other, given, 8)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(other))


def test_only_weights_are_shrunk_and_by_the_rate_times_the_penalty() -> None:
    given = worlds.data()
    method = make(given, 0.5, proximal=True, norm="batch")
    method.clock.rates["model"] = 0.2
    before = {name: value.detach().clone() for name, value in method.named_parameters()}
    method.after_update(given.batch(0, 0))
    zeros = 0
    for name, value in method.named_parameters():
        old, new = before[name].flatten().tolist(), value.detach().flatten().tolist()
        if value.ndim == 1:
            assert old == new
            continue
        for a, b in zip(old, new, strict=True):
            assert b == pytest.approx(math.copysign(max(abs(a) - 0.1, 0.0), a), abs=1e-15)
        zeros += new.count(0.0)
    assert 0 < zeros < sum(value.numel() for value in before.values())


def test_the_subgradient_writes_nothing_afterwards() -> None:
    given = worlds.data()
    method = make(given, 0.5)
    before = worlds.snapshot(method)
    method.after_update(given.batch(0, 0))
    assert worlds.same(before, worlds.snapshot(method))


def test_a_heavy_penalty_leaves_no_weight() -> None:
    given = worlds.data()
    method, rough = make(given, 1e6, proximal=True), make(given, 1.0)
    worlds.steps(method, given, 2)
    worlds.steps(rough, given, 2)
    assert size(method.model) == 0.0
    assert size(rough.model) > 0.0, "a subgradient steps over zero"


def test_contract() -> None:
    given = worlds.data()
    for proximal in (False, True):
        batch = worlds.check_pure(make(given, 0.01, proximal), given.batch(0, 0))
        assert worlds.legal(make(given).attack, batch.x, batch.x_adv, 0.1)
        worlds.check_resume(lambda proximal=proximal: make(given, 0.01, proximal), given)
        worlds.check_ranks(lambda own, proximal=proximal: make(own, 0.01, proximal))


@pytest.mark.parametrize("proximal", [False, True])
def test_the_clean_pass_is_seen_by_the_statistics_alone(proximal: bool) -> None:
    """As early_stop's: one more forward of the clean batch through the updated weights, and nothing else of it."""
    given = worlds.data()
    plain, passing = make(given, proximal=proximal, norm="batch"), make(given, proximal=proximal, norm="batch")
    passing.clean_pass = True
    for each in (plain, passing):
        worlds.steps(each, given, 1)
    for (name, a), b in zip(plain.model.named_parameters(), passing.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    norm, other, stem = passing.model.stages[1][0], plain.model.stages[1][0], passing.model.stages[0]
    with torch.no_grad():
        mean = stem(passing.model.normalise(given.batch(0, 0).x)).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, 0.9 * other.running_mean + 0.1 * mean, rtol=0, atol=1e-12)
    assert passing.forward_cost(10) == plain.forward_cost(10) + 1


def test_the_paper_s_experiment_decays_every_parameter() -> None:
    """--l1 leaves the optimizer as it is, --l2 alone spares biases and BatchNorm."""
    for name in ("l1_penalty_at", "early_stop"):
        cfg = resolved(f"experiment=paper/{name}")
        assert (cfg.train.weight_decay_on, cfg.train.optimizer.weight_decay, cfg.method.clean_pass) == (
            "all",
            5e-4,
            True,
        )


# Sparse regression in high dimension, the setting of the paper: squared loss in the place of cross-entropy; search,
# penalty and threshold are the method's own.

INPUTS, EXAMPLES, EPS = 200, 50, 0.01


def squared(prediction: Tensor, y: Tensor) -> Tensor:
    return (prediction.squeeze(1) - y).square()


class Regression(L1PenaltyAt):
    """The method with squared loss, in both problems."""

    def perturb(self, batch: Batch) -> Batch:
        return batch.with_adv(self.run_attack(Objective(self.model, squared, batch.y), batch.x))

    def risk(self, logits: Tensor, y: Tensor) -> Tensor:
        return squared(logits, y)


def regression(penalty: float, proximal: bool, norm: str = "l2") -> tuple[Regression, Batch, Tensor]:
    """Five of 200 coefficients are not 0; pixels stay so far from 0 and 1 that no perturbation meets the box."""
    rng = torch.Generator().manual_seed(3)
    truth = torch.zeros(INPUTS, dtype=torch.float64)
    truth[:5] = torch.tensor([3.0, -3.0, 2.0, -2.0, 2.0])
    x = 0.5 + 0.1 * torch.randn(EXAMPLES, INPUTS, generator=rng, dtype=torch.float64).clamp(-3, 3)
    y = (x - 0.5) @ truth + 0.02 * torch.randn(EXAMPLES, generator=rng, dtype=torch.float64)
    head = nn.Linear(INPUTS, 1, bias=False)
    with torch.no_grad():
        head.weight.copy_(0.1 * torch.randn(1, INPUTS, generator=rng))
    network = Network(nn.Sequential(nn.Flatten()), head, (0.5,), (1.0,)).double()
    search = worlds.attack(norm=norm, eps=EPS, steps=1, step_size=EPS, start="zero")
    images = x.view(EXAMPLES, 1, 10, 20)
    return Regression(network, search, penalty, proximal), Batch(images, y, torch.arange(EXAMPLES)), truth


@pytest.mark.parametrize(("norm", "dual"), [("l2", 2.0), ("linf", 1.0)])
def test_the_worst_case_of_a_linear_model_is_the_closed_form(norm: str, dual: float) -> None:
    """(|y − xᵀθ| + ε·‖θ‖_dual)² + λ‖θ‖₁."""
    method, batch, _ = regression(0.01, False, norm)
    method.train()
    theta = method.model.head.weight.detach()[0]
    residual = (batch.y - (batch.x.flatten(1) - 0.5) @ theta).abs()
    expected = (residual + EPS * theta.norm(p=dual)).square().mean() + 0.01 * theta.abs().sum()
    torch.testing.assert_close(method.loss(method.perturb(batch)).total, expected, rtol=0, atol=1e-12)


def estimate(penalty: float, proximal: bool, rate: float = 3.0) -> tuple[float, int]:
    """Distance to the truth after full-batch training, and how many coefficients are exactly 0."""
    method, batch, truth = regression(penalty, proximal)
    method.train()
    optimizer = torch.optim.SGD(method.model.parameters(), lr=rate)
    method.clock.rates["model"] = rate
    for _ in range(400):
        loss = method(method.perturb(batch))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        method.after_update(batch)
    theta = method.model.head.weight.detach()[0]
    return float((theta - truth).norm()), int((theta == 0).sum())


@pytest.mark.slow
def test_a_tuned_penalty_finds_a_sparse_truth_that_plain_adversarial_training_misses() -> None:
    plain, _ = estimate(0.0, False)
    rough, none = estimate(3e-3, False)
    sparse, zeros = estimate(3e-3, True)
    assert sparse < plain / 3 and rough < plain / 3
    assert none == 0 and zeros > 100
