"""Input diversity: the transformation against torch's own resize and pad, and its limits, where it is PGD."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atbench.attacks.gradient.di_fgsm import Diverse, shrinking, transform
from atbench.attacks.gradient.pgd import Pgd
from atbench.errors import ConfigError
from tests.support.targets import Aim, Linear, draws, images

F64 = torch.float64


def diverse(**changes: Any) -> Diverse:
    settings = {"eps": 0.02, "steps": 6, "rel_step_size": 0.25, "probability": 0.5, "rate": 0.6}
    return Diverse("linf", **{**settings, **changes})


def picture(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=F64)


@pytest.mark.parametrize("side", [2, 8, 28])
def test_one_side_against_torch_s_resize_and_pad(side: int) -> None:
    x = picture(1, 3, side, side)
    for small in range(max(1, side - 5), side + 1):
        for offset in (0, side - small):
            matrix = shrinking(side, torch.tensor([float(small)], dtype=F64), torch.tensor([float(offset)], dtype=F64))
            resized = F.interpolate(x, size=(small, small), mode="bilinear", align_corners=False)
            rest = side - small - offset
            expected = F.pad(resized, (offset, rest, offset, rest))
            torch.testing.assert_close(matrix[:, None] @ x @ matrix[:, None].mT, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(8, 8), (12, 20), (1, 1), (3, 1)])
def test_every_example_gets_its_own_size_and_place(shape: tuple[int, int]) -> None:
    """By a slow loop over examples, for square, oblong and tiny images."""
    x, rate = picture(60, 2, *shape), 0.7
    numbers = picture(60, 4)
    sizes = set()
    for row in range(len(x)):
        coin, size, down, across = numbers[row].tolist()
        expected = x[row : row + 1]
        if coin < 0.5:
            least = [max(1, int(rate * side)) for side in shape]
            small = [
                min(low + int(size * (side - low)), max(low, side - 1)) for low, side in zip(least, shape, strict=True)
            ]
            top, left = int(down * (shape[0] - small[0] + 1)), int(across * (shape[1] - small[1] + 1))
            expected = F.interpolate(expected, size=small, mode="bilinear", align_corners=False)
            expected = F.pad(expected, (left, shape[1] - small[1] - left, top, shape[0] - small[0] - top))
            sizes.add((*small, top, left))
        found = transform(x[row : row + 1], numbers[row : row + 1], 0.5, rate)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    assert len(sizes) > 5 or shape in ((1, 1), (3, 1))
    whole = torch.cat([transform(x[i : i + 1], numbers[i : i + 1], 0.5, rate) for i in range(60)])
    torch.testing.assert_close(transform(x, numbers, 0.5, rate), whole, rtol=0, atol=1e-13)


def test_the_largest_random_numbers_stay_on_the_canvas() -> None:
    """U[0, 1) may round to 1: the small image must not lose a row over the edge."""
    x = torch.ones(1, 1, 10, 10)
    found = transform(x, torch.tensor([[0.0, 1.0, 1.0, 1.0]]), 1.0, 0.9)
    assert found.sum().item() == pytest.approx(81.0) and found[0, 0, 1:, 1:].min() == 1


def test_it_is_differentiable() -> None:
    x = picture(3, 1, 5, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: transform(z, picture(3, 4), 0.8, 0.6), (x,))


@pytest.mark.parametrize("changes", [{"probability": 0.0}, {"rate": 1.0}])
@pytest.mark.parametrize("keep", ["first", "last"])
def test_without_diversity_it_is_pgd(changes: dict[str, float], keep: str) -> None:
    network, (x, y) = Linear(), images(Linear())
    options = {"start": "uniform", "momentum": 1.0, "restarts": 2, "return_point": keep}
    found = diverse(**changes, **options)(Aim(network), x, y, draws(len(x)))
    plain = Pgd("linf", 0.02, 6, 0.25, **options)(Aim(network), x, y, draws(len(x)))
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)


def test_success_is_that_of_the_image_itself() -> None:
    """A network that calls every shrunk image wrong: nothing is broken by the transformation alone."""

    class Frame(Linear):
        def forward(self, x: Tensor) -> Tensor:
            black = (x.amin(dim=(1, 2, 3)) == 0)[:, None].double()
            return torch.cat([1 - 2 * black + 0 * x.flatten(1).sum(dim=1, keepdim=True), 0 * black], dim=1)

    network, (x, _) = Frame(), images(Linear())
    y, aim = torch.zeros(len(x), dtype=torch.long), Aim(network)
    found = diverse(probability=1.0, restarts=2)(aim, x, y, draws(len(x)))
    assert (network(found).argmax(dim=1) == y).all()
    # Both restarts ran to their ends: a gradient and a look per step, and a last look.
    assert aim.gradients == 2 * 6 * len(x) and aim.passes == 2 * 13 * len(x)


def test_every_step_and_restart_transforms_anew() -> None:
    network, seen = Linear(), []

    class Watch(Aim):
        def logits(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                seen.append((x[0, 0] == 0).detach().clone())
            return super().logits(x)

    x, y = images(network, 1)
    diverse(eps=1e-4, probability=1.0, rate=0.4, restarts=3, return_point="last")(Watch(network), x, y, draws(1))
    assert len(seen) == 18 and len({tuple(mask.flatten().tolist()) for mask in seen}) > 6


@pytest.mark.parametrize(("key", "value"), [("probability", 1.5), ("rate", 0.0), ("rate", 1.1)])
def test_what_is_no_transformation_is_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"attack.{key}"):
        diverse(**{key: value})
