"""Gradients from differences of outputs: exact on a linear network, their steps traced, their queries counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atbench.attacks import margin
from atbench.attacks.black_box.spsa_nes import NES, SPSA, GradientEstimation
from atbench.errors import ConfigError
from tests.support.targets import Aim, Linear, distance, draws, images

BOTH = [SPSA, NES]


@pytest.mark.parametrize("kind", BOTH)
def test_the_estimate_is_the_gradient(kind: type[GradientEstimation]) -> None:
    """The margin of two classes is linear: a slope is exact, and many of them add up to w."""
    network = Linear(classes=2)
    x, y = images(network, n=4)
    w = network.head.weight[1 - y] - network.head.weight[y]
    attack = kind("linf", 0.1, samples=4096)
    v = attack.noise(draws(4), x.new_empty(4, 3, *x.shape[1:]))
    exact = torch.einsum("bd,bnd->bn", w, v.flatten(2))
    torch.testing.assert_close(attack.slopes(Aim(network), x[:, None], v, y), exact)
    grad = attack.gradient(Aim(network), x, y, draws(4), at_once=64).flatten(1)
    assert (torch.cosine_similarity(grad, w) > 0.97).all()  # 1 / sqrt(1 + 36/2048) = 0.991 is expected
    torch.testing.assert_close(grad.norm(dim=1), w.norm(dim=1), rtol=0.1, atol=0)


def test_noise_is_what_the_papers_draw() -> None:
    like = torch.empty(64, 8, 1, 6, 6)
    spsa, nes = SPSA("linf", 0.1).noise(draws(64), like), NES("linf", 0.1).noise(draws(64), like)
    assert set(spsa.unique().tolist()) == {-1.0, 1.0} and spsa.mean().abs() < 0.02
    assert nes.mean().abs() < 0.02 and (nes.std() - 1).abs() < 0.02 and nes.abs().max() > 3


def test_spsa_steps_as_adam_does() -> None:
    attack = SPSA("linf", 0.1, rel_step_size=0.5)
    torch.manual_seed(0)
    grads = torch.randn(6, 2, 1, 3, 3, dtype=torch.float64)
    x = torch.zeros_like(grads[0]).requires_grad_()
    adam = torch.optim.Adam([x], lr=0.05, maximize=True)
    moved, memory = torch.zeros_like(grads[0]), torch.zeros(2, *grads[0].shape, dtype=grads.dtype)
    for step, grad in enumerate(grads, start=1):
        x.grad = grad.clone()
        adam.step()
        move, memory = attack.step(grad, memory, step)
        moved += move
        torch.testing.assert_close(moved, x.detach())


def test_nes_follows_the_average_of_its_gradients() -> None:
    """μ = 0.9 and gradients 1, −0.5, −0.5: averages 0.1, 0.04, −0.014, so two steps up and one down."""
    attack = NES("linf", 0.1, rel_step_size=0.2, momentum=0.9)
    memory, averages, moves = torch.zeros(2, 1, 1, 1, 1), [], []
    for step, grad in enumerate((1.0, -0.5, -0.5), start=1):
        move, memory = attack.step(torch.full((1, 1, 1, 1), grad), memory, step)
        averages.append(memory[0].item())
        moves.append(move.item())
    assert averages == pytest.approx([0.1, 0.04, -0.014]) and moves == pytest.approx([0.02, 0.02, -0.02])


@pytest.mark.parametrize("kind", BOTH)
def test_queries_are_images_and_counted(kind: type[GradientEstimation]) -> None:
    sent: list[Tensor] = []

    class Watched(Aim):
        def logits(self, x: Tensor) -> Tensor:
            sent.append(x)
            return super().logits(x)

    network = Linear()
    x, y = images(network, n=6, low=0.0, high=1.0)
    aim = Watched(network)
    kind("linf", 1e-7, steps=3, samples=20)(aim, x, y, draws(6))
    assert aim.passes == 6 * 3 * 21 and aim.gradients == 0
    assert all(part.min() >= 0 and part.max() <= 1 for part in sent)

    aim = Watched(network)
    kind("linf", 1e-7, steps=50, samples=20)(aim, x, (y + 1) % 5, draws(6))
    assert aim.passes == 6 * 21, "what is broken is asked no more"


@pytest.mark.parametrize("kind", BOTH)
def test_no_pass_takes_more_images_than_allowed(kind: type[GradientEstimation]) -> None:
    sizes: list[int] = []

    class Watched(Aim):
        def logits(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().logits(x)

    network = Linear()
    for n in (3, 100):
        x, y = images(network, n=n)
        sizes.clear()
        kind("linf", 1e-7, steps=1, samples=128)(Watched(network), x, y, draws(n))
        assert max(sizes) <= 2 * max(n, kind.AT_ONCE)


@pytest.mark.parametrize(("kind", "norm"), [(SPSA, "linf"), (NES, "linf"), (NES, "l2")])
def test_they_break_what_is_well_within_reach_and_nothing_else(kind: type[GradientEstimation], norm: str) -> None:
    network = Linear()
    x, y = images(network, n=24)
    far = distance(network, x, y, norm)
    eps = 1.5 * float(far.median())
    x_adv = kind(norm, eps, steps=40, samples=100)(Aim(network), x, y, draws(24))
    broken = margin(network(x_adv), y) > 0
    assert broken[far <= eps / 1.5].all() and not broken[far > eps * (1 + 1e-9)].any()


@pytest.mark.parametrize("samples", [0, 1, 7])
def test_odd_numbers_of_samples_are_refused(samples: int) -> None:
    with pytest.raises(ConfigError, match=r"attack\.samples"):
        SPSA("linf", 0.1, samples=samples)
