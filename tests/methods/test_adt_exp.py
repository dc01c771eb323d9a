"""ADT-EXP: the inner Adam step by step, its ε, what a step sums up, and one draw for the update."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.attacks import GradientAttack
from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.adt_exp import AdtExp
from tests.support import reference, worlds

EPS, STEPS = 0.1, 3


def make(given: TrainData | None = None, **options: Any) -> tuple[AdtExp, TrainData]:
    given = given or worlds.data()
    method = AdtExp(worlds.cnn(), worlds.attack(eps=EPS, steps=STEPS), **options)
    method.setup(given)
    worlds.start(method, given)
    return method, given


def flat(**options: Any) -> tuple[AdtExp, TrainData]:
    """A method on a constant network: only the entropy has a gradient."""
    given = worlds.data()
    method = AdtExp(worlds.linear(scale=0.0), worlds.attack(eps=EPS, steps=STEPS), **options)
    worlds.start(method, given)
    return method, given


def slow_images(method: AdtExp, batch: Batch, weight: float, samples: int, clear: bool) -> Tensor:
    """x' by a loss of the whole batch, as the paper writes it, and torch's own Adam on (μ, v)."""
    rng, x = method.rng("noise"), batch.x
    mean, spread = torch.zeros_like(x).requires_grad_(), torch.zeros_like(x).requires_grad_()
    adam = torch.optim.Adam([mean, spread], lr=0.3, betas=(0.0, 0.0))

    def drawn() -> tuple[Tensor, Tensor]:
        r = rng.normal(x)
        sigma = torch.log1p(spread.exp())
        u = torch.tanh(mean + sigma * r)
        h = (r**2 / 2 + (sigma + 1e-8).log() + (1 - u**2 + 1e-8).log()).mean()
        return torch.clamp(x + EPS * u, 0, 1), h

    for _ in range(STEPS):
        if clear:
            adam.zero_grad()
        for _ in range(samples):
            x_adv, h = drawn()
            (-F.cross_entropy(method.model(x_adv), batch.y) - weight * h).backward(inputs=[mean, spread])
        adam.step()
    return drawn()[0].detach()


@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize(("weight", "samples"), [(0.01, 5), (0.3, 1), (0.0, 2)])
def test_images_are_those_of_adam(weight: float, samples: int, accumulate: bool) -> None:
    method, given = make(worlds.data(worlds.source(inset=0.2)), entropy_weight=weight, samples=samples)
    method.accumulate = accumulate
    batch = given.batch(0, 0)
    expected = slow_images(method, batch, weight, samples, clear=not accumulate)
    torch.testing.assert_close(method.perturb(batch).x_adv, expected, rtol=0, atol=1e-9)


def test_adams_eps_shortens_the_steps() -> None:
    """A step is 0.3·G/(|G| + 1e-8) and no sign: the entropy's part of G is as small where the network is flat."""
    method, given = flat(entropy_weight=1e-5, samples=1)
    method.attack.steps = 1
    batch = given.batch(0, 0)
    noise = method.rng("noise")
    mean, spread = method._fit(batch, method.rng("noise"))
    r, count = noise.normal(batch.x), batch.x.numel()
    u, sigma = torch.tanh(math.log(2) * r), math.log(2)
    # h = r²/2 + log σ + log(1 − u²): ∂h/∂μ = −2u, and ∂h/∂v = σ'(0)·(1/σ − 2u·r), σ' = 1/2
    of_mean, of_spread = -2e-5 * u / count, 1e-5 * (1 / sigma - 2 * u * r) / 2 / count
    for found, g in ((mean, of_mean), (spread, of_spread)):
        expected = 0.3 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert expected.abs().mean() < 0.25  # a sign would have 0.3


def test_gradients_of_the_samples_are_summed() -> None:
    """A mean over samples would be shortened by Adam's ε `samples` times as much."""
    lengths = []
    for samples in (1, 5):
        method, given = flat(entropy_weight=1e-5, samples=samples)
        method.attack.steps = 1
        mean, _ = method._fit(given.batch(0, 0), method.rng("noise"))
        lengths.append(mean.abs().mean().item())
    assert lengths[1] > 1.15 * lengths[0]


def test_without_noise_it_is_the_tanh_of_adams_steps() -> None:
    """λ = 0 and σ = 0: x' = clip(x + ε·tanh(Σ 0.3·G_t/(|G_t| + 1e-8)))."""
    method, given = make(entropy_weight=0.0, samples=1)
    batch = given.batch(0, 0)

    class Silent:
        def normal(self, like: Tensor) -> Tensor:
            return torch.zeros_like(like)

    mean, spread = method._fit(batch, Silent())  # type: ignore[arg-type]
    assert not spread.any()  # r = 0: nothing depends on σ
    z, total, mu = batch.x, torch.zeros_like(batch.x), torch.zeros_like(batch.x)
    for _ in range(STEPS):
        mu = mu.requires_grad_()
        value = F.cross_entropy(method.model(torch.clamp(z + EPS * torch.tanh(mu), 0, 1)), batch.y)
        total = total + torch.autograd.grad(value, mu)[0]
        mu = mu.detach() + 0.3 * total / (total.abs() + 1e-8)
    torch.testing.assert_close(mean, mu, rtol=0, atol=1e-9)


def test_loss_is_cross_entropy_at_one_draw() -> None:
    method, given = make(samples=1)
    batch = worlds.check_pure(method, given.batch(0, 0))
    assert worlds.legal(method.attack, batch.x, batch.x_adv, EPS)
    assert not torch.equal(batch.x_adv, batch.x)
    expected = reference.mean(reference.ce(method.model(batch.x_adv), batch.y))
    assert method.loss(batch).total.item() == pytest.approx(expected, abs=1e-12)


def test_the_search_raises_the_loss() -> None:
    method, given = make(entropy_weight=0.0)
    batch = given.batch(0, 0)
    found = method.loss(method.perturb(batch)).total
    method.attack.steps = 0  # μ = v = 0: noise alone
    assert found > method.loss(method.perturb(batch)).total


def test_two_halves_are_what_the_whole_is() -> None:
    worlds.check_ranks(lambda given: make(given, samples=2)[0])


def test_resume_is_exact() -> None:
    given = worlds.data()
    worlds.check_resume(lambda: make(given, samples=1)[0], given)


def test_another_norm_is_refused() -> None:
    attack: GradientAttack = worlds.attack(norm="l2")
    with pytest.raises(ConfigError, match=r"attack\.norm"):
        AdtExp(worlds.cnn(), attack)
