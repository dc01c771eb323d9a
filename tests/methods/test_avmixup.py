"""AVmixup: the vertex beyond the adversarial image, one share for image and label, and clean training as the limit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.data import Batch
from atbench.methods.avmixup import AvMixup
from atbench.methods.pgd_at import PgdAt
from atbench.methods.standard import Standard
from tests.support import reference, worlds


def make(network: nn.Module | None = None, **options: Any) -> tuple[AvMixup, Batch]:
    given = worlds.data()
    method = AvMixup(network or worlds.cnn(), worlds.attack(bn="batch"), **options)
    worlds.start(method, given)
    return method, given.batch(0, 0)


@pytest.mark.parametrize("gamma", [2.0, 0.5])
def test_images_lie_between_the_clean_one_and_the_vertex(gamma: float) -> None:
    method, batch = make(gamma=gamma)
    plain = PgdAt(worlds.cnn(), worlds.attack(bn="batch"))
    worlds.start(plain, worlds.data())
    x, x_pgd = batch.x, plain.perturb(batch).x_adv
    found, weight = method.perturb(batch), method.weight(batch)
    for i, w in enumerate(weight.tolist()):
        vertex = (x[i] + gamma * (x_pgd[i] - x[i])).clip(0, 1)
        torch.testing.assert_close(found.x_adv[i], w * x[i] + (1 - w) * vertex, rtol=0, atol=1e-14)
    assert torch.equal(found.aux["weight"], weight)
    furthest = float((found.x_adv - x).abs().max())
    assert (gamma <= 1 or furthest > 0.12) and furthest <= gamma * 0.1 + 1e-12


def test_shares_are_uniform_one_an_image_and_new_at_every_step() -> None:
    method, _ = make()
    batch = Batch(torch.zeros(4000, 1, 2, 2, dtype=torch.float64), torch.zeros(4000).long(), torch.arange(4000))
    weight = method.weight(batch)
    assert weight.shape == (4000,) and torch.equal(weight, method.weight(batch))
    bins = (weight * 10).long().bincount(minlength=10) / 4000
    assert len(bins) == 10 and float((bins - 0.1).abs().max()) < 0.02
    method.clock.step = 1
    assert not torch.equal(weight, method.weight(batch))


@pytest.mark.parametrize(("clean", "vertex"), [(1.0, 0.1), (0.5, 0.7)])
def test_loss_is_the_cross_entropy_with_the_mixed_label(clean: float, vertex: float) -> None:
    method, batch = make(clean_share=clean, vertex_share=vertex)
    found = method.perturb(batch)
    logits, slow = method.model(found.x_adv), []
    for z, y, w in zip(logits.tolist(), batch.y.tolist(), found.aux["weight"].tolist(), strict=True):
        label = [
            w * (clean if k == y else (1 - clean) / 2) + (1 - w) * (vertex if k == y else (1 - vertex) / 2)
            for k in range(3)
        ]
        assert sum(label) == pytest.approx(1)
        slow.append(-sum(share * log_p for share, log_p in zip(label, reference.log_softmax(z), strict=True)))
    loss = method.loss(found)
    assert loss.total.item() == pytest.approx(reference.mean(slow), abs=1e-12) and torch.equal(loss.logits, logits)


def test_without_reach_and_smoothing_it_is_clean_training_to_the_bit() -> None:
    given = worlds.data()
    method = AvMixup(worlds.cnn(), worlds.attack(bn="batch"), gamma=0.0, clean_share=1.0, vertex_share=1.0)
    other = Standard(worlds.cnn(), worlds.attack())
    assert worlds.steps(method, given, 4) == worlds.steps(other, given, 4)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(other))


class AtTheVertex(AvMixup):
    def weight(self, batch: Batch) -> Tensor:
        return torch.zeros(len(batch), dtype=batch.x.dtype)


def test_at_the_vertex_with_gamma_one_it_is_pgd_at() -> None:
    given = worlds.data()
    method = AtTheVertex(worlds.cnn(), worlds.attack(), gamma=1.0, vertex_share=1.0)
    other = PgdAt(worlds.cnn(), worlds.attack())
    assert worlds.steps(method, given, 4) == pytest.approx(worlds.steps(other, given, 4), abs=1e-12)


def test_the_attack_has_batch_statistics_and_moves_none() -> None:
    method, batch = make(worlds.cnn(norm="batch"))
    norm: Any = method.model.stages[1][0]  # type: ignore[index,union-attr]
    before = norm.running_mean.clone()
    found = method.perturb(batch)
    assert norm.num_batches_tracked == 0 and torch.equal(norm.running_mean, before)
    norm.running_mean.add_(100)
    assert torch.equal(found.x_adv, method.perturb(batch).x_adv), "running statistics are not used"
    method.loss(found)
    assert norm.num_batches_tracked == 1


def test_contract() -> None:
    method, batch = make()
    batch = worlds.check_pure(method, batch)
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.2)
    worlds.check_ranks(lambda _: make()[0])
    assert method.forward_cost(10) == 23
