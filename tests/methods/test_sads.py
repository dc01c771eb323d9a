"""SADS: dropout behind every activation, what it leaves alone, and how it fades."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atbench.data import Batch, TrainData
from atbench.errors import ConfigError
from atbench.methods.pgd_at import PgdAt
from atbench.methods.sads import Sads
from atbench.models.activations import activation_modules
from atbench.models.dropout import ScheduledDropout
from tests.support import nets, worlds

ONE_STEP: dict[str, Any] = {"steps": 1, "step_size": 0.1, "start": "zero"}
BLOCKS = ("lenet_madry", "resnet", "resnet_bottleneck", "preact", "wrn")


def make(network: nn.Module | None = None, **options: Any) -> tuple[Sads, Batch]:
    given = worlds.data()
    method = Sads(network or worlds.cnn(), worlds.attack(**ONE_STEP), **options)
    worlds.start(method, given)
    return method, given.batch(0, 0)


@pytest.mark.parametrize("name", BLOCKS)
def test_with_probability_0_a_network_is_what_it_was(name: str) -> None:
    """Outputs, gradients and names of the state, bit for bit; with 0.5 train mode alone is another."""
    plain = nets.small(name)
    dropped = copy.deepcopy(plain)
    inserted = ScheduledDropout(dropped)
    assert list(plain.state_dict()) == list(dropped.state_dict())
    assert len(inserted.places) == len(activation_modules(plain)) > 2
    x = nets.images(max(nets.SMALL[name][2], 8))
    with inserted.active(0.0, worlds.draws()):
        ours, theirs = dropped(x), plain(x)
    assert torch.equal(ours, theirs)
    for a, b in zip(dropped.parameters(), plain.parameters(), strict=True):
        assert torch.equal(
            torch.autograd.grad(ours.sum(), a, retain_graph=True)[0],
            torch.autograd.grad(theirs.sum(), b, retain_graph=True)[0],
        )
    with inserted.active(0.5, worlds.draws()):
        assert torch.equal(dropped.eval()(x), plain.eval()(x))
        dropped.train()
        plain.train()
        assert not torch.equal(dropped(x), plain(x))
    dropped.load_state_dict(plain.state_dict())
    assert torch.equal(dropped(x), plain(x)), "outside of the block there is none"


def test_channels_are_dropped_as_a_whole_and_values_behind_linear_layers() -> None:
    """By the share of p, the rest divided by 1 − p; a module that is used twice draws twice."""
    relu = nn.ReLU()
    inserted = ScheduledDropout(nn.Sequential(relu))
    maps, rows = torch.ones(50, 40, 3, 3, dtype=torch.float64), torch.ones(50, 40, dtype=torch.float64)
    with inserted.active(0.3, worlds.draws()):
        seen, again, flat = relu(maps), relu(maps), relu(rows)
    for found in (seen, again, flat):
        assert sorted(found.unique().tolist()) == pytest.approx([0.0, 1 / 0.7], rel=1e-12)
        assert (found == 0).double().mean().item() == pytest.approx(0.3, abs=0.04)
    assert torch.equal(seen, seen[:, :, :1, :1].expand_as(seen)) and not torch.equal(seen, again)


def test_the_probability_falls_to_0() -> None:
    method, _ = make(dropout=0.8, decay=0.75)
    method.clock.epochs, method.clock.steps, found = 10, 4, []
    for epoch, step in ((0, 0), (2, 2), (7, 1), (7, 2), (9, 3)):
        method.clock.epoch, method.clock.step = epoch, step
        found.append(method.probability)
    assert found == pytest.approx([0.8, 0.8 * (1 - 0.25 / 0.75), 0.8 * (1 - 0.725 / 0.75), 0, 0], abs=1e-12)
    assert found[-2:] == [0, 0]


def test_the_update_has_dropout_and_the_attack_has_none() -> None:
    method, batch = make(dropout=0.6)
    plain = PgdAt(worlds.cnn(), worlds.attack(**ONE_STEP))
    worlds.start(plain, worlds.data())
    found, other = method.perturb(batch), plain.perturb(batch)
    assert torch.equal(found.x_adv, other.x_adv)
    assert method.loss(found).total != plain.loss(other).total
    method.attack.bn = "train"
    assert not torch.equal(method.perturb(batch).x_adv, other.x_adv), "in train mode the attack has it too"


def test_steps_have_masks_of_their_own() -> None:
    method, batch = make(dropout=0.6)
    found = method.perturb(batch)
    first = method.loss(found).total
    method.clock.step = 1
    second = method.loss(found).total
    method.clock.step = 0
    assert first != second and method.loss(found).total == first


def test_without_dropout_it_is_fgsm_training_to_the_bit() -> None:
    given = worlds.data()
    method, other = Sads(worlds.cnn(), worlds.attack(**ONE_STEP), 0.0), PgdAt(worlds.cnn(), worlds.attack(**ONE_STEP))
    assert worlds.steps(method, given, 8) == worlds.steps(other, given, 8)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(other))


def test_a_network_without_activation_modules_is_refused() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1)).relu()

    with pytest.raises(ConfigError, match=r"model: Functional .* no activation modules"):
        make(Functional())


def test_contract() -> None:
    method, batch = make()
    worlds.check_pure(method, batch)

    def fresh(given: TrainData) -> Sads:
        return Sads(worlds.cnn(), worlds.attack(**ONE_STEP))

    worlds.check_ranks(fresh)
    worlds.check_resume(lambda: Sads(worlds.cnn(), worlds.attack(**ONE_STEP)), worlds.data())
