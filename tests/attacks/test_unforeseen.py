"""Distortions: legal, the identity where they must be, independent of the batch; Frank-Wolfe against enumeration."""

from __future__ import annotations

import itertools
from math import sqrt

import pytest
import torch

from atbench.attacks.losses import likelihood, wrong_classes
from atbench.attacks.unforeseen.distortion import search
from atbench.attacks.unforeseen.kinds import DISTORTIONS
from atbench.attacks.unforeseen.pixels import vertex
from atbench.runs.seeding import ExampleDraws
from tests.support.distortions import LARGE, Net, Target, made

#: ε, small and large.
SIZES = {
    "linf": (1, 32), "l2": (40, 2560), "l1": (195, 24960), "jpeg_linf": (0.03, 1), "jpeg_l2": (0.25, 8),
    "jpeg_l1": (2, 1024), "elastic": (0.125, 8), "fog": (128, 8192), "snow": (0.0625, 8), "gabor": (6.25, 1600),
}  # fmt: skip


def classes(n: int = 3) -> torch.Tensor:
    return torch.arange(n) % 4


@pytest.mark.parametrize("name", DISTORTIONS)
def test_what_a_search_finds_is_legal_and_worse_than_its_start(name: str) -> None:
    target = Target(Net())
    for eps in SIZES[name]:
        distortion = made(name, eps)
        z = search(distortion, target, classes(), 4)
        image = distortion.image(z)
        assert bool(distortion.inside(z).all()) and bool(((image >= 0) & (image <= 1)).all())
        # What is kept is float32.
        assert bool(distortion.inside(z.float().double()).all())
        if name not in LARGE:  # their steps are short
            before, after = (
                likelihood(target.logits(i), classes()) for i in (distortion.image(distortion.start()), image)
            )
            assert bool((after > before).all())


@pytest.mark.parametrize("name", DISTORTIONS)
def test_outside_its_set_is_found_out(name: str) -> None:
    distortion = made(name, SIZES[name][0])
    z = search(distortion, Target(Net()), classes(), 2)
    for wrong in (100 * z.abs().amax() + 100, torch.nan):
        spoilt = z.clone()
        spoilt[1].view(-1)[:] = wrong
        assert distortion.inside(spoilt).tolist() == [True, False, True]


@pytest.mark.parametrize("name", DISTORTIONS)
def test_without_size_it_is_the_image(name: str) -> None:
    distortion = made(name, 0.0)
    assert torch.equal(distortion.image(distortion.start()), distortion.x)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_an_example_does_not_depend_on_its_batch(name: str) -> None:
    eps, target = SIZES[name][0], Target(Net())
    together = made(name, eps)
    image = together.image(search(together, target, classes(), 2))
    alone = DISTORTIONS[name](together.x[1:2], eps, ExampleDraws(0, "test", index=torch.tensor([1])))
    assert torch.allclose(alone.image(search(alone, target, classes()[1:2], 2)), image[1:2], atol=1e-9)
    assert not torch.allclose(image, made(name, eps, seed=1).image(made(name, eps, seed=1).start()))


def test_wrong_classes_are_wrong_and_all_of_them_come() -> None:
    y = torch.arange(3000) % 3
    drawn = wrong_classes(y, 3, ExampleDraws(0, index=torch.arange(len(y))).uniform(y.float()))
    assert not bool((drawn == y).any()) and int(drawn.min()) == 0 and int(drawn.max()) == 2
    share = ((drawn - y) % 3 == 1).double().mean()
    assert abs(float(share) - 0.5) < 0.03
    assert wrong_classes(torch.tensor([0, 1]), 2, torch.tensor([-1.0, 1.0])).tolist() == [1, 0]


def test_frank_wolfes_vertex_is_the_best_point_of_ball_and_box() -> None:
    """Against every order of filling pixels: the linear programme has its optimum at one of them."""
    rng = torch.Generator().manual_seed(4)
    x, grad = (torch.rand(6, 1, 2, 2, dtype=torch.float64, generator=rng) for _ in range(2))
    grad = grad - 0.5
    for radius in (0.3, 1.1, 9.0):
        found = vertex(x, grad, radius)
        for pixels, slope, v in zip(x.flatten(1), grad.flatten(1), found.flatten(1), strict=True):
            best = 0.0
            for order in itertools.permutations(range(4)):
                left, value = radius, 0.0
                for j in order:
                    move = min(left, float(1 - pixels[j] if slope[j] > 0 else pixels[j]))
                    left, value = left - move, value + move * abs(float(slope[j]))
                best = max(best, value)
            assert float(v @ slope) == pytest.approx(best, rel=1e-12)
            assert float(v.abs().sum()) <= radius * (1 + 1e-12)
            assert bool(((pixels + v >= -1e-15) & (pixels + v <= 1 + 1e-15)).all())


def test_frank_wolfe_averages_its_vertices() -> None:
    distortion = made("l1", 780)
    grads = [torch.randn(distortion.x.shape, dtype=torch.float64) for _ in range(3)]
    z = distortion.start()
    for number, grad in enumerate(grads):
        z = distortion.step(z, grad, 3, number)
    mean = sum(vertex(distortion.x, grad, 780 / 255) for grad in grads) / 3
    assert torch.allclose(z, torch.as_tensor(mean), atol=1e-14)


def test_steps_are_as_long_as_the_authors() -> None:
    assert made("linf", 8).size(200) == pytest.approx(0.565685424949238)
    assert made("elastic", 0.125).size(200) == pytest.approx(0.008838834764831844)
    assert made("fog", 4096).size(200) == made("snow", 2).size(200) == pytest.approx(0.002236, abs=1e-6)
    z = torch.zeros(3, 2, 32, 32, dtype=torch.float64)
    assert torch.allclose(made("elastic", 8).step(z, z - 1, 200, 0), torch.full_like(z, -8 / sqrt(200)))


@pytest.mark.parametrize(
    ("name", "shape", "defined"),
    [
        ("jpeg_linf", (3, 32, 48), True), ("jpeg_l1", (3, 24, 32), False), ("jpeg_l2", (1, 32, 32), False),
        ("elastic", (1, 28, 28), True), ("elastic", (3, 32, 48), False), ("fog", (3, 224, 224), True),
        ("fog", (3, 32, 32), False), ("snow", (3, 224, 224), True), ("snow", (3, 72, 72), False),
        ("gabor", (1, 224, 224), False), ("gabor", (3, 64, 64), True), ("l1", (1, 8, 8), True),
    ],
)  # fmt: skip
def test_what_images_an_attack_is_defined_for(name: str, shape: tuple[int, int, int], defined: bool) -> None:
    why = DISTORTIONS[name].refusal(shape)
    assert (why is None) == defined
    if why is None:  # and it is
        distortion = DISTORTIONS[name](torch.full((1, *shape), 0.5), 1.0, ExampleDraws(0, index=torch.arange(1)))
        assert distortion.image(distortion.start()).shape == (1, *shape)
