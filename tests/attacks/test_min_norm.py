"""What minimum-norm attacks share: the nearest so far, the order of the classes, linearised boundaries."""

from __future__ import annotations

import pytest
import torch

from atbench.attacks import ball
from atbench.attacks.min_norm.base import NearestAdversarial, dual_norm, nearest_boundary, others
from tests.support.targets import DUAL, Linear, distance, images


def test_only_misclassified_and_nearer_images_are_kept() -> None:
    x = torch.full((4, 1, 1, 2), 0.5)
    nearest = NearestAdversarial(ball("l2"), x)
    assert torch.equal(nearest.image, x) and nearest.distance.isinf().all()
    nearest.offer(x + 0.3, torch.tensor([True, False, True, True]))
    nearest.offer(x[2:] + torch.tensor([0.1, 0.4]).view(2, 1, 1, 1), torch.tensor([True, True]), torch.tensor([2, 3]))
    nearest.offer(x[2:] + 0.05, torch.tensor([False, False]), torch.tensor([2, 3]))
    shift = torch.tensor([0.3, 0.0, 0.1, 0.3])
    torch.testing.assert_close(nearest.image, x + shift.view(4, 1, 1, 1))
    expected = torch.where(shift > 0, shift * 2**0.5, torch.inf)
    torch.testing.assert_close(nearest.distance, expected)


def test_other_classes_come_by_their_logits() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 5.0, 7.0, 6.0]])
    y = torch.tensor([0, 3])
    assert others(logits, y, 2).tolist() == [[2, 1], [2, 1]]
    assert others(logits, y, 9).tolist() == [[2, 1, 3], [2, 1, 0]]


@pytest.mark.parametrize("p", [1.0, 2.0, float("inf")])
def test_dual_norm_is_what_a_unit_step_gains(p: float) -> None:
    w = torch.tensor([[[[3.0, -4.0]]]], dtype=torch.float64)
    angle = torch.linspace(0, 6.28318, 20001, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    gains = circle / circle.norm(p=p, dim=1, keepdim=True) @ w.flatten()
    torch.testing.assert_close(dual_norm(w, p), gains.max()[None], rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_nearest_boundary_of_a_linear_network(norm: str) -> None:
    network = Linear()
    x, y = images(network)
    leaf = x.clone().requires_grad_()
    logits = network(leaf)
    gap, normal = nearest_boundary(leaf, logits, y, others(logits, y, 9), ball(norm).p)
    far = gap.abs() / normal.flatten(1).norm(p=DUAL[norm], dim=1)
    torch.testing.assert_close(far, distance(network, x, y, norm), rtol=1e-9, atol=0)
    # The plane that is returned is that class's: on it, its logit equals y's.
    flat = normal.flatten(1)
    on = x.flatten(1) - gap[:, None] * flat / flat.square().sum(dim=1, keepdim=True)
    z = network(on.view_as(x))
    level = z - z.gather(1, y[:, None])
    assert (level.abs() < 1e-9).sum(dim=1).eq(2).all()
