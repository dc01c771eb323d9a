"""Adversarial interpolation: the partner, the step towards its features, the label away from its label."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.data import Batch
from atbench.errors import ConfigError
from atbench.methods.ait import Ait
from atbench.methods.standard import Standard
from atbench.models import Ensemble
from tests.support import reference, worlds

ONE_STEP: dict[str, Any] = {"steps": 1, "step_size": 0.1, "start": "uniform", "clip_start": False}


def make(network: nn.Module | None = None, eps_y: float = 0.5, **attack: Any) -> tuple[Ait, Batch]:
    given = worlds.data()
    method = Ait(network or worlds.cnn(), worlds.attack(**{**ONE_STEP, **attack}), eps_y)
    worlds.start(method, given)
    return method, given.batch(0, 0)


def slow_distance(a: Tensor, b: Tensor) -> Tensor:
    return 1 - (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()


def test_one_step_towards_the_features_of_the_reversed_batch() -> None:
    method, batch = make()
    start = batch.x + 0.1 * method.rng().uniform(batch.x)
    assert float(start.min()) < 0 or float(start.max()) > 1, "not clipped to the box"
    features, found = method.network.features, method.perturb(batch)
    for i in range(12):
        x, x_partner = start[i : i + 1].clone().requires_grad_(), batch.x[11 - i : 12 - i]
        distance = slow_distance(features(x), features(x_partner).detach())
        (grad,) = torch.autograd.grad(distance, x)
        ahead = x.detach() - 0.1 * grad.sign()
        centre = batch.x[i : i + 1]
        ahead = torch.max(torch.min(ahead, centre + 0.1), centre - 0.1).clip(0, 1)
        torch.testing.assert_close(found.x_adv[i : i + 1], ahead, rtol=0, atol=1e-14)
    assert torch.equal(found.aux["y_partner"], batch.y.flip(0))


def test_a_short_step_comes_closer_and_knows_no_labels() -> None:
    method, batch = make(start="zero", step_size=0.001)
    found, features = method.perturb(batch), method.network.features
    others = features(batch.x.flip(0))
    for i in range(12):
        assert slow_distance(features(found.x_adv)[i], others[i]) < slow_distance(features(batch.x)[i], others[i])
    other = Batch(batch.x, (batch.y + 1) % 3, batch.index)
    assert torch.equal(found.x_adv, method.perturb(other).x_adv)


@pytest.mark.parametrize("eps_y", [0.5, 0.9])
def test_loss_is_the_cross_entropy_with_the_label_away_from_the_partner_s(eps_y: float) -> None:
    method, batch = make(eps_y=eps_y)
    found = method.perturb(batch).with_adv(y_partner=(batch.y + torch.arange(12) % 2) % 3)
    logits, slow = method.model(found.x_adv), []
    rows = zip(logits.tolist(), batch.y.tolist(), found.aux["y_partner"].tolist(), strict=True)
    for z, y, y_partner in rows:
        label = [(1 - eps_y) * (k == y) + eps_y * (k != y_partner) / 2 for k in range(3)]
        assert sum(label) == pytest.approx(1) and (y == y_partner or label[y_partner] == 0)
        slow.append(-sum(share * log_p for share, log_p in zip(label, reference.log_softmax(z), strict=True)))
    loss = method.loss(found)
    assert loss.total.item() == pytest.approx(reference.mean(slow), abs=1e-12) and torch.equal(loss.logits, logits)


def test_without_radius_and_eps_y_it_is_clean_training_to_the_bit() -> None:
    given = worlds.data()
    method = Ait(worlds.cnn(), worlds.attack(**{**ONE_STEP, "eps": 0.0, "step_size": 0.0}), eps_y=0.0)
    other = Standard(worlds.cnn(), worlds.attack())
    assert worlds.steps(method, given, 4) == worlds.steps(other, given, 4)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(other))


def test_the_middle_image_of_an_odd_batch_is_its_own_partner() -> None:
    method, batch = make()
    odd = Batch(batch.x[:5], batch.y[:5], batch.index[:5])
    assert method.perturb(odd).aux["y_partner"][2] == batch.y[2]


def test_the_attack_has_running_statistics_which_move_once_a_batch() -> None:
    method, batch = make(worlds.cnn(norm="batch"))
    norm: Any = method.network.stages[1][0]  # type: ignore[index]
    found = method.perturb(batch)
    assert norm.num_batches_tracked == 0
    norm.running_mean.normal_(generator=torch.Generator().manual_seed(0))
    assert not torch.equal(found.x_adv, method.perturb(batch).x_adv), "running statistics are used"
    method.loss(found)
    assert norm.num_batches_tracked == 1


def test_a_network_without_stages_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model: Ensemble .* model\.members=1"):
        make(Ensemble([worlds.linear(), worlds.linear()]))


def test_contract() -> None:
    method, batch = make()
    batch = worlds.check_pure(method, batch)
    assert worlds.legal(method.attack, batch.x, batch.x_adv, 0.1)
    assert set(worlds.snapshot(method)) == {f"model.{name}" for name in method.model.state_dict()}
    assert method.forward_cost(1) == 6
