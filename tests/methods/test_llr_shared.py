"""LLR's loss and gradient at the clean images: computed by the search, and used by the loss where that is the same."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atbench.bench.steps import operations as cost
from atbench.data import Batch
from atbench.methods.llr import Llr
from atbench.models import attack_mode
from atbench.training.cost import Count
from tests.support import worlds

LINEARITY, SLOPE = 4.0, 3.0


def make(norm: str = "none", dtype: torch.dtype = torch.float64, scale: float = 2.0) -> tuple[Llr, Batch]:
    """LLR on a network whose loss bends."""
    network = worlds.cnn(activation="softplus", norm=norm).to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale if parameter.ndim > 1 else 1.0)
    given = worlds.data(worlds.source(inset=0.25), dtype=dtype)
    attack = worlds.attack(rule="adam", bn="fixed", step_size=0.1)
    method = Llr(network, attack, linearity=LINEARITY, slope=SLOPE, warmup=0.0)
    worlds.start(method, given)
    return method, given.batch(0, 0)


def by_hand(network: nn.Module, batch: Batch) -> Tensor:
    """The formula on a network without normalisation, with nothing of the search."""
    x = batch.x.clone().requires_grad_()
    value = F.cross_entropy(network(x), batch.y, reduction="none")
    (grad,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    ahead = F.cross_entropy(network(batch.x_adv), batch.y, reduction="none")
    foretold = ((batch.x_adv - batch.x) * grad).sum(dim=(1, 2, 3))
    return (value + LINEARITY * (ahead - value - foretold).abs() + SLOPE * foretold.abs()).mean()


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_what_the_search_hands_on_is_what_the_loss_would_compute(norm: str) -> None:
    """Loss, gradients and running statistics; used once, since a graph serves one backward pass."""
    method, batch = make(norm)
    batch = method.perturb(batch)
    again, twin = Batch(batch.x, batch.y, batch.index, x_adv=batch.x_adv), copy.deepcopy(method)
    total, expected = method.loss(batch).total, twin.loss(again).total
    assert "clean" not in batch.aux
    assert torch.equal(total, expected)
    if norm == "none":
        torch.testing.assert_close(total, by_hand(twin.model, again), rtol=0, atol=1e-12)
    grads, theirs = (torch.autograd.grad(loss, list(m.parameters())) for loss, m in ((total, method), (expected, twin)))
    assert float(grads[0].abs().max()) > 0
    for grad, other in zip(grads, theirs, strict=True):
        torch.testing.assert_close(grad, other, rtol=0, atol=1e-12)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(twin))
    method.loss(batch).total.backward()  # a second one makes a graph of its own


def test_weights_that_moved_after_the_search_make_a_graph_of_their_own() -> None:
    method, batch = make()
    batch = method.perturb(batch)
    with torch.no_grad():
        method.model.head.bias[0] += 0.5  # saved by no operation: autograd would not notice
    expected = by_hand(method.model, batch)
    torch.testing.assert_close(method.loss(batch).total, expected, rtol=0, atol=1e-12)


def test_awp_holds_the_running_statistics_and_moves_them_with_the_update() -> None:
    """The ascent uses what the search has left, at the same weights; the update computes it at the moved ones."""
    method, batch = make("batch")
    before, batch = worlds.snapshot(method), method.perturb(batch)
    with attack_mode(method, "batch", freeze=False):
        method.loss(batch).total.backward()
    assert worlds.same(before, worlds.snapshot(method))
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.01 * parameter.grad)
    twin = copy.deepcopy(method.model).train()
    method.loss(batch).total.backward()
    twin(batch.x)
    assert worlds.same(dict(method.model.state_dict()), dict(twin.state_dict()))


def test_the_loss_differentiates_nothing_that_autocast_has_rounded() -> None:
    method, batch = make("batch", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = method.perturb(batch)
    again = Batch(batch.x, batch.y, batch.index, x_adv=found.x_adv)
    assert torch.equal(method.loss(found).total, copy.deepcopy(method).loss(again).total)


def test_cost_is_the_floor() -> None:
    method, batch = make()
    with Count() as count, torch.no_grad():
        method.model(batch.x)
    assert method.forward_cost(10) == 29
    assert 0.9 * method.forward_cost(3) <= cost(method, batch) / count.total <= 1.02 * method.forward_cost(3)
