"""Robust optimisation as its YAML sets it: one step of the whole radius in three norms, in training mode."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from atbench.attacks import GradientAttack
from atbench.config.instantiate import build
from atbench.data import Batch
from atbench.methods.fgsm_at import FgsmAt
from atbench.methods.pgd_at import PgdAt
from tests.support import reference, worlds
from tests.support.configs import resolved

DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}


def attack(*words: str) -> GradientAttack:
    """The attack of the method's YAML."""
    cfg = resolved("method=shaham_ro", *words)
    assert cfg.method._target_ == "atbench.methods.pgd_at.PgdAt"
    built: GradientAttack = build(cfg.attack, "attack")
    return built


def perturbed(norm: str, eps: float, network: Any = worlds.cnn) -> tuple[PgdAt, Batch]:
    given = worlds.data(worlds.source(inset=0.25))
    method = PgdAt(network(), attack(f"attack.norm={norm}", f"attack.eps={eps}"))
    worlds.start(method, given)
    return method, method.perturb(given.batch(0, 0))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_step_has_the_radius_and_gains_what_the_dual_norm_says(norm: str) -> None:
    method, batch = perturbed(norm, 1e-5)
    delta = batch.x_adv - batch.x
    lengths = method.attack.ball.norm(delta)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 1e-5), rtol=0, atol=1e-13)
    for i in range(len(batch)):
        x, y = batch.x[i : i + 1].clone().requires_grad_(), batch.y[i : i + 1]
        (grad,) = torch.autograd.grad(-method.model(x).log_softmax(dim=1)[0, y[0]], x)
        before = reference.ce(method.model(batch.x[i : i + 1]), y)[0]
        gain = reference.ce(method.model(batch.x_adv[i : i + 1]), y)[0] - before
        assert gain == pytest.approx(1e-5 * float(grad.flatten().norm(p=DUAL[norm])), rel=1e-2)


def test_in_l1_it_moves_one_pixel_and_gives_what_the_box_leaves_to_the_next() -> None:
    _, batch = perturbed("l1", 0.2)
    assert bool(((batch.x_adv != batch.x).flatten(1).sum(dim=1) == 1).all())
    _, batch = perturbed("l1", 2.0)
    delta = (batch.x_adv - batch.x).flatten(1)
    torch.testing.assert_close(delta.abs().sum(dim=1), torch.full((12,), 2.0, dtype=torch.float64), rtol=0, atol=1e-12)
    inside = (batch.x_adv - 0.5).abs().flatten(1) < 0.5 - 1e-12
    assert int(((delta != 0) & inside).sum(dim=1).max()) == 1 and int((delta != 0).sum(dim=1).min()) > 1


def test_in_linf_it_is_fgsm_training_without_clean_images_to_the_bit() -> None:
    given = worlds.data()
    method, other = PgdAt(worlds.cnn(), attack()), FgsmAt(worlds.cnn(), attack(), clean=0.0)
    assert worlds.steps(method, given, 8) == worlds.steps(other, given, 8)
    assert worlds.same(worlds.snapshot(method), worlds.snapshot(other))


def test_the_network_stays_in_training_mode_while_it_is_attacked() -> None:
    method, batch = perturbed("linf", 0.1, partial(worlds.cnn, norm="batch"))
    norm, stem = method.model.stages[1][0], method.model.stages[0]
    with torch.no_grad():
        mean = stem(method.model.normalise(batch.x)).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, 0.1 * mean, rtol=0, atol=1e-12)


def test_the_paper_s_radii_are_of_padded_digits() -> None:
    """Zeros around 28×28 digits of mean 0.1307 and deviation 0.3081 shrink the deviation, and with it every radius."""
    share = 28**2 / 32**2
    mean = share * 0.1307
    deviation = (share * (0.3081**2 + 0.1307**2) - mean**2) ** 0.5
    for norm, radius in (("linf", 0.2), ("l2", 2.0), ("l1", 2.0)):
        words = [] if norm == "linf" else [f"attack.norm={norm}", "attack.eps=0.5504"]
        cfg = resolved("experiment=paper/shaham_ro", *words)
        assert cfg.attack.eps == cfg.attack.step_size == pytest.approx(radius * deviation, rel=1e-3)
        assert cfg.dataset.source.std == pytest.approx([deviation], rel=1e-3)
        assert cfg.dataset.source.mean == pytest.approx([mean], rel=1e-3) and cfg.dataset.source.pad == 2
