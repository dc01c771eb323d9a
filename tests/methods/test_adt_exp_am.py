"""ADT-EXP-AM: the entropy of the formula, what the generator is told, and who descends what the other ascends."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.data import Batch, Shard, TrainData
from atbench.errors import ConfigError
from atbench.methods.adt_exp import sample
from atbench.methods.adt_exp_am import AdtExpAm
from atbench.methods.adt_networks import Generator, draw_weights
from tests.support import reference, worlds

EPS = 0.1


def make(given: TrainData | None = None, **options: Any) -> tuple[AdtExpAm, TrainData, Batch]:
    given = given or worlds.data()
    settings = {"generator_width": 4, "generator_norm": "none", **options}
    method = AdtExpAm(worlds.cnn(), worlds.attack(eps=EPS), **settings)
    method.setup(given)
    with torch.no_grad():
        for parameter in method.generator.parameters():
            parameter.mul_(10)  # so narrow a generator would say next to nothing
    worlds.start(method, given)
    return method, given, method.perturb(given.batch(0, 0))


def slow_entropy(mean: list[float], sigma: list[float], noise: list[float]) -> float:
    values = []
    for m, s, r in zip(mean, sigma, noise, strict=True):
        u = math.tanh(m + s * r)
        values.append(r * r / 2 + math.log(s + 1e-8) + math.log(1 - u * u + 1e-8))
    return reference.mean(values)


def made(method: AdtExpAm, batch: Batch) -> tuple[Tensor, Tensor]:
    """x' and h as the formula has them, with a graph to the generator."""
    out = method.generator(batch.aux["inputs"])
    channels = batch.x.shape[1]
    mean, sigma = out[:, :channels], torch.log1p(out[:, channels:].exp())
    noise = method.rng("noise").normal(batch.x)
    u = torch.tanh(mean + sigma * noise)
    entropy = (noise**2 / 2 + (sigma + 1e-8).log() + (1 - u**2 + 1e-8).log()).mean()
    return (batch.x + EPS * u).clamp(0, 1), entropy


def test_sample_is_the_formula() -> None:
    rng = torch.Generator().manual_seed(0)
    mean, spread, noise = (torch.randn((3, 1, 2, 2), generator=rng, dtype=torch.float64) for _ in range(3))
    unit, entropy = sample(mean, F.softplus(spread), noise)
    sigma = [math.log1p(math.exp(v)) for v in spread.flatten().tolist()]
    expected = slow_entropy(mean.flatten().tolist(), sigma, noise.flatten().tolist())
    assert entropy.shape == (3,) and entropy.mean().item() == pytest.approx(expected, abs=1e-12)
    assert unit.abs().max() < 1


def test_entropy_is_highest_at_a_finite_width() -> None:
    """μ = 0, σ = 0.88: wider, and tanh piles up at the corners; the generator cannot run away."""
    noise = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.exp(-(noise**2) / 2)

    def entropy(mean: float, sigma: float) -> float:
        u = torch.tanh(mean + sigma * noise)
        h = noise**2 / 2 + math.log(sigma) + torch.log(1 - u**2)
        return float((weight * h).sum() / weight.sum())

    grid = [0.02 * k for k in range(10, 150)]
    best = max(grid, key=lambda sigma: entropy(0.0, sigma))
    assert best == pytest.approx(0.88, abs=0.021) and entropy(0.0, best) == pytest.approx(-0.235, abs=2e-3)
    assert all(entropy(mean, best) < entropy(0.0, best) for mean in (-0.5, -0.1, 0.1, 0.5))


def test_loss_is_the_formula() -> None:
    method, _, batch = make(entropy_weight=0.3)
    x_adv, entropy = made(method, batch)
    ce = reference.mean(reference.ce(method.model(x_adv), batch.y))
    loss = method.loss(batch)
    assert loss.total.item() == pytest.approx(ce - 0.3 * entropy.item(), abs=1e-12)
    assert loss.terms["ce"].item() == pytest.approx(ce) and loss.terms["entropy"].item() == pytest.approx(
        entropy.item()
    )


def test_classifier_descends_and_generator_ascends() -> None:
    """∂/∂θ = ∂CE/∂θ;  ∂/∂φ = −∂CE/∂φ − λ·∂h/∂φ."""
    method, _, batch = make(entropy_weight=0.3)
    theta, phi = list(method.model.parameters()), list(method.generator.parameters())
    x_adv, entropy = made(method, batch)
    ce = F.cross_entropy(method.model(x_adv), batch.y)
    of_theta = torch.autograd.grad(ce, theta, retain_graph=True)
    of_phi = torch.autograd.grad(ce, phi, retain_graph=True)
    of_entropy = torch.autograd.grad(entropy, phi)
    method.loss(batch).total.backward()
    for p, grad in zip(theta, of_theta, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=0, atol=1e-13)
    for p, grad, h in zip(phi, of_phi, of_entropy, strict=True):
        torch.testing.assert_close(p.grad, -grad - 0.3 * h, rtol=0, atol=1e-13)
        assert grad.abs().sum() > 0


def test_a_small_step_of_either_does_what_it_should() -> None:
    """The generator's raises CE, the classifier's lowers it."""
    for group, better in (("generator", 1), ("model", -1)):
        method, _, batch = make(entropy_weight=0.0)
        before = method.loss(batch)
        before.total.backward()
        with torch.no_grad():
            for p in method.groups()[group].parameters():
                assert p.grad is not None
                p -= 1e-4 * p.grad
        change = method.loss(batch).terms["ce"] - before.terms["ce"]
        assert change * better > 0


def test_a_heavy_entropy_rises() -> None:
    method, given, _ = make(entropy_weight=10.0)
    with torch.no_grad():
        method.generator[-1].weight.mul_(5)
    fixed = method.perturb(given.batch(0, 0))
    values = []
    for _ in range(6):
        loss = method.loss(fixed)
        values.append(loss.terms["entropy"].item())
        grads = torch.autograd.grad(loss.total, list(method.generator.parameters()))
        with torch.no_grad():
            for p, grad in zip(method.generator.parameters(), grads, strict=True):
                p -= 2e-3 * grad
    assert all(later > earlier for earlier, later in pairwise(values))


def test_the_generator_is_told_image_and_two_gradients() -> None:
    """Of each example's cross-entropy over the size of the batch, at x and at FGSM's image; one image at a time."""
    method, _, batch = make()
    for i in range(len(batch)):
        z = batch.x[i : i + 1].clone().requires_grad_()
        (first,) = torch.autograd.grad(F.cross_entropy(method.model(z), batch.y[i : i + 1]) / 12, z)
        fgsm = (batch.x[i : i + 1] + EPS * first.sign()).clamp(0, 1).requires_grad_()
        (second,) = torch.autograd.grad(F.cross_entropy(method.model(fgsm), batch.y[i : i + 1]) / 12, fgsm)
        expected = torch.cat([batch.x[i : i + 1], first, second], dim=1)
        torch.testing.assert_close(batch.aux["inputs"][i : i + 1], expected, rtol=0, atol=1e-14)
    assert not batch.aux["inputs"].requires_grad


@pytest.mark.parametrize("options", [{}, {"entropy_weight": 1.0}], ids=str)
def test_two_halves_are_told_and_teach_what_the_whole_does(options: dict[str, float]) -> None:
    """Mean over two processes' gradients = gradient of one process, when no example sees another."""
    whole, _, batch = make(**options)
    whole.loss(batch).total.backward()
    expected = [p.grad for p in whole.parameters()]
    total = [torch.zeros_like(p) for p in whole.parameters()]
    for rank in range(2):
        half, _, part = make(worlds.data(shard=Shard(rank, 2)), **options)
        torch.testing.assert_close(part.aux["inputs"], batch.aux["inputs"][6 * rank : 6 * rank + 6], rtol=0, atol=1e-15)
        for t, grad in zip(total, torch.autograd.grad(half.loss(part).total, list(half.parameters())), strict=True):
            t += grad / 2
    for t, grad in zip(total, expected, strict=True):
        torch.testing.assert_close(t, grad, rtol=0, atol=1e-13)


def test_images_are_legal() -> None:
    method, given, _ = make()
    seen: list[Tensor] = []
    for step in range(3):
        method.clock.step = step
        batch = method.perturb(given.batch(0, step))
        handle = method.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        method.loss(batch)
        handle.remove()
        assert (seen[-1] - batch.x).abs().max() <= EPS + 1e-12 and seen[-1].min() >= 0 and seen[-1].max() <= 1
        assert not torch.equal(seen[-1], batch.x)


def test_perturb_and_loss_repeat_and_write_nothing() -> None:
    method, given, batch = make()
    before = worlds.snapshot(method)
    assert torch.equal(method.perturb(given.batch(0, 0)).aux["inputs"], batch.aux["inputs"])
    assert torch.equal(method.loss(batch).total, method.loss(batch).total)
    assert worlds.same(before, worlds.snapshot(method)) and all(p.grad is None for p in method.parameters())
    method.clock.step = 1
    assert not torch.equal(method.loss(batch).total, make()[0].loss(batch).total)  # noise of its own for every step


def test_groups_share_out_all_parameters() -> None:
    method, _, _ = make()
    grouped = [p for module in method.groups().values() for p in module.parameters()]
    assert len(grouped) == len(list(method.parameters())) == len({id(p) for p in grouped})


def test_every_parameter_learns_in_one_forward() -> None:
    """What distributed training needs of the wrapped pass."""
    method, _, batch = make(generator_norm="batch")
    method(batch).total.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_resume_is_exact() -> None:
    straight, given, _ = make(generator_norm="batch")
    worlds.steps(straight, given, 6)
    before, _, _ = make(generator_norm="batch")
    worlds.steps(before, given, 4)
    after, _, _ = make(generator_norm="batch")
    after.load_state_dict(worlds.snapshot(before))
    worlds.steps(after, given, 2, first=4)
    assert worlds.same(worlds.snapshot(straight), worlds.snapshot(after))


def test_generator_is_the_papers_at_its_width() -> None:
    """256-512-512-256 at 32×32: every convolution, and weights N(0, 0.02)."""
    generator = Generator(9, 256, 6, "batch")
    draw_weights(generator, 0)
    out = generator(torch.rand(2, 9, 8, 8))
    assert out.shape == (2, 6, 8, 8)
    widths = [
        (m.in_channels, m.out_channels, m.kernel_size[0]) for m in generator.modules() if isinstance(m, torch.nn.Conv2d)
    ]
    blocks = [(256, 512, 3), (512, 512, 3), (256, 512, 1), (512, 512, 3), (512, 512, 3)]
    blocks += [(512, 256, 3), (256, 256, 3), (512, 256, 1)]
    assert sorted(widths) == sorted([(9, 256, 3), *blocks, (256, 6, 3)])
    weights = torch.cat([p.flatten() for p in generator.parameters() if p.ndim == 4])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01) and weights.mean().abs() < 1e-4
    assert not any(name.endswith("bias") for name, p in generator.named_parameters() if p.ndim == 4)


def test_generator_is_the_seeds_and_as_wide_as_the_image() -> None:
    methods = [AdtExpAm(worlds.cnn(), worlds.attack()) for _ in range(3)]
    for method, seed in zip(methods, (0, 0, 1), strict=True):
        method.setup(worlds.data(seed=seed))
    states = [dict(method.generator.state_dict()) for method in methods]
    assert worlds.same(states[0], states[1]) and not worlds.same(states[0], states[2])
    assert methods[0].generator[0].out_channels == 64  # 8 a pixel of 8


@pytest.mark.parametrize(
    ("options", "key"), [({"norm": "l2"}, "attack.norm"), ({"generator_norm": "layer"}, "generator_norm")], ids=str
)
def test_what_cannot_be_is_refused(options: dict[str, str], key: str) -> None:
    norm = options.pop("norm", "linf")
    with pytest.raises(ConfigError, match=key):
        AdtExpAm(worlds.cnn(), worlds.attack(norm=norm), **options)
