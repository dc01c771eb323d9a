"""Adversarial weight perturbation: direction, size, restoration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from atbench.config.instantiate import build
from atbench.methods import Clock, Loss
from atbench.models import attack_mode
from atbench.training.weight_perturbation import Gradients, WeightPerturbation
from tests.support.configs import resolved
from tests.support.contract import ALONE, Log, trainer_of

PLAIN = ("train.optimizer.momentum=0", "train.optimizer.weight_decay=0")


def setting() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).double()
    return model, torch.rand(6, 1, 4, 4, dtype=torch.float64), torch.arange(6) % 2


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y)


def test_size_direction_and_restoration() -> None:
    model, x, y = setting()
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    gradients: dict[str, Tensor] = {}

    def ascend() -> Gradients:
        names = dict(model.named_parameters())
        with attack_mode(model, "batch", freeze=False):
            found = torch.autograd.grad(loss(model, x, y), list(names.values()))
        gradients.update(zip(names, found, strict=True))
        return dict(zip(names.values(), found, strict=True))

    with torch.no_grad():
        start = float(nn.functional.cross_entropy(model.train()(x), y))
    model.load_state_dict(before)
    with WeightPerturbation(gamma=0.01).around(model, ascend, fraction=0.0):
        for name, value in model.named_parameters():
            move = value.detach() - before[name]
            if value.ndim > 1:
                assert torch.isclose(move.norm(), 0.01 * before[name].norm(), rtol=1e-9)
                assert torch.isclose((move * gradients[name]).sum(), move.norm() * gradients[name].norm(), rtol=1e-9), (
                    "along the gradient"
                )
            else:
                assert torch.equal(value, before[name]), "biases and normalisation stay"
        with torch.no_grad():
            assert float(nn.functional.cross_entropy(model(x), y)) > start
        model.load_state_dict(model.state_dict() | {k: v for k, v in before.items() if "running" in k or "num_" in k})
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-15)


@pytest.mark.parametrize("scale", ["layer", "network"])
def test_several_steps_add_up_gradients_each_at_the_weights_moved_so_far(scale: str) -> None:
    model, x, y = setting()
    names = dict(model.named_parameters())
    before = {name: value.detach().clone() for name, value in names.items()}
    large = [name for name, value in names.items() if value.ndim > 1]

    def gradients() -> dict[str, Tensor]:
        with attack_mode(model, "batch", freeze=False):
            found = torch.autograd.grad(loss(model, x, y), list(names.values()))
        return dict(zip(names, found, strict=True))

    way = {name: torch.zeros_like(before[name]) for name in large}
    for _ in range(3):
        found = gradients()
        way = {name: way[name] + found[name] for name in large}
        groups = [[name] for name in large] if scale == "layer" else [large]
        for group in groups:
            of_weights, of_way = (torch.cat([part[name].flatten() for name in group]).norm() for part in (before, way))
            with torch.no_grad():
                for name in group:
                    names[name].copy_(before[name] + 0.3 * way[name] * of_weights / of_way)
    wanted = {name: value.detach().clone() for name, value in names.items()}
    model.load_state_dict({**model.state_dict(), **before})

    part = WeightPerturbation(gamma=0.3, steps=3, scale=scale)
    with part.around(model, lambda: {names[name]: grad for name, grad in gradients().items()}, fraction=0.0):
        for name, value in names.items():
            torch.testing.assert_close(value.detach(), wanted[name], rtol=0, atol=1e-14)
        assert any((wanted[name] - before[name]).norm() > 0.01 for name in large)
    for name, value in names.items():
        torch.testing.assert_close(value.detach(), before[name], rtol=0, atol=1e-14)


def test_it_climbs_what_the_method_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant has no gradient: the weights stay where they are, and the update is the method's own."""
    results = []
    for plus in (("plus=awp", "plus.awp.warmup=0"), ()):
        trainer = trainer_of("standard", ALONE, Log(), *plus, *PLAIN)
        weights = list(trainer.method.model.parameters())
        monkeypatch.setattr(
            trainer.method, "ascent_loss", lambda batch, w=weights: Loss(0 * sum(each.sum() for each in w), {})
        )
        trainer.train_batch()
        results.append(trainer.state()["method"])
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_warm_up_does_nothing() -> None:
    model, _, _ = setting()

    def never() -> Gradients:
        raise AssertionError("no ascent during warm-up")

    with WeightPerturbation(gamma=0.01, warmup=0.5).around(model, never, fraction=0.49):
        pass


def test_it_starts_in_the_authors_epoch() -> None:
    """csdongxian/AWP with TRADES: `epoch >= 10`, epochs counted from 1; here they count from 0."""
    part = build(resolved("plus=awp").plus.awp, "plus.awp")
    model, _, _ = setting()
    asked: list[int] = []
    for epoch, step in ((0, 0), (8, 389), (9, 0), (199, 389)):

        def ascend(epoch: int = epoch) -> Gradients:
            asked.append(epoch)
            return {}

        with part.around(model, ascend, Clock(epochs=200, steps=390, epoch=epoch, step=step).fraction):
            pass
    assert asked == [9, 199]


def test_gamma_0_is_the_method_bit_for_bit() -> None:
    results = []
    for overrides in ((), ("plus=awp", "plus.awp.gamma=0.0", "plus.awp.warmup=0")):
        trainer = trainer_of("trades", ALONE, Log(), "model.norm=batch", *overrides)
        trainer.fit()
        results.append(trainer.state()["method"])
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_the_update_is_the_gradient_at_the_perturbed_weights() -> None:
    """One step of SGD without momentum, by hand: w − lr · ∇L(w + γ·d), nothing added up."""
    overrides = ("plus=awp", "plus.awp.gamma=0.05", "plus.awp.warmup=0", *PLAIN)
    trainer = trainer_of("standard", ALONE, Log(), *overrides)
    model, batch = trainer.method.model, trainer.data.batch(0, 0)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}

    def gradients() -> dict[str, Tensor]:
        found = torch.autograd.grad(trainer.method.loss(batch).total, list(model.parameters()))
        return dict(zip(before, found, strict=True))

    ascent = gradients()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.add_(0.05 * value.norm() * ascent[name] / ascent[name].norm())
    expected = gradients()
    model.load_state_dict({**model.state_dict(), **before})
    trainer.train_batch()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, before[name] - trainer.groups[0].rate * expected[name], rtol=1e-4, atol=1e-6)
